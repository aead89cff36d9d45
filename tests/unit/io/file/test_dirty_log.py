"""The dirty log, cut between any two stores of random histories."""

from __future__ import annotations

import os
import random
import struct
import threading
from functools import partial

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.io.file import dirty_log, record_ring
from awsomefsd.io.file.dirty_log import ALONE, DirtyLog, DirtyRecord, LeaseToken, required_bytes
from awsomefsd.io.file.record_ring import ALIGN_FROM_BYTES, HEADER_BYTES
from tests.conftest import SEED
from tests.rigs.shared_memory_cuts import cuts, record

KIB = 1024
LOG_ID = 0x1234_5678_9ABC_DEF0 >> 1
RECALL = 2 * KIB


def new(capacity: int = 16 * KIB, recall_bytes: int = RECALL) -> tuple[bytearray, DirtyLog]:
    mem = bytearray(required_bytes(capacity))
    return mem, DirtyLog(mem, LOG_ID, True, recall_bytes=recall_bytes)


def reopen(mem: bytes) -> DirtyLog:
    return DirtyLog(bytearray(mem), LOG_ID, recall_bytes=RECALL)


def write(log: DirtyLog, unique: int, data: bytes, *, recall: bool = False) -> DirtyRecord | None:
    """A write that is answered at once."""
    made = log.append_write(unique % 5 + 1, unique * 3, data, unique, -unique, unique & 0xFFFF, recall=recall)
    log.answered(unique)
    return made


def observe(state: bytes) -> list[tuple[object, ...]]:
    log = reopen(state)
    found = [(r.sequence, r.ino, r.offset, r.unique, r.time_ns, r.generation, bytes(r.data)) for r in log.recover()]
    assert not log.corrupt and log.dirty_bytes == sum(len(row[-1]) for row in found)  # type: ignore[arg-type]
    assert [row[0] for row in found] == sorted({row[0] for row in found}), "in order, each once"
    return found


def test_a_write_comes_back() -> None:
    mem, log = new()
    assert log.formatted and log.last_sequence == 0
    a = log.append_write(7, 1 << 40, memoryview(b"hello"), 1 << 61, -5, 9)
    b = log.append_write(8, 0, b"", 4, 1 << 60, 0)
    assert a is not None and b is not None and (a.sequence, b.sequence, log.last_sequence) == (1, 2, 2)
    assert a.is_dirty and bytes(a.data) == b"hello" and log.dirty_bytes == 5
    again = reopen(mem)
    one, two = again.recover()
    assert (one.ino, one.offset, one.unique, one.time_ns, one.generation, bytes(one.data)) == (7, 1 << 40, 1 << 61, -5, 9, b"hello")
    assert (two.ino, two.length, two.time_ns) == (8, 0, 1 << 60)
    assert again.find_unique(1 << 61) is one and again.find_unique(5) is None
    again.forget_uniques()
    found = again.find_unique(4)
    assert found is two
    again.mark_clean([two])
    assert again.dirty_bytes == 5 and again.used_bytes > 0, "the tail waits for the first"
    assert again.find_unique(4) is two, "clean, and still between tail and head"
    again.mark_clean([one, two])
    assert again.dirty_bytes == again.used_bytes == 0 and again.find_unique(4) is None
    assert again.recover() == []


@pytest.mark.parametrize(("time_ns", "kept"), [(1 << 63, (1 << 63) - 1), (18_446_744_073 * 10**9, (1 << 63) - 1), (-(1 << 64), -(1 << 63))])
def test_a_time_beyond_what_a_record_can_say_is_the_nearest_that_it_can(time_ns: int, kept: int) -> None:
    mem, log = new()
    made = log.append_write(7, 0, b"x", 2, time_ns, 0)
    assert made is not None and made.time_ns == kept
    assert [found.time_ns for found in reopen(mem).recover()] == [kept]


