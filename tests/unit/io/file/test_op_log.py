"""The op log, cut between any two stores of random histories, and damaged at any byte."""

from __future__ import annotations

import random
from functools import partial

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import KIB, OP_RECORD_BYTES_MAX, OP_RECORDS_RECALL
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.file.op_log import OpLog, OpRecord
from awsomefsd.io.file.record_ring import HEADER_BYTES, required_bytes
from tests.conftest import SEED
from tests.rigs.shared_memory_cuts import cuts, record

LOG_ID = 77
DIRTY_BYTES = required_bytes(8 * KIB)
RECALL = 2 * KIB


class Memory:
    """Both areas of a mount in one buffer, so that one tape has the stores to both."""

    def __init__(self, raw: bytes | bytearray | None = None, capacity: int = 8 * KIB) -> None:
        self.fresh = raw is None
        self.raw = bytearray(DIRTY_BYTES + required_bytes(capacity)) if raw is None else bytearray(raw)
        view = memoryview(self.raw)
        self.dirty_part, self.ops_part = view[:DIRTY_BYTES], view[DIRTY_BYTES:]

    def open(self, records_max: int = OP_RECORDS_RECALL + 64, *, fresh: bool | None = None) -> tuple[DirtyLog, OpLog]:
        fresh = self.fresh if fresh is None else fresh
        self.fresh = False
        dirty = DirtyLog(self.dirty_part, LOG_ID, fresh, recall_bytes=RECALL, with_ops=True)
        return dirty, OpLog(self.ops_part, dirty, fresh, records_max=records_max, recall_bytes=RECALL)


def begun(capacity: int = 8 * KIB) -> tuple[Memory, DirtyLog, OpLog]:
    memory = Memory(capacity=capacity)
    dirty, ops = memory.open()
    assert ops.begin()
    return memory, dirty, ops


def successor(raw: bytes | bytearray, unanswered: list[int] | None = None) -> tuple[DirtyLog, OpLog, list[OpRecord]]:
    dirty, ops = Memory(raw).open()
    return dirty, ops, ops.recover([] if unanswered is None else unanswered)


def told(found: list[OpRecord]) -> list[tuple[int, int, int, int, bytes]]:
    assert [one.sequence for one in found] == sorted({one.sequence for one in found}), "in order, each once"
    assert not any(one.damaged for one in found)
    return [(one.sequence, one.unique, one.after, one.time_ns, one.data) for one in found]


def must(made: OpRecord | None) -> OpRecord:
    assert made is not None
    return made


def test_records_come_back_in_the_one_order_of_names_and_data() -> None:
    memory, dirty, ops = begun()
    first = must(ops.store(b"mkdir", 10, 1 << 70))
    written = dirty.append_write(5, 0, b"data", 11, 1, 0)
    assert written is not None
    second = must(ops.store(b"rename", 12, -5, after=written.sequence))
    assert (first.sequence, written.sequence, second.sequence, dirty.last_sequence) == (1, 2, 3, 3)
    again, _, found = successor(memory.raw, [12, 99])
    assert told(found) == [(1, 10, 0, (1 << 63) - 1, b"mkdir"), (3, 12, 2, -5, b"rename")]
    assert [one.answered for one in found] == [True, False]
    assert [one.sequence for one in again.recover()] == [2] and again.last_sequence == 3


def test_a_place_is_free_when_it_is_applied_and_answered_in_either_order() -> None:
    for answer_first in (True, False):
        memory, _, ops = begun()
        made = must(ops.store(b"create", 10, 0))
        steps = [partial(ops.answered, 10), partial(ops.applied, made.sequence)]
        if not answer_first:
            steps.reverse()
        steps[0]()
        assert ops.count == 1 and ops.used_bytes > 0
        assert (ops.find_unique(10) is made) != answer_first
        assert len(successor(memory.raw, [10])[2]) == 1, "not clean"
        steps[1]()
        assert ops.count == ops.used_bytes == 0 and ops.find_unique(10) is None
        assert successor(memory.raw)[2] == []


