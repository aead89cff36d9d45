"""The entries of collection: who may collect, what is moved, what is skipped, and that live bytes stay counted once."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_SEALED, Extent, SegmentInfo
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages import collection as cm
from awsomefsd.meta.check.check import check
from tests.rigs.machine_driver import Drive

OFFSETS = range(0, 800, 100)


class Collecting(Drive):
    """A drive with a second voice: `collector()` makes the entries the collector's, `owner()` the mount's again."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.make_volume()
        self.open()
        self.own = (self.session, self.epoch, self.mount)
        self.other = (0, 0, 0)

    def collector(self) -> None:
        if not self.other[0]:
            opened = self.ok(c.OpenCollector("n1", "b1"), session=0, epoch=0, mount=0)
            self.other = (opened.session, opened.epoch, 0)
        self.session, self.epoch, self.mount = self.other

    def owner(self) -> None:
        self.session, self.epoch, self.mount = self.own

    def live(self, info: SegmentInfo) -> tuple[int, int]:
        (found,) = self.ask(m.GetSegments([info.segment])).segments
        return found.state, found.live_bytes

    def layout(self, ino: int) -> list[tuple[int, int, int, int]]:
        extents = self.ask(m.GetLayout(self.volume, ino, 0, 1 << 40)).extents
        return [(one.file_offset, one.length, one.segment, one.skip) for one in extents]

    def pieces(self, info: SegmentInfo) -> list[cm.LivePiece]:
        found: list[cm.LivePiece] = self.ask(cm.GetPieces(info.segment, 0, 0, 0, 0, 1_000)).pieces
        return found

    def sound(self) -> None:
        self.machine.flush()
        assert check(self.txn) == []


@pytest.fixture
def drive() -> Collecting:
    return Collecting()


def place(copy: Extent, offset: int, length: int, skip: int) -> Extent:
    return Extent(offset, length, copy.segment, copy.incarnation, copy.sequence, copy.frame_offset, copy.header_bytes, skip)


def test_each_node_has_a_collector_and_those_that_meet_move_an_extent_once(drive: Collecting) -> None:
    (segment,) = drive.lease()
    ino = drive.create(b"f")
    drive.write(segment, ino, 0, 4096)
    drive.ok(drive.commit(segment, sealed=True))
    (piece,) = drive.pieces(segment)
    drive.collector()
    first = drive.lease()[0]
    copy = drive.frame(first, 0, 4096)
    moved = drive.ok(c.Relocate([c.Relocation(piece.volume, piece.ino, piece.extent, [copy])], [drive.progress(first)]))
    opened = drive.ok(c.OpenCollector("n2", "b1"), session=0, epoch=0, mount=0)
    assert drive.lease(), "the first one's session lives on"
    drive.session, drive.epoch = opened.session, opened.epoch
    second = drive.lease()[0]
    copy = drive.frame(second, 0, 4096)
    again = drive.ok(c.Relocate([c.Relocation(piece.volume, piece.ino, piece.extent, [copy])], [drive.progress(second)]))
    assert (moved.moved_bytes, again.moved_bytes, again.skipped_bytes) == (4096, 0, 4096)
    drive.sound()


def test_a_chapter_means_nothing_where_no_snapshot_was_made(drive: Collecting) -> None:
    """Voters of builds that do not know the field move what is in the head; one that moved nothing had another state than they."""
    (segment,) = drive.lease()
    ino = drive.create(b"f")
    drive.write(segment, ino, 0, 4096)
    drive.ok(drive.commit(segment, sealed=True))
    (piece,) = drive.pieces(segment)
    drive.collector()
    (new,) = drive.lease()
    move = c.Relocation(piece.volume, piece.ino, piece.extent, [drive.frame(new, 0, 4096)], until=5)
    assert drive.ok(c.Relocate([move], [drive.progress(new)])) == cm.Relocated(4096, 0)
    assert [one[2] for one in drive.layout(ino)] == [new.segment]
    drive.sound()


def test_below_level_3_one_node_collects() -> None:
    drive = Collecting(level=2)
    drive.collector()
    assert drive.errno(c.OpenCollector("n2", "b1"), session=0, epoch=0, mount=0) == errno.EBUSY


