"""Commands of the collector."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.base.types import Extent, SegmentProgress
from awsomefsd.meta.api.commands.base import Command


class OpenCollector(Command, tag=37):
    """The daemon of a node begins to collect sparse segments: a session without a mount or a volume.  Answered by CollectorOpened.

    Earlier ones of the node end at once, without quarantine: a node has one daemon, and it asks only while none of its writes is under
    way.  EBUSY while another node's lives.
    """

    node: str
    boot_id: str


class Relocation(Struct, array_like=True, gc=False):
    """One extent, as it is if nobody changed it meanwhile, and where copies of its bytes lie: `places` cover it exactly, in order.

    `until`: of one that only snapshots see; 0: of the head.
    """

    volume: int
    ino: int
    extent: Extent
    places: list[Extent]
    until: int = 0


class Relocate(Command, tag=38):
    """Collection: extents name copies of their bytes.  Each by compare-and-swap: what was overwritten, cut or freed meanwhile is skipped.

    Refused as a whole, like Commit, if a place is not in a segment of the collector's session, or not durable.  Answered by Relocated.
    """

    moves: list[Relocation]
    segments: list[SegmentProgress]
