"""Commands about pools: devices whose segments are bays, and the bays of segments; meta/machine/bays.py and pools.py have their rules."""

from __future__ import annotations

from typing import ClassVar

from awsomefsd.base.rule_levels import POOLS
from awsomefsd.base.types import Redundancy
from awsomefsd.meta.api.commands.base import Command

DEVICE_OK, DEVICE_ABSENT, DEVICE_LOST = range(3)


class PoolCommand(Command):
    """Base of the commands of this file.  No cluster acts at their level yet (base/levels.py)."""

    since: ClassVar[int] = POOLS


class AddPoolDevice(PoolCommand, tag=190):
    """A formatted device of node `home` joins a pool; its bays are free.  The first device says how large the segments of the pool are.

    Answered by Made(number).
    """

    uuid: str
    bytes: int
    segment_bytes: int
    bays: int
    first_segment_offset: int
    home: str
    pool: int = 1
    device_class: str = ""
    generation: int = 0


class AttachDevice(PoolCommand, tag=191):
    """The segment server of `node` serves a device, whose superblock says `generation` now: ESTALE unless that is above the row's.

    Another node than the device's home needs `adopt`, and gets it only while the device is absent.
    """

    device: int
    generation: int
    node: str
    adopt: bool = False


class LeaseBays(PoolCommand, tag=192):
    """Segments for the entry's session, each in bays on the devices of one of the `ensembles`.  Answered by BaysLeased.

    A client asks for `count`, without devices that it could not reach (`avoid`).  The leader chooses the ensembles and `safe_index`.
    `volume`: for a session that collects, whose data goes there.
    """

    count: int
    safe_index: int
    avoid: list[int] = []
    ensembles: list[list[int]] = []
    volume: int = 0


class PlanMirror(PoolCommand, tag=193):
    """A bay of `device` is kept for a copy of a sealed segment.  Answered by Made(index).

    `replaces`: (device, index) of the bay that goes when the copy is made; it may be on the same host.  (0, 0): none goes.
    """

    segment: int
    device: int
    safe_index: int
    replaces: tuple[int, int] = (0, 0)


class MirrorMade(PoolCommand, tag=194):
    """The copy that entry `planned` has begun is a mirror up to `end`, and the bay that it replaces is stale.

    ESTALE if the segment, its end or the bay are not as they were.
    """

    segment: int
    device: int
    index: int
    planned: int
    end: int
    replaces: tuple[int, int] = (0, 0)


class DropBays(PoolCommand, tag=195):
    """Bays (segment, device, index) are bad, given up, or too many: stale.  EPERM where that would take the last mirror that counts."""

    bays: list[tuple[int, int, int]]


class BaysTrimmed(PoolCommand, tag=196):
    """The server of a device has trimmed stale bays (index, segment, entry that made it stale): they are free.  Each by compare-and-swap.

    Answered by Made(how many).
    """

    node: str
    device: int
    bays: list[tuple[int, int, int]]


class BaysWrong(PoolCommand, tag=202):
    """The server of a device has found bytes in mirrors (index, segment) that are not as they were written: these do not count any more.

    They stay the segment's until others have taken their places.  The last mirror that counts is passed over, and so is what is not as it
    says.  Answered by Made(how many).
    """

    node: str
    device: int
    bays: list[tuple[int, int]]


class SetDeviceState(PoolCommand, tag=197):
    """A device of a pool is there, absent, or lost.  The needs of its segments follow in a walk."""

    device: int
    state: int


class NeedSegments(PoolCommand, tag=198):
    """The oldest walk goes on: the needs of up to `count` segments are as their bays say.  Answered by Made(walks that are left)."""

    count: int


class SetRedundancy(PoolCommand, tag=199):
    """A volume survives so much from now on; one whose data is nowhere yet goes to `pool`.  Its segments follow in a walk."""

    volume: int
    want: Redundancy
    pool: int = 1


class SetPool(PoolCommand, tag=201):
    """What holds for a pool: how many bytes a second healing copies to a device, when an absent device counts as lost, the reserve.

    What is None stays as it is, so two that change different things at once do not undo each other.
    """

    pool: int
    heal_bytes_per_s: int | None = None
    lost_after_ms: int | None = None
    reserve_percent: int | None = None


class SetMaintenance(PoolCommand, tag=203):
    """The devices of a host are not lost before `until_ms` (wall clock), whatever becomes of them; 0: that ends now."""

    pool: int
    host: str
    until_ms: int


class DrainPoolDevices(PoolCommand, tag=204):
    """Devices of a pool are drained, all of them or none, if what was found before about their mirrors still holds.

    Whoever asks has looked at all segments, and found a place for each mirror that has to move: on the devices `taking`, while those of
    `draining` are emptied too.  ESTALE if one of `taking` takes no data now, if another device is drained by now, or if one of `lost`
    (to be drained too; its mirrors need no place) is back: then it has to be looked at again.  ENOSPC as DrainDevice, which ends a drain.
    """

    pool: int
    devices: list[int]
    lost: list[int]
    taking: list[int]
    draining: list[int]


class BaysSeen(PoolCommand, tag=205):
    """The server of a device, attached with `generation`, has looked at the bays from `first` up to those below `doubted`.

    `wrong` (index, segment): mirrors that do not have the ends of what their rows say.  They count no more, where another mirror does; the
    others are not doubted any more.  ESTALE unless `doubted` is as the row of the device has it.
    """

    node: str
    device: int
    generation: int
    doubted: int
    first: int
    wrong: list[tuple[int, int]]


class SetSegmentServer(PoolCommand, tag=200):
    """The segment server of a node is reached at `address`; "": it has none."""

    node: str
    address: str
