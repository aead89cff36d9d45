"""Log commands about devices that are in the pool; part of commands.py.  pool.py has their rules."""

from __future__ import annotations

from typing import ClassVar

from awsomefsd.meta.command import Command

LEVEL = 2


class GrowDevice(Command, tag=130):
    """The device has become larger, and its superblocks say so already: segments are added behind the last one.  Harmless when repeated."""

    since: ClassVar[int] = LEVEL
    device: int
    bytes: int
    segments: int


class DrainDevice(Command, tag=131):
    """Nothing is leased there any more, and collection moves away what lives there; `draining` false takes that back.

    ENOSPC if its kind of devices could not keep what is promised to writers without it.
    """

    since: ClassVar[int] = LEVEL
    device: int
    draining: bool


class RemoveDevice(Command, tag=132):
    """A drained, empty device leaves the pool: ENOTEMPTY otherwise.

    The rows of its segments go, `count` at most: answered by Made with how many are left.
    """

    since: ClassVar[int] = LEVEL
    device: int
    count: int
