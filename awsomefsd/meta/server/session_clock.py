"""Remembers who renewed a session when, and what each still uses.  Pure; the caller tells the time (CLOCK_BOOTTIME).

Not in the log: a renewal that cost an entry would make every idle mount write.  So a service that (re)starts knows nothing and grants a
full TTL to every session before it ends one.  It does the same when its own clock shows that it was not running for a while (SIGSTOP,
suspend, a stalled disk): renewals that were sent meanwhile wait unread in the sockets.  A session counts its lease from before it sends a
renewal, the leader from when it reads it: the session gives up first.
"""

from __future__ import annotations

from awsomefsd.base.limits import CLOCK_JUMP_MS_MAX, NS_PER_MS, SESSION_TTL_MS
from awsomefsd.meta.api.commands import EndSession

CHECK_MS = 500  # how often `take_expired` is to be called


class _Live:
    __slots__ = ("deadline_ns", "epoch", "renewable", "seen_index")

    def __init__(self, epoch: int, deadline_ns: int, seen_index: int) -> None:
        self.epoch = epoch
        self.deadline_ns = deadline_ns
        self.seen_index = seen_index
        self.renewable = True


class Renewals:
    def __init__(self, ttl_ms: int = SESSION_TTL_MS, jump_ms: int = CLOCK_JUMP_MS_MAX) -> None:
        self._ttl_ns = ttl_ms * NS_PER_MS
        self._jump_ns = (jump_ms + CHECK_MS) * NS_PER_MS
        self._live: dict[int, _Live] = {}
        self._checked_ns: int | None = None
        self.jumps = 0

    def __len__(self) -> int:
        return len(self._live)

    def update(self, sessions: dict[int, int], now_ns: int) -> None:
        """Takes the sessions that exist now, with their epochs.

        New ones get a full TTL and are taken to use everything since the beginning.
        """
        for session in [session for session, live in self._live.items() if sessions.get(session) != live.epoch]:
            del self._live[session]
        for session, epoch in sessions.items():
            if session not in self._live:
                self._live[session] = _Live(epoch, now_ns + self._ttl_ns, 0)

    def begin(self, sessions: dict[int, int], now_ns: int) -> None:
        """Begins a leadership: what an earlier one knew is old, and every session has a full TTL."""
        self._live.clear()
        self._checked_ns = None
        self.update(sessions, now_ns)

    def stop_renewing(self, session: int) -> None:
        """The session is not renewed any more; it ends when the lease that it was promised last is over, and not before."""
        live = self._live.get(session)
        if live is not None:
            live.renewable = False

    def is_alive(self, session: int, epoch: int) -> bool:
        """Returns whether the session may ask for things: it has not ended, and is renewed."""
        live = self._live.get(session)
        return live is not None and live.epoch == epoch and live.renewable

    def let_end(self, command: EndSession) -> bool:
        """Returns whether a session may end now, at the word of somebody who is not its worker.

        False: its worker may still serve programs, with what it has cached, until its lease is over.  The session is renewed no more and
        ends then.  An end that is `clean` comes with the proof that no process of the mount is left.
        """
        live = self._live.get(command.session)
        if command.clean or live is None or live.epoch != command.epoch:
            return True
        live.renewable = False
        return False

    def note_opened(self, session: int, resumed: bool, index: int, now_ns: int) -> None:
        """Takes up an OpenSession that was applied as entry `index`: a new session uses nothing that is older.

        Its answer promises the worker a full TTL, also that of a session which is not renewed any more.
        """
        live = self._live.get(session)
        if live is not None:
            live.deadline_ns = now_ns + self._ttl_ns
            if not resumed:
                live.seen_index = max(live.seen_index, index)

    def renew(self, session: int, epoch: int, seen_index: int, now_ns: int) -> bool:
        """Extends a session by a full TTL.  False: it has ended, or is not renewed any more."""
        live = self._live.get(session)
        if live is None or live.epoch != epoch or not live.renewable:
            return False
        live.deadline_ns = now_ns + self._ttl_ns
        live.seen_index = max(live.seen_index, seen_index)
        return True

    def take_expired(self, now_ns: int) -> list[tuple[int, int]]:
        """Returns (session, epoch) of those to end.  After a jump of the clock every session has a full TTL again, and none ends."""
        checked, self._checked_ns = self._checked_ns, now_ns
        if checked is not None and now_ns - checked > self._jump_ns:
            self.jumps += 1
            for live in self._live.values():
                live.deadline_ns = now_ns + self._ttl_ns
        return [(session, live.epoch) for session, live in self._live.items() if live.deadline_ns <= now_ns]

    def safe_index(self, applied: int) -> int:
        """Returns the index of an entry: no session uses anything older than its state."""
        return min((live.seen_index for live in self._live.values()), default=applied)
