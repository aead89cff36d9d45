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


class GetPoolVolumes(Message, tag=191):
    """The volumes of a pool, with what they want.  Answered by PoolVolumes; ENOENT if no device has made the pool."""

    pool: int


class CountNeeds(Message, tag=193):
    """How many segments lack something, from (priority, segment) on, a bounded number.  Answered by NeedsCounted."""

    priority: int
    segment: int


class StandingDrain(Struct, array_like=True, gc=False, frozen=True):
    """`segments` have a mirror on a drained device that cannot leave it: `why`, of one of them.  `since_ms`: wall time."""

    device: int
    segments: int
    since_ms: int
    why: str


class PoolCensus(Struct, array_like=True, gc=False, frozen=True):
    """What the daemon of the leader has counted, and how it mends.  `needs`: segments by priority; `lost`: those of which nothing is left.

    `asleep`: segments for which nothing can be done before something changes, and `why` of one of them.  `copies` under way, with
    `bytes_per_s`; `idle_ms`: for how long no copy was made while some are needed.  `left_alone`: devices that get no copies.  `standing`:
    drains that do not go on.
    """

    needs: list[int]
    lost: int = 0
    since_ms: int = 0  # wall time of the oldest need; 0: there is none
    asleep: int = 0
    why: str = ""
    copies: int = 0
    bytes_per_s: int = 0
    idle_ms: int = 0
    left_alone: list[int] = []
    standing: list[StandingDrain] = []


class ReportCensus(Message, tag=195):
    """The daemon of the leader tells its count, which GetPool shows to everybody.  Answered by Done."""

    node: str
    census: PoolCensus


# --- replies ------------------------------------------------------------------------------------------------------------------
class PoolDeviceInfo(Struct, array_like=True, gc=False, frozen=True):
    """A device of a pool as the log has it.  `server`: the node that has attached it, which others reach at `address`.

    `doubted`: bays below this have still to be looked at, after the cluster's state went back.
    """

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
    doubted: int = 0


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
    census: PoolCensus | None = None  # None: the daemon of this leader has not counted yet
    census_ms_ago: int = 0


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


class PoolVolume(Struct, array_like=True, gc=False, frozen=True):
    """A volume whose data is in a pool."""

    volume: int
    name: str
    want: Redundancy


class PoolVolumes(Message, tag=192):
    """`total_bytes`, `free_bytes`: what `df` counts there as the widest policy wants it; `promised_bytes` of them are writers'."""

    volumes: list[PoolVolume]
    total_bytes: int
    free_bytes: int
    promised_bytes: int


class NeedsCounted(Message, tag=194):
    """`needs`: segments by priority; `lost`: those of which no mirror that counts has all; `since_ms`: of the oldest, 0 without one.

    `next`: (priority, segment) to go on with; (-1, 0): these are all.
    """

    needs: list[int]
    lost: int
    since_ms: int
    next: tuple[int, int]