def test_the_successor_of_a_collector_ends_it(drive: Collecting) -> None:
    drive.collector()
    first, info = drive.session, drive.lease()[0]
    opened = drive.ok(c.OpenCollector("n1", "b1"), session=0, epoch=0, mount=0)
    assert opened.session != first and drive.live(info) == (SEGMENT_FREE, 0)
    assert drive.errno(c.LeaseSegments(1, 1 << 60)) == errno.ESTALE, "fenced"
    drive.session, drive.epoch = opened.session, opened.epoch
    late = drive.lease()[0]
    drive.ok(c.EndSession(opened.session, opened.epoch, False))
    assert drive.live(late)[0] != SEGMENT_FREE, "expired: in quarantine"
    drive.ok(c.OpenCollector("n1", "b1"), session=0, epoch=0, mount=0)
    assert drive.live(late) == (SEGMENT_FREE, 0), "who asks has no write under way"
    drive.sound()


def test_the_last_segment_is_left_to_collection(drive: Collecting) -> None:
    while drive.ask(m.GetDevices()).devices[0].segments_free > 1:
        drive.lease()
    assert drive.errno(c.LeaseSegments(1, 1 << 60)) == errno.ENOSPC
    drive.collector()
    assert len(drive.lease(2)) == 1


@pytest.mark.parametrize("like", [-1, 2, 255, 1 << 40])
def test_segments_like_those_of_a_device_that_is_not_there_are_refused(drive: Collecting, like: int) -> None:
    """It is a request from outside: an assertion would end the service of every voter that applies it."""
    drive.collector()
    assert drive.errno(c.LeaseSegments(1, 0, like=like)) == errno.ENOENT


def test_neighbours_that_move_into_one_frame_become_one_extent(drive: Collecting) -> None:
    old, ino = drive.lease()[0], drive.create(b"f")
    for number in range(8):
        drive.write(old, ino, number * 100, 100)
    drive.ok(drive.commit(old, sealed=True))
    assert len(drive.layout(ino)) == 8
    found = drive.pieces(old)
    before = drive.ask(m.GetAttr(drive.volume, ino)).attr
    drive.collector()
    new = drive.lease()[0]
    copy = drive.frame(new, 0, 800)
    moves = [c.Relocation(one.volume, one.ino, one.extent, [place(copy, at, 100, at)]) for at, one in zip(OFFSETS, found, strict=True)]
    assert drive.ok(c.Relocate(moves, [drive.progress(new)])) == cm.Relocated(800, 0)
    assert drive.layout(ino) == [(0, 800, new.segment, 0)]
    assert drive.ask(m.GetAttr(drive.volume, ino)).attr == before, "nothing that stat shows"
    assert drive.live(old) == (SEGMENT_FREE, 0) and drive.live(new)[1] == 800
    assert drive.ok(c.Relocate(moves, [])) == cm.Relocated(0, 800), "a second time nothing is there any more"
    drive.sound()


def test_what_was_changed_meanwhile_is_skipped(drive: Collecting) -> None:
    old = drive.lease()[0]
    inos = [drive.create(name) for name in (b"cut", b"written", b"gone", b"same")]
    for ino in inos:
        drive.write(old, ino, 0, 1_000)
    drive.ok(drive.commit(old, sealed=True))
    found = drive.pieces(old)
    assert [one.ino for one in found] == inos
    other = drive.lease()[0]
    drive.ok(c.SetAttr(drive.volume, inos[0], c.SET_SIZE, size=400))
    drive.write(other, inos[1], 0, 1_000)
    drive.ok(c.Unlink(drive.volume, 1, b"gone"))
    drive.collector()
    new = drive.lease()[0]
    moves = [c.Relocation(one.volume, one.ino, one.extent, [drive.frame(new, 0, 1_000)]) for one in found]
    assert drive.ok(c.Relocate(moves, [drive.progress(new)])) == cm.Relocated(1_000, 3_000)
    assert [drive.layout(ino)[0][2] for ino in (inos[0], inos[1], inos[3])] == [old.segment, other.segment, new.segment]
    assert drive.live(old) == (SEGMENT_SEALED, 400) and drive.live(new)[1] == 1_000
    drive.sound()


