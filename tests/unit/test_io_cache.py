"""The bounded caches, the buffer pool and read-ahead."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from awsomefsd.errors import Corrupt
from awsomefsd.io.buffers import BufferPool, aligned_buffer
from awsomefsd.io.cache import ByteLru
from awsomefsd.io.readahead import PREFETCH_BYTES_MIN, ReadAhead
from awsomefsd.limits import FRAME_BYTES_MAX, KIB, MIB, READ_AHEAD_BYTES_MAX
from awsomefsd.types import Extent


def test_lru_stays_within_its_bytes_and_drops_the_oldest() -> None:
    dropped: list[str] = []
    lru: ByteLru[str, str] = ByteLru(100, dropped.append)
    lru.put("a", "A", 40)
    lru.put("b", "B", 40)
    assert lru.get("a") == "A" and lru.get("x") is None
    lru.put("c", "C", 40)
    assert dropped == ["B"] and lru.get("b") is None
    lru.put("c", "C2", 60)
    assert dropped == ["B", "C"]
    lru.put("huge", "H", 101)
    assert dropped == ["B", "C", "H"] and lru.get("huge") is None
    lru.discard("a")
    lru.discard("a")
    found = lru.statistics()
    assert (found.bytes_used, found.bytes_max, found.entries, found.hits, found.misses, found.evictions) == (60, 100, 1, 1, 3, 1)
    lru.clear()
    assert lru.statistics().bytes_used == 0 and dropped == ["B", "C", "H", "A", "C2"]


def test_lru_against_a_plain_model(seed: int) -> None:
    rng = random.Random(seed)
    lru: ByteLru[int, int] = ByteLru(1_000)
    model: dict[int, int] = {}  # key -> size, in order of use
    for _ in range(5_000):
        key, size = rng.randrange(40), rng.randrange(1, 120)
        if rng.randrange(2):
            assert lru.get(key) == (key if key in model else None)
            if key in model:
                model[key] = model.pop(key)
        else:
            lru.put(key, key, size)
            model.pop(key, None)
            model[key] = size
            while sum(model.values()) > 1_000:
                del model[next(iter(model))]
        assert lru.statistics().bytes_used == sum(model.values()) <= 1_000


def test_pool_lends_no_more_than_it_has() -> None:
    pool = BufferPool(1, 4096)
    got = threading.Event()

    def borrow() -> None:
        with pool.borrow():
            got.set()

    with pool.borrow() as mine:
        other = threading.Thread(target=borrow)
        other.start()
        assert len(mine) == 4096 and not got.is_set()
    other.join()
    assert got.is_set()


class Source:
    """An ExtentReader whose reads can be held back and can fail."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.broken: set[int] = set()

    def read(self, extent: Extent, volume: int, ino: int, skip: int, length: int, into: memoryview) -> None:
        self.entered.set()
        self.gate.wait()
        if extent.sequence in self.broken:
            raise Corrupt("broken")
        self.reads.append(extent.sequence)
        into[:length] = content(extent)[skip : skip + length]


def content(extent: Extent) -> bytes:
    return random.Random(extent.sequence).randbytes(extent.length)


def extent_of(sequence: int, length: int = FRAME_BYTES_MAX) -> Extent:
    return Extent((sequence - 1) * length, length, 1, 1, sequence, 0, 4096, 0)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def ahead(source: Source) -> Iterator[ReadAhead]:
    made = ReadAhead(source, 4 * MIB)
    made.start()
    yield made
    source.gate.set()
    made.stop()


def read(ahead: ReadAhead, extent: Extent, skip: int = 0, length: int | None = None) -> bytes:
    into = aligned_buffer(length or extent.length - skip)
    ahead.read(extent, 1, 2, skip, len(into), into)
    return bytes(into)


def test_sequences_are_recognised_and_jumps_end_them() -> None:
    ahead = ReadAhead(Source())
    assert ahead.observe(1, 0, 128 * KIB) is None
    assert ahead.observe(1, 128 * KIB, 128 * KIB) == (256 * KIB, 256 * KIB + MIB)
    assert ahead.observe(1, 256 * KIB, 128 * KIB) is None, "enough is under way"
    position, covered = 384 * KIB, 256 * KIB + MIB
    for _ in range(200):
        found = ahead.observe(1, position, 128 * KIB)
        position += 128 * KIB
        if found:
            assert found[0] == covered and position <= found[1] <= position + READ_AHEAD_BYTES_MAX
            covered = found[1]
        assert covered > position
    assert ahead.observe(1, 1 << 40, 128 * KIB) is None
    assert ahead.observe(2, 0, 4096) is None, "handles are told apart"
    rng = random.Random(1)
    assert not any(ahead.observe(3, rng.randrange(1 << 40), 4096) for _ in range(1_000))


