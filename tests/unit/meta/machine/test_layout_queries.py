"""A layout of very many extents is told in parts (an answer has to fit a frame, and the metadata thread must not read for long)."""

from __future__ import annotations

import errno
import random

import pytest

from awsomefsd.meta.api.commands import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, SET_SIZE, Fallocate, InodeCommit, SetAttr
from awsomefsd.meta.api.messages import Failed, GetLayout, Layout
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import filemap, queries
from awsomefsd.meta.state import extent_counts, keys
from tests.rigs.machine_driver import Drive


def layout(drive: Drive, ino: int, start: int, end: int) -> Layout:
    reply = queries.answer(drive.machine, GetLayout(drive.volume, ino, start, end))
    assert isinstance(reply, Layout)
    return reply


def fragmented(monkeypatch: pytest.MonkeyPatch, extents: int) -> tuple[Drive, int]:
    monkeypatch.setattr(queries, "LAYOUT_EXTENTS_MAX", 10)
    drive = Drive()
    drive.make_volume()
    drive.open()
    ino = drive.create(b"f")
    (segment,) = drive.lease()
    for number in reversed(range(extents)):  # backwards, and with holes: nothing joins
        drive.write(segment, ino, number * 8192, 4096)
    return drive, ino


def test_the_parts_together_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    drive, ino = fragmented(monkeypatch, 35)
    seen, start = [], 0
    while start < 1 << 30:
        part = layout(drive, ino, start, 1 << 30)
        assert part.end > start, "no progress"
        assert len(part.extents) <= 11
        seen += [extent.file_offset for extent in part.extents if extent.file_offset >= start]
        start = part.end
    assert seen == [number * 8192 for number in range(35)]


def test_a_layout_that_fits_is_exact_up_to_the_asked_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drive, ino = fragmented(monkeypatch, 5)
    assert layout(drive, ino, 0, 1 << 30).end == 1 << 30
    assert layout(drive, ino, 0, 12288).end == 12288


def test_inline_data_comes_whole() -> None:
    drive = Drive()
    drive.make_volume()
    drive.open()
    ino = drive.create(b"f")
    drive.ok(drive.commit(None, InodeCommit(ino, 1, 1, 3, 5, inline=[(0, b"abc")])))
    part = layout(drive, ino, 0, 100)
    assert (part.inline, part.end) == (b"abc", 100)


def question(drive: Drive, ino: int, start: int, end: int) -> int:
    """The errno of the answer, 0 for a layout; asked again like a client does, as long as that is said to help."""
    while True:
        reply = queries.answer(drive.machine, GetLayout(drive.volume, ino, start, end))
        if not isinstance(reply, Failed) or not reply.retry:
            return reply.errno if isinstance(reply, Failed) else 0


def extent_keys(drive: Drive, ino: int) -> list[bytes]:
    return [key for key, _ in drive.txn.scan(*keys.extents_range(drive.volume, ino))]


def size_of(drive: Drive, ino: int) -> int:
    return layout(drive, ino, 0, 1 << 40).size


def size_of_row(drive: Drive, ino: int) -> int:
    row = drive.machine.state.inode(drive.volume, ino)
    assert row is not None
    return row.size


def dense(drive: Drive, extents: int) -> int:
    ino = drive.create(b"dense")
    (segment,) = drive.lease()
    for number in reversed(range(extents)):
        drive.write(segment, ino, number * 4096, 4096)
    return ino


@pytest.mark.parametrize("counted", [4_096, 2])
def test_a_row_that_is_gone_is_no_hole_in_a_part_of_a_large_layout(monkeypatch: pytest.MonkeyPatch, counted: int) -> None:
    monkeypatch.setattr(queries, "LAYOUT_EXTENTS_MAX", 10)
    monkeypatch.setattr(filemap, "LAYOUT_COUNTED_MAX", counted)
    drive = Drive()
    drive.make_volume()
    drive.open()
    ino = dense(drive, 40)
    for number in range(40):
        at = number * 4096
        key = keys.extent(drive.volume, ino, at)
        raw = drive.txn.get(key)
        assert raw is not None and question(drive, ino, at, at + 4096) == 0
        drive.txn.delete(key)
        drive.reload()  # the extents of a large file are counted once
        for start, end in ((at, at + 4096), (at + 100, at + 200), (at - at % 32768, 1 << 30)):
            assert question(drive, ino, start, end) == errno.EIO, (number, start, end)
        drive.txn.put(key, raw)


