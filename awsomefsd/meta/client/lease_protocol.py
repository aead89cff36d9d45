"""Leases on the wire: what a worker says about them, in which order, over connections and leaders that come and go.  Pure.

held_leases.py knows what is held; this asks, reports and answers through `submit`, which sends again over any number of connections until
there is an answer (core.py).  To a leader of a new term the report goes first, then the question for recalls anew: the numbers of
recalls begin again with each term, and the old question would wait for those of the old one.  A report that reaches a later leader than it
was meant for is refused there, and that leader's greeting has brought its own.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import Resume
from awsomefsd.meta.api.messages import Body, Contested, Found, GetLease, Leased
from awsomefsd.meta.client.held_leases import LeaseHolder, LookHandler, RecallHandler
from awsomefsd.meta.client.leases import AdoptedLease, Shown

Asked = Callable[["Leased | Contested | None", "BaseException | None"], None]


class LeaseClient:
    """Calls come one at a time.

    `on_recall` and `on_look` as of LeaseHolder; `doubt`: something was refused as of an ended session, ask for a renewal.
    """

    def __init__(
        self,
        submit: Callable[[Body, Resume], None],
        on_recall: RecallHandler,
        session_left_ns: Callable[[], int],
        doubt: Callable[[], None],
        on_look: LookHandler,
    ) -> None:
        self._submit = submit
        self._on_recall = on_recall
        self._doubt = doubt
        self._on_look = on_look
        self.holder = LeaseHolder(self._handle_recall, session_left_ns, self._handle_look)
        self._term = 0  # of the leader that greeted last
        self._listening = 0  # number of the question for recalls that counts
        self._deaf = False  # it was answered by a leader that does not

    # --- sessions and leaders ---------------------------------------------------------------------------------------------------
    def begin(self, session: int, epoch: int, adopted: Mapping[int, AdoptedLease]) -> None:
        """A session was opened (0: has ended); `adopted` as LeaseHolder.adopt."""
        self.holder.begin(session, epoch)
        self.holder.adopt(adopted)
        self._tell()

    def greeted(self, term: int) -> None:
        """On every connection, once what was outstanding is sent again."""
        self._term = term
        self._tell()

    def _tell(self) -> None:
        report = self.holder.greeted(self._term) if self._term else None
        if report is not None:
            self._submit(report, self._refused)
        if report is not None or (self._deaf and self.holder.session and self._term == self.holder.term):
            self._listen()

    def _refused(self, reply: Any, error: BaseException | None) -> None:
        if isinstance(error, FsError) and error.errno == errno.ESTALE:
            self._doubt()

    # --- recalls ----------------------------------------------------------------------------------------------------------------
    def _listen(self) -> None:
        self._listening, self._deaf = self._listening + 1, False
        number = self._listening

        def heard(reply: Any, error: BaseException | None) -> None:
            if error is None:
                self.holder.recalled(reply)
                self._answer()
            if number != self._listening:
                return
            if error is not None:
                self._refused(reply, error)
            elif reply.term == self.holder.term:
                self._listen()
            else:
                self._deaf = True

        self._submit(self.holder.awaits(), heard)

    def _handle_recall(self, ino: int, mode: int, done: Callable[[], None]) -> None:
        def ended() -> None:
            done()
            self._answer()

        self._on_recall(ino, mode, ended)

    def _handle_look(self, ino: int, answer: Callable[[Shown | None], None]) -> None:
        def looked(shown: Shown | None) -> None:
            answer(shown)
            self._answer()

        self._on_look(ino, looked)

    def _answer(self) -> None:
        answers, self.holder.replies = self.holder.replies, []
        for answer in answers:
            self._submit(answer, self._refused)

    def progress(self, ino: int, done: int) -> None:
        extend = self.holder.extend(ino, done)
        if extend is not None:
            self._submit(extend, self._refused)

    # --- requests ---------------------------------------------------------------------------------------------------------------
    def ask(self, volume: int, ino: int, mode: int, known: int, asked: Asked, *, unless_written: bool = False) -> None:
        """A lease; `asked` gets the grant, or nothing if it came too late to mean anything: ask again after a pause.

        Or Contested: go on without a lease, and do not ask before its pause is over.  `unless_written` as in GetLease.
        """
        holder = self.holder
        session = holder.session

        def answered(reply: Any, error: BaseException | None) -> None:
            if error is not None:
                self._refused(reply, error)
                asked(None, error)
            elif isinstance(reply, Contested):
                asked(reply, None)
            else:
                asked(reply if holder.session == session and holder.granted(ino, reply) else None, None)

        self._submit(GetLease(session, holder.epoch, volume, ino, mode, known, unless_written), answered)

    def made(self, session: int, found: Found) -> bool:
        """The answer of a Create or Tmpfile with `lease`, proposed under that session: whether a lease came with it, in time."""
        leased = found.leased
        if leased is None or self.holder.session != session:
            return False
        if not leased.term:  # made by a record of this mount's, and held since (LeaseHolder.made_here)
            return self.holder.held(found.attr.ino)
        return self.holder.granted(found.attr.ino, leased)

    def release(self, inos: list[int]) -> None:
        """Give up leases of which nothing is buffered."""
        self._submit(self.holder.release(inos), self._refused)

    def lower(self, paused: list[int], clean: list[int]) -> None:
        """Lowers as LeaseHolder.lower; none of them is being asked for."""
        returned = self.holder.lower(paused, clean)
        if returned is not None:
            self._submit(returned, self._refused)
