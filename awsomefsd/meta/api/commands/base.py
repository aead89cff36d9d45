"""The base of every command: an array of fields behind a tag."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct


class Command(Struct, array_like=True, gc=False):
    """Base of all commands.  `since`: the level of the first build that knows it (base/levels.py)."""

    since: ClassVar[int] = 1
