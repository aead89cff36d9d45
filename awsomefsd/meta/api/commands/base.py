"""The base of every command: an array of fields behind a tag."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct


class Command(Struct, array_like=True, gc=False):
    """Base of all commands.  `since`: the level of the first build that knows it (base/levels.py)."""

    since: ClassVar[int] = 1

    def level_needed(self) -> int:
        """Returns the lowest level at which every node knows all of it: that of the command, or of a later field that it uses."""
        return self.since
