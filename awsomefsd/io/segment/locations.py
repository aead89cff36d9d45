"""The device and the offset of each segment, as the service gave them to this worker; and leases on new segments."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from awsomefsd.base.errors import Corrupt, FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import SEGMENTS_KNOWN_MAX
from awsomefsd.base.types import SegmentInfo
from awsomefsd.base.wait import MustWait, may_wait
from awsomefsd.meta.api.commands import LeaseBays, LeaseSegments
from awsomefsd.meta.api.messages import BaysLeased, GetSegments, SegmentsLeased

Call = Callable[[Any], Any]  # sends one request body and blocks for its reply
Propose = Callable[[Any], Any]  # proposes one command in the background and blocks for its reply


def segment_now(call: Call, segment: int) -> SegmentInfo:
    """Asks for the row of a segment.  Blocks.  Raises Corrupt if the cluster has no such segment, and what `call` raises.

    A row in a pool goes with its last live byte: who was told of the segment before has an old layout, as with another incarnation.
    """
    try:
        info: SegmentInfo = call(GetSegments([segment])).segments[0]
    except FsError as err:
        if err.errno == errno.ENOENT:
            raise Corrupt(f"an extent names segment {segment}, which does not exist") from err
        raise
    return info


class Locations:
    """Segments by number, at most SEGMENTS_KNOWN_MAX.  Any thread.

    Layouts bring the rows of the segments they name, so `locate` hardly ever has to ask.  Those that were learnt longest ago go first; a
    row that went and comes back older than it was is like any old row: its incarnation does not fit, and the layout is asked for again.
    """

    def __init__(self, call: Call, propose: Propose) -> None:
        self._call = call
        self._propose = propose
        self._segments: dict[int, SegmentInfo] = {}  # in the order in which they were learnt
        self._share = 1.0
        self._lock = threading.Lock()  # of changes; one look needs none

    def learn(self, segments: Iterable[SegmentInfo]) -> None:
        """Takes up rows of segments; an older row does not replace a newer one."""
        with self._lock:
            for info in segments:
                known = self._segments.pop(info.segment, None)
                newer = known is None or (known.incarnation, known.footer_offset) <= (info.incarnation, info.footer_offset)
                self._segments[info.segment] = info if newer or known is None else known
            self._evict()

    def bound(self, share: float) -> None:
        """Keeps no more than this share (0 to 1) of the bound from now on."""
        with self._lock:
            self._share = share
            self._evict()

    def _evict(self) -> None:
        most = int(SEGMENTS_KNOWN_MAX * self._share)
        if len(self._segments) > most:
            for segment in list(islice(self._segments, len(self._segments) - most * 7 // 8)):
                del self._segments[segment]

    def locate(self, segment: int) -> SegmentInfo:
        """Returns the row of a segment; blocks for the service if it is not known.

        Raises Corrupt if the cluster has no such segment, and MustWait on a thread that may not wait.
        """
        info = self._segments.get(segment)
        if info is None:
            if not may_wait():
                raise MustWait
            info = segment_now(self._call, segment)
            self.learn([info])
        return info

    def locate_again(self, segment: int) -> SegmentInfo:
        """Returns the row of a segment as the service has it now.  Blocks; raises as `locate`."""
        with self._lock:
            self._segments.pop(segment, None)
        return self.locate(segment)

    def lease(self, count: int, avoid: list[int]) -> list[SegmentInfo]:
        """Returns segments for this session's writer, `count` at most; a single one may be what another writer left of its own.

        Below level DELEGATION some may lie on the devices `avoid`.

        Blocks for the entry.  Raises FsError(ENOSPC) if none is free, FsError(EIO) if none of the devices is left.
        """
        reply = self._leased(LeaseSegments(count, 0, begun=count == 1, avoid=avoid))
        assert isinstance(reply, SegmentsLeased)
        return reply.segments

    def lease_bays(self, count: int, avoid: list[int]) -> BaysLeased:
        """Returns `count` segments at most in bays of a pool, if possible on none of the devices `avoid`.

        Blocks for the entry.  Raises FsError(ENOSPC) if there is no room for another one.
        """
        reply = self._leased(LeaseBays(count, 0, avoid))
        assert isinstance(reply, BaysLeased)
        return reply

    def _leased(self, command: LeaseSegments | LeaseBays) -> SegmentsLeased | BaysLeased:
        hit("segment.lease.before")
        reply: SegmentsLeased | BaysLeased = self._propose(command)
        hit("segment.lease.after")
        self.learn(reply.segments)
        return reply
