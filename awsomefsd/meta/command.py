"""The base of every command: an array of fields behind a tag."""

from __future__ import annotations

from msgspec import Struct


class Command(Struct, array_like=True, gc=False):
    """Base of all commands."""