def test_a_row_that_is_gone_is_no_hole_where_space_is_allocated() -> None:
    drive = Drive()
    drive.make_volume()
    drive.open()
    ino = dense(drive, 6)
    drive.ok(Fallocate(drive.volume, ino, FALLOC_KEEP_SIZE, 0, 1 << 20))
    for key in extent_keys(drive, ino):
        raw = drive.txn.get(key)
        assert raw is not None and question(drive, ino, 0, 1 << 30) == 0
        drive.txn.delete(key)
        assert question(drive, ino, 0, 1 << 30) == (errno.EIO if keys.last_u64(key) < 6 * 4096 else 0), "zeros behind the end are none"
        drive.txn.put(key, raw)


@pytest.mark.parametrize("portion", [1, 7, 1_000])
def test_a_row_that_is_gone_is_no_hole_of_a_large_sparse_file(monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
    """With holes elsewhere and allocated space behind the end, the bytes of the file say nothing: its extents are counted."""
    monkeypatch.setattr(filemap, "LAYOUT_COUNTED_MAX", 3)
    monkeypatch.setattr(extent_counts, "EXTENTS_PER_PORTION", portion)
    drive, ino = fragmented(monkeypatch, 30)
    drive.ok(Fallocate(drive.volume, ino, FALLOC_KEEP_SIZE, 1 << 20, 1 << 16))
    for key in extent_keys(drive, ino):
        at, raw = keys.last_u64(key), drive.txn.get(key)
        drive.reload()
        assert raw is not None and question(drive, ino, 0, 1 << 20) == 0
        drive.txn.delete(key)
        drive.reload()
        for start, end in ((at, at + 4096), (at + 100, at + 200), (0, 1 << 30)):
            assert question(drive, ino, start, end) == (errno.EIO if start < size_of_row(drive, ino) else 0), (at, start, end)
        drive.machine.flush()
        assert any(found.kind == "extent-count" for found in check(drive.txn)), "fsck says the same"
        drive.txn.put(key, raw)


def test_a_large_file_is_counted_in_portions_while_it_changes(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Rows come and go on both sides of what is counted; the count is that of the rows in the end, and stays it."""
    monkeypatch.setattr(filemap, "LAYOUT_COUNTED_MAX", 3)
    monkeypatch.setattr(extent_counts, "EXTENTS_PER_PORTION", 2)
    monkeypatch.setattr(extent_counts, "EXTENT_COUNTS_MAX", 1)
    chance = random.Random(seed)
    drive, ino = fragmented(monkeypatch, 30)
    (segment,) = drive.lease()
    counts = drive.machine.state.extent_counts
    for round_ in range(60):
        at = chance.randrange(40) * 8192
        if chance.randrange(2):
            drive.write(segment, ino, at, 4096)
        else:
            drive.ok(Fallocate(drive.volume, ino, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, at, chance.choice([4096, 1 << 16])))
        found = counts.count(drive.volume, ino)
        assert found is None or found == len(extent_keys(drive, ino))
        if round_ % 20 == 10:
            counts.count(drive.volume, ino + 1)  # there is room for one: the other one is counted again
    while (found := counts.count(drive.volume, ino)) is None:
        pass
    assert found == len(extent_keys(drive, ino)) and question(drive, ino, 0, 1 << 30) == 0


@pytest.mark.parametrize("counted", [4_096, 3])
def test_no_hole_is_taken_for_a_row_that_is_gone(monkeypatch: pytest.MonkeyPatch, seed: int, counted: int) -> None:
    """Random writes, holes, allocations and truncations: no layout of what is whole is refused, and with few extents each lost row is."""
    monkeypatch.setattr(filemap, "LAYOUT_COUNTED_MAX", counted)
    monkeypatch.setattr(filemap, "REAP_EXTENTS_PER_ENTRY", 2)  # larger cuts are worked off later
    chance = random.Random(seed)
    drive = Drive()
    drive.make_volume()
    drive.open()
    ino = drive.create(b"f")
    (segment,) = drive.lease()
    for _ in range(250):
        at, length = chance.randrange(40) * 1024, chance.randrange(1, 9) * 1024
        what = chance.randrange(6)
        if what < 3:
            drive.write(segment, ino, at, min(length, 4096))
        elif what == 3:
            mode = chance.choice([0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE])
            drive.apply(Fallocate(drive.volume, ino, mode, at, length))
        else:
            drive.ok(SetAttr(drive.volume, ino, SET_SIZE, size=chance.choice([at, at + length, size_of(drive, ino)])))
        start = chance.randrange(40) * 512
        assert question(drive, ino, start, start + chance.randrange(1, 20_000)) == 0
        assert question(drive, ino, 0, 1 << 30) == 0
        rows = [key for key in extent_keys(drive, ino) if keys.last_u64(key) < size_of(drive, ino)]
        if rows and counted > 3:
            key = chance.choice(rows)
            raw = drive.txn.get(key)
            assert raw is not None
            drive.txn.delete(key)
            assert question(drive, ino, 0, 1 << 30) == errno.EIO
            drive.txn.put(key, raw)
