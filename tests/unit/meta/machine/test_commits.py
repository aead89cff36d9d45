"""Commits, truncation, inline data and the extent map."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.limits import INLINE_BYTES_MAX
from awsomefsd.base.types import SEGMENT_FREE, Extent, SegmentInfo, SegmentProgress
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import filemap
from awsomefsd.meta.state import keys
from tests.rigs.machine_driver import Drive, sound


@pytest.fixture
def segment(drive: Drive) -> SegmentInfo:
    return drive.lease()[0]


def layout(drive: Drive, ino: int, start: int = 0, end: int = 1 << 40) -> list[tuple[int, int, int]]:
    """(offset, length, skip) of what is seen."""
    return [(e.file_offset, e.length, e.skip) for e in drive.ask(m.GetLayout(drive.volume, ino, start, end)).extents]


def attr(drive: Drive, ino: int):
    return drive.ask(m.GetAttr(drive.volume, ino)).attr


# --- extents ------------------------------------------------------------------------------------------------------------
def test_writes_over_each_other(drive: Drive, segment: SegmentInfo) -> None:
    file = drive.create(b"f")
    drive.write(segment, file, 0, 8000)
    drive.write(segment, file, 2000, 1000)
    assert layout(drive, file) == [(0, 2000, 0), (2000, 1000, 0), (3000, 5000, 3000)]
    assert layout(drive, file, 2500, 2600) == [(2000, 1000, 0)]
    assert attr(drive, file).stored_bytes == 8000
    drive.write(segment, file, 20_000, 10)
    assert attr(drive, file).size == 20_010 and attr(drive, file).stored_bytes == 8010
    assert drive.ask(m.GetVolumes()).volumes[0].used_bytes == 8010
    info = drive.ask(m.GetLayout(drive.volume, file, 0, 10)).segments
    assert [(i.segment, i.live_bytes) for i in info] == [(segment.segment, 8010)]
    sound(drive)


def test_pieces_of_one_frame_are_joined(drive: Drive, segment: SegmentInfo) -> None:
    file = drive.create(b"f")
    whole = drive.frame(segment, 0, 3000)
    halves = [Extent(0, 1000, *_place(whole), 0), Extent(1000, 2000, *_place(whole), 1000)]
    for sequence, half in enumerate(halves, 1):
        drive.ok(drive.commit(segment, c.InodeCommit(file, 1, sequence, 3000, drive.now, [half])))
    assert layout(drive, file) == [(0, 3000, 0)]
    sound(drive)


def _place(extent: Extent) -> tuple[int, int, int, int, int]:
    return extent.segment, extent.incarnation, extent.sequence, extent.frame_offset, extent.header_bytes


def test_commit_is_refused_as_a_whole(drive: Drive, segment: SegmentInfo) -> None:
    file = drive.create(b"f")
    extent = drive.frame(segment, 0, 100)
    step = c.InodeCommit(file, 1, 1, 100, drive.now, [extent])
    short = SegmentProgress(segment.segment, segment.incarnation, 50)
    assert drive.errno(c.Commit(drive.volume, [step], 0, [short])) == errno.ESTALE, "outside what is durable"
    assert drive.errno(c.Commit(drive.volume, [step], 0, [])) == errno.ESTALE
    old = SegmentProgress(segment.segment, segment.incarnation - 1, 5000)
    assert drive.errno(c.Commit(drive.volume, [], 0, [old])) == errno.ESTALE
    assert drive.errno(c.Commit(drive.volume, [], 0, [SegmentProgress(segment.segment + 1, 1, 5000)])) == errno.ESTALE
    foreign = Extent(0, 100, segment.segment, segment.incarnation + 1, 1, 0, 64, 0)
    bad = c.InodeCommit(file, 1, 1, 100, drive.now, [extent, foreign])
    assert drive.errno(drive.commit(segment, bad)) == errno.ESTALE
    empty = c.InodeCommit(file, 1, 1, 100, drive.now, [Extent(0, 0, segment.segment, 1, 1, 0, 64, 0)])
    assert drive.errno(drive.commit(segment, empty)) == errno.EINVAL
    assert drive.ok(drive.commit(segment, step)).errnos == [0]


def test_commit_after_sealing(drive: Drive, segment: SegmentInfo) -> None:
    file = drive.create(b"f")
    drive.write(segment, file, 0, 100, sealed=True)
    late = c.InodeCommit(file, 1, 99, 200, drive.now, [drive.frame(segment, 100, 100)])
    assert drive.errno(drive.commit(segment, late)) == errno.ESTALE


def test_one_gone_inode_does_not_refuse_the_others(drive: Drive, segment: SegmentInfo) -> None:
    file = drive.create(b"f")
    steps = [c.InodeCommit(ino, 1, 5, 10, drive.now, [drive.frame(segment, 0, 10)]) for ino in (99, file, 1)]
    reply = drive.ok(drive.commit(segment, *steps))
    assert reply.errnos == [errno.ENOENT, 0, errno.EINVAL] and reply.attrs[0] is None and reply.attrs[1].size == 10


def test_a_wholly_dead_segment_is_freed(drive: Drive, segment: SegmentInfo) -> None:
    file = drive.create(b"f")
    drive.write(segment, file, 0, 5000, sealed=True)
    drive.ok(c.Unlink(drive.volume, 1, b"f"))
    assert drive.ask(m.GetSegments([segment.segment])).segments[0].state == SEGMENT_FREE
    freed = drive.index
    assert drive.ok(c.LeaseSegments(1, freed - 1)).segments[0].segment != segment.segment, "not while a session may still read it"
    again = drive.ok(c.LeaseSegments(1, freed)).segments[0]
    assert (again.segment, again.incarnation) == (segment.segment, segment.incarnation + 1)
    sound(drive)


# --- inline -------------------------------------------------------------------------------------------------------------
def inline(drive: Drive, ino: int, *patches: tuple[int, bytes], sequence: int = 0, log: int = 1) -> int:
    drive.sequence += 1
    end = max(offset + len(data) for offset, data in patches)
    step = c.InodeCommit(ino, log, sequence or drive.sequence, end, drive.now, [], list(patches))
    number: int = drive.ok(drive.commit(None, step)).errnos[0]
    return number


def data(drive: Drive, ino: int) -> bytes | None:
    return drive.ask(m.GetLayout(drive.volume, ino, 0, 1 << 30)).inline


def test_inline_patches(drive: Drive) -> None:
    file = drive.create(b"f")
    assert inline(drive, file, (0, b"hello"), (10, b"world")) == 0
    assert data(drive, file) == b"hello\0\0\0\0\0world" and attr(drive, file).stored_bytes == 15
    assert inline(drive, file, (1, b"E")) == 0
    assert data(drive, file) == b"hEllo\0\0\0\0\0world"
    assert inline(drive, file, (INLINE_BYTES_MAX, b"x")) == errno.ESTALE
    drive.ok(c.SetAttr(drive.volume, file, c.SET_SIZE, size=3))
    assert data(drive, file) == b"hEl"
    drive.ok(c.SetAttr(drive.volume, file, c.SET_SIZE, size=100_000))
    shown = drive.ask(m.GetLayout(drive.volume, file, 0, 10))
    assert (shown.inline, shown.size, attr(drive, file).inline) == (b"hEl", 100_000, True), "the reader fills with zeros"
    sound(drive)


def test_extents_end_inline(drive: Drive, segment: SegmentInfo) -> None:
    file = drive.create(b"f")
    inline(drive, file, (0, b"x" * 100))
    uncovered = c.InodeCommit(file, 1, 50, 200, drive.now, [drive.frame(segment, 50, 150)])
    assert drive.ok(drive.commit(segment, uncovered)).errnos == [errno.ESTALE], "bytes would be lost"
    assert data(drive, file) == b"x" * 100
    drive.write(segment, file, 0, 5000)
    assert data(drive, file) is None and not attr(drive, file).inline and attr(drive, file).stored_bytes == 5000
    assert inline(drive, file, (0, b"y")) == errno.ESTALE
    drive.ok(c.SetAttr(drive.volume, file, c.SET_SIZE, size=0))
    assert attr(drive, file).inline, "an empty file may be small again"
    assert inline(drive, file, (0, b"y")) == 0
    sound(drive)


# --- sequences ----------------------------------------------------------------------------------------------------------
def test_a_record_commits_once(drive: Drive) -> None:
    file = drive.create(b"f")
    assert inline(drive, file, (0, b"one"), sequence=5) == 0
    assert inline(drive, file, (0, b"two"), sequence=5) == 0 and data(drive, file) == b"one"
    assert inline(drive, file, (0, b"old"), sequence=4) == 0 and data(drive, file) == b"one"
    assert inline(drive, file, (0, b"new"), sequence=4, log=2) == 0 and data(drive, file) == b"new", "another log counts from its own start"


def test_a_truncation_overtakes_records(drive: Drive) -> None:
    file, volume = drive.create(b"f"), drive.volume
    drive.ok(c.SetAttr(volume, file, c.SET_SIZE, size=4, log=1, sequence=7))
    drive.ok(c.SetAttr(volume, file, c.SET_SIZE, size=10, log=1, sequence=9))
    before = attr(drive, file)
    assert inline(drive, file, (0, b"abcdefgh"), sequence=6) == 0
    assert data(drive, file) == b"abcd", "behind the first cut nothing is resurrected"
    assert (attr(drive, file).size, attr(drive, file).mtime_ns) == (10, before.mtime_ns)
    assert inline(drive, file, (0, b"ABCDEFGHIJKLMN"), sequence=8) == 0
    assert (data(drive, file), attr(drive, file).size) == (b"ABCDEFGHIJ", 10)
    assert inline(drive, file, (12, b"end"), sequence=10) == 0
    assert attr(drive, file).size == 15
    assert drive.machine.state.inode(volume, file).cuts == []


def test_utimes_overtakes_records(drive: Drive) -> None:
    file = drive.create(b"f")
    drive.ok(c.SetAttr(drive.volume, file, c.SET_MTIME, mtime_ns=123, log=1, sequence=7))
    assert inline(drive, file, (0, b"abc"), sequence=7) == 0
    assert (attr(drive, file).mtime_ns, attr(drive, file).size) == (123, 3)
    assert inline(drive, file, (0, b"abc"), sequence=8) == 0
    assert attr(drive, file).mtime_ns == drive.now - 1_000, "the time of the write"


# --- big files ----------------------------------------------------------------------------------------------------------
def big_file(drive: Drive, segment: SegmentInfo, count: int) -> int:
    """A file of `count` extents of 10 bytes, 20 apart."""
    file = drive.create(b"big")
    for first in range(0, count, 500):
        made = [drive.frame(segment, at * 20, 10) for at in range(first, min(count, first + 500))]
        step = c.InodeCommit(file, 1, drive.sequence, made[-1].file_offset + 10, drive.now, made)
        assert drive.ok(drive.commit(segment, step)).errnos == [0]
    return file


def test_truncation_of_many_extents_is_hidden_then_reaped(drive: Drive, segment: SegmentInfo) -> None:
    file = big_file(drive, segment, 2500)
    drive.ok(c.SetAttr(drive.volume, file, c.SET_SIZE, size=105))
    assert layout(drive, file) == [(at * 20, 10, 0) for at in range(5)] + [(100, 5, 0)]
    assert drive.machine.reap_pending() and attr(drive, file).stored_bytes > 10_000
    drive.write(segment, file, 30_000, 10)
    drive.ok(c.SetAttr(drive.volume, file, c.SET_SIZE, size=50_000))
    seen = [*[(at * 20, 10, 0) for at in range(5)], (100, 5, 0), (30_000, 10, 0)]
    assert layout(drive, file) == seen
    entries = 0
    while drive.machine.reap_pending():
        drive.reload()
        sound(drive)
        drive.ok(c.Reap(1000))
        assert layout(drive, file) == seen
        entries += 1
    assert entries >= 3 and attr(drive, file).stored_bytes == 65
    sound(drive)


def test_deletion_of_many_extents_is_bounded(drive: Drive, segment: SegmentInfo) -> None:
    big_file(drive, segment, 2500)
    before = len(list(drive.txn.scan(*keys.kind_range(drive.volume, keys.EXTENT))))
    drive.ok(c.Unlink(drive.volume, 1, b"big"))
    assert len(list(drive.txn.scan(*keys.kind_range(drive.volume, keys.EXTENT)))) == before == 2500
    assert drive.ask(m.GetVolumes()).volumes[0].used_inodes == 1
    entries = 0
    while drive.machine.reap_pending():
        sound(drive)
        drive.ok(c.Reap(1 << 30))
        entries += 1
    assert entries == 3 and drive.ask(m.GetVolumes()).volumes[0].used_bytes == 0
    sound(drive)


def test_small_files_go_at_once(drive: Drive, segment: SegmentInfo) -> None:
    big_file(drive, segment, filemap.SMALL_FILE_EXTENTS)
    drive.ok(c.Unlink(drive.volume, 1, b"big"))
    assert not drive.machine.reap_pending() and drive.ask(m.GetVolumes()).volumes[0].used_bytes == 0
