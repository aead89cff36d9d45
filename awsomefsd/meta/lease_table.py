"""The leader's memory of leases: who reads, who writes, who is asked to let go, and who waits for that.  Pure; times are given.

Only sessions that share their volume are here.  Read leases are nowhere else; write leases are entries (leases.py), copied here.

A leader that begins takes every sharing session to hold *all* read leases of its volume until it has said which (`report`): a change then
waits for the report or for the session's end.  One that does not report within a TTL is condemned: not renewed any more, it ends when the
lease that it was promised last is over, and never before, so what it may still serve and what others are granted do not overlap in time.

Whatever a session is told carries (term, sequence).  The sequence grows per session with each grant and recall; a session that has
reported to a term, or answered a recall, ignores everything older, so late and reordered grants are harmless.  In the other direction a
release names the newest sequence it has seen, and ends no grant that is newer.

A question of a mount (or a tool) about what somebody else may hold back under a write lease waits in the same queues until that is
recalled to a read lease (`told`); questions about anything else never wait.

A recall has a deadline that only progress moves.  Requests that wait for a key wait in its queue, in order; those of a session that is
asked to let go of that very key overtake them, or the recall could not be answered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

from awsomefsd.limits import LEASE_WAITERS_PER_INODE_MAX, LEASES_PER_SESSION_MAX, RECALL_MS, SESSION_TTL_MS
from awsomefsd.meta.contests import Contests
from awsomefsd.meta.messages import Leased
from awsomefsd.meta.waiting import Key
from awsomefsd.types import LEASE_NONE, LEASE_READ, LEASE_WRITE

_MS = 1_000_000
RECALL_BOUNDS_MS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class Recall:
    __slots__ = ("begun_ns", "deadline_ns", "done", "key", "mode", "sequence")

    def __init__(self, sequence: int, key: Key, mode: int, begun_ns: int, deadline_ns: int) -> None:
        self.begun_ns = begun_ns
        self.sequence = sequence
        self.key = key
        self.mode = mode  # what may stay
        self.deadline_ns = deadline_ns
        self.done = 0


class Holder:
    """A session that shares a volume."""

    __slots__ = ("inherited", "mount", "reads", "recalls", "report_ns", "sequence", "volume", "writes")

    def __init__(self, volume: int, mount: int, report_ns: int | None) -> None:
        self.volume = volume
        self.mount = mount
        self.report_ns = report_ns  # until when it has to report; None: it has
        self.inherited: list[int] | None = None  # inodes with read leases of the worker before
        self.sequence = 0
        self.reads: dict[Key, int] = {}  # key → sequence of the grant
        self.recalls: dict[Key, Recall] = {}
        self.writes = 0  # write leases


class LeaseTable:
    def __init__(self, term: int = 0) -> None:
        self.term = term
        self.holders: dict[int, Holder] = {}
        self._readers: dict[Key, set[int]] = {}
        self.writers: dict[Key, tuple[int, int]] = {}  # key → (session, epoch)
        self._busy: dict[Key, int] = {}  # with proposals that are not decided, and how many
        self._queues: dict[Key, list[Any]] = {}
        self._woken: dict[Key, None] = {}
        self._to_tell: set[int] = set()  # sessions with new recalls
        self.contests = Contests()
        self.recalls = 0
        self.recall_ms = [0] * (len(RECALL_BOUNDS_MS) + 1)  # how many were answered within each bound, the last: later

    # --- sessions ---------------------------------------------------------------------------------------------------------------
    def begin(self, sessions: dict[int, tuple[int, int]], writers: dict[Key, tuple[int, int]], now_ns: int) -> None:
        """A leadership begins: session → (volume, mount) of all that cache, and the write leases of the state."""
        self.holders = {session: Holder(*of, now_ns + SESSION_TTL_MS * _MS) for session, of in sessions.items()}
        self.writers = {}
        for key, (session, epoch) in writers.items():
            self.writes(session, key, epoch)

    def opened(self, session: int, volume: int, mount: int, resumed_ns: int | None = None) -> None:
        """A new session holds nothing.  One that a successor took over is taken to hold all, as when a leader begins: the kernel still
        believes what its predecessor promised."""
        before = self.holders.get(session)
        inherited, writes = (None, 0) if before is None else (before.inherited, before.writes)
        if before is not None and before.report_ns is None:
            inherited = [ino for _, ino in before.reads]
        self.ended(session)
        holder = self.holders[session] = Holder(volume, mount, None if resumed_ns is None else resumed_ns + SESSION_TTL_MS * _MS)
        holder.inherited, holder.writes = inherited, writes
        self._wake_volume(volume)

    def inherited(self, session: int) -> list[int] | None:
        """What the predecessor of the worker that opened the session last held; None: nobody here knows."""
        reads = self.holders[session].inherited
        writes = [key[1] for key, (writer, _) in self.writers.items() if writer == session]
        return None if reads is None else sorted({*reads, *writes})

    def ended(self, session: int) -> None:
        """Its write leases ended with the same entry."""
        holder = self.holders.pop(session, None)
        if holder is not None:
            for key in list(holder.reads):
                self._drop_read(session, holder, key)
            self._wake_volume(holder.volume)

    def forget_writes(self, session: int) -> None:
        """Its end was applied."""
        for key in [key for key, (writer, _) in self.writers.items() if writer == session]:
            self.released(key)

    def report(self, session: int, term: int, inos: Iterable[int]) -> bool:
        """What it holds.  Only the first report of a term counts: a copy that comes later would undo grants.  False: another term."""
        holder = self.holders.get(session)
        if holder is None or term != self.term:
            return False
        if holder.report_ns is not None:
            holder.report_ns = None
            for ino in inos:
                self._add_read(session, holder, (holder.volume, ino))
            self._wake_volume(holder.volume)
        return True

    def reported(self, session: int) -> bool:
        holder = self.holders.get(session)
        return holder is not None and holder.report_ns is None

    def overdue(self, now_ns: int) -> list[int]:
        """Sessions that let a recall or their report pass its deadline: to be condemned."""
        return [
            session
            for session, holder in self.holders.items()
            if (holder.report_ns is not None and holder.report_ns <= now_ns)
            or any(recall.deadline_ns <= now_ns for recall in holder.recalls.values())
        ]

    # --- what is in the way -----------------------------------------------------------------------------------------------------
    def clear(self, session: int, key: Key, mode: int, now_ns: int) -> bool:
        """Whether nothing is in the way of `session` reading or changing (LEASE_WRITE) under a key.  False: those in the way are asked."""
        clear = True
        writer = self.writers.get(key)
        if writer is not None and writer[0] != session:
            clear = False
            self._recall(writer[0], key, LEASE_READ if mode == LEASE_READ else LEASE_NONE, now_ns)
        if mode == LEASE_WRITE:
            for reader in self._readers.get(key, ()):
                if reader != session:
                    clear = False
                    self._recall(reader, key, LEASE_NONE, now_ns)
            for number, holder in self.holders.items():
                if holder.report_ns is not None and number != session and holder.volume == key[0]:
                    clear = False
        return clear

    def told(self, mount: int, key: Key, now_ns: int) -> bool:
        """Whether what is committed is all there is, for a question of that mount (0: of none).  False: the writer is asked to commit."""
        writer = self.writers.get(key)
        if writer is None:
            return True
        holder = self.holders.get(writer[0])
        if mount and holder is not None and holder.mount == mount:
            return True
        self._recall(writer[0], key, LEASE_READ, now_ns)
        return False

    def held_back(self, mount: int, key: Key) -> bool:
        """Another mount than this one may hold something of it back."""
        writer = self.writers.get(key)
        holder = None if writer is None else self.holders.get(writer[0])
        return writer is not None and not (mount and holder is not None and holder.mount == mount)

    def _recall(self, session: int, key: Key, mode: int, now_ns: int) -> None:
        holder = self.holders.get(session)
        if holder is None:
            return  # it has ended; its entry is on its way
        recall = holder.recalls.get(key)
        if recall is None or recall.mode > mode:
            holder.sequence += 1
            if recall is None:
                begun, deadline = now_ns, now_ns + RECALL_MS * _MS
                self.recalls += 1
                self.contests.recalled(key, now_ns)
            else:
                begun, deadline = recall.begun_ns, recall.deadline_ns
            holder.recalls[key] = Recall(holder.sequence, key, mode, begun, deadline)
            self._to_tell.add(session)

    def recalled(self, session: int, key: Key) -> bool:
        """Whether it is asked to let go of that key: its requests overtake those that wait."""
        holder = self.holders.get(session)
        return holder is not None and key in holder.recalls

    # --- grants -----------------------------------------------------------------------------------------------------------------
    def grant_read(self, session: int, key: Key) -> int | None:
        """The sequence of the grant; None: it holds too many."""
        holder = self.holders[session]
        if key not in holder.reads and len(holder.reads) >= LEASES_PER_SESSION_MAX:
            return None
        sequence = self._next(holder, key)
        self._add_read(session, holder, key)
        return sequence

    def reads_made(self, session: int, key: Key) -> None:
        """The entry that makes a directory was applied."""
        holder = self.holders.get(session)
        if holder is not None and len(holder.reads) < LEASES_PER_SESSION_MAX and key not in self._busy and key not in self._readers:
            self._add_read(session, holder, key)

    def read_again(self, session: int, key: Key) -> Leased | None:
        """The grant of what it reads already, which it is about to be told of."""
        holder = self.holders.get(session)
        if holder is None or key not in holder.reads:
            return None
        return Leased(self.term, self.grant_read(session, key) or 0, LEASE_READ, 0, 1, False)

    def writes(self, session: int, key: Key, epoch: int) -> None:
        """The entry that makes it the writer was applied."""
        self._forget_writer(key)
        self.writers[key] = (session, epoch)
        holder = self.holders.get(session)
        if holder is not None:
            holder.writes += 1

    def _forget_writer(self, key: Key) -> None:
        writer = self.writers.pop(key, None)
        holder = None if writer is None else self.holders.get(writer[0])
        if holder is not None:
            holder.writes -= 1

    def full(self, session: int) -> bool:
        """It holds so many write leases that it gets no more."""
        holder = self.holders.get(session)
        return holder is not None and holder.writes >= LEASES_PER_SESSION_MAX

    def numbered(self, session: int, key: Key, grant: Leased) -> Leased:
        """The writer is about to be told."""
        holder = self.holders.get(session)
        sequence = 0
        if holder is not None:
            if key in holder.reads:
                self._drop_read(session, holder, key)  # writing includes reading
            sequence = self._next(holder, key)
        return Leased(self.term, sequence, LEASE_WRITE, grant.epoch, grant.changes, grant.foreign)

    def _next(self, holder: Holder, key: Key) -> int:
        """The number of a grant.  It overtakes an open recall of the key, whose answer would speak of what was held before: ask anew."""
        if holder.recalls.pop(key, None) is not None:
            self.wake(key)
        holder.sequence += 1
        return holder.sequence

    def released(self, key: Key) -> None:
        """The entry that ends a write lease was applied."""
        self._forget_writer(key)
        self.wake(key)

    def _add_read(self, session: int, holder: Holder, key: Key) -> None:
        holder.reads[key] = holder.sequence
        self._readers.setdefault(key, set()).add(session)

    def _drop_read(self, session: int, holder: Holder, key: Key) -> None:
        if holder.reads.pop(key, None) is not None:
            readers = self._readers[key]
            readers.discard(session)
            if not readers:
                del self._readers[key]
            self.wake(key)

    # --- what sessions say ------------------------------------------------------------------------------------------------------
    def take_told(self) -> set[int]:
        """Sessions that have new recalls since the last call."""
        taken, self._to_tell = self._to_tell, set()
        return taken

    def open_recalls(self, session: int, after: int) -> list[tuple[int, int, int]]:
        """All of them, if one is newer than `after`."""
        holder = self.holders.get(session)
        if holder is None:
            return []
        found = sorted((recall.sequence, recall.key[1], recall.mode) for recall in holder.recalls.values())
        return found if found and found[-1][0] > after else []

    def recall_of(self, session: int, term: int, sequence: int) -> Recall | None:
        holder = self.holders.get(session)
        if holder is None or term != self.term:
            return None
        return next((recall for recall in holder.recalls.values() if recall.sequence == sequence), None)

    def answered(self, session: int, recall: Recall, now_ns: int) -> int:
        """It has let go.  The epoch of the write lease that an entry has to end now; 0: nothing more is to be done."""
        holder = self.holders[session]
        del holder.recalls[recall.key]
        self.recall_ms[bisect_left(RECALL_BOUNDS_MS, (now_ns - recall.begun_ns) / _MS)] += 1
        writer = self.writers.get(recall.key)
        if writer is not None and writer[0] == session:
            if recall.mode == LEASE_READ:
                self._add_read(session, holder, recall.key)
            else:
                self._drop_read(session, holder, recall.key)  # one that it went on with (`lower`)
            return writer[1]
        if recall.mode == LEASE_NONE:
            self._drop_read(session, holder, recall.key)
        self.wake(recall.key)
        return 0

    def extend(self, recall: Recall, done: int, now_ns: int) -> None:
        if done > recall.done:
            recall.done, recall.deadline_ns = done, now_ns + RECALL_MS * _MS

    def give_up(self, session: int, term: int, sequence: int, ino: int) -> int:
        """A voluntary release, by one that has seen everything up to `sequence`.  As `answered`."""
        holder = self.holders.get(session)
        if holder is None or term != self.term or holder.report_ns is not None:
            return 0
        key = (holder.volume, ino)
        if holder.reads.get(key, sequence + 1) <= sequence:
            self._drop_read(session, holder, key)
        writer = self.writers.get(key)
        return writer[1] if writer is not None and writer[0] == session and sequence >= holder.sequence else 0

    def lower(self, session: int, key: Key, epoch: int) -> bool:
        """It writes no more under that lease and goes on reading, as if that had been recalled; False: there is no such lease to end."""
        holder = self.holders.get(session)
        if holder is None or self.writers.get(key) != (session, epoch):
            return False
        self._add_read(session, holder, key)
        return True

    # --- waiting ----------------------------------------------------------------------------------------------------------------
    def busy(self, key: Key) -> bool:
        return key in self._busy

    def enter(self, keys: Iterable[Key]) -> None:
        """A proposal that changes something under these keys is on its way."""
        for key in keys:
            self._busy[key] = self._busy.get(key, 0) + 1

    def decided(self, keys: Iterable[Key]) -> None:
        for key in keys:
            left = self._busy.get(key, 0) - 1
            if left > 0:
                self._busy[key] = left
            elif self._busy.pop(key, None) is not None:
                self.wake(key)

    def queued(self, key: Key) -> bool:
        return key in self._queues

    def park(self, key: Key, request: Any) -> bool:
        """False: too many wait."""
        queue = self._queues.setdefault(key, [])
        if len(queue) >= LEASE_WAITERS_PER_INODE_MAX:
            return False
        queue.append(request)
        return True

    def wake(self, key: Key) -> None:
        if key in self._queues:
            self._woken[key] = None

    def _wake_volume(self, volume: int) -> None:
        for key in self._queues:
            if key[0] == volume:
                self._woken[key] = None

    def take_woken(self) -> list[Any]:
        """Requests to be tried again, in order of key and arrival."""
        woken, self._woken = self._woken, {}
        return [request for key in woken for request in self._queues.pop(key, ())]

    def take_queued(self) -> list[Any]:
        """All that wait, when the leadership ends or a connection does."""
        queues, self._queues, self._woken = self._queues, {}, {}
        return [request for queue in queues.values() for request in queue]

    def keep_if(self, wanted: Callable[[Any], bool]) -> None:
        """Drop the requests that are not wanted any more; those behind them may go on."""
        for key, queue in list(self._queues.items()):
            kept = [request for request in queue if wanted(request)]
            if kept:
                self._queues[key] = kept
                self.wake(key)
            else:
                del self._queues[key]

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def figures(self, now_ns: int) -> dict[str, int]:
        within = zip(RECALL_BOUNDS_MS, accumulate(self.recall_ms), strict=False)
        return {
            **{f"lease_recalls_within_{bound}ms": count for bound, count in within},
            "lease_recalls_answered": sum(self.recall_ms),
            "lease_waiters": self.waiting,
            "leases_read": sum(len(holder.reads) for holder in self.holders.values()),
            "leases_write": len(self.writers),
            "lease_recalls": self.recalls,
            "lease_recalls_open": sum(len(holder.recalls) for holder in self.holders.values()),
            "lease_contests": self.contests.begun,
            "lease_contested_inodes": self.contests.contested(now_ns),
        }