def test_all_owners_of_shared_bytes_move_and_they_are_counted_once(drive: Collecting) -> None:
    old, ino = drive.lease()[0], drive.create(b"f")
    drive.write(old, ino, 0, 1_000, sealed=True)
    clone, part, late = drive.create(b"clone"), drive.create(b"part"), drive.create(b"late")
    drive.ok(c.CopyRange(drive.volume, ino, 0, clone, 0, 1_000))
    drive.ok(c.CopyRange(drive.volume, ino, 300, part, 5_000, 400))
    found = drive.pieces(old)
    assert [(one.ino, one.extent.skip, one.extent.length, one.shared) for one in found] == [
        (ino, 0, 1_000, True), (clone, 0, 1_000, True), (part, 300, 400, True),
    ]  # fmt: skip
    drive.ok(c.CopyRange(drive.volume, clone, 0, late, 0, 10))
    drive.collector()
    new = drive.lease()[0]
    halves = [(0, drive.frame(new, 0, 600)), (600, drive.frame(new, 0, 400))]
    moves = []
    for one in found:
        low, high = one.extent.skip, one.extent.skip + one.extent.length
        places = [
            place(copy, one.extent.file_offset + max(low, at) - low, min(high, at + copy.length) - max(low, at), max(low, at) - at)
            for at, copy in halves
        ]
        moves.append(c.Relocation(one.volume, one.ino, one.extent, places))
    assert drive.ok(c.Relocate(moves, [drive.progress(new)])) == cm.Relocated(2_400, 0)
    assert drive.live(old) == (SEGMENT_SEALED, 10), "an owner that came later keeps what it holds"
    assert drive.live(new)[1] == 1_000
    assert drive.layout(part) == [(5_000, 300, new.segment, 300), (5_300, 100, new.segment, 0)]
    drive.owner()
    for name in (b"late", b"f", b"clone"):
        drive.ok(c.Unlink(drive.volume, 1, name))
        drive.sound()
    assert drive.live(old) == (SEGMENT_FREE, 0) and drive.live(new)[1] == 400


def test_an_entry_is_refused_as_a_whole(drive: Collecting) -> None:
    old, ino = drive.lease()[0], drive.create(b"f")
    drive.write(old, ino, 0, 1_000)
    open_segment = drive.lease()[0]
    foreign = drive.frame(open_segment, 0, 1_000)
    drive.ok(drive.commit(open_segment))
    (piece,) = drive.pieces(old)

    def moved(*places: Extent) -> c.Relocate:
        return c.Relocate([c.Relocation(drive.volume, ino, piece.extent, list(places))], [drive.progress(new)])

    drive.collector()
    new = drive.lease()[0]
    copy = drive.frame(new, 0, 1_000)
    assert drive.errno(moved(foreign)) == errno.ESTALE, "another session's segment"
    assert drive.errno(moved(place(copy, 0, 999, 0))) == errno.EINVAL, "not all of it"
    assert drive.errno(moved(place(copy, 0, 500, 0), place(copy, 400, 600, 400))) == errno.EINVAL
    assert drive.errno(moved(place(copy, 0, 500, 0), place(copy, 500, 500, 600))) == errno.ESTALE, "not durable"
    assert drive.errno(moved()) == errno.EINVAL
    assert drive.errno(moved(copy), session=drive.own[0], epoch=drive.own[1], mount=drive.own[2]) == errno.EINVAL, "serves a volume"
    many = c.Relocate([c.Relocation(drive.volume, ino, piece.extent, [copy])] * 513, [])
    assert drive.errno(many) == errno.E2BIG
    drive.ok(moved(copy))
    drive.sound()


def test_what_reap_is_about_to_free_is_not_told(drive: Collecting) -> None:
    old, ino = drive.lease()[0], drive.create(b"f")
    for number in range(1_100):
        drive.write(old, ino, number * 200, 100)
    drive.ok(drive.commit(old, sealed=True))
    drive.ok(c.SetAttr(drive.volume, ino, c.SET_SIZE, size=200))
    assert drive.machine.reap_pending() and drive.live(old)[1] == 110_000
    assert [one.extent.file_offset for one in drive.pieces(old)] == [0]
    near = drive.ask(cm.GetFilePieces(drive.volume, ino, 0, 1 << 20, 100)).pieces
    assert [one.extent.file_offset for one in near] == [0]


def test_pieces_and_segments_are_told_in_parts(drive: Collecting) -> None:
    segments = [drive.lease()[0] for _ in range(5)]
    for number, info in enumerate(segments):
        for half in range(3):
            drive.write(info, drive.create(b"%d-%d" % (number, half)), 0, 10)
        drive.ok(drive.commit(info, sealed=number != 2))
    found: list[int] = []
    start = 0
    while True:
        reply = drive.ask(cm.GetSparse(start, 2))
        found += [info.segment for info in reply.segments]
        start = reply.after
        if not start:
            break
    assert found == [info.segment for info in segments if info is not segments[2]]
    assert (reply.free, reply.total) == (59, 64)
    place_: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    inos: list[int] = []
    while place_ is not None:
        page = drive.ask(cm.GetPieces(segments[0].segment, *place_, 2))
        assert len(page.pieces) <= 2
        inos += [one.ino for one in page.pieces]
        place_ = page.after
    assert len(inos) == 3 == len(set(inos))
