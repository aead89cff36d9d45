"""The reports of nodes on the devices they see, and the questions about devices and quarantine."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.base.types import Redundancy, SegmentInBays
from awsomefsd.meta.api.messages.base import Message

# Beginnings of a Sighting's state that say nothing of whether the device is there.
NO_ANSWER, NO_LOOK = "does not answer", "cannot be looked at now"
UNDECIDED = (NO_ANSWER, NO_LOOK)


class Sighting(Struct, array_like=True, gc=False):
    """A device as one node finds it.  `state`: "ok", or why it cannot be used there.  `bytes` 0: not known."""

    uuid: str
    path: str
    bytes: int
    state: str


class ReportDevices(Message, tag=130):
    """All devices of the cluster that a node sees, every few seconds.  Answered by Devices."""

    node: str
    sightings: list[Sighting]


class GetSightings(Message, tag=131):
    """Answered by Sightings, of the nodes behind `after`.  meta/api/report_pages.py asks for all."""

    after: str = ""


class GetQuarantine(Message, tag=132):
    """Answered by Quarantine."""


class GetBays(Message, tag=181):
    """The bays of a device with an index from `first` on that are not free, `count` at most.  Answered by Bays."""

    device: int
    first: int
    count: int


# --- replies ------------------------------------------------------------------------------------------------------------------
class SeenDevice(Struct, array_like=True, gc=False):
    """`name`: the node's.  `heard_ms_ago`: when it said so."""

    node: str
    name: str
    uuid: str
    path: str
    bytes: int
    state: str
    heard_ms_ago: int


class Sightings(Message, tag=130):
    """`reporting`: nodes that say what they see.  `alone_ms`: device → how long one node at most has seen it, while several report.

    `more`: the last node in `seen`, if others follow.
    """

    seen: list[SeenDevice]
    reporting: list[str]
    alone_ms: dict[str, int]
    more: str = ""


class QuarantineInfo(Struct, array_like=True, gc=False):
    """Segments that a late write of an ended session may still reach.  `ended_ms`: wall time, 0 if not known."""

    session: int
    mount: int
    volume: int
    node: str
    boot_id: str
    worker: int
    ended_ms: int
    segments: int
    bytes: int
    live_bytes: int


class Quarantine(Message, tag=131):
    """`segments`, `reserve`: of all devices that take data, and how many of them ahead of need nobody gets."""

    sessions: list[QuarantineInfo]
    segments: int


class BayInfo(Struct, array_like=True, gc=False):
    """A bay that is not free.  `role`: BAY_ of base/types.py.  `entry`: the index of the entry that gave it that role.

    What follows is of its segment as the log has it now, 0 where there is no such segment any more: a stale bay is named by no segment.
    `session`, `epoch`, `node`: the lessee of a leased one.  `durable`: up to where this bay counts, `end`: what counts in the segment.
    """

    index: int
    role: int
    entry: int
    segment: int
    incarnation: int = 0
    state: int = 0
    session: int = 0
    epoch: int = 0
    node: str = ""
    durable: int = 0
    end: int = 0


class Bays(Message, tag=183):
    """`generation`: of the device, as it was last attached.  `next`: the index to go on with; -1: these are all.

    `doubted`: bays of the device below this may hold something else than these rows say.
    """

    bays: list[BayInfo]
    generation: int
    next: int
    doubted: int = 0


class BaysLeased(Message, tag=184):
    """The answer to LeaseBays.  `want`: what the segments are to survive, as it was when they were leased."""

    segments: list[SegmentInBays]
    want: Redundancy
