"""The side of collection that knows pools: which segments in bays are this node's to collect, and the way to their bays.

They are collected as a mount writes and reads there: from any mirror that is good into segments with all the mirrors that their volume
wants.  A segment of a pool has bytes of one volume only, so those of each volume are packed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from awsomefsd.base.types import BAY_MIRROR, DeviceInfo, SegmentBay, SegmentInBays, SegmentInfo
from awsomefsd.io.pool.remote_errors import BayLost, NobodyLeads, NotServed, ServerAway
from awsomefsd.io.segment.reader import ReadPlace
from awsomefsd.io.segment.writer import SegmentWriter

if TYPE_CHECKING:
    from awsomefsd.io.pool.bay_leases import Lease
    from awsomefsd.io.pool.pool_access import PoolAccess
    from awsomefsd.io.pool.remote_server import Session

    AccessPool = Callable[[Callable[[], Session], Lease], PoolAccess]  # the way to bays, for sessions and by their leases

NOT_NOW = (ServerAway, BayLost, NobodyLeads, NotServed)  # errors of a read that say nothing of the bytes


def volume_of(info: SegmentInfo) -> int:
    """Returns the volume of a segment in bays; 0 for one on a device of its own."""
    return info.volume if isinstance(info, SegmentInBays) else 0


class PoolPlaces:
    """Which devices of pools are served, and which of them this node looks after.  One thread."""

    def __init__(self) -> None:
        self._here: set[int] = set()
        self._served: set[int] = set()

    def look(self, devices: Iterable[DeviceInfo], collects: Callable[[DeviceInfo], bool]) -> None:
        """Takes up where devices are served, and which this node looks after."""
        self._served = {info.device for info in devices if info.pool and info.server and not info.absent and not info.lost}
        self._here = {info.device for info in devices if info.device in self._served and collects(info)}

    def takes(self, bays: Iterable[SegmentBay], end: int) -> bool:
        """Returns True if the first mirror that is durable up to `end` and can be read is on a device that this node looks after."""
        mirrors = (bay for bay in bays if bay.role == BAY_MIRROR and bay.durable >= end)
        return next((bay.device in self._here for bay in mirrors if bay.device in self._served), False)


class CollectedPool:
    """`access` makes the way to the bays when it is first used: it loads ssl.  One thread."""

    def __init__(self, access: AccessPool, session: Callable[[], Session], lease: Lease) -> None:
        self._make, self._session, self._lease = access, session, lease
        self._access: PoolAccess | None = None
        self._writer: SegmentWriter | None = None

    @property
    def _way(self) -> PoolAccess:
        if self._access is None:
            self._access = self._make(self._session, self._lease)
        return self._access

    @property
    def writer(self) -> SegmentWriter:
        if self._writer is None:
            leases = self._way.leases
            self._writer = SegmentWriter({}, leases.lease, bays=leases)
        return self._writer

    def mirrors(self, info: SegmentInBays, end: int) -> Sequence[ReadPlace]:
        return self._way.copies.of(info, end)

    def give_up(self) -> None:
        """Gives up all leased segments, because their session has ended; the right to append to their bays ends too."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer.await_drained()

    def close(self) -> None:
        """Ends the connections to segment servers."""
        if self._access is not None:
            self._access.close()