def test_a_record_that_cannot_be_made_leaves_no_pad_behind() -> None:
    """The tail passed the head over such a pad, and a successor took what was acknowledged behind it for nothing."""
    mem, log = new(64 * KIB)
    first = [log.append_write(2, 0, bytes(6_000), 0, 1, 0) for _ in range(8)]
    log.mark_clean(filter(None, first[:6]))
    last = [made for made in first[6:] if made]
    while log._ring.head % log.capacity + 6_128 <= log.capacity:
        made = log.append_write(2, 0, bytes(6_000), 0, 1, 0)
        assert made is not None
        last.append(made)
    before = log.used_bytes
    with pytest.raises(struct.error):
        log.append_write(3, 1 << 64, bytes(6_000), 0, 1, 0)  # as no caller does
    assert log.used_bytes == before
    log.mark_clean(last)
    assert log.used_bytes == 0
    assert log.append_write(4, 0, b"acknowledged", 0, 1, 0) is not None
    assert [bytes(found.data) for found in reopen(mem).recover()] == [b"acknowledged"]


def test_a_recovered_write_is_known_until_recovery_is_over() -> None:
    mem, log = new()
    write(log, 1, b"flushed before its request is executed again")
    again = reopen(mem)
    again.mark_clean(again.recover())
    assert again.used_bytes == 0 and again.find_unique(1) is not None
    again.forget_uniques()
    assert again.find_unique(1) is None


def test_sequences_go_on_when_the_ring_was_clean_and_wrapped() -> None:
    mem, log = new()
    last = 0
    for unique in range(1, 400):
        entry = write(log, unique, bytes(unique % 3000))
        assert entry is not None and entry.sequence > last
        last = entry.sequence
        log.mark_clean([entry])
        if unique % 7 == 0:
            log = DirtyLog(mem, LOG_ID, recall_bytes=RECALL)
            assert log.last_sequence == last and log.recover() == []


def test_large_payloads_start_on_a_page_and_clean_rings_start_again() -> None:
    fd = shm.create_memfd("dirty", required_bytes(1024 * KIB))
    try:
        mem = shm.map_memfd(fd)
        log = DirtyLog(mem, LOG_ID, True, recall_bytes=RECALL)
        data = random.Random(SEED).randbytes(ALIGN_FROM_BYTES)
        for unique in range(1, 60):
            small, large = write(log, unique, b"x" * 100), write(log, unique, data)
            assert small is not None and large is not None and large.data == data
            at = shm.round_up(shm.PAGE_BYTES + large.position % log.capacity + HEADER_BYTES, shm.PAGE_BYTES)
            assert mem[at : at + len(data)] == data, "at the first page boundary behind its header"
            log.mark_clean([small, large])
        assert os.fstat(fd).st_blocks * 512 <= 2 * shm.PAGE_BYTES + ALIGN_FROM_BYTES + shm.PAGE_BYTES, "the same pages all the time"
        kept = write(log, 1000, b"kept")
        assert kept is not None and not log.release_pages()
        log.mark_clean([kept])
        assert log.release_pages() and os.fstat(fd).st_blocks * 512 == shm.PAGE_BYTES
        last = log.last_sequence
        assert write(log, 1001, data) is not None
        log = DirtyLog(mem, LOG_ID, recall_bytes=RECALL)
        assert [bytes(r.data) for r in log.recover()] == [data] and log.last_sequence == last + 1
    finally:
        os.close(fd)


def test_room_for_recalls_is_kept() -> None:
    _, log = new()
    count = 0
    while write(log, count + 1, bytes(1000)) is not None:
        count += 1
    assert log.used_bytes <= log.capacity - RECALL < log.used_bytes + 1128 + HEADER_BYTES
    assert write(log, 100, bytes(1000), recall=True) is not None
    while write(log, 101, bytes(1000), recall=True) is not None:
        pass
    first = log.recover()[0]
    log.mark_clean([first])
    assert write(log, 102, bytes(900)) is None and write(log, 102, bytes(800), recall=True) is not None
    with pytest.raises(ValueError):
        write(log, 103, bytes(17 * KIB))


