"""The memory budget of a worker: what gives way, in which order, and that the dirty log stays inside its part and loses nothing."""

from __future__ import annotations

import os
import random
import resource

import pytest

from awsomefsd.base import shm
from awsomefsd.base.limits import INODES_CACHED_MAX, MIB
from awsomefsd.base.types import Attr
from awsomefsd.io.file import file_data
from awsomefsd.io.file.dirty_log import LIMIT_BYTES_MIN, DirtyLog, required_bytes
from awsomefsd.io.file.file_data import FileTable
from awsomefsd.io.segment.checksum_cache import ByteLru
from awsomefsd.vfs.state.names import NameCache
from awsomefsd.worker import memory_budget
from awsomefsd.worker.memory_budget import SHARE_MIN, MemoryBudget


class Bounded:
    def __init__(self) -> None:
        self.last: float = -1

    def bound(self, share: float) -> None:
        self.last = share


def test_caches_give_way_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    used = 300 * MIB
    monkeypatch.setattr(memory_budget, "private_bytes", lambda _statm: used)
    cache, ring = Bounded(), Bounded()
    budget = MemoryBudget(256 * MIB, [], [cache], ring)
    assert ring.last == 96 * MIB, "the default budget leaves the dirty log what it has"
    budget.poll()
    assert budget.share == cache.last == 0.5 and budget.figures()["memory_cache_percent"] == 50
    for _ in range(10):
        budget.poll()
    assert budget.share == cache.last == SHARE_MIN
    used = 200 * MIB
    budget.poll()
    assert budget.share == SHARE_MIN, "neither over nor calm: nothing swings"
    used = 100 * MIB
    for _ in range(10):
        budget.poll()
    assert budget.share == cache.last == 1.0
    assert MemoryBudget(128 * MIB, [], [], ring).share == 1.0 and ring.last == 48 * MIB


def test_memfds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "private_bytes", lambda _statm: 100 * MIB)  # of a process that does other things meanwhile
    fd = os.memfd_create("area")
    try:
        os.ftruncate(fd, 64 * MIB)
        budget = MemoryBudget(1 << 40, [fd], [], Bounded())
        budget.poll()
        before = budget.used_bytes
        os.pwrite(fd, bytes(16 * MIB), 0)
        budget.poll()
        assert budget.used_bytes - before > 12 * MIB
    finally:
        os.close(fd)


def test_a_look_needs_no_descriptor() -> None:
    """It ran on a thread whose end is the end of the worker."""
    budget = MemoryBudget(1 << 40, [], [], Bounded())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        budget.poll()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert budget.used_bytes > 1 << 20


def attr(ino: int) -> Attr:
    return Attr(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, True, 0)


def test_names_and_byte_caches_keep_their_share() -> None:
    names = NameCache()
    for ino in range(INODES_CACHED_MAX // 2):
        names.put(attr(ino))
    names.bound(1 / 16)
    names.put(attr(1 << 40))
    assert len(names) <= INODES_CACHED_MAX // 16 and names.attr(1 << 40) is not None
    lru: ByteLru[int, int] = ByteLru(1000)
    for key in range(10):
        lru.put(key, key, 100)
    lru.bound(250)
    assert lru.statistics().bytes_used <= 250 and lru.get(9) == 9 and lru.get(0) is None


def test_the_file_that_is_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write asks again for a state that was forgotten: it would do so for ever on the thread that takes the answers."""
    monkeypatch.setattr(file_data, "FILES_CACHED_MAX", 8)
    files = FileTable(1, None, None, lambda *_: None)  # type: ignore[arg-type]
    files.bound(SHARE_MIN)
    for ino in (2, 3, 4):
        assert files.state(attr(ino)) is files.get(ino)
    assert files.get(2) is None


def test_a_bounded_dirty_log_gives_back_what_the_tail_has_passed(seed: int) -> None:
    """Never empty, so it never starts over: without that, the ring would come to hold pages everywhere."""
    capacity = 96 * MIB
    fd = os.memfd_create("dirty")
    try:
        os.ftruncate(fd, required_bytes(capacity))
        mem = shm.map_memfd(fd)
        log = DirtyLog(mem, 7, True)
        log.bound(LIMIT_BYTES_MIN)
        dice = random.Random(seed)
        live: list[tuple[object, bytes]] = []
        written = worst = 0
        while written < 3 * capacity:
            data = dice.randbytes(4096) * dice.randint(1, 200)
            record = log.append_write(1, 0, data, 0, 0, 0)
            if record is not None:
                written += len(data)
                live.append((record, data))
            if record is None or len(live) > 20:
                for kept, wanted in live:
                    assert bytes(kept.data) == wanted  # type: ignore[attr-defined]
                log.mark_clean([kept for kept, _ in live[:-1]])  # type: ignore[misc]
                live = live[-1:]
            worst = max(worst, os.fstat(fd).st_blocks * 512)
        assert worst < LIMIT_BYTES_MIN + 6 * MIB, f"{worst / MIB:.1f} MiB"
        again = DirtyLog(shm.map_memfd(fd), 7)
        assert [bytes(r.data) for r in again.recover()] == [data for _, data in live]
    finally:
        os.close(fd)
