"""The daemon of the leader asks about pools, to trim stale bays and to heal; meta/machine/pool_queries.py answers."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.base.types import Redundancy, SegmentBay
from awsomefsd.meta.api.messages.base import Message


class GetPool(Message, tag=185):
    """A pool with its devices.  Answered by Pool; ENOENT if no device has made it."""

    pool: int


class GetNeeds(Message, tag=187):
    """Segments of pools that lack something, the most urgent ones first, from (priority, segment) on.  Answered by NeedsFound."""

    priority: int
    segment: int
    count: int


class GetStaleBays(Message, tag=189):
    """The stale bays of a device with an index from `first` on.  Answered by StaleBays."""

    device: int
    first: int
    count: int


# --- replies ------------------------------------------------------------------------------------------------------------------
class PoolDeviceInfo(Struct, array_like=True, gc=False, frozen=True):
    """A device of a pool as the log has it.  `server`: the node that has attached it, which others reach at `address`."""

    device: int
    bays: int
    free: int
    stale: int
    home: str
    host: str
    zone: str = ""
    device_class: str = ""
    server: str = ""
    address: str = ""
    absent: bool = False
    lost: bool = False
    draining: bool = False


class Pool(Message, tag=186):
    """`walks`: how many have to end before all needs are as the bays say.  `safe_index`: what entries up to it freed may be destroyed.

    `maintenance`: (host, wall time in ms until which its devices are not lost).
    """

    segment_bytes: int
    heal_bytes_per_s: int
    lost_after_ms: int
    reserve_percent: int
    maintenance: list[tuple[str, int]]
    walks: int
    devices: list[PoolDeviceInfo]
    safe_index: int = 0


class SegmentNeed(Struct, array_like=True, gc=False):
    """A segment that lacks something.  `reasons`: NEED_ of meta/state/pools.py.  `planned`: the entry that began its copy; 0: none did."""

    priority: int
    reasons: int
    since_ms: int
    segment: int
    incarnation: int
    state: int
    bytes: int
    end: int
    footer_offset: int
    volume: int
    want: Redundancy
    bays: list[SegmentBay]
    planned: int = 0


class NeedsFound(Message, tag=188):
    """`next`: (priority, segment) to go on with; (-1, 0): these are all."""

    needs: list[SegmentNeed]
    next: tuple[int, int]


class StaleBays(Message, tag=190):
    """`bays`: (index, segment that was there, entry that made it stale).  `next`: the index to go on with; -1: these are all."""

    bays: list[tuple[int, int, int]]
    next: int
