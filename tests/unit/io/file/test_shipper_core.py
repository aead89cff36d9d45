"""The shipper without I/O: its rules one by one, and random histories against a cluster that answers twice, late, or not at all."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import KIB, NS_PER_MS, OP_RECORDS_RECALL, SHIP_BYTES, SHIP_GAP_MS, SHIP_RECORDS_MAX
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.file.op_log import OpLog, OpRecord
from awsomefsd.io.file.record_ring import required_bytes
from awsomefsd.io.file.shipper_core import RecordBatch, ShipperCore, Step
from tests.conftest import SEED

GAP_NS = SHIP_GAP_MS * NS_PER_MS


@dataclass
class Fake:
    sequence: int
    after: int = 0
    data: bytes = b"x"
    aside: bool = False


def core_with(*records: Fake, touches: Iterable[int] = (1,), now_ns: int = 0) -> ShipperCore:
    core = ShipperCore()
    for record in records:
        core.stored(record, touches, now_ns)
    return core


def sequences(step: Step) -> list[int]:
    return [record.sequence for record in step.batch.records] if step.batch is not None else []


def test_a_batch_is_due_after_the_gap() -> None:
    core = core_with(Fake(3), now_ns=5)
    core.stored(Fake(4), (1,), 9)
    assert core.due_ns() == 5 + GAP_NS and core.poll(4 + GAP_NS).batch is None
    step = core.poll(5 + GAP_NS)
    assert step.batch is not None and (sequences(step), step.batch.after) == ([3, 4], 0)
    core.stored(Fake(5), (1,), 0)
    assert core.due_ns() is None and core.poll(1 << 60).batch is None, "one is in flight"
    core.answered(step.batch.number, 4)
    step = core.poll(1 << 60)
    assert step.applied == 4 and sequences(step) == [5] and step.batch is not None and step.batch.after == 4


def test_a_batch_is_due_at_once_when_it_is_full_or_somebody_waits() -> None:
    core = core_with(*(Fake(number) for number in range(1, SHIP_RECORDS_MAX)))
    assert core.poll(0).batch is None
    core.stored(Fake(1000), (1,), 0)
    core.stored(Fake(1001), (1,), 0)
    assert len(sequences(core.poll(0))) == SHIP_RECORDS_MAX
    core = core_with(*(Fake(number, data=bytes(SHIP_BYTES // 4)) for number in range(1, 4)))
    assert core.poll(0).batch is None
    core.stored(Fake(4, data=bytes(SHIP_BYTES // 4)), (1,), 0)
    assert sequences(core.poll(0)) == [1, 2, 3, 4]
    core = core_with(Fake(1))
    core.wait("fsync", 1)
    assert sequences(core.poll(0)) == [1]


def test_a_record_waits_for_its_data_and_those_behind_it_wait_too() -> None:
    core = core_with(Fake(1), Fake(3, after=2), Fake(4))
    step = core.poll(GAP_NS)
    assert step.flush == [2] and sequences(step) == [1] and step.batch is not None
    core.wait("fsync", 4)
    core.answered(step.batch.number, 1)
    step = core.poll(GAP_NS)
    assert step.flush == [] and step.batch is None and core.due_ns() is None, "asked once"
    core.data_committed(2)
    assert sequences(core.poll(GAP_NS)) == [3, 4]


def test_waiters_are_told_when_what_they_wait_for_is_applied() -> None:
    core = core_with(Fake(1), Fake(2), Fake(3))
    core.wait("umount", core.last)
    core.wait("recall", core.newest((1, 7)))
    core.wait("early", 1)
    core.wait("nothing", core.newest((8,)))
    step = core.poll(0)
    assert step.told == [("nothing", 0)] and step.batch is not None
    core.answered(step.batch.number, 3)
    assert core.poll(0).told == [("umount", 0), ("recall", 0), ("early", 0)]
    core.wait("again", 3)
    assert core.poll(0).told == [("again", 0)] and core.last == 3


def test_a_commit_rides_with_the_batch_of_its_last_record() -> None:
    core = core_with(*(Fake(number) for number in range(1, SHIP_RECORDS_MAX + 3)))
    core.wait("late", SHIP_RECORDS_MAX + 2, rides=True)
    step = core.poll(0)
    assert step.batch is not None and step.batch.rider is None, "its record comes with the next one"
    core.wait("early", 2, rides=True)  # its records are on their way
    core.answered(step.batch.number, SHIP_RECORDS_MAX)
    step = core.poll(0)
    assert step.told == [("early", 0)], "it goes by itself"
    assert step.batch is not None and step.batch.rider == "late"
    core.answered(step.batch.number, SHIP_RECORDS_MAX + 2)
    assert core.poll(0).told == [], "the answer of the batch is its own"


def test_of_two_commits_one_rides_and_the_other_is_told() -> None:
    core = core_with(Fake(1), Fake(2))
    core.wait("first", 1, rides=True)
    core.wait("second", 2, rides=True)
    step = core.poll(0)
    assert step.batch is not None and step.batch.rider == "first"
    core.answered(step.batch.number, 2)
    assert core.poll(0).told == [("second", 0)]


def test_a_commit_does_not_ride_where_a_record_before_it_was_put_aside() -> None:
    core = core_with(Fake(1), Fake(2), Fake(3), touches=(1,))
    core.wait("commit", 3, rides=True)
    batch = core.poll(0).batch
    assert batch is not None and batch.rider == "commit"
    core.answered(batch.number, 1, refused=2)
    core.wait("commit", 3, rides=True)  # as its driver does with one that was not done
    assert [record.sequence for record in core.poll(0).aside] == [2, 3]
    core.stored(Fake(4), (9,), 0)
    core.aside_synced(2)
    step = core.poll(1 << 60)
    assert step.told == [("commit", 1)] and step.batch is not None and step.batch.rider is None


def test_what_is_refused_is_put_aside_with_all_that_builds_upon_it() -> None:
    core = ShipperCore()
    for number, touches in ((1, (1,)), (2, (1, 5)), (3, (6,)), (4, (5, 7)), (5, (7,)), (6, (8,))):
        core.stored(Fake(number), touches, 0)
    core.wait("umount", 6)
    core.wait("third", 3)
    step = core.poll(0)
    assert step.batch is not None and step.batch.round == 0
    core.answered(step.batch.number, 1, refused=2)
    step = core.poll(0)
    assert [record.sequence for record in step.aside] == [2, 4, 5] and step.applied == 1
    assert step.batch is None and core.due_ns() is None and not step.told, "nothing ships before they are synced"
    assert core.is_poisoned(7) and not core.is_poisoned(8)
    core.stored(Fake(7), (7, 9), 0)
    assert [record.sequence for record in core.poll(0).aside] == [7]
    core.aside_synced(4)
    step = core.poll(0)
    assert sequences(step) == [3, 6] and step.batch is not None and (step.batch.round, step.batch.after) == (1, 1)
    core.answered(step.batch.number, 6)
    assert core.poll(0).told == [("umount", 3), ("third", 1)]
    core.cleansed((7, 9))
    core.stored(Fake(8), (7,), 0)
    core.stored(Fake(9), (5,), 0)
    assert [record.sequence for record in core.poll(0).aside] == [9] and core.last == 8


def test_who_asks_when_a_record_has_been_put_aside_is_told_so() -> None:
    core = core_with(Fake(3), Fake(4), Fake(5))
    step = core.poll(1 << 60)
    assert step.batch is not None
    core.answered(step.batch.number, 3, refused=4)
    core.wait("before it is synced", 5)
    core.wait("of what is applied", 3)
    core.aside_synced(len(core.poll(1 << 60).aside))
    core.wait("after", 4)
    assert core.poll(1 << 60).told == [("before it is synced", 1), ("of what is applied", 0), ("after", 1)]


def test_data_that_cannot_be_flushed_holds_up_nobody_else() -> None:
    core = ShipperCore()
    core.stored(Fake(2, after=1), (5,), 0)
    core.stored(Fake(3), (6,), 0)
    core.stored(Fake(4, after=1), (7,), 0)
    assert core.poll(GAP_NS).flush == [1]
    core.data_failed(1)
    assert [record.sequence for record in core.poll(GAP_NS).aside] == [2, 4]
    core.aside_synced(2)
    assert sequences(core.poll(GAP_NS)) == [3]
    core.data_failed(1)
    core.data_committed(99)  # of nobody


def test_a_damaged_record_takes_all_later_ones_with_it() -> None:
    core = ShipperCore()
    core.stored(Fake(1), (1,), 0)
    core.stored(Fake(2, data=b""), None, 0)
    core.stored(Fake(3), (9,), 0)
    step = core.poll(GAP_NS)
    assert [record.sequence for record in step.aside] == [2, 3] and step.batch is None
    core.aside_synced(2)
    assert sequences(core.poll(GAP_NS)) == [1] and core.is_poisoned(12345)
    core.cleansed(None)
    core.stored(Fake(4), (9,), 0)
    assert core.last == 4


def test_data_of_a_file_is_committed_beside_a_batch_up_to_the_next_record_of_it() -> None:
    core = ShipperCore()
    core.stored(Fake(1), (5,), 0)
    core.stored(Fake(4, after=3), (5,), 0)
    assert core.barrier(5) == 1 and core.barrier(6) == 0
    step = core.poll(GAP_NS)
    assert sequences(step) == [1] and core.barrier(5) == 4, "data from 2 to 3 may go with it"
    core.data_committed(3)
    assert step.batch is not None
    core.answered(step.batch.number, 1)
    core.poll(GAP_NS)
    assert core.barrier(5) == 0


def test_answers_that_cannot_be_are_damage_and_second_copies_are_nothing() -> None:
    core = core_with(Fake(2), Fake(3))
    step = core.poll(GAP_NS)
    assert step.batch is not None
    number = step.batch.number
    for through, refused in ((4, 0), (2, 0), (2, 2), (3, 3), (1, 3)):
        with pytest.raises(Corrupt):
            core.answered(number, through, refused)
    core.answered(number + 1, 3)
    assert core.last == 3
    core.answered(number, 3)
    core.answered(number, 2, 3)
    assert core.poll(0).aside == []
    with pytest.raises(Corrupt):
        core.resumed(2, 0)


def test_a_successor_begins_behind_what_the_cluster_has() -> None:
    core = ShipperCore(applied=5, round_=2)
    for number in (4, 5, 6):
        core.stored(Fake(number), (1,), 0)
    core.wait("takeover", 6)
    step = core.poll(0)
    assert sequences(step) == [6] and step.batch is not None and (step.batch.after, step.batch.round) == (5, 2)
    core.resumed(6, 2)  # its answer got lost with the session
    step = core.poll(0)
    assert step.told == [("takeover", 0)] and step.applied == 6 and core.due_ns() is None


# --- against a cluster -----------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """The row of a mount, and what was applied: the rules of Apply, as far as the order goes."""

    applied: int = 0
    round: int = 0
    done: list[int] = field(default_factory=list)
    committed: list[object] = field(default_factory=list)
    counts_rounds: bool = True

    def apply(self, batch: RecordBatch, refuse: set[int]) -> tuple[int, int] | None:
        """Returns (applied up to, first refusal); None: refused whole, nothing changes."""
        if batch.after > self.applied or (self.counts_rounds and batch.round != self.round):
            return None
        if batch.rider is not None and batch.last <= self.applied:
            return None if batch.rider not in self.committed else (batch.last, 0)  # the second: as its result is kept
        for record in batch.records:
            if record.sequence <= self.applied:
                continue
            if record.sequence in refuse:
                self.round += 1
                return self.applied, record.sequence
            self.done.append(record.sequence)
            self.applied = record.sequence
        if batch.rider is not None:
            self.committed.append(batch.rider)
        return self.applied, 0


class History:
    """One mount with its memory, a cluster, and copies of batches that come twice or late."""

    def __init__(self, rng: random.Random, counts_rounds: bool = True) -> None:
        self.rng = rng
        self.memory = bytearray(required_bytes(8 * KIB)), bytearray(required_bytes(256 * KIB))
        self.cluster = Cluster(counts_rounds=counts_rounds)
        self.refuse: set[int] = set()
        self.touches: dict[int, frozenset[int]] = {}
        self.stored: list[int] = []
        self.aside: set[int] = set()
        self.kept_aside: list[OpRecord] = []
        self.unsynced: list[OpRecord] = []
        self.answered: set[int] = set()
        self.flushing: list[int] = []
        self.copies: list[RecordBatch] = []
        self.waiting: dict[object, int] = {}
        self.now_ns = self.unique = self.tokens = self.cleansed_at = 0
        self.open(fresh=True)

    def open(self, fresh: bool = False) -> None:
        """A worker begins, on what its predecessor has left."""
        self.dirty = DirtyLog(self.memory[0], 7, fresh, recall_bytes=1024, with_ops=True)
        self.ops = OpLog(self.memory[1], self.dirty, fresh, recall_bytes=4096, records_max=OP_RECORDS_RECALL + 200)
        assert self.ops.begin() or not fresh
        left = self.ops.recover({one for one in range(self.unique + 1) if one not in self.answered})
        self.aside -= {one.sequence for one in self.unsynced}  # killed before: the successor ships them, or puts them aside again
        assert {one.sequence for one in left} >= {one for one in self.stored if one > self.cluster.applied} - self.aside
        assert {one.sequence for one in left if one.aside} <= self.aside
        self.core = ShipperCore(self.cluster.applied, self.cluster.round)
        self.sent: RecordBatch | None = None
        self.flushing, self.waiting, self.unsynced = [], {}, []
        self.kept_aside = [one for one in left if one.aside]
        self.ops.applied(self.cluster.applied)
        for record in left:
            self.core.stored(record, self.touches[record.sequence], self.now_ns)

    def step(self) -> None:
        self.now_ns += self.rng.randrange(GAP_NS // 2)
        ways = (self.answer, self.data, self.wait, self.sync, self.cleanse, self.die)
        way = self.rng.choice((self.store, self.store, self.store, self.deliver, self.deliver, *ways))
        if way != self.die or self.rng.random() < 0.1:
            way()
        self.poll()

    def store(self) -> None:
        self.unique += 1
        after = self.dirty.sequences.take() if self.rng.random() < 0.1 else 0
        made = self.ops.store(b"op" * self.rng.randrange(200), self.unique, 0, after)
        if made is None:
            return
        self.stored.append(made.sequence)
        self.touches[made.sequence] = frozenset(self.rng.sample(range(30), self.rng.randrange(1, 3)))
        if self.rng.random() < 0.03:
            self.refuse.add(made.sequence)
        self.core.stored(made, self.touches[made.sequence], self.now_ns)

    def answer(self) -> None:
        for unique in range(1, self.unique + 1):
            if unique not in self.answered and self.rng.random() < 0.7:
                self.answered.add(unique)
                self.ops.answered(unique)

    def data(self) -> None:
        if self.flushing:
            sequence = self.flushing.pop(0)
            (self.core.data_failed if self.rng.random() < 0.1 else self.core.data_committed)(sequence)

    def wait(self) -> None:
        self.tokens += 1
        through = self.rng.choice((self.core.last, self.core.newest((self.rng.randrange(30),))))
        self.waiting[self.tokens] = through
        self.core.wait(self.tokens, through, rides=self.rng.random() < 0.5)

    def deliver(self) -> None:
        """A copy of some batch reaches the cluster: the one in flight, or a late one; the answer comes, or does not."""
        if self.copies and self.rng.random() < 0.3:
            self.cluster.apply(self.rng.choice(self.copies), set() if self.rng.random() < 0.5 else self.refuse)
        if self.sent is None:
            return
        self.copies = [*self.copies[-20:], self.sent]
        answer = self.cluster.apply(self.sent, self.refuse)
        if self.rng.random() < 0.3:
            return  # the answer is lost: it is sent again
        if answer is None:
            self.core.resumed(self.cluster.applied, self.cluster.round)
        else:
            for _ in range(self.rng.randrange(1, 3)):
                self.core.answered(self.sent.number, *answer)
        rider = self.sent.rider
        if rider is not None and answer is not None and not answer[1]:
            del self.waiting[rider]
        elif rider is not None:
            self.core.wait(rider, self.waiting[rider], rides=True)
        self.sent = None

    def sync(self) -> None:
        if self.unsynced:
            count = self.rng.randrange(1, len(self.unsynced) + 1)
            self.ops.put_aside(self.unsynced[:count])
            self.kept_aside += self.unsynced[:count]
            del self.unsynced[:count]
            self.core.aside_synced(count)

    def die(self) -> None:
        self.open()

    def cleanse(self) -> None:
        """The overlay is dropped, once all that follows what was put aside is put aside as well."""
        if not self.unsynced:
            self.ops.cleansed(self.kept_aside)
            self.kept_aside = []
            self.core.cleansed(None)
            self.cleansed_at = self.stored[-1] if self.stored else 0

    def poll(self) -> None:
        step = self.core.poll(self.now_ns)
        self.flushing += step.flush
        self.ops.applied(step.applied)
        for record in step.aside:
            assert isinstance(record, OpRecord)
            self.unsynced.append(record)
        if step.batch is not None:
            assert self.sent is None and not self.unsynced, "one batch, and none beside what is being put aside"
            assert step.batch.after <= self.cluster.applied
            self.sent = step.batch
        self.aside |= {one.sequence for one in step.aside}  # type: ignore[attr-defined]
        for token, aside in step.told:
            through = self.waiting.pop(token)
            left = [one for one in self.stored if one <= through and one > self.cluster.applied and one not in self.aside]
            assert not left and aside <= len(self.aside), f"told before {left} were applied"
        self.check()

    def check(self) -> None:
        """Invariants: order, once, and nothing clean too early."""
        done = self.cluster.done
        assert done == sorted(set(done)), "in order, each once"
        assert len(set(self.cluster.committed)) == len(self.cluster.committed), "each commit once"
        synced = self.aside - {one.sequence for one in self.unsynced}
        clean = set(self.stored) - {place.sequence for place in self.ops._ring.live if place.is_dirty}
        assert clean <= set(done) | synced, "clean before it was applied"
        assert not synced & set(done), "put aside, and applied"
        waiting = {place.unique for place in self.ops._ring.live if place.state in (1, 4)}
        assert all(self.ops.find_unique(one) for one in waiting - self.answered), "a request without answer finds its record"
        inodes: set[int] = set()
        for sequence in (one for one in self.stored if one in synced or one in set(done)):
            if sequence in synced and sequence > self.cleansed_at:
                inodes |= self.touches[sequence]
            elif sequence > self.cleansed_at:
                assert sequence in synced or inodes.isdisjoint(self.touches[sequence]), "applied, and it follows what was put aside"

    def settle(self) -> None:
        for _ in range(1_000):
            self.answer()
            self.data()
            self.sync()
            self.cleanse()
            self.now_ns += GAP_NS
            self.poll()
            self.deliver()
            self.poll()
            if not self.waiting and not self.ops.count:
                return
        raise AssertionError(f"waiters {self.waiting} or {self.ops.count} records are left")


def test_random_histories_keep_the_order_and_tell_every_waiter() -> None:
    done = committed = 0
    for round_ in range(6):
        history = History(random.Random(SEED * 10 + round_))
        for _ in range(400):
            history.step()
        history.settle()
        assert set(history.cluster.done) | history.aside == set(history.stored), f"seed {SEED}, round {round_}"
        done += len(history.cluster.done)
        committed += len(history.cluster.committed)
    assert done > 120 and committed, "in all: one history in fifty has no commit that rides"


def test_without_rounds_a_late_copy_applies_what_was_put_aside() -> None:
    """The mutant: why a refusal ends a round."""
    outcomes = {}
    for counts_rounds in (True, False):
        cluster = Cluster(counts_rounds=counts_rounds)
        core = core_with(Fake(1), Fake(2), Fake(3), touches=(5,))
        batch = core.poll(GAP_NS).batch
        assert batch is not None
        answer = cluster.apply(batch, {2})
        assert answer == (1, 2)
        core.answered(batch.number, *answer)
        assert [record.sequence for record in core.poll(GAP_NS).aside] == [2, 3]
        cluster.apply(batch, set())  # the second copy: what refused the record has changed meanwhile
        outcomes[counts_rounds] = cluster.done
    assert outcomes == {True: [1], False: [1, 2, 3]}


def test_what_a_predecessor_put_aside_poisons_although_later_records_are_applied() -> None:
    core = ShipperCore(applied=5, round_=1)
    core.stored(Fake(3, aside=True), (7,), 0)
    core.stored(Fake(6), (7,), 0)
    assert [record.sequence for record in core.poll(GAP_NS).aside] == [6]
