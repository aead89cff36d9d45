"""The shipper without I/O: which records of the op log go to the cluster, when, in what batches, and who is told what of it.

Pure: no clock, thread, socket or memory; the time comes in as an argument, in ns of a clock that does not go back.  The shipper's thread
drives it: it reports what happens (`stored`, `data_committed`, `data_failed`, `answered`, `resumed`, `aside_synced`), takes what `poll`
says, and does it.  One thread at a time.

Rules:

* *Prefix.*  Records go in the order of sequence, none is passed over: the cluster has a prefix of them, but for those put aside.
* *One batch is in flight.*  It is sent again, as it was, until it is answered: the cluster knows the sequence that it applied last and
  skips the records up to that.  The next one is collected meanwhile.
* *Due* is a batch SHIP_GAP_MS after the first record that waits in it, at SHIP_RECORDS_MAX records or SHIP_BYTES, or when somebody waits.
* *After.*  A record that names a data sequence does not go before that is committed.  Its flush is asked for when the record is stored.
* *Put aside* is a record that the cluster refused, whose data cannot be flushed, or that memory has damaged.  It poisons each inode that it
  touches, and a later record that touches one of these follows it: it may build upon what did not happen.  What a damaged record touches is
  unknown, so all later ones follow.  Nothing ships before the driver has synced them in the conflict area (`aside_synced`), and an inode
  stays poisoned until the overlay has the cluster's rows of it again (`cleansed`).
* *Rounds.*  A refusal ends a round: the cluster counts it in the row of the mount, and refuses batches of an earlier round.  Else a second
  copy of the batch, which a slow leader proposes late, could apply the record that was put aside, and those that followed it.
* *Waiters* are told when every record up to their sequence is applied or put aside and synced, and how many were put aside.
* *A rider* is a waiter with a commit of data, which goes in the batch of its last record: one entry in place of two.

Rejected: skipping a record that waits for its data (a hole in the prefix); a new batch for what an unanswered one holds (which of the two
was applied would decide what the answer means).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import NS_PER_MS, SHIP_BYTES, SHIP_GAP_MS, SHIP_RECORDS_MAX


class Stored(Protocol):
    """A record of the op log, as far as the shipper reads it."""

    sequence: int
    after: int
    data: bytes
    aside: bool  # it was put aside before, by a predecessor


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one Apply, in order.  `after`: the sequence that the cluster has applied last, or has at least.

    `rider`: the token of a waiter whose commit of data goes behind these records; None: of nobody.
    """

    number: int  # which answer belongs to it
    round: int
    after: int
    records: tuple[Stored, ...]
    rider: object | None = None

    @property
    def last(self) -> int:
        return self.records[-1].sequence


@dataclass(slots=True)
class Step:
    """What the driver is to do now.  It may be empty."""

    batch: RecordBatch | None = None  # to be sent; it is in flight now
    flush: list[int] = field(default_factory=list)  # data sequences: flush their files, and say what came of it
    aside: list[Stored] = field(default_factory=list)  # to be written to the conflict area, in order; then aside_synced
    applied: int = 0  # every record up to this sequence that was not put aside is applied
    told: list[tuple[object, int]] = field(default_factory=list)  # waiters, each with the number of its records that were put aside


@dataclass(slots=True)
class _Waiting:
    record: Stored
    touches: frozenset[int] | None
    since_ns: int


@dataclass(slots=True)
class _Waiter:
    token: object
    through: int
    rides: bool
    aside: int = 0


