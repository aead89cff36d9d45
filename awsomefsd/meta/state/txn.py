"""The seam between the machine and what stores its rows: five verbs over ordered byte keys.

Production is one long-lived LMDB write transaction (meta/replica/store.py); tests use a sorted dict.  The machine never mutates while a
scan of its own is open: it takes what it needs into a list first, because a cursor over a changing tree means something else in every
store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

KEY_BYTES_MAX = 511  # LMDB's limit


class Txn(Protocol):
    """The rows under their keys.  One thread uses it; methods may block for the store's pages."""

    def get(self, key: bytes) -> bytes | None:
        """Returns the value, or None."""

    def put(self, key: bytes, value: bytes) -> None:
        """Inserts or overwrites a pair."""

    def delete(self, key: bytes) -> bool:
        """Deletes a key.  Returns True if it was there."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields (key, value) with start <= key < end, ascending; the caller may stop early and changes nothing meanwhile."""

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Returns the last (key, value) with start <= key < end, or None."""