def test_a_request_without_answer_finds_its_record_whoever_dies() -> None:
    memory, _, ops = begun()
    must(ops.store(b"create", 10, 0))
    must(ops.store(b"unlink", 11, 0))
    ops.answered(11)
    ops.applied(2)
    for _ in range(3):  # workers that die before they answer
        _, ops, found = successor(memory.raw, [10])
        assert [one.unique for one in found] == [10], "the other is clean"
        assert must(ops.find_unique(10)).data == b"create" and ops.find_unique(11) is None
        ops.applied(2)
    memory = Memory(memory.raw)
    _, ops = memory.open()
    ops.recover(None)  # a damaged slot hides whose request is repeated
    ops.applied(2)
    assert ops.find_unique(10) is not None and ops.count == 1
    ops.requests_repeated()
    assert ops.count == ops.used_bytes == 0


def test_a_request_has_one_record() -> None:
    _, _, ops = begun()
    must(ops.store(b"create", 10, 0))
    with pytest.raises(ValueError, match="request 10 has a record"):
        ops.store(b"create", 10, 0)
    assert must(ops.store(b"of nobody", 0, 0)).answered and must(ops.store(b"nor that", 0, 0)).answered
    with pytest.raises(ValueError, match="is the most"):
        ops.store(bytes(OP_RECORD_BYTES_MAX + 1), 11, 0)


def test_a_bound_of_records_and_of_bytes_is_kept_for_recalls() -> None:
    memory, _, ops = begun(1024 * KIB)
    for unique in range(1, 65):
        must(ops.store(b"x", unique, 0))
    assert ops.store(b"x", 65, 0) is None
    for unique in range(65, 65 + OP_RECORDS_RECALL):
        must(ops.store(b"x", unique, 0, recall=True))
    assert ops.store(b"x", 1000, 0, recall=True) is None
    ops.answered(7)
    ops.applied(3)
    assert ops.store(b"x", 1000, 0, recall=True) is None, "applied, and not answered"
    _, ops, found = successor(memory.raw)
    ops.applied(found[-1].sequence)
    small = [0]
    while ops.count < 20 and ops.store(bytes(60 * KIB), 2000 + len(small), 0) is not None:
        small.append(1)
    assert len(small) > 5 and ops.used_bytes <= 1024 * KIB
    _, _, ops = begun()
    while ops.store(bytes(1000), ops.count + 1, 0) is not None:
        pass
    assert ops.used_bytes <= 8 * KIB - RECALL
    must(ops.store(bytes(1000), 500, 0, recall=True))


def test_what_is_put_aside_is_not_shipped_and_its_request_still_finds_it() -> None:
    memory, _, ops = begun()
    first, second, third = (must(ops.store(b"op", unique, 0)) for unique in (1, 2, 3))
    ops.answered(1)
    ops.answered(3)
    ops.put_aside([second, third, third])
    assert ops.count == 3 and ops.find_unique(2) is second
    assert ops.applied(third.sequence) == [first] and ops.count == 2
    for _ in range(2):
        _, heir, found = successor(memory.raw, [2])
        assert [(one.unique, one.aside, one.damaged) for one in found] == [(2, True, False), (3, True, False)] and heir.find_unique(2)
        assert heir.applied(99) == [] and heir.count == 2, "it is not shipped"
    ops.cleansed([second, third, third])
    ops.put_aside([second])
    assert [one.unique for one in successor(memory.raw, [2])[2]] == [2]
    ops.answered(2)
    assert ops.count == ops.used_bytes == 0


# --- cuts ------------------------------------------------------------------------------------------------------------------


def store(log: OpLog, unique: int, data: bytes, made: list[OpRecord | None]) -> None:
    made.append(log.store(data, unique, -unique, unique, recall=True))