def append(log: DirtyLog, unique: int, data: bytes, answer: list[DirtyRecord | None]) -> None:
    answer.append(write(log, unique, data, recall=True))


@pytest.mark.parametrize("round_", range(3))
def test_history_cut_anywhere(round_: int) -> None:
    rng = random.Random(SEED * 10 + round_)
    mem, log = new(8 * KIB)
    live: list[DirtyRecord] = []
    checked = appended = 0
    for unique in range(1, 120):
        before, last = observe(bytes(mem)), log.last_sequence
        if rng.random() < 0.55 or not live:
            data = rng.randbytes(rng.choice((0, 1, 64, 500, 2000)))
            answer: list[DirtyRecord | None] = []
            tape = record(mem, partial(append, log, unique, data, answer))
            live += [entry for entry in answer if entry is not None]
            appended += len(live) and answer[0] is not None
        else:
            chosen = [live.pop(0 if rng.random() < 0.6 else rng.randrange(len(live)))]
            tape = record(mem, partial(log.mark_clean, chosen))
        after = observe(bytes(mem))
        for state in cuts(tape):
            checked += 1
            assert observe(state) in (before, after), f"seed {SEED}, step {unique}"
            successor = reopen(state)
            entry = write(successor, 9999, b"successor", recall=True)
            assert entry is None or entry.sequence > last, f"seed {SEED}, step {unique}"
        if unique % 20 == 0:  # a successor goes on where this one was
            log = DirtyLog(mem, LOG_ID, recall_bytes=RECALL)
            live = log.recover()
    assert checked > 1000 and appended > 40


def test_formatting_may_stop_anywhere() -> None:
    mem = bytearray(required_bytes(8 * KIB))
    for state in cuts(record(mem, lambda: DirtyLog(mem, LOG_ID, True, recall_bytes=RECALL))):
        log = reopen(state)
        assert log.recover() == [] and log.last_sequence == 0


def test_a_slow_copy_hides_no_later_record() -> None:
    mem, log = new()
    first = log._ring.reserve(5, 0, 300, 11, 0, 0, False)  # another thread is copying
    second = write(log, 12, b"acknowledged")
    assert first is not None and second is not None
    state = bytearray(mem)
    for _ in range(2):  # a successor, and the successor of that one
        successor = DirtyLog(state, LOG_ID, recall_bytes=RECALL)
        assert successor.find_unique(11) is None, "never carried out"
        assert [r.unique for r in successor.recover()] == [12] and successor.find_unique(11) is None
    again = write(successor, 11, b"executed again")
    assert again is not None and successor.find_unique(11) is again
    successor = DirtyLog(state, LOG_ID, recall_bytes=RECALL)
    assert [r.unique for r in successor.recover()] == [12, 11] and successor.find_unique(11).is_dirty  # type: ignore[union-attr]
    log.mark_clean([second])
    assert log.used_bytes > 0
    log.mark_clean([first])
    assert log.used_bytes == 0


def test_the_record_of_a_request_is_found_until_that_is_answered() -> None:
    """However many workers die meanwhile, and whatever of it is flushed; its place is free at the answer, and not before."""
    mem, log = new()
    made = log.append_write(1, 0, b"append", 10, 0, 0)
    assert made is not None
    log.mark_clean([made])
    assert write(log, 12, b"later") is not None
    for _ in range(2):
        log = DirtyLog(mem, LOG_ID, recall_bytes=RECALL)
        log.mark_clean(log.recover([8, 10]))  # 8: another request, which made no record
        log.forget_uniques()
        assert log.find_unique(10) is not None and log.find_unique(8) is None and log.used_bytes > 0
    for unique in (8, 12):
        log.answered(unique)
        assert log.used_bytes > 0
    log.answered(10)
    assert log.used_bytes == 0 and log.find_unique(10) is None


