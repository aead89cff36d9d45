"""Commands about devices; meta/machine/devices.py has their rules."""

from __future__ import annotations

from typing import ClassVar

from awsomefsd.meta.api.commands.base import Command

LEVEL = 2
LEVEL_OF_ABSENCE = 3


class GrowDevice(Command, tag=130):
    """The device has become larger, and its superblocks say so already: segments are added behind the last one.  Harmless when repeated."""

    since: ClassVar[int] = LEVEL
    device: int
    bytes: int
    segments: int


class DrainDevice(Command, tag=131):
    """Nothing is leased there any more, and collection moves away what lives there; `draining` false takes that back.

    ENOSPC if its kind of devices could not keep what is promised to writers without it.  Whether the mirrors of a device of a pool find
    places elsewhere is not asked here: DrainPoolDevices begins drains there, and this one only where the node has been removed.
    """

    since: ClassVar[int] = LEVEL
    device: int
    draining: bool


class RemoveDevice(Command, tag=132):
    """A drained, empty device leaves the cluster: ENOTEMPTY otherwise.

    The rows of its segments go, `count` at most: answered by Made with how many are left.
    """

    since: ClassVar[int] = LEVEL
    device: int
    count: int


class SetDeviceEra(Command, tag=176):
    """The superblock of device `uuid` has `era`, or gets it next; a smaller one than before is EINVAL.

    The device need not have been added yet.
    """

    since: ClassVar[int] = 3
    uuid: str
    era: int


class SetAbsent(Command, tag=168):
    """A device is away, or back: while it is *absent*, nothing is leased there and its free room is promised to nobody.

    The leader alone proposes it, by what the nodes report (meta/server/device_reports.py).
    """

    since: ClassVar[int] = LEVEL_OF_ABSENCE
    device: int
    absent: bool


class AddDevice(Command, tag=2):
    """A formatted device joins the cluster; its segments are free."""

    uuid: str
    bytes: int
    segment_bytes: int
    segments: int
    first_segment_offset: int
    shared: bool = False
    home: str = ""
