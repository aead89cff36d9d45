"""Recalls space that sessions have reserved and do not need, before anybody is told ENOSPC or EDQUOT.

A worker reserves space ahead of its writes, so a refusal may only mean that others hold more than they use.  Each worker keeps one
AwaitSpaceRecall with the leader.  When a rule has refused a request for want of space, the leader answers those of all other sessions with
a reservation in the same space, and keeps the refusal to itself.  A worker gives back what it does not need and then asks anew: with that
it has answered.  When all have, the request is proposed once more, and that outcome is told.

Nothing here is replicated: a refusal for want of space is not kept as a result (NotKept), so the same request may be executed again, and a
new leader is asked by everybody anew.  A worker that does not ask (of an older build, or without a connection) is not waited for; one that
does not answer is waited for SPACE_RECALL_MS_MAX.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from awsomefsd.base.limits import NS_PER_MS, SPACE_RECALL_MS_MAX, SPACE_RECALLS_WAITING_MAX
from awsomefsd.meta.api.commands import CopyRange, Entry, Fallocate, Reserve
from awsomefsd.meta.api.messages import AwaitSpaceRecall, Done, Failed, Reply
from awsomefsd.meta.server.request import AnyRequest, Origin, Request

_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_NEED_SPACE = (Reserve, Fallocate, CopyRange)


class _Refused:
    """A request that was refused, and the sessions that have not answered yet."""

    __slots__ = ("deadline_ns", "request", "unanswered")

    def __init__(self, request: AnyRequest, unanswered: set[int], deadline_ns: int) -> None:
        self.request = request
        self.unanswered = unanswered
        self.deadline_ns = deadline_ns


class SpaceRecalls:
    """Used by the metadata thread only; nothing blocks."""

    def __init__(self) -> None:
        self._awaiting: dict[int, Request[AwaitSpaceRecall]] = {}  # session → its request that waits for a recall
        self._recalled: set[int] = set()  # sessions that were told and have not asked anew
        self._refused: list[_Refused] = []
        self._second: set[tuple[int, int]] = set()  # (mount, unique) of requests that are proposed for the second time
        self.recalls = 0

    @property
    def waiting_count(self) -> int:
        """Returns how many refused requests wait for other sessions."""
        return len(self._refused)

    # --- the workers ------------------------------------------------------------------------------------------------------------
    def await_recall(self, request: Request[AwaitSpaceRecall]) -> None:
        """Parks a session's question; it also says that the session has given back what it did not need."""
        session = request.body.session
        older = self._awaiting.get(session)
        if older is not None:
            older.answer(Done())
        self._awaiting[session] = request
        self._note_answered(session)

    def waiting(self, session: int) -> Request[AwaitSpaceRecall] | None:
        """Returns the question of a session that waits here, or None."""
        return self._awaiting.get(session)

    def take_waiting_of(self, session: int) -> None:
        """The caller answers the question of a session with something else to do; it gives back what it does not need, and asks anew."""
        del self._awaiting[session]
        self._recalled.add(session)

    def _note_answered(self, session: int) -> None:
        self._recalled.discard(session)
        for refused in self._refused:
            refused.unanswered.discard(session)

    def keep_only(self, live: Iterable[int]) -> None:
        """Drops the sessions that are not among these: their reservations went with them."""
        gone = ({*self._awaiting} | self._recalled) - {*live}
        for session in gone:
            waiting = self._awaiting.pop(session, None)
            if waiting is not None:
                waiting.answer(Failed(errno.ESTALE, "the session has ended"))
            self._note_answered(session)

    def drop_origin(self, origin: Origin) -> None:
        """Forgets what a connection that is gone waits for: its client asks again.

        A request that keeps a key busy until it is answered (lease_requests.py) has another origin, and stays.
        """
        self._refused = [refused for refused in self._refused if refused.request.origin is not origin]
        for session in [session for session, waiting in self._awaiting.items() if waiting.origin is origin]:
            del self._awaiting[session]

    # --- what was refused -------------------------------------------------------------------------------------------------------
    def may_help(self, entry: Entry, reply: Reply) -> bool:
        """Returns True if the entry was refused for want of space for the first time: others may have some to give back."""
        if type(entry.command) not in _NEED_SPACE:
            return False
        second = (entry.mount, entry.unique) in self._second
        self._second.discard((entry.mount, entry.unique))
        return isinstance(reply, Failed) and reply.errno in _SPACE_ERRORS and bool(entry.mount) and not second

    def park(self, request: AnyRequest, others: Iterable[int], now_ns: int) -> bool:
        """Keeps a refused request until the other sessions have given back what they do not need.  False: none of them would."""
        if len(self._refused) >= SPACE_RECALLS_WAITING_MAX:
            return False
        unanswered = {session for session in others if session in self._awaiting or session in self._recalled}
        if not unanswered:
            return False
        for session in sorted(unanswered):
            waiting = self._awaiting.pop(session, None)
            if waiting is not None:
                self._recalled.add(session)
                self.recalls += 1
                waiting.answer(Done())
        self._refused.append(_Refused(request, unanswered, now_ns + SPACE_RECALL_MS_MAX * NS_PER_MS))
        return True

    def tick(self, now_ns: int) -> None:
        """Waits no longer for sessions that have not answered in time."""
        for refused in self._refused:
            if refused.deadline_ns <= now_ns:
                self._recalled -= refused.unanswered
                refused.unanswered.clear()

    def take_ready(self) -> list[AnyRequest]:
        """Returns the requests that are to be proposed for the second time."""
        if not self._refused:
            return []
        ready = [refused.request for refused in self._refused if not refused.unanswered]
        self._refused = [refused for refused in self._refused if refused.unanswered]
        self._second.update((request.origin.mount, request.body.unique) for request in ready)
        return ready

    def take_waiting(self) -> list[AnyRequest]:
        """Returns all requests that wait here, to be told to ask the next leader."""
        found: list[AnyRequest] = [*self._awaiting.values(), *(refused.request for refused in self._refused)]
        self._awaiting.clear()
        self._recalled.clear()
        self._refused.clear()
        self._second.clear()
        return found