def test_prefetched_frames_are_served_from_memory_once(ahead: ReadAhead, source: Source) -> None:
    extents = [extent_of(n) for n in (1, 2, 3)]
    ahead.prefetch(extents, 1, 2)
    for extent in extents:
        assert read(ahead, extent, 0, 512 * KIB) == content(extent)[: 512 * KIB]
        assert read(ahead, extent, 512 * KIB) == content(extent)[512 * KIB :]
    assert source.reads == [1, 2, 3]
    found = ahead.statistics()
    assert (found.prefetched, found.hits, found.misses, found.wasted, found.bytes_used) == (3, 6, 0, 0, 0)
    assert read(ahead, extents[0]) == content(extents[0])
    assert source.reads == [1, 2, 3, 1]


def test_a_reader_waits_for_what_is_under_way(ahead: ReadAhead, source: Source) -> None:
    source.gate.clear()
    ahead.prefetch([extent_of(1)], 1, 2)
    assert source.entered.wait(10)
    result: list[bytes] = []
    reader = threading.Thread(target=lambda: result.append(read(ahead, extent_of(1))))
    reader.start()
    source.gate.set()
    reader.join()
    assert result == [content(extent_of(1))] and source.reads == [1]


def test_memory_is_bounded_and_the_oldest_go(ahead: ReadAhead, source: Source) -> None:
    source.gate.clear()
    ahead.prefetch([extent_of(n) for n in range(1, 8)], 1, 2)
    assert ahead.statistics().skipped == 3, "four buffers, all of them to be filled"
    source.gate.set()
    assert read(ahead, extent_of(4), 0, 10) == content(extent_of(4))[:10]
    ahead.prefetch([extent_of(9)], 1, 2)
    assert read(ahead, extent_of(9)) == content(extent_of(9))
    found = ahead.statistics()
    assert found.wasted == 1 and found.bytes_used <= found.bytes_max == 4 * MIB


def test_a_frame_that_goes_while_its_reader_wakes_is_read_again(ahead: ReadAhead, source: Source) -> None:
    wanted = extent_of(1)
    ahead.prefetch([wanted], 1, 2)
    frame = next(iter(ahead._frames.values()))
    frame.ready.wait()
    ahead.prefetch([extent_of(n) for n in (2, 3, 4)], 1, 2)
    for n in (2, 3, 4):
        read(ahead, extent_of(n), 0, 1)
    ahead.prefetch([extent_of(5)], 1, 2)  # takes the buffer of frame 1
    assert read(ahead, extent_of(5), 0, 1) == content(extent_of(5))[:1]
    into = aligned_buffer(100)
    key = (wanted.segment, wanted.incarnation, wanted.sequence, wanted.skip)
    assert not ahead._take(key, frame, wanted, 0, 100, into, waits=False), "its buffer holds another frame now"


def test_small_extents_and_parts_are_read_directly(ahead: ReadAhead, source: Source) -> None:
    small = extent_of(1, PREFETCH_BYTES_MIN - 1)
    ahead.prefetch([small], 1, 2)
    assert read(ahead, small) == content(small)
    assert ahead.statistics().prefetched == 0
    cut = extent_of(2, 100 * KIB)
    ahead.prefetch([cut], 1, 2)
    longer = extent_of(2, 200 * KIB)
    assert read(ahead, longer) == content(longer), "what is not inside what was prefetched is read"


def test_errors_are_met_by_the_one_who_reads(ahead: ReadAhead, source: Source) -> None:
    source.broken = {1}
    ahead.prefetch([extent_of(1)], 1, 2)
    with pytest.raises(Corrupt):
        read(ahead, extent_of(1))
    source.broken = set()
    assert read(ahead, extent_of(1)) == content(extent_of(1))
    assert ahead.statistics().bytes_used == 0


def test_stop_leaves_nobody_waiting(source: Source) -> None:
    ahead = ReadAhead(source, 4 * MIB)
    ahead.start()
    source.gate.clear()
    ahead.prefetch([extent_of(1), extent_of(2)], 1, 2)
    assert source.entered.wait(10)
    results: list[bytes] = []
    reader = threading.Thread(target=lambda: results.append(read(ahead, extent_of(2))))
    reader.start()
    source.gate.set()
    ahead.stop()
    reader.join()
    assert results == [content(extent_of(2))]
    ahead.prefetch([extent_of(3)], 1, 2)
    assert read(ahead, extent_of(3)) == content(extent_of(3))