class ShipperCore:
    """The decisions of one mount's shipper.  `applied` and `round_`: what the row of the mount says, as the session was opened."""

    def __init__(self, applied: int = 0, round_: int = 0) -> None:
        self._applied = applied
        self._round = round_
        self._number = 0
        self._queue: deque[_Waiting] = deque()  # neither applied nor put aside, in order; the first ones are in flight
        self._bytes = 0  # of those that are not in flight
        self._in_flight: RecordBatch | None = None
        self._after: dict[int, bool] = {}  # data sequences that queued records name: committed
        self._touched: dict[int, deque[int]] = {}  # sequences of the queue by inode, in order
        self._poisoned: set[int] = set()
        self._all_poisoned = False
        self._syncing = 0  # records put aside that the driver has not synced
        self._aside = 0  # the newest sequence that was put aside
        self._waiters: list[_Waiter] = []
        self._next = Step(applied=applied)

    # --- what happens ------------------------------------------------------------------------------------------------------

    def stored(self, record: Stored, touches: Iterable[int] | None, now_ns: int) -> None:
        """Takes the next record of the op log.  `touches`: the inodes that it changes or builds upon; None: nobody knows, it is damaged.

        One at or below the sequence that the cluster has applied is not shipped.  One that a predecessor has put aside only poisons.
        """
        if record.aside:
            self._poison(None if touches is None else frozenset(touches))
            return
        if record.sequence <= self._applied:
            return
        assert not self._queue or self._queue[-1].record.sequence < record.sequence, "records come in order"
        known = None if touches is None else frozenset(touches)
        if self._follows(known):
            self._set_aside([_Waiting(record, known, now_ns)])
            return
        self._queue.append(_Waiting(record, known, now_ns))
        self._bytes += len(record.data)
        for ino in known or ():
            self._touched.setdefault(ino, deque()).append(record.sequence)
        if record.after and record.after not in self._after:
            self._after[record.after] = False
            self._next.flush.append(record.after)

    def data_committed(self, sequence: int) -> None:
        """The data that `Step.flush` named is committed, or nothing of it is dirty any more."""
        if sequence in self._after:
            self._after[sequence] = True

    def data_failed(self, sequence: int) -> None:
        """The data that `Step.flush` named cannot be flushed for good: the records behind it are put aside."""
        if self._after.get(sequence) is False:
            self._put_aside({waiting.record.sequence for waiting in self._queue if waiting.record.after == sequence})

    def answered(self, number: int, through: int, refused: int = 0) -> None:
        """The answer to a batch: the cluster has applied all up to `through`, and `refused` (0: nothing) is the first that it refused.

        An answer to a batch that is not in flight is a second copy, and changes nothing.  Raises Corrupt for one that cannot be.
        """
        batch = self._in_flight
        if batch is None or batch.number != number:
            return
        left = [record.sequence for record in batch.records if record.sequence > through]
        if through > batch.last or through < self._applied or left[:1] != ([refused] if refused else []):
            raise Corrupt(f"answer to records {batch.records[0].sequence} to {batch.last}: applied {through}, refused {refused}")
        self._land()
        self._have_applied(through)
        if refused:
            self._round += 1
            self._put_aside({refused})

    def resumed(self, applied: int, round_: int) -> None:
        """The row of the mount, asked for after a batch was refused whole, or under a new session: nothing is in flight any more.

        Raises Corrupt for a row that is older than the last one.
        """
        if applied < self._applied or round_ < self._round:
            raise Corrupt(f"applied {applied} in round {round_}, after {self._applied} in round {self._round}")
        self._land()
        self._round = round_
        self._have_applied(applied)

    def landed(self) -> None:
        """The batch in flight was refused as a whole, or nobody waits for it any more: nothing of it is applied, as far as is known."""
        self._land()

    def put_aside(self, sequence: int) -> None:
        """Puts a record aside that must not ship, as the driver has found, with those that follow it.  It is not in flight."""
        self._put_aside({sequence})

    def aside_synced(self, count: int) -> None:
        """The conflict area holds `count` more of the records that `Step.aside` gave, synced."""
        assert 0 < count <= self._syncing
        self._syncing -= count
        self._tell()

    def cleansed(self, inodes: Iterable[int] | None) -> None:
        """The overlay has the cluster's rows of these inodes again (None: of all): what is stored from now on builds upon what is true."""
        if inodes is None:
            self._all_poisoned = False
            self._poisoned.clear()
        else:
            self._poisoned.difference_update(inodes)

    def wait(self, token: object, through: int, *, rides: bool = False) -> None:
        """Tells `token`, by `Step.told`, when every record up to this sequence is applied, or put aside and synced.

        `rides`: it has a commit of data that may go in the batch with the last of these records.  The batch then names it, and it is told
        nothing here: the answer to the batch is its own.
        """
        self._waiters.append(_Waiter(token, through, rides, int(self._applied < through <= self._aside)))
        self._tell()

    def abandoned(self) -> list[object]:
        """Returns the tokens of those who wait, and forgets them: nothing is shipped by this process any more."""
        waiters, self._waiters = self._waiters, []
        return [waiter.token for waiter in waiters]

    # --- what is to be done ------------------------------------------------------------------------------------------------

    def poll(self, now_ns: int) -> Step:
        """Returns what is to be done now, each thing once."""
        step = self._next
        if self._is_due(now_ns):
            step.batch = self._take()
        self._next = Step(applied=self._applied)
        return step

    def due_ns(self) -> int | None:
        """Returns when the next batch is due if nothing else happens; None: never.  A time that has passed: now."""
        if self._in_flight is not None or self._syncing or not self._queue or self._is_blocked(self._queue[0]):
            return None
        first = self._queue[0].since_ns
        if self._waiters or len(self._queue) >= SHIP_RECORDS_MAX or self._bytes >= SHIP_BYTES:
            return first
        return first + SHIP_GAP_MS * NS_PER_MS

    def _is_due(self, now_ns: int) -> bool:
        due = self.due_ns()
        return due is not None and due <= now_ns

    # --- questions ---------------------------------------------------------------------------------------------------------

    def newest(self, inodes: Iterable[int]) -> int:
        """Returns the newest sequence that touches one of these inodes and is not applied; 0: none.  For who waits for an inode."""
        return max((self._touched[ino][-1] for ino in inodes if ino in self._touched), default=0)

    def barrier(self, ino: int) -> int:
        """Returns the first sequence that touches this inode and is neither applied nor in the batch in flight; 0: none.

        Data of the inode from there on must not be committed beside that batch: its records decide what such data means.
        """
        shipped = self._in_flight.last if self._in_flight is not None else 0
        return next((sequence for sequence in self._touched.get(ino, ()) if sequence > shipped), 0)

    def is_poisoned(self, ino: int) -> bool:
        """Returns whether data of this inode is to be put aside: it builds upon a record that was."""
        return self._all_poisoned or ino in self._poisoned

    @property
    def last(self) -> int:
        """The newest sequence that is not applied or put aside; else the one that was applied last.  For who waits for everything."""
        return self._queue[-1].record.sequence if self._queue else self._applied

    @property
    def applied(self) -> int:
        """The sequence that the cluster has applied last, as far as is known."""
        return self._applied

    # --- within ------------------------------------------------------------------------------------------------------------

    def _is_blocked(self, waiting: _Waiting) -> bool:
        return bool(waiting.record.after) and not self._after[waiting.record.after]

    def _take(self) -> RecordBatch:
        records: list[Stored] = []
        size = 0
        for waiting in self._queue:
            if len(records) == SHIP_RECORDS_MAX or size >= SHIP_BYTES or self._is_blocked(waiting):
                break
            records.append(waiting.record)
            size += len(waiting.record.data)
        self._bytes -= size
        self._number += 1
        rider = self._take_rider(records[-1].sequence)
        batch = self._in_flight = RecordBatch(self._number, self._round, self._applied, tuple(records), rider)
        return batch

    def _take_rider(self, last: int) -> object | None:
        """Takes one of those whose records are all in this batch or before it; what was put aside of them is told instead."""
        for at, waiter in enumerate(self._waiters):
            if waiter.rides and waiter.through <= last and not waiter.aside:
                return self._waiters.pop(at).token
        return None

    def _land(self) -> None:
        """Nothing is in flight any more: what is left of the batch waits again."""
        if self._in_flight is not None:
            self._bytes += sum(len(record.data) for record in self._in_flight.records)
            self._in_flight = None

    def _have_applied(self, through: int) -> None:
        while self._queue and self._queue[0].record.sequence <= through:
            self._leave(self._queue.popleft())
        self._applied = self._next.applied = through
        self._forget_after()
        self._tell()

    def _leave(self, waiting: _Waiting) -> None:
        self._bytes -= len(waiting.record.data)
        for ino in waiting.touches or ():
            sequences = self._touched[ino]
            sequences.remove(waiting.record.sequence)
            if not sequences:
                del self._touched[ino]

    def _forget_after(self) -> None:
        named = {waiting.record.after for waiting in self._queue}
        self._after = {sequence: committed for sequence, committed in self._after.items() if sequence in named}

    def _follows(self, touches: frozenset[int] | None) -> bool:
        return touches is None or self._all_poisoned or not self._poisoned.isdisjoint(touches)

    def _put_aside(self, sequences: set[int]) -> None:
        """Takes these records out of the queue, and those that follow them."""
        assert self._in_flight is None or self._in_flight.last < min(sequences, default=0), "what is in flight may be applied"
        kept: deque[_Waiting] = deque()
        gone: list[_Waiting] = []
        for waiting in self._queue:
            flown = self._in_flight is not None and waiting.record.sequence <= self._in_flight.last
            if waiting.record.sequence in sequences or (not flown and self._follows(waiting.touches)):
                gone.append(waiting)
                self._poison(waiting.touches)
            else:
                kept.append(waiting)
        self._queue = kept
        for waiting in gone:
            self._leave(waiting)
        self._forget_after()
        self._set_aside(gone)

    def _set_aside(self, gone: list[_Waiting]) -> None:
        for waiting in gone:
            self._poison(waiting.touches)
            self._aside = max(self._aside, waiting.record.sequence)
            for waiter in self._waiters:
                waiter.aside += waiting.record.sequence <= waiter.through
        self._syncing += len(gone)
        self._next.aside += [waiting.record for waiting in gone]

    def _poison(self, touches: frozenset[int] | None) -> None:
        if touches is None:
            self._all_poisoned = True
        else:
            self._poisoned |= touches

    def _tell(self) -> None:
        """Tells those for whom nothing is left.  While records are being put aside nobody is told: theirs may be among them."""
        if self._syncing:
            return
        first = self._queue[0].record.sequence if self._queue else None
        left: list[_Waiter] = []
        for waiter in self._waiters:
            if first is not None and first <= waiter.through:
                left.append(waiter)
            else:
                self._next.told.append((waiter.token, waiter.aside))
        self._waiters = left
