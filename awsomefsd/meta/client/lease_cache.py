"""The leases of one mount, for many threads: LeaseClient under a lock, over the worker's MetaClient, with a queue of recalls.

leases.py says what others may ask of them, held_leases.py has the rules, lease_protocol.py the conversation.  Here is who calls them:
threads that serve the kernel ask what is held (single looks, no lock), and say what they change; the thread that receives answers brings
grants and recalls; the thread "recalls" does what a recall asks for (recalls.py), and the recall is answered only after that.

No function of others is called with the lock held: what a grant wakes may serve a request to its end.

What came as an answer may be kept if the lease is held when the answer is taken up on the receiving thread: answers come in the order in
which the leader gave them, so one that follows the grant was computed after it, and while the lease is held only this mount changes what
it covers (`keeps`).  But the answer of a request that was sent more than once, over a new connection, may be a result that the leader has
kept since: others may have changed the same, and this mount may have the lease again, so nothing of it is kept (`doubting`), and nothing
that was learnt under the lease is believed any more.  What is kept may be used while the same grant is held, the session's fence is ahead,
and nothing of this mount is on its way to change it (`serves`): before the outcome is known others may have seen the new and we would show
the old.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from awsomefsd.base.limits import LEASES_PER_SESSION_MAX
from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE
from awsomefsd.base.wait import Resume, Wait
from awsomefsd.meta.api.messages import Body, Contested, Found, Leased
from awsomefsd.meta.client.lease_protocol import LeaseClient
from awsomefsd.meta.client.leases import AdoptedLease, Shown
from awsomefsd.meta.client.recalls import Done, RecallQueue

REFUSED_PAUSE_MS = 1_000
LEASES_PAUSED_MAX = 4_096  # inodes that are remembered as contested
LEASES_KEPT_MAX = LEASES_PER_SESSION_MAX * 3 // 4  # from which the oldest are given up


class LeaseChannel(Protocol):
    def submit(self, body: Body, resume: Resume) -> None: ...
    def lease_left_ns(self) -> int: ...
    def doubt_session(self) -> None: ...


def _nobody(_value: Any, _error: BaseException | None) -> None:
    """What was asked for besides."""


class _Asking:
    """A Wait for a lease: ends with the grant (Leased), None where it came too late to count, or the error."""

    __slots__ = ("_ino", "_known", "_leases", "_mode")

    def __init__(self, leases: MountLeases, ino: int, mode: int, known: int) -> None:
        self._leases = leases
        self._ino = ino
        self._mode = mode
        self._known = known

    def start(self, resume: Resume) -> None:
        self._leases.ask(self._ino, self._mode, resume, self._known)


class MountLeases:
    """Implements leases.Leases.  Beside that is `progress`, for a recall that is being handled."""

    def __init__(self, client: LeaseChannel, volume: int, recalls: RecallQueue) -> None:
        self._client = client
        self._volume = volume
        self._lock = threading.RLock()
        self._due: list[Callable[[], None]] = []  # to be called when the lock is free again
        self._depth = 0  # a closed client answers at once
        self._talk = LeaseClient(self._submit, self._handle_recall, client.lease_left_ns, client.doubt_session, self._handle_look)
        self._holder = self._talk.holder
        self.may_buffer, self.stamp = self._holder.may_buffer, self._holder.stamp
        self.may_decide = self._holder.may_decide
        self.changing, self.leaving = self._holder.changing, self._holder.leaving
        self.changes_known, self.writes = self._holder.known, self._holder.writes
        self._asking: set[int] = set()  # of `cover`
        self._asked: Counter[int] = Counter()  # inodes on which leases are asked for, and how many
        self._paused: dict[int, float] = {}  # inode → monotonic time before which no lease is asked for
        self._evicting = False
        self._doubting = 0  # the thread that takes up what may be old
        self._recalls = recalls

    # --- sessions and leaders ---------------------------------------------------------------------------------------------------
    def begin(self, session: int, epoch: int, adopted: Mapping[int, AdoptedLease] | None = None) -> None:
        """A session was opened; `adopted` as LeaseHolder.adopt.  Nothing is remembered of an older one."""
        self._locked(self._talk.begin, session, epoch, adopted or {})

    def lost(self) -> None:
        """The session has ended: nothing is held."""
        self._locked(self._talk.begin, 0, 0, {})

    def greeted(self, term: int) -> None:
        """A leader of that term took the connection.  On the client's receiving thread."""
        self._locked(self._talk.greeted, term)

    def _locked(self, call: Callable[..., Any], *args: Any) -> None:
        """Calls with the lock; what that makes due is called on this same thread: answers are taken up in their order."""
        with self._lock:
            self._depth += 1
            try:
                call(*args)
            finally:
                self._depth -= 1
            due: list[Callable[[], None]] = []
            if not self._depth:
                due, self._due = self._due, due
        for one in due:
            one()

    def _submit(self, body: Body, resume: Resume) -> None:
        """With the lock held; the client never blocks."""
        self._client.submit(body, partial(self._locked, resume))

    # --- recalls ----------------------------------------------------------------------------------------------------------------
    def _handle_recall(self, ino: int, mode: int, done: Done) -> None:
        """With the lock held."""
        self._recalls.put(ino, mode, partial(self._locked, done))

    def _handle_look(self, ino: int, answer: Callable[[Shown | None], None]) -> None:
        """With the lock held."""
        self._recalls.look(ino, partial(self._locked, answer))

    # --- asking -----------------------------------------------------------------------------------------------------------------
    def want(self, ino: int, mode: int = LEASE_READ) -> Wait:
        return _Asking(self, ino, mode, 0)

    def want_knowing(self, ino: int, mode: int, known: int) -> Wait:
        """Asks as `want`, for one who knows the file as it was after so many changes: the answer tells of those of others since."""
        return _Asking(self, ino, mode, known)

    def progress(self, ino: int, done: int) -> None:
        """A recall of it is being handled; only a growing `done` moves the leader's deadline."""
        self._locked(self._talk.progress, ino, done)

    def ask(self, ino: int, mode: int, resume: Resume, known: int = 0, *, unless_written: bool = False) -> None:
        """Ask for a lease; whoever asks something else behind it on the same connection may keep that answer, if this was granted.

        `known` as of `want_knowing`; 0: whatever others did, nothing here rests on how the file was.
        """

        def asked(reply: Leased | Contested | None, error: BaseException | None) -> None:
            self._asking.discard(ino)
            self._asked[ino] -= 1
            if not self._asked[ino]:
                del self._asked[ino]
            if isinstance(reply, Leased):
                self._paused.pop(ino, None)
            elif reply is not None or error is not None:
                self._pause(ino, REFUSED_PAUSE_MS if reply is None else reply.pause_ms)
            self._due.append(lambda: resume(reply, error))

        def ask() -> None:
            self._asked[ino] += 1
            self._talk.ask(self._volume, ino, mode, known, asked, unless_written=unless_written)

        self._locked(ask)

    def made(self, session: int, found: Found) -> bool:
        """Takes up the lease that came with what was made under that session; false if none is held now."""
        with self._lock:
            held = self._talk.made(session, found)
        self._bound()
        return held

    def made_here(self, ino: int) -> None:
        with self._lock:
            self._holder.made_here(ino)

    @property
    def may_make(self) -> bool:
        return self._holder.count <= LEASES_KEPT_MAX

    def want_to_decide(self, ino: int) -> None:
        if ino not in self._asked and self._paused.get(ino, 0) <= time.monotonic() and self._holder.session and self.may_make:
            self.ask(ino, LEASE_WRITE, _nobody)

    def _pause(self, ino: int, pause_ms: int) -> None:
        self._paused[ino] = time.monotonic() + pause_ms / 1_000
        if len(self._paused) > LEASES_PAUSED_MAX:
            del self._paused[next(iter(self._paused))]

    def cover(self, ino: int, *, unless_written: bool = False) -> None:
        """A read lease for what is asked next, if none is held and it may be asked for; nobody waits for it."""
        if self._holder.grant(ino) or ino in self._asking or self._paused.get(ino, 0) > time.monotonic() or not self._holder.session:
            return
        self._asking.add(ino)
        self.ask(ino, LEASE_READ, _nobody, unless_written=unless_written)
        self._bound()

    def _bound(self) -> None:
        if self._holder.count > LEASES_KEPT_MAX and not self._evicting:
            self._evicting = True
            self._recalls.call(self._evict)

    def _evict(self) -> None:
        """Give up the oldest read leases."""
        with self._lock:
            inos = self._holder.oldest_reads(LEASES_KEPT_MAX // 16)
            self._holder.leave(inos)
        left = [len(inos)]

        def done() -> None:
            left[0] -= 1
            if not left[0]:
                self._release(inos)
                self._evicting = self._holder.count > LEASES_KEPT_MAX
                if self._evicting:
                    self._recalls.call(self._evict)

        for ino in inos:
            self._recalls.put(ino, LEASE_NONE, done)
        if not inos:
            self._evicting = False

    def _release(self, inos: list[int]) -> None:
        """Nothing is buffered or remembered under these any more."""
        self._locked(self._talk.release, inos)

    def note_ended(self, ino: int, epoch: int) -> None:
        """That write lease has ended although nobody has said so: it is not held from now on, and what the kernel was told goes as with a
        recall.
        """
        with self._lock:
            ended = self._holder.note_ended(ino, epoch)
        if ended:
            self._recalls.put(ino, LEASE_NONE, lambda: None)

    def lower(self, inos: list[int], clean: Callable[[int], bool]) -> None:
        """Write leases that are not needed become read leases.  `clean`: nothing is buffered of a file, nor will be from this call on."""
        with self._lock:
            self._holder.pause(inos)
        found = [ino for ino in inos if clean(ino)]  # with no lock held: it takes those of files

        def lower() -> None:
            self._talk.lower(inos, [ino for ino in found if ino not in self._asked])

        self._locked(lower)

    @property
    def epoch(self) -> int:
        return self._holder.epoch

    # --- use --------------------------------------------------------------------------------------------------------------------
    def grant(self, ino: int) -> int:
        """The number of the lease as long as it is held, also while this mount changes something; 0: none, or fenced.

        Whoever is told 0 keeps nothing of what it has just learnt, perhaps the outcome of an own change.  A fenced session may go on under
        the next leader, and the lease with it: so what was learnt before is not believed any more either.
        """
        grant = self._holder.grant(ino)
        if not grant and self._holder.held(ino):
            with self._lock:
                self._holder.renew([ino])
        return grant

    def keeps(self, ino: int) -> int:
        """The number of the grant under which an answer that is being taken up may be kept; 0: it may not."""
        return 0 if self._doubting == threading.get_ident() else self.grant(ino)

    @contextlib.contextmanager
    def doubting(self, inos: list[int]) -> Iterator[None]:
        """A scope for taking up the answer of a repeated request that changed these."""
        with self._lock:
            self._holder.renew(inos)
        self._doubting = threading.get_ident()
        try:
            yield
        finally:
            self._doubting = 0

    def serves(self, ino: int, grant: int) -> bool:
        """Says whether what was kept under that grant may be used."""
        return grant > 0 and self._holder.serves(ino) == grant

    def begin_change(self, inos: list[int]) -> None:
        """This mount is about to propose a change of these."""
        with self._lock:
            self._holder.change(inos)

    def end_change(self, inos: list[int]) -> None:
        """The outcome is known, and what it means here is taken up next, on this thread."""
        with self._lock:
            self._holder.changed(inos)

    def touch(self, ino: int) -> None:
        """Data is buffered: answers that were kept do not have it."""
        with self._lock:
            self._holder.touch(ino)