@pytest.mark.parametrize("round_", range(2))
def test_history_cut_anywhere_recovers_to_a_prefix(round_: int) -> None:
    """After each single store of each step: what was there before the step, or after it, and nothing else."""
    rng = random.Random(SEED * 10 + round_)
    memory, dirty, ops = begun()
    waiting: list[int] = []
    last_applied, stored, checked = 0, 0, 0
    for unique in range(1, 48):
        before, last = told(successor(memory.raw)[2]), dirty.last_sequence
        choice = rng.random()
        if choice < 0.55:
            made: list[OpRecord | None] = []
            data = rng.randbytes(rng.choice((0, 1, 64, 500)))
            tape = record(memory.raw, partial(store, ops, unique, data, made))
            if made[0] is not None:
                stored += 1
                waiting.append(unique)
        elif choice < 0.8 and waiting:
            tape = record(memory.raw, partial(ops.answered, waiting.pop(rng.randrange(len(waiting)))))
        elif choice < 0.85:
            tape = record(memory.raw, partial(dirty.append_write, 5, 0, b"data", 0, 0, 0))
        else:
            last_applied = rng.randint(last_applied, dirty.last_sequence)
            tape = record(memory.raw, partial(ops.applied, last_applied))
        after = told(successor(memory.raw)[2])
        for state in cuts(tape):
            checked += 1
            again, heir, left = successor(state)
            found = told(left)
            # what was applied at once becomes clean record by record, in any cut
            assert found in (before, after) or (choice >= 0.85 and set(after) <= set(found) <= set(before)), f"seed {SEED}, step {unique}"
            new = heir.store(b"successor", 9999, 0, recall=True)
            assert new is None or new.sequence > last, f"seed {SEED}, step {unique}"
            assert again.last_sequence >= last
        if unique % 16 == 0:  # a successor goes on where this one was
            memory = Memory(memory.raw)
            dirty, ops = memory.open()
            ops.recover(waiting)
            waiting = [one for one in waiting if ops.find_unique(one) is not None]
            dirty.mark_clean(dirty.recover())
            ops.applied(last_applied)
    assert checked > 200 and stored > 10


def test_a_kill_while_a_record_is_stored_abandons_it_and_nothing_before_it() -> None:
    memory, _, ops = begun()
    must(ops.store(b"first", 1, 0))
    ops._ring.reserve(0, 0, 300, 2, 0, 0, False)  # killed before the payload
    for _ in range(2):
        _, heir, found = successor(memory.raw, [2])
        assert [one.unique for one in found] == [1] and heir.find_unique(2) is None, "never carried out: it is executed again"
    third = must(heir.store(b"executed again", 2, 0))
    assert third.sequence == 3 and heir.find_unique(2) is third
    heir.applied(3)
    heir.answered(2)
    assert heir.used_bytes == 0


def test_data_that_cannot_be_copied_leaves_no_hole() -> None:
    class Bad(bytes):
        def __len__(self) -> int:
            return 3

    _, _, ops = begun()
    with pytest.raises(ValueError):
        ops.store(Bad(b"four"), 1, 0)
    assert ops.used_bytes == ops.count == 0 and ops.find_unique(1) is None
    must(ops.store(b"ok", 1, 0))


# --- damage ----------------------------------------------------------------------------------------------------------------


def test_a_damaged_record_is_told_in_its_place() -> None:
    memory, _, ops = begun()
    made = [must(ops.store(bytes([65 + number]) * 300, 10 + number, 0)) for number in range(5)]
    header, payload = made[1], made[3]
    memory.raw[DIRTY_BYTES + shm.PAGE_BYTES + header._place.position + 9] ^= 1
    memory.raw[DIRTY_BYTES + shm.PAGE_BYTES + payload._place.position + HEADER_BYTES + 77] ^= 4
    for _ in range(2):  # told until somebody has dealt with it
        _, heir, found = successor(memory.raw, [11, 13])
        assert [one.sequence for one in found] == [1, 2, 3, 4, 5]
        assert [one.damaged for one in found] == [False, True, False, True, False]
        assert found[3].unique == 13 and heir.find_unique(13) is found[3]
    heir.put_aside([found[1], found[3]])
    heir.answered(13)
    assert len(successor(heir._ring.view.obj)[2]) == 5, "what follows them may not be put aside yet"
    heir.cleansed([found[1], found[3]])
    assert [one.sequence for one in successor(heir._ring.view.obj)[2]] == [1, 3, 5]


def test_no_bit_of_a_record_may_flip_in_silence() -> None:
    memory, _, ops = begun()
    made = [must(ops.store(b"payload %d" % number, 10 + number, 0)) for number in range(3)]
    want = told(successor(memory.raw, [])[2])
    start = DIRTY_BYTES + shm.PAGE_BYTES + made[1]._place.position
    covered = [*range(80), *range(HEADER_BYTES, HEADER_BYTES + len(made[1].data))]  # header with state word, payload
    for at in covered:
        for bit in range(8):
            raw = bytearray(memory.raw)
            raw[start + at] ^= 1 << bit
            _, _, found = successor(raw)
            assert len(found) == 3 and (found[1].damaged or told(found) == want), f"byte {at} bit {bit}: {found}"


