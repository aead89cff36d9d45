"""The base of every request and reply: an array of fields behind a tag."""

from __future__ import annotations

from msgspec import Struct


class Message(Struct, array_like=True, gc=False):
    pass
