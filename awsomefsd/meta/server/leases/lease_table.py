"""Remembers all leases while this node leads: who reads, who writes, who is asked to let go, and who waits.  Pure; times are given.

Only sessions that share their volume are here.  lease_grants.py has what they hold, lease_recalls.py what they are asked to give back, and
key_queues.py what waits for that; here are the sessions themselves, from their opening to their end.

A leader that begins takes every sharing session to hold *all* read leases of its volume until it has said which (`report`): a change then
waits for the report or for the session's end.  One that does not report within a TTL is not renewed any more: it ends when the
lease that it was promised last is over, and never before, so what it may still serve and what others are granted do not overlap in time.

Whatever a session is told carries (term, sequence).  The sequence grows per session with each grant and recall; a session that has
reported to a term, or answered a recall, ignores everything older, so late and reordered grants are harmless.  In the other direction a
release names the newest sequence it has seen, and ends no grant that is newer.

A question of a mount (or a tool) about what somebody else may buffer under a write lease waits in the same queues until that is recalled
to a read lease (`recall_writer`); questions about anything else never wait.

A recall has a deadline that only progress moves.  Requests that wait for a key wait in its queue, in order; those of a session that is
asked to let go of that very key overtake them, or the recall could not be answered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from awsomefsd.base.limits import LEASES_HELD_MAX, NS_PER_MS, SESSION_TTL_MS
from awsomefsd.meta.server.leases.contention import Contention
from awsomefsd.meta.server.leases.key_queues import KeyQueues
from awsomefsd.meta.server.leases.lease_grants import Grants, Holder
from awsomefsd.meta.server.leases.lease_recalls import LeaseRecalls
from awsomefsd.meta.server.waiters import Key


class LeaseTable:
    """Used by the metadata thread only; nothing blocks.  Times are CLOCK_BOOTTIME."""

    def __init__(self, term: int = 0) -> None:
        self.term = term
        self.queues = KeyQueues()
        self.contention = Contention()
        self.grants = Grants(term, self.queues)
        self.recalls = LeaseRecalls(term, self.grants, self.queues, self.contention)
        self.holders = self.grants.holders  # session → what is known of it
        self.granting: dict[Key, int] = {}  # write leases whose entry is on its way → session

    # --- sessions ---------------------------------------------------------------------------------------------------------------
    def begin(self, sessions: dict[int, tuple[int, int]], stored: Callable[[Key], tuple[int, int]], now_ns: int) -> None:
        """A leadership begins: session → (volume, mount) of all that cache, and how to look up a write lease of the state."""
        assert not self.holders, "a table serves one leadership"
        self.holders.update({session: Holder(*of, now_ns + SESSION_TTL_MS * NS_PER_MS) for session, of in sessions.items()})
        if sessions:
            self.grants.begin_loading(stored)

    def open_session(self, session: int, volume: int, mount: int, resumed_ns: int | None = None) -> None:
        """A new session holds nothing.  One that a successor took over (at `resumed_ns`) is taken to hold all, as when a leader begins:
        the kernel still believes what its predecessor promised."""
        before = self.holders.get(session)
        inherited, writes = (None, 0) if before is None else (before.inherited, before.writes)
        if before is not None and before.report_ns is None:
            inherited = [ino for _, ino in before.reads]
        self.end_session(session)
        holder = self.holders[session] = Holder(volume, mount, None if resumed_ns is None else resumed_ns + SESSION_TTL_MS * NS_PER_MS)
        holder.inherited, holder.writes = inherited, writes
        self.queues.wake_volume(volume)

    def inherited(self, session: int) -> list[int] | None:
        """Returns the inodes that the predecessor of the worker that opened the session last held, sorted; None: nobody here knows."""
        reads = self.holders[session].inherited if self.grants.is_complete else None
        writes = [key[1] for key, (writer, _) in self.grants.writers.items() if writer == session]
        return None if reads is None else sorted({*reads, *writes})

    def end_session(self, session: int) -> None:
        """The session holds no read lease any more.  Its write leases ended with the same entry (`Grants.remove_writes_of`)."""
        holder = self.holders.get(session)
        if holder is not None:
            for key in list(holder.reads):
                self.grants.drop_read(session, key)
            del self.holders[session]
            self.queues.wake_volume(holder.volume)

    def report(self, session: int, term: int, inos: Collection[int]) -> bool:
        """The session says what it holds.  False: it was of another term, or names more than any session is granted.

        Only the first report of a term counts: a copy that comes later would undo grants.
        """
        holder = self.holders.get(session)
        if holder is None or term != self.term or len(inos) > LEASES_HELD_MAX:
            return False
        if holder.report_ns is not None:
            holder.report_ns = None
            for ino in inos:
                self.grants.record_read(session, (holder.volume, ino))
            self.queues.wake_volume(holder.volume)
        return True

    def has_reported(self, session: int) -> bool:
        holder = self.holders.get(session)
        return holder is not None and holder.report_ns is None

    def overdue(self, now_ns: int) -> list[int]:
        """Returns the sessions that let a recall or their report pass its deadline: they are to be renewed no more."""
        late = set(self.recalls.overdue(now_ns))
        return [
            session
            for session, holder in self.holders.items()
            if session in late or (holder.report_ns is not None and holder.report_ns <= now_ns)
        ]

    # --- what sessions give back on their own -----------------------------------------------------------------------------------
    def give_up(self, session: int, term: int, sequence: int, ino: int) -> int:
        """A voluntary release, by a session that has seen everything up to `sequence`.  Returns as `LeaseRecalls.answer`."""
        holder = self.holders.get(session)
        if holder is None or term != self.term or holder.report_ns is not None:
            return 0
        key = (holder.volume, ino)
        if holder.reads.get(key, sequence + 1) <= sequence:
            self.grants.drop_read(session, key)
        writer = self.grants.writer(key)
        return writer[1] if writer is not None and writer[0] == session and sequence >= holder.sequence else 0

    def lower(self, session: int, key: Key, epoch: int) -> bool:
        """The session writes no more under that lease and goes on reading, as if it had been recalled.  False: there is no such lease to
        end."""
        if session not in self.holders or self.grants.writer(key) != (session, epoch):
            return False
        self.grants.record_read(session, key)
        return True

    def figures(self, now_ns: int) -> dict[str, int]:
        return {
            **self.recalls.figures(),
            "lease_waiters": self.queues.waiting_count,
            "leases_read": sum(len(holder.reads) for holder in self.holders.values()),
            "leases_write": len(self.grants.writers),
            "lease_contests": self.contention.begun,
            "lease_contested_inodes": self.contention.count_contested(now_ns),
        }
