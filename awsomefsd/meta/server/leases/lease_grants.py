"""Remembers who reads and who writes which inode under a lease, and numbers each grant.  Pure.

Read leases are nowhere else; write leases are entries (meta/machine/write_leases.py), copied here when they are applied.  Those of before
this leadership are copied some at a time, since there may be hundreds of thousands; until all are here, one that is not is looked up.

A grant has the sequence of its session, which grows with each grant and each recall (lease_table.py says what for).
"""

from __future__ import annotations

from collections.abc import Callable

from awsomefsd.base.limits import LEASES_HELD_MAX, LEASES_PER_SESSION_MAX
from awsomefsd.base.types import LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api.messages import Leased
from awsomefsd.meta.server.leases.key_queues import KeyQueues
from awsomefsd.meta.server.waiters import Key


class Recall:
    """A session is asked to let go of a key."""

    __slots__ = ("begun_ns", "deadline_ns", "done", "key", "mode", "sequence")

    def __init__(self, sequence: int, key: Key, mode: int, begun_ns: int, deadline_ns: int) -> None:
        self.begun_ns = begun_ns
        self.sequence = sequence
        self.key = key
        self.mode = mode  # what may stay
        self.deadline_ns = deadline_ns
        self.done = 0

    @property
    def is_look(self) -> bool:
        """True: the session is asked what it shows of what it writes, and keeps its lease."""
        return self.mode == LEASE_WRITE


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


class Grants:
    """Used by the metadata thread only; nothing blocks.  `term`: of the leadership, part of each grant."""

    def __init__(self, term: int, queues: KeyQueues) -> None:
        self._term = term
        self._queues = queues
        self.holders: dict[int, Holder] = {}  # by session
        self.writers: dict[Key, tuple[int, int]] = {}  # key → (session, epoch of the lease)
        self._readers: dict[Key, set[int]] = {}
        self._stored: Callable[[Key], tuple[int, int]] | None = None  # (session, epoch) as the state has it; None: all are in `writers`

    @property
    def is_complete(self) -> bool:
        """True: `writers` has all write leases."""
        return self._stored is None

    def begin_loading(self, stored: Callable[[Key], tuple[int, int]]) -> None:
        """There are write leases of before.  `stored`: (session, epoch) of one in the state; session 0: there is none."""
        self._stored = stored

    def load(self, found: list[tuple[Key, tuple[int, int]]], *, last: bool) -> None:
        """Takes some of them, as the state has them now."""
        for key, (session, epoch) in found:
            if key not in self.writers:
                self.set_writer(session, key, epoch)
        if last:
            self._stored = None

    def writer(self, key: Key) -> tuple[int, int] | None:
        """Returns (session, epoch) of the write lease; None: nobody has it."""
        found = self.writers.get(key)
        if found is None and self._stored is not None:
            session, epoch = self._stored(key)
            if session:
                self.set_writer(session, key, epoch)
                found = self.writers[key]
        return found

    def readers_of(self, key: Key) -> set[int]:
        """Returns the sessions that hold a read lease; not to be changed."""
        return self._readers.get(key, set())

    # --- to read ----------------------------------------------------------------------------------------------------------------
    def grant_read(self, session: int, key: Key) -> int | None:
        """Grants a read lease, or grants it again.  Returns the sequence of the grant; None: the session holds too many."""
        holder = self.holders[session]
        if key not in holder.reads and len(holder.reads) >= LEASES_PER_SESSION_MAX:
            return None
        sequence = self._next_sequence(holder, key)
        self.record_read(session, key)
        return sequence

    def add_reader(self, session: int, key: Key) -> None:
        """The entry that makes a directory was applied: its maker reads it, unless somebody else may already."""
        holder = self.holders.get(session)
        if holder is not None and len(holder.reads) < LEASES_PER_SESSION_MAX and not self._queues.is_busy(key) and key not in self._readers:
            self.record_read(session, key)

    def regrant_read(self, session: int, key: Key) -> Leased | None:
        """Returns a grant of what the session reads already, to be told to it; None: it does not read that."""
        holder = self.holders.get(session)
        if holder is None or key not in holder.reads:
            return None
        return Leased(self._term, self.grant_read(session, key) or 0, LEASE_READ, 0, 1, False)

    def record_read(self, session: int, key: Key) -> None:
        """The session reads that from its newest sequence on."""
        holder = self.holders[session]
        holder.reads[key] = holder.sequence
        self._readers.setdefault(key, set()).add(session)

    def drop_read(self, session: int, key: Key) -> None:
        """The session reads that no more, if it did; what waits for the key is woken."""
        if self.holders[session].reads.pop(key, None) is not None:
            readers = self._readers[key]
            assert session in readers, "both indexes of read leases change together"
            readers.discard(session)
            if not readers:
                del self._readers[key]
            self._queues.wake(key)

    # --- to write ---------------------------------------------------------------------------------------------------------------
    def set_writer(self, session: int, key: Key, epoch: int) -> None:
        """The entry that makes the session the writer was applied."""
        assert epoch > 0, "the first write lease on an inode has epoch 1"
        self._forget_writer(key)
        self.writers[key] = (session, epoch)
        holder = self.holders.get(session)
        if holder is not None:
            holder.writes += 1

    def remove_writer(self, key: Key) -> None:
        """The entry that ends the write lease was applied; what waits for the key is woken."""
        self._forget_writer(key)
        self._queues.wake(key)
        self._queues.wake_looking(key)

    def remove_writes_of(self, session: int) -> None:
        """The end of the session was applied, and with it that of its write leases."""
        for key in [key for key, (writer, _) in self.writers.items() if writer == session]:
            self.remove_writer(key)

    def _forget_writer(self, key: Key) -> None:
        writer = self.writers.pop(key, None)
        holder = None if writer is None else self.holders.get(writer[0])
        if holder is not None:
            holder.writes -= 1
            if key in holder.recalls and holder.recalls[key].is_look:
                del holder.recalls[key]  # what it shows from now on is not all that there is
                self._queues.wake_looking(key)

    def is_full(self, session: int) -> bool:
        """The session holds so many leases that it gets no more to write: each one that it gives back goes on as one to read."""
        holder = self.holders.get(session)
        if holder is None:
            return False
        return holder.writes >= LEASES_PER_SESSION_MAX or holder.writes + len(holder.reads) >= LEASES_HELD_MAX

    def number_grant(self, session: int, key: Key, grant: Leased) -> Leased:
        """Returns the grant of a write lease with its term and sequence, to be told to the writer.  It reads that under no lease beside."""
        holder = self.holders.get(session)
        sequence = 0
        if holder is not None:
            if key in holder.reads:
                self.drop_read(session, key)  # writing includes reading
            sequence = self._next_sequence(holder, key)
        return Leased(self._term, sequence, LEASE_WRITE, grant.epoch, grant.changes, grant.changed_by_others)

    def _next_sequence(self, holder: Holder, key: Key) -> int:
        """The number of a grant.  It overtakes an open recall of the key, whose answer would speak of what was held before: ask again."""
        if holder.recalls.pop(key, None) is not None:
            self._queues.wake(key)
            self._queues.wake_looking(key)
        holder.sequence += 1
        return holder.sequence
