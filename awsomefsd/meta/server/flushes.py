"""Has the mounts of volumes write what they hold back, before a snapshot of these is made.

Whoever makes one asks FlushVolumes first.  The leader tells each live session of the volumes by answering its AwaitSpaceRecall, which
every worker has with it, with FlushAsked.  The worker writes out what its mount holds back at that moment, data and names that it has
decided, goes on serving meanwhile, and says so by AnswerFlush.  When all have answered so is FlushVolumes: every operation that had
returned on any node before it was asked is in the log now.  A session that ends in between is waited for no longer: what it held back has
no place to go until its mount has another one, and is judged then.  One that does not answer in time is named; the snapshot is not made.

Numbers of flushes rise over all leaders, and an answer counts for those up to its own: what was held back when an earlier one was asked for
is written with a later one.  Nothing here is replicated: a new leader is asked anew.  A worker of a build that cannot flush so is named.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from awsomefsd.base.limits import NS_PER_MS, SNAPSHOT_FLUSH_MS_MAX, SNAPSHOT_FLUSHES_MAX
from awsomefsd.meta.api.messages import Done, Failed, Reply
from awsomefsd.meta.api.messages.snapshots import AnswerFlush, FlushAsked, FlushVolumes
from awsomefsd.meta.server.request import AnyRequest, Origin, Request
from awsomefsd.meta.server.space_recalls import SpaceRecalls

_TERM_SHIFT = 32  # flushes of one leadership
_LATER = Failed(errno.EAGAIN, f"{SNAPSHOT_FLUSHES_MAX} flushes of volumes are under way; try again", True)


class ServingSession(NamedTuple):
    """A live session that serves a volume; `node`: how people call where it is."""

    session: int
    volume: int
    node: str


class _Flush:
    __slots__ = ("deadline_ns", "number", "request", "unanswered")

    def __init__(self, request: Request[FlushVolumes], number: int, unanswered: dict[int, ServingSession], deadline_ns: int) -> None:
        self.request = request
        self.number = number
        self.unanswered = unanswered
        self.deadline_ns = deadline_ns


class Flushes:
    """Used by the metadata thread only; nothing blocks.  `serving` returns the live sessions that serve volumes."""

    def __init__(self, space: SpaceRecalls, serving: Callable[[], list[ServingSession]]) -> None:
        self._space = space
        self._serving = serving
        self._flushes: list[_Flush] = []
        self._told: dict[int, tuple[Origin, int]] = {}  # session → the connection of its worker, and the newest flush that it was told of
        self._next = 1

    def begin(self, term: int) -> None:
        """Begins a leadership."""
        self._next = (term << _TERM_SHIFT) + 1

    # --- who wants one ----------------------------------------------------------------------------------------------------------
    def flush(self, request: Request[FlushVolumes], now_ns: int) -> None:
        """Answers when all sessions of the volumes have written what they held back, or one has not in time."""
        if len(self._flushes) >= SNAPSHOT_FLUSHES_MAX:
            request.answer(_LATER)
            return
        wanted = set(request.body.volumes)
        unanswered = {one.session: one for one in self._serving() if one.volume in wanted}
        number, self._next = self._next, self._next + 1
        self._flushes.append(_Flush(request, number, unanswered, now_ns + SNAPSHOT_FLUSH_MS_MAX * NS_PER_MS))
        for session in unanswered:
            self.tell(session)
        self._answer_done()

    def tell(self, session: int) -> None:
        """Tells a session of what it is to flush, if it listens: it has just begun to, or somebody has just asked."""
        newest = max((flush.number for flush in self._flushes if session in flush.unanswered), default=0)
        waiting = self._space.waiting(session) if newest else None
        if waiting is None or self._told.get(session) == (waiting.origin, newest):
            return
        if not waiting.body.flushes:
            self._end(session, lambda one: Failed(errno.EOPNOTSUPP, f"{one} is served by an older build; unmount it, and mount it again"))
            return
        self._told[session] = waiting.origin, newest
        self._space.take_waiting_of(session)
        waiting.answer(FlushAsked(newest))

    # --- the workers ------------------------------------------------------------------------------------------------------------
    def answered(self, request: Request[AnswerFlush]) -> None:
        """Takes up that a worker has written what it held back when it was told, or could not."""
        body = request.body
        if body.errno:
            told = os.strerror(body.errno)
            self._end(body.session, lambda one: Failed(errno.EIO, f"{one} could not write what it holds back: {told}"), body.flush)
        for flush in self._flushes:
            if flush.number <= body.flush:
                flush.unanswered.pop(body.session, None)
        request.answer(Done())
        self._answer_done()

    def keep_only(self, live: Iterable[int]) -> None:
        """Waits no longer for sessions that are not among these."""
        kept = {*live}
        self._told = {session: told for session, told in self._told.items() if session in kept}
        for flush in self._flushes:
            flush.unanswered = {session: one for session, one in flush.unanswered.items() if session in kept}
        self._answer_done()

    def drop_origin(self, origin: Origin) -> None:
        """Forgets what a connection that is gone waits for.  Its worker, or the next one, is told again."""
        self._flushes = [flush for flush in self._flushes if flush.request.origin is not origin]

    def tick(self, now_ns: int) -> None:
        """Refuses what has waited too long, and names who has not answered."""
        for flush in [flush for flush in self._flushes if flush.deadline_ns <= now_ns]:
            self._flushes.remove(flush)
            late = ", ".join(sorted(_called(one) for one in flush.unanswered.values()))
            told = f"{late} did not write what it holds back within {SNAPSHOT_FLUSH_MS_MAX // 1_000} s"
            flush.request.answer(Failed(errno.ETIMEDOUT, told))

    def take_waiting(self) -> list[AnyRequest]:
        """Returns all requests that wait here, to be told to ask the next leader."""
        found: list[AnyRequest] = [flush.request for flush in self._flushes]
        self._flushes.clear()
        self._told.clear()
        return found

    def _answer_done(self) -> None:
        for flush in [flush for flush in self._flushes if not flush.unanswered]:
            self._flushes.remove(flush)
            flush.request.answer(Done())

    def _end(self, session: int, why: Callable[[str], Reply], through: int = 1 << 62) -> None:
        """Refuses the flushes, up to number `through`, that wait for a session."""
        for flush in [flush for flush in self._flushes if session in flush.unanswered and flush.number <= through]:
            self._flushes.remove(flush)
            flush.request.answer(why(_called(flush.unanswered[session])))


def _called(one: ServingSession) -> str:
    return f"the mount of volume {one.volume} on node {one.node}"
