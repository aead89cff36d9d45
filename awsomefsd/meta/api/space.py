"""Arithmetic of space that the rules of the metadata, collection and administration share.  Pure."""

from __future__ import annotations

FOOTER_SHARE = 64  # one part in so many of a segment is kept for its footer


def usable_bytes(segment_bytes: int) -> int:
    """Returns the bytes of a segment that data can fill.  The rest is kept for the footer."""
    return segment_bytes - segment_bytes // FOOTER_SHARE
