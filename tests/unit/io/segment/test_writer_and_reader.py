"""Writer and reader against each other, over a device in memory that records, tears and fails."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, Fenced, FormatTooNew, FsError, Unavailable
from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, KIB, MIB, NS_PER_MS
from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_SEALED, Extent, SegmentInfo, SegmentProgress
from awsomefsd.base.wait import MustWait, begin_reading_requests
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.segment import reader as reader_module
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.footer import unpack_footer
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.io.segment.writer import Piece, SegmentWriter, Written, space_needed

VOLUME, INO, DEVICE = 3, 77, 1


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


class Pool:
    """Segments of one device: what the metadata service would keep."""

    def __init__(self, segments: int = 24, segment_bytes: int = MIB) -> None:
        self.device = MemoryDevice(segments * segment_bytes + MIB)
        self.infos: dict[int, SegmentInfo] = {}
        self.free = [SegmentInfo(n, 5, DEVICE, n * segment_bytes, segment_bytes, SEGMENT_LEASED, 0) for n in range(segments)]
        self.checksums = ChecksumCache()
        self.leases = 0

    def lease(self, count: int) -> list[SegmentInfo]:
        if not self.free:
            raise FsError(28, "no free segment")
        self.leases += 1
        leased = [self.free.pop(0) for _ in range(min(count, len(self.free)))]
        self.infos.update((info.segment, info) for info in leased)
        return leased

    def writer(self, *, remember: bool = False) -> SegmentWriter:
        return SegmentWriter({DEVICE: self.device}, self.lease, self.checksums if remember else None, lambda: 42)

    def reader(self, device: MemoryDevice | None = None) -> SegmentReader:
        return SegmentReader({DEVICE: device or self.device}, self.infos.__getitem__, self.checksums)

    def report(self, progress: list[SegmentProgress]) -> None:
        for step in progress:
            info = self.infos[step.segment]
            assert info.state == SEGMENT_LEASED, "a segment is sealed once"
            assert info.incarnation == step.incarnation and info.committed_bytes <= step.committed_bytes <= info.bytes
            info.committed_bytes = step.committed_bytes
            if step.sealed:
                info.state, info.footer_offset, info.footer_bytes = SEGMENT_SEALED, step.footer_offset, step.footer_bytes


def aligned(data: bytes) -> memoryview:
    buffer = aligned_buffer(len(data))
    buffer[:] = data
    return buffer


def some_views(rng: random.Random, data: bytes) -> list[memoryview]:
    """The same bytes as the dirty log may hold them: one run, aligned or not, or many."""
    kind = rng.randrange(4)
    if kind == 0:
        return [memoryview(data)]
    if kind == 1:
        return [aligned(data)]
    if kind == 2:
        whole = aligned(data)
        return [whole[at : at + 128 * KIB] for at in range(0, len(data), 128 * KIB)]
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randrange(4)))})
    return [memoryview(bytearray(data[low:high])) for low, high in itertools.pairwise(cuts)]


def read_back(reader: SegmentReader, extents: list[Extent]) -> bytes:
    result = bytearray()
    for extent in extents:
        into = aligned_buffer(extent.length)
        reader.read(extent, VOLUME, INO, 0, extent.length, into)
        result += into
    return bytes(result)


def check_written(written: Written, pieces: list[Piece]) -> None:
    assert written.consumed_bytes <= space_needed(*(piece.length for piece in pieces))
    for piece, extents in zip(pieces, written.extents, strict=True):
        position = piece.file_offset
        for extent in extents:
            assert extent.file_offset == position and extent.skip == 0 and 0 < extent.length <= FRAME_BYTES_MAX
            position += extent.length
        assert position == piece.file_offset + piece.length


def write_one(pool: Pool, writer: SegmentWriter, data: bytes, offset: int = 0) -> list[Extent]:
    written = writer.write([Piece(VOLUME, INO, offset, [aligned(data)])])
    pool.report(written.progress)
    return written.extents[0]


# --- round trips --------------------------------------------------------------------------------------------------------------


def test_random_pieces_come_back_whatever_knows_their_checksums(rng: random.Random) -> None:
    pool = Pool(segments=60)
    writer = pool.writer(remember=True)
    stored: list[tuple[Extent, bytes]] = []
    while len(pool.free) > 30:
        pieces, contents = [], []
        for _ in range(rng.randrange(1, 12)):
            data = rng.randbytes(min(2 * MIB, int(2 ** rng.uniform(0, 21)) + 1))
            contents.append(data)
            pieces.append(Piece(VOLUME, INO, rng.randrange(1 << 40), some_views(rng, data)))
        flushes = pool.device.flushes
        written = writer.write(pieces)
        assert pool.device.flushes == flushes + 1
        assert not pool.device.durable, "all is durable when write returns"
        check_written(written, pieces)
        pool.report(written.progress)
        for piece, data, extents in zip(pieces, contents, written.extents, strict=True):
            stored += [(e, data[e.file_offset - piece.file_offset :][: e.length]) for e in extents]
    check_random_reads(rng, pool, stored)
    pool.report(writer.seal_all())
    assert all(info.state == SEGMENT_SEALED for info in pool.infos.values())
    check_random_reads(rng, pool, stored)


def check_random_reads(rng: random.Random, pool: Pool, stored: list[tuple[Extent, bytes]]) -> None:
    for warm in (True, False):
        if not warm:
            pool.checksums = ChecksumCache()
        reader = pool.reader()
        for extent, data in rng.sample(stored, min(len(stored), 60)):
            cut = rng.randrange(extent.length)  # an extent that was cut by a later write
            part = Extent(
                extent.file_offset + cut, rng.randrange(1, extent.length - cut + 1), extent.segment, extent.incarnation, extent.sequence,
                extent.frame_offset, extent.header_bytes, cut,
            )  # fmt: skip
            if rng.randrange(3) == 0:
                part, cut = extent, 0
            skip = rng.choice((0, rng.randrange(part.length)))
            length = rng.choice((part.length - skip, rng.randrange(part.length - skip + 1)))
            into = aligned_buffer(length + 64)[rng.choice((0, 64)) :][:length]
            reader.read(part, VOLUME, INO, skip, length, into)
            assert into == data[cut + skip :][:length]
        assert reader.statistics().mismatches == 0


def test_footer_tells_what_the_headers_say(rng: random.Random) -> None:
    pool = Pool()
    writer = pool.writer()
    extents = [write_one(pool, writer, rng.randbytes(size)) for size in (10, 5000, 100_000, 300_000)]
    pool.report(writer.seal_all())
    info = pool.infos[0]
    raw = pool.device.content[info.footer_offset : info.footer_offset + info.footer_bytes]
    table = unpack_footer(raw, info.segment, info.incarnation)
    assert table.data_end == info.committed_bytes == info.footer_offset
    named = [(e.frame_offset, e.sequence, e.length) for [e] in extents]
    assert [(f.frame_offset, f.sequence, f.logical_bytes) for f in table] == named
    assert [f.volume for f in table] == [VOLUME] * 4 and [f.ino for f in table] == [INO] * 4


def test_small_pieces_share_a_block_and_large_ones_are_not_copied() -> None:
    pool = Pool()
    writer = pool.writer()
    pieces = [Piece(VOLUME, ino, 0, [memoryview(b"x" * 100)]) for ino in range(10)]
    pool.report(writer.write(pieces).progress)
    assert pool.device.writes == [(0, BLOCK_BYTES)]
    copied = writer.statistics().copied_bytes
    write_one(pool, writer, b"y" * 512 * KIB)
    assert writer.statistics().copied_bytes == copied
    assert pool.device.writes[1:] == [(BLOCK_BYTES, 512 * KIB + BLOCK_BYTES)], "header and data in one write"


def test_many_small_pieces_in_one_batch(rng: random.Random) -> None:
    """More than the staging buffer holds, in frames that end in the middle of blocks."""
    pool = Pool(segments=2, segment_bytes=64 * MIB)
    contents = [rng.randbytes(rng.randrange(1, 60 * KIB)) for _ in range(400)]
    written = pool.writer().write([Piece(VOLUME, ino, 0, [memoryview(data)]) for ino, data in enumerate(contents)])
    assert len(pool.device.writes) > 2
    for data, extents in zip(contents, written.extents, strict=True):
        assert read_back(pool.reader(), extents) == data


def test_padding_is_zeros_never_what_was_there_before() -> None:
    pool = Pool(segments=2, segment_bytes=4 * MIB)
    writer = pool.writer()
    sizes = (100, 70_000, 5_001, 300_001, 17, 64 * KIB)
    for view in (bytearray, aligned):
        pieces = [Piece(VOLUME, INO, 0, [memoryview(view(b"\xff" * size))]) for size in sizes * 3]
        written = writer.write(pieces)
        for [extent] in written.extents:
            start = extent.frame_offset + extent.header_bytes
            assert pool.device.content[start : start + extent.length] == b"\xff" * extent.length
            pool.device.content[extent.frame_offset : start + extent.length] = bytes(extent.header_bytes + extent.length)
    assert not any(pool.device.content[: 4 * MIB])


def test_reads_cost_what_they_should() -> None:
    pool = Pool()
    writer = pool.writer()
    [extent] = write_one(pool, writer, bytes(500 * KIB))
    pool.report(writer.seal_all())
    reader = pool.reader()
    into = aligned_buffer(500 * KIB)
    reader.read(extent, VOLUME, INO, 0, extent.length, into)
    assert len(pool.device.reads) == 2, "the footer, and one preadv for the whole frame"
    assert reader.statistics().bounced_bytes == 0
    reader.read(extent, VOLUME, INO, 100 * KIB, 4 * KIB, into)
    assert pool.device.reads[2:] == [(BLOCK_BYTES + 100 * KIB, BLOCK_BYTES)], "a warm random read is one I/O of one block"
    [small] = write_one(pool, pool.writer(), b"z" * 5000)
    count = len(pool.device.reads)
    pool.reader().read(small, VOLUME, INO, 0, 5000, into)
    assert len(pool.device.reads) == count + 1, "header and data of a small frame in one I/O"
    assert into[:5000] == b"z" * 5000


def test_what_was_just_written_is_read_without_asking_for_its_header() -> None:
    pool = Pool()
    [extent] = write_one(pool, pool.writer(remember=True), b"w" * 200 * KIB)
    read_back(reader := pool.reader(), [extent])
    assert (reader.statistics().headers_read, reader.statistics().device_reads) == (0, 1)


# --- corruption and identity --------------------------------------------------------------------------------------------------


def test_any_damage_is_corrupt_never_wrong_bytes(rng: random.Random) -> None:
    pool = Pool()
    writer = pool.writer()
    data = rng.randbytes(200 * KIB)
    [extent] = write_one(pool, writer, data)
    [small] = write_one(pool, writer, data[:9_000])
    for turn in range(150):
        victim, length = rng.choice(((extent, 200 * KIB), (small, 9_000)))
        at = victim.frame_offset + rng.randrange(victim.header_bytes + length)
        old = pool.device.content[at]
        pool.device.content[at] ^= 1 << rng.randrange(8)
        pool.checksums = ChecksumCache()
        with pytest.raises(Corrupt, match=f"volume {VOLUME} inode {INO}"):
            read_back(pool.reader(), [victim])
        pool.device.content[at] = old
        if turn % 50 == 0:
            assert read_back(pool.reader(), [victim]) == data[:length]


def test_a_transfer_that_went_wrong_once_is_read_again() -> None:
    pool = Pool()
    [extent] = write_one(pool, pool.writer(), b"a" * 100 * KIB)
    looks = 0

    def flip(_offset: int, _length: int) -> None:
        nonlocal looks
        looks += 1
        pool.device.content[BLOCK_BYTES + 5] = ord("b") if looks == 1 else ord("a")

    pool.device.on_read = flip
    assert read_back(reader := pool.reader(), [extent]) == b"a" * 100 * KIB
    assert (looks, reader.statistics().mismatches) == (2, 1)


def test_a_damaged_footer_costs_speed_only() -> None:
    pool = Pool()
    writer = pool.writer()
    [extent] = write_one(pool, writer, b"a" * 100 * KIB)
    pool.report(writer.seal_all())
    pool.device.content[pool.infos[0].footer_offset + 70] ^= 1
    reader = pool.reader()
    assert read_back(reader, [extent]) == b"a" * 100 * KIB
    assert read_back(reader, [extent]) == b"a" * 100 * KIB
    assert (reader.statistics().footers_read, reader.statistics().headers_read) == (1, 1)


def test_lost_writes_and_former_lives_are_not_data() -> None:
    pool = Pool()
    [old] = write_one(pool, pool.writer(), b"a" * 100 * KIB)
    pool.infos[0].incarnation += 1
    with pytest.raises(Corrupt, match="incarnation 6, the extent names 5"):
        read_back(pool.reader(), [old])
    lost = Extent(0, old.length, 0, 6, 1, 0, old.header_bytes, 0)  # as if the new life's first frame had never reached the device
    pool.checksums = ChecksumCache()
    with pytest.raises(Corrupt, match="found"):
        read_back(pool.reader(), [lost])


def test_reading_beyond_the_device_or_without_it() -> None:
    pool = Pool(segments=1)
    [extent] = write_one(pool, pool.writer(), b"a" * 100 * KIB)
    short = MemoryDevice(64 * KIB)
    short.content[:] = pool.device.content[: 64 * KIB]
    with pytest.raises(Corrupt, match="short read"):
        read_back(pool.reader(short), [extent])
    with pytest.raises(Unavailable):
        SegmentReader({}, pool.infos.__getitem__).read(extent, VOLUME, INO, 0, 1, aligned_buffer(1))
    outside = Extent(0, MIB, 0, 5, 1, MIB - BLOCK_BYTES, BLOCK_BYTES, 0)
    with pytest.raises(Corrupt, match="not inside"):
        read_back(pool.reader(), [outside])


def test_a_device_that_another_node_has_just_added_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """This node finds it some seconds later: a program that reads a file there meanwhile got EIO."""
    pool, now, found_at, waits = Pool(segments=1), [0], [2_000], []
    [extent] = write_one(pool, pool.writer(), b"a" * KIB)

    class Late(dict[int, BlockDevice]):
        def get(self, number: int, default: Any = None) -> Any:
            return pool.device if now[0] >= found_at[0] * NS_PER_MS else default

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += round(seconds * 1_000) * NS_PER_MS

    monkeypatch.setattr(reader_module.time, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(reader_module.time, "sleep", sleep)
    reader = SegmentReader(Late(), pool.infos.__getitem__, device_wait_ms=9_000)
    assert read_back(reader, [extent]) == b"a" * KIB and sum(waits) == pytest.approx(2.0)
    found_at[0] = 1_000_000
    waits.clear()
    with pytest.raises(Unavailable, match="does not have"):
        read_back(reader, [extent])
    assert sum(waits) == pytest.approx(7.0), "the time counts from the first read that missed it"
    waits.clear()
    with pytest.raises(Unavailable):
        read_back(reader, [extent])
    assert waits == [], "one that stays away is an error at once"


@pytest.mark.parametrize("later", ["free", "used again"])
def test_an_old_layout_that_names_a_device_which_is_not_here_is_taken_for_old(later: str) -> None:
    """A drain has moved the bytes to a device that this node sees: its reads got EIO for as long as it remembered the layout."""
    pool = Pool(segments=1)
    [extent] = write_one(pool, pool.writer(), b"a" * KIB)
    known = pool.infos[extent.segment]
    asked: list[int] = []

    def ask(segment: int) -> SegmentInfo:
        asked.append(segment)
        return now

    now = known
    reader = SegmentReader({}, lambda segment: known, locate_again=ask)
    with pytest.raises(Unavailable):
        read_back(reader, [extent])
    assert asked == [extent.segment], "it still is there"
    now = replace(known, state=SEGMENT_FREE) if later == "free" else replace(known, incarnation=known.incarnation + 1)
    with pytest.raises(Corrupt):
        read_back(reader, [extent])


def test_a_thread_that_reads_requests_leaves_the_wait_for_a_device_to_another() -> None:
    pool = Pool(segments=1)
    [extent] = write_one(pool, pool.writer(), b"a" * KIB)
    reader, met = SegmentReader({}, pool.infos.__getitem__, device_wait_ms=3_600_000), []

    def read() -> None:
        begin_reading_requests()
        with pytest.raises(MustWait):
            read_back(reader, [extent])
        met.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert met


def test_an_unknown_codec_is_refused_not_returned() -> None:
    from msgspec.structs import replace

    from awsomefsd.io.segment.frame import pack_header, unpack_header

    pool = Pool()
    [extent] = write_one(pool, pool.writer(), b"a" * 100 * KIB)
    view = memoryview(pool.device.content)
    pack_header(replace(unpack_header(view[:BLOCK_BYTES]), codec=7), view)
    with pytest.raises(FormatTooNew, match="codec 7"):
        read_back(pool.reader(), [extent])


def test_many_threads_read_at_once(rng: random.Random) -> None:
    pool = Pool()
    writer = pool.writer()
    stored = [(data, write_one(pool, writer, data)) for data in (rng.randbytes(rng.randrange(1, 400 * KIB)) for _ in range(30))]
    pool.report(writer.seal_all())
    reader = pool.reader()
    wrong: list[object] = []

    def run() -> None:
        try:
            for data, extents in stored:
                if read_back(reader, extents) != data:
                    wrong.append(extents)
        except Exception as err:
            wrong.append(err)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- failures while writing ---------------------------------------------------------------------------------------------------


def fail_at(call: int, forever: bool = False) -> Callable[..., None]:
    calls = 0

    def hook(*_args: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call or (forever and calls > call):
            raise OSError(5, "injected")

    return hook


@pytest.mark.parametrize("where", ["write", "flush"])
def test_one_failure_moves_everything_to_other_segments(where: str) -> None:
    pool = Pool()
    writer = pool.writer()
    first = write_one(pool, writer, b"1" * 300 * KIB)
    durable = pool.infos[0].committed_bytes
    setattr(pool.device, f"on_{where}", fail_at(1))
    pieces = [Piece(VOLUME, INO, 0, [aligned(b"2" * 2 * MIB)]), Piece(VOLUME, INO, 9 * MIB, [memoryview(b"3" * 99)])]
    written = writer.write(pieces)
    check_written(written, pieces)
    pool.report(written.progress)
    assert {e.segment for extents in written.extents for e in extents}.isdisjoint({0})
    assert pool.infos[0].state == SEGMENT_SEALED and pool.infos[0].committed_bytes == durable and not pool.infos[0].footer_offset
    assert read_back(pool.reader(), first) == b"1" * 300 * KIB
    assert read_back(pool.reader(), written.extents[0]) == b"2" * 2 * MIB
    assert read_back(pool.reader(), written.extents[1]) == b"3" * 99
    assert writer.statistics().failures == 1


def test_a_device_that_stays_broken_raises_and_does_not_eat_segments() -> None:
    pool = Pool()
    writer = pool.writer()
    write_one(pool, writer, b"1" * 10 * KIB)
    pool.device.on_write = fail_at(1, forever=True)
    data = aligned(b"2" * 200 * KIB)
    for _ in range(30):
        with pytest.raises(OSError, match="injected"):
            writer.write([Piece(VOLUME, INO, 0, [data])])
    assert writer.statistics().segments_abandoned == 2
    pool.device.on_write = lambda *_: None
    written = writer.write([Piece(VOLUME, INO, 0, [data])])
    pool.report(written.progress)
    assert read_back(pool.reader(), written.extents[0]) == b"2" * 200 * KIB
    assert sorted(step.segment for step in written.progress if step.sealed) == [0, 1]


def test_failures_at_random_calls_lose_nothing_that_was_reported(rng: random.Random) -> None:
    for _ in range(4):
        pool = Pool(segments=40)
        writer = pool.writer(remember=True)
        stored: list[tuple[bytes, list[Extent]]] = []
        while len(pool.free) > 20:
            pool.device.on_write = fail_at(rng.randrange(1, 12), forever=rng.randrange(4) == 0)
            pool.device.on_flush = fail_at(rng.randrange(1, 6))
            contents = [rng.randbytes(rng.choice((50, 5_000, 80_000, 900_000))) for _ in range(rng.randrange(1, 5))]
            pieces = [Piece(VOLUME, INO, 0, some_views(rng, data)) for data in contents]
            try:
                written = writer.write(pieces)
            except OSError:
                continue
            check_written(written, pieces)
            pool.report(written.progress)
            stored += zip(contents, written.extents, strict=True)
        pool.device.on_write = pool.device.on_flush = lambda *_: None
        crashed = pool.device.crash(lambda _block: rng.random() < 0.5)
        pool.report(writer.seal_all())
        for data, extents in stored:
            assert read_back(pool.reader(), extents) == data
        pool.checksums = ChecksumCache()
        reader = SegmentReader({DEVICE: crashed}, lambda n: SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0))
        for data, extents in stored:
            assert read_back(reader, extents) == data, "what was reported survives a power cut"


def test_without_a_segment_nothing_is_written() -> None:
    pool = Pool(segments=2)
    writer = pool.writer()
    with pytest.raises(FsError):
        writer.write([Piece(VOLUME, INO, 0, [aligned(bytes(3 * MIB))])])
    assert not pool.device.writes
    assert len(write_one(pool, writer, bytes(MIB))) == 2


def test_a_segment_on_a_device_this_node_has_not() -> None:
    pool = Pool()
    writer = SegmentWriter({}, pool.lease)
    with pytest.raises(Unavailable, match="does not have"):
        writer.write([Piece(VOLUME, INO, 0, [memoryview(b"x")])])
    assert {step.segment for step in writer.seal_all()} == {0}, "it is given back"


def test_seal_all_without_a_working_device_still_ends_the_segments() -> None:
    pool = Pool()
    writer = pool.writer()
    extents = write_one(pool, writer, b"1" * 10 * KIB)
    pool.device.on_write = fail_at(1, forever=True)
    pool.report(writer.seal_all())
    assert {info.state for info in pool.infos.values()} == {SEGMENT_SEALED}
    assert pool.infos[0].footer_offset == 0 and pool.infos[0].committed_bytes == 12 * KIB
    assert read_back(pool.reader(), extents) == b"1" * 10 * KIB
    assert writer.seal_all() == []


# --- a session that is replaced -----------------------------------------------------------------------------------------------


def test_an_abandoned_writer_takes_new_segments_and_reports_no_old_ones() -> None:
    pool = Pool()
    writer = pool.writer()
    write_one(pool, writer, b"1" * 10 * KIB)
    data = aligned(b"2" * 10 * KIB)
    pool.device.on_flush = fail_at(1, forever=True)
    with pytest.raises(OSError, match="injected"):  # leaves segments 0 and 1 to be reported
        writer.write([Piece(VOLUME, INO, 0, [data])])
    pool.device.on_flush = lambda: None
    writer.abandon()
    written = writer.write([Piece(VOLUME, INO, 0, [data])])
    assert [step.segment for step in written.progress] == [2] and [e.segment for e in written.extents[0]] == [2]


def test_a_write_over_a_change_of_session_is_fenced() -> None:
    pool = Pool()
    writer = pool.writer()
    pool.device.on_flush = writer.abandon
    with pytest.raises(Fenced):
        writer.write([Piece(VOLUME, INO, 0, [aligned(b"1" * 10 * KIB)])])
    pool.device.on_flush = lambda: None
    extents = write_one(pool, writer, b"2" * 10 * KIB)
    assert [e.segment for e in extents] == [1] and read_back(pool.reader(), extents) == b"2" * 10 * KIB


def test_segments_leased_while_the_session_was_replaced_are_used_by_nobody_and_given_back() -> None:
    pool = Pool()

    def lease(count: int) -> list[SegmentInfo]:
        if pool.leases == 1:
            writer.abandon()  # between the leases of one plan: the second one is the new session's
            leases, pool.leases = pool.leases, 9
            assert leases
            return pool.lease(count)
        return pool.lease(count)

    writer = SegmentWriter({DEVICE: pool.device}, lease, None, lambda: 42)
    with pytest.raises(Fenced):
        writer.write([Piece(VOLUME, INO, 0, [aligned(bytes(5 * MIB))])])
    written = writer.write([Piece(VOLUME, INO, 0, [aligned(bytes(10))])])
    assert {e.segment for e in written.extents[0]}.isdisjoint(range(3)), "or a block would be written twice, which the device asserts"
    assert not [step for step in written.progress if step.sealed], "a Commit with them would be refused if they were the old session's"
    doubtful = writer.take_in_doubt()
    assert [(step.segment, step.committed_bytes, step.sealed) for step in doubtful] == [(1, 0, True), (2, 0, True)], "they are given back"
    assert not writer.take_in_doubt()


def test_a_refused_commit_does_not_lose_the_end_of_a_segment() -> None:
    pool = Pool()
    writer = pool.writer()
    refused = writer.write([Piece(VOLUME, INO, 0, [aligned(bytes(MIB))])])
    assert [step.sealed for step in refused.progress] == [True, False]
    writer.report_again(refused)
    written = writer.write([Piece(VOLUME, INO, 0, [aligned(bytes(10))])])
    assert [(step.segment, step.sealed) for step in written.progress] == [(0, True), (1, False)]
    pool.report(written.progress)
    writer.abandon()
    writer.report_again(refused)
    assert writer.seal_all() == []


@pytest.mark.parametrize("physical", [4 * KIB, 16 * KIB, 64 * KIB])
def test_a_physical_block_that_holds_durable_bytes_is_never_written_again(physical: int, rng: random.Random) -> None:
    """The device in memory asserts it; failed writes, probes, footers and segments that are left are among the writes."""
    pool = Pool(segments=40)
    pool.device = MemoryDevice(pool.device.bytes, physical_block_bytes=physical)
    writer = pool.writer()
    kept: list[tuple[bytes, list[Extent]]] = []
    for number in range(120):
        data = rng.randbytes(rng.choice([1, 300, 5_000, 70_000, 200_000]))
        fails = number % 17 == 5
        pool.device.on_write = _fail_once(pool.device) if fails else lambda _offset, _length: None
        written = writer.write([Piece(VOLUME, INO, 0, [memoryview(data)])])
        pool.report(written.progress)
        kept.append((data, written.extents[0]))
        assert written.consumed_bytes <= space_needed(len(data)) + 2 * physical, "what padding took is paid for, too"
        if number % 40 == 39:
            pool.report(writer.leave({DEVICE}).progress)
    pool.report(writer.seal_all())
    after = pool.device.crash()
    reader = pool.reader(after)
    for data, extents in kept:
        got = bytearray()
        for extent in extents:
            buffer = aligned_buffer(extent.length)
            reader.read(extent, VOLUME, INO, 0, extent.length, buffer)
            got += buffer
        assert bytes(got) == data


def _fail_once(device: MemoryDevice) -> Callable[[int, int], None]:
    def fail(_offset: int, _length: int) -> None:
        device.on_write = lambda _offset, _length: None
        raise OSError(5, "once")

    return fail


class Between(list[SegmentProgress]):
    """Progress; while it is looked through, another thread does something."""

    def __init__(self, steps: list[SegmentProgress], then: Callable[[], None]) -> None:
        super().__init__(steps)
        self._then = then

    def __iter__(self) -> Iterator[SegmentProgress]:
        self._then()
        return super().__iter__()


def left_after_a_write() -> tuple[Pool, SegmentWriter, Piece, Written]:
    """A writer that has left its device behind one piece; with what its segment's end would report."""
    pool = Pool()
    writer = pool.writer()
    piece = Piece(VOLUME, INO, 0, [memoryview(b"x" * 5_000)])
    writer.write([piece])
    return pool, writer, piece, writer.leave({DEVICE})


def test_what_is_reported_again_while_another_thread_writes_is_reported_once() -> None:
    """It was in that write's report and in the next one's; the service refuses what is named again, and so every later commit."""
    pool, writer, piece, sealed = left_after_a_write()
    beside: list[Written] = []
    writer.report_again(replace(sealed, progress=Between(sealed.progress, lambda: beside.append(writer.write([piece])))))
    for written in [*beside, writer.write([piece])]:
        pool.report(written.progress)
    pool.report(writer.seal_all())
    assert all(info.state == SEGMENT_SEALED for info in pool.infos.values())


def test_what_an_ended_session_reported_is_not_taken_into_the_next_one() -> None:
    """The session ends while the steps are looked through."""
    _, writer, piece, sealed = left_after_a_write()

    def replaced() -> None:
        writer.abandon()
        writer.await_drained()

    writer.report_again(replace(sealed, progress=Between(sealed.progress, replaced)))
    [step] = writer.write([piece]).progress
    assert step.segment != sealed.progress[0].segment