def test_data_that_cannot_be_copied_leaves_no_hole() -> None:
    _, log = new()

    class Bad(bytes):
        def __len__(self) -> int:
            return 3

    with pytest.raises(ValueError):
        write(log, 1, Bad(b"four"))
    assert log.used_bytes == 0 and write(log, 2, b"ok") is not None


def test_damage_is_reported_and_the_rest_is_returned() -> None:
    mem, log = new()
    records = [write(log, unique, bytes([unique]) * 600) for unique in range(1, 6)]
    mem[mem.index(bytes([2]) * 600) + 77] ^= 4
    found = DirtyLog(mem, LOG_ID, recall_bytes=RECALL)
    assert [r.unique for r in found.recover()] == [1, 3, 4, 5]
    (error,) = found.corrupt
    assert isinstance(error, Corrupt) and (error.sequence, error.ino, error.offset, error.length) == (2, 3, 6, 600)
    fourth = records[3]
    assert fourth is not None
    mem[shm.PAGE_BYTES + fourth.position + 9] ^= 1  # a header: what follows is found all the same
    found = DirtyLog(mem, LOG_ID, recall_bytes=RECALL)
    assert [r.unique for r in found.recover()] == [1, 3, 5]
    assert sorted(error.ino for error in found.corrupt) == [0, 3]
    found = DirtyLog(mem, LOG_ID, recall_bytes=RECALL)
    assert len(found.recover()) == 3 and len(found.corrupt) == 2, "reported until told"
    found.mark_clean([error.record for error in found.corrupt])
    found.mark_clean(found.recover())
    assert found.used_bytes == found.dirty_bytes == 0


def test_another_log_or_a_newer_record_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mem, log = new()
    write(log, 1, b"x")
    with pytest.raises(Corrupt, match="expected"):
        DirtyLog(mem, LOG_ID + 1, recall_bytes=RECALL)
    monkeypatch.setattr(record_ring, "RECORD_VERSION", 3)
    write(log, 2, b"y")
    monkeypatch.undo()
    with pytest.raises(FormatTooNew):
        reopen(mem)


def test_a_record_says_under_which_lease_it_was_held_back() -> None:
    """A build that knows version 1 refuses it by its version; it does not take it for damage."""
    mem, log = new()
    write(log, 1, b"alone")
    log.append_write(3, 4, b"leased", 9, 1, 0, token=LeaseToken(2**63, 2**40, 5))
    one, two = reopen(mem).recover()
    assert one.token == ALONE and two.token == LeaseToken(2**63, 2**40, 5) and bytes(two.data) == b"leased"
    at = shm.PAGE_BYTES + two.position + 80
    mem[at] ^= 1
    damaged = reopen(mem)
    assert [r.sequence for r in damaged.recover()] == [one.sequence] and len(damaged.lost) == 1
    mem[at] ^= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirty_log, "AREA", dirty_log.AREA._replace(record_version_max=1))
        with pytest.raises(FormatTooNew):
            reopen(mem)


def test_threads_append_and_clean_at_once() -> None:
    mem, log = new(256 * KIB)
    kept: list[tuple[int, bytes]] = []
    errors: list[BaseException] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        rng = random.Random(SEED + number)
        try:
            for step in range(300):
                data = rng.randbytes(rng.randrange(2000))
                entry = log.append_write(number, step, data, number * 1000 + step + 1, 0, 0)
                if entry is None:
                    continue
                assert bytes(entry.data) == data
                if rng.random() < 0.9:
                    log.mark_clean([entry])
                else:
                    with lock:
                        kept.append((entry.sequence, data))
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(kept) > 10
    assert [(r.sequence, bytes(r.data)) for r in reopen(mem).recover()] == sorted(kept)
    assert log.dirty_bytes == sum(len(data) for _, data in kept)