# --- the format ------------------------------------------------------------------------------------------------------------


def older(raw: bytes | bytearray) -> DirtyLog:
    """The dirty log as a build sees it that knows no op log."""
    return DirtyLog(memoryview(bytearray(raw))[:DIRTY_BYTES], LOG_ID, recall_bytes=RECALL)


def test_records_are_stored_when_the_format_has_begun_and_not_before() -> None:
    memory = Memory()
    dirty, ops = memory.open()
    assert not ops.is_begun and dirty.version == 1
    with pytest.raises(AssertionError):
        ops.store(b"x", 1, 0)
    written = dirty.append_write(5, 0, b"data", 0, 0, 0)
    assert written is not None and not ops.begin(), "the log is not empty"
    older(memory.raw)
    dirty.mark_clean([written])
    assert ops.begin() and ops.begin() and dirty.version == 3
    must(ops.store(b"x", 1, 0))


def test_an_older_build_refuses_the_log_until_it_is_empty_again() -> None:
    memory, dirty, ops = begun()
    with pytest.raises(FormatTooNew, match=r"dirty log: version 3, features 0x0: this build knows 1; upgrade this node"):
        older(memory.raw)
    made = must(ops.store(b"x", 1, 0))
    assert not ops.end()
    ops.applied(made.sequence)
    assert not ops.end(), "its request may be repeated"
    ops.answered(1)
    written = dirty.append_write(5, 0, b"data", 0, 0, 0)
    assert ops.end() and not ops.is_begun and written is not None
    assert [bytes(one.data) for one in older(memory.raw).recover()] == [b"data"] and older(memory.raw).last_sequence == written.sequence


def test_a_log_of_the_older_format_opens_as_it_is() -> None:
    memory = Memory()
    dirty = DirtyLog(memory.dirty_part, LOG_ID, True, recall_bytes=RECALL)  # the area of this log was never formatted
    dirty.append_write(5, 0, b"data", 7, 0, 0)
    dirty, ops = memory.open(fresh=False)
    assert ops.formatted and not ops.is_begun and [bytes(one.data) for one in dirty.recover([7])] == [b"data"] and ops.recover([7]) == []


@pytest.mark.parametrize("way", ["begin", "end"])
def test_a_change_of_format_may_stop_anywhere(way: str) -> None:
    memory, dirty, ops = begun()
    ops.applied(must(ops.store(b"x", 0, 0)).sequence)
    if way == "begin":
        assert ops.end()
    for state in cuts(record(memory.raw, getattr(ops, way))):
        again, heir, found = successor(state)
        assert found == [] and again.last_sequence == dirty.last_sequence, "no sequence is given out twice"
        assert again.version == (3 if heir.is_begun else 1)
        assert heir.begin() and must(heir.store(b"y", 1, 0)).sequence == 2


def test_formatting_may_stop_anywhere() -> None:
    memory = Memory()
    for state in cuts(record(memory.raw, lambda: memory.open(fresh=True))):
        again, heir, found = successor(state)
        assert found == [] and again.last_sequence == 0 and heir.begin()


def test_records_beside_a_log_of_the_older_format_are_damage() -> None:
    memory, _, ops = begun()
    must(ops.store(b"x", 0, 0))
    shm.set_version(memory.dirty_part, 1)
    with pytest.raises(Corrupt, match="beside a dirty log of version 1"):
        memory.open()


def test_the_ring_is_used_again_for_ever_and_gives_its_pages_back() -> None:
    rng = random.Random(SEED)
    memory, dirty, ops = begun()
    for unique in range(1, 400):
        made = must(ops.store(rng.randbytes(rng.randrange(900)), unique, 0))
        assert made.sequence == dirty.last_sequence
        ops.answered(unique)
        if unique % 3 == 0:
            ops.applied(made.sequence)
        if unique % 50 == 0:
            _, ops, found = successor(memory.raw)
            memory = Memory(memory.raw)
            dirty, ops = memory.open()
            assert len(ops.recover([])) == len(found) == unique % 3
    ops.applied(dirty.last_sequence)
    assert ops.release_pages() and ops.used_bytes == 0
