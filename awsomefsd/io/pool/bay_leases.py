"""Leases of segments in bays, whose bays are opened before anybody plans to write there.

Where one of the bays cannot be opened another segment is asked for, without the devices that could not be reached (`avoid`).  That is a
wish: where nothing else is there the leader leases on them all the same.  A segment that could not be opened is kept and tried again, since
one that is given back costs its bays, until they are trimmed.  So what is leased in vain is little: after a lease of which nothing could be
opened the next one waits, twice as long each time.  A device that was added, or that is served elsewhere now (`news`), ends that pause, and
so does one that no kept segment is on and whose server answers again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container

from awsomefsd.base.errors import Error, Unavailable
from awsomefsd.base.limits import BAYS_KEPT_MAX, BAYS_PAUSE_MS, BAYS_PAUSE_MS_MAX, NS_PER_MS
from awsomefsd.base.types import SegmentInBays, SegmentInfo
from awsomefsd.io.pool.fanout import Fanout, MirroredSegment, UnopenedSegment
from awsomefsd.meta.api.messages import BaysLeased

LEASES_MAX = 4  # one after the other, before whoever writes has to try again later
log = logging.getLogger(__name__)
Lease = Callable[[int, list[int]], BaysLeased]  # how many, and on which devices preferably none


class BayLeases:
    """`lease` and the rest are what a SegmentWriter is given.  One thread at a time, but for `waiting`.

    `news` returns another number when devices are served otherwise than before.
    """

    def __init__(self, fanout: Fanout, lease: Lease, news: Callable[[], int] = lambda: 0) -> None:
        self._fanout, self._lease, self._news = fanout, lease, news
        self._open: dict[int, MirroredSegment] = {}  # by segment, until the writer takes it
        self._waiting: dict[int, UnopenedSegment] = {}  # leased, and not open yet
        self._pause_ms = 0
        self._not_before_ns = self._heard = 0  # for the next lease; `news` then

    def lease(self, count: int) -> list[SegmentInfo]:
        """Returns leased segments.  Those that can never be opened are among them: the caller gives them back.

        Blocks for the service and for the servers.  Raises the service's Error where nothing was leased, Unavailable where nothing could be
        opened.
        """
        for left in self._open.values():  # whoever leased them did not take them: its session was replaced meanwhile
            left.leave()
        self._open.clear()
        given_back: list[SegmentInfo] = []
        tried = set(self._waiting)
        away = set(self._fanout.avoid())
        again = self._try([one for one in self._waiting.values() if not one.devices & away], given_back)
        if not again and self._may_lease(away):
            again = self._lease_anew(count, given_back)
        if not again:
            again = self._try([one for one in self._waiting.values() if one.devices & away and one.info.segment in tried], given_back)
        if not again and not given_back:
            raise Unavailable("no bay of the leased segments can be reached now")
        return again + given_back

    def _may_lease(self, away: set[int]) -> bool:
        if self._fanout.monotonic_ns() >= self._not_before_ns or self._news() != self._heard:
            return True
        others = away.difference(*(one.devices for one in self._waiting.values()))
        return self._fanout.one_is_back(others)

    def _lease_anew(self, count: int, given_back: list[SegmentInfo]) -> list[SegmentInfo]:
        """Returns new segments that are open, perhaps none.  Raises the service's Error where nothing else is to be told."""
        for _ in range(LEASES_MAX):
            avoided = self._fanout.avoid()
            try:
                reply = self._lease(count, avoided)
            except Error:
                if given_back or self._waiting:  # these are tried, or to be given back; the next lease raises it again
                    break
                raise
            if found := self._try([UnopenedSegment(self._fanout, info, reply.want) for info in reply.segments], given_back):
                self._pause_ms = self._not_before_ns = 0
                return found
            if self._fanout.avoid() == avoided:
                break
        for oldest in list(self._waiting)[:-BAYS_KEPT_MAX]:
            given_back += self._dropped(oldest)
        self._pause_ms = min(max(2 * self._pause_ms, BAYS_PAUSE_MS), BAYS_PAUSE_MS_MAX)
        self._not_before_ns, self._heard = self._fanout.monotonic_ns() + self._pause_ms * NS_PER_MS, self._news()
        return []

    def _try(self, segments: list[UnopenedSegment], given_back: list[SegmentInfo]) -> list[SegmentInfo]:
        """Returns those that are open now.  The others wait, but for those that are lost."""
        found: list[SegmentInfo] = []
        for one in segments:
            number = one.info.segment
            waited = number in self._waiting
            try:
                self._open[number] = one.open()
            except OSError as err:
                self._waiting[number] = one
                if one.lost:
                    given_back += self._dropped(number)
                if one.lost or not waited:
                    log.warning("a segment %s: %s", "is given back" if one.lost else "waits for its bays", err)
                continue
            self._waiting.pop(number, None)
            found.append(one.info)
        return found

    def _dropped(self, segment: int) -> list[SegmentInBays]:
        left = self._waiting.pop(segment)
        left.leave()
        return [left.info]

    # --- what a SegmentWriter asks besides -----------------------------------------------------------------------------------
    def opened(self, info: SegmentInBays) -> MirroredSegment | None:
        """Returns the open bays of a segment that was leased just now; None if they cannot be opened."""
        return self._open.pop(info.segment, None)

    def waiting(self) -> list[SegmentInBays]:
        """Returns the leased segments whose bays could not be opened yet.  Any thread; does not wait."""
        return [one.info for one in list(self._waiting.values())]

    def drop(self, segments: Container[int]) -> list[SegmentInBays]:
        """Returns those of these segments that wait, and keeps them no more: they are given back, or their session has ended."""
        return [info for number in list(self._waiting) if number in segments for info in self._dropped(number)]
