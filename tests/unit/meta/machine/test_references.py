"""Places of a segment that several extents refer to: counted, and freed with the last one."""

from __future__ import annotations

import random

import pytest

from awsomefsd.base.types import SEGMENT_FREE, SegmentInfo
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import references
from awsomefsd.meta.machine.filemap import FileMap
from awsomefsd.meta.state import extents
from tests.rigs.machine_driver import Drive


@pytest.fixture
def segment(drive: Drive) -> SegmentInfo:
    return drive.lease()[0]


def test_counting_holders_is_counting(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        runs: list[tuple[int, int, int]] = []
        naive = [0] * 60
        held: list[tuple[int, int]] = []
        for _ in range(40):
            step = -1 if held and chance.random() < 0.45 else 1
            if step > 0:
                start = chance.randrange(59)
                span = (start, chance.randint(start + 1, 60))
                held.append(span)
            else:
                span = held.pop(chance.randrange(len(held)))
            before = sum(count > 0 for count in naive)
            for at in range(*span):
                naive[at] += step
            runs, changed = references.counted(runs, *span, step)
            assert changed * step == sum(count > 0 for count in naive) - before
            counts = [0] * 60
            for start, end, count in runs:
                counts[start:end] = [count] * (end - start)
            assert counts == naive and len(runs) == len(set(runs)) and all(start < end and count for start, end, count in runs)


def test_a_place_dies_with_its_last_holder() -> None:
    drive = Drive()
    drive.make_volume()
    drive.open()
    (segment,) = drive.lease()
    one, two, three = (drive.create(name) for name in (b"1", b"2", b"3"))
    drive.write(segment, one, 0, 10_000, sealed=True)

    def live() -> int:
        (info,) = drive.ask(m.GetSegments([segment.segment])).segments
        return info.live_bytes

    assert drive.ok(c.CopyRange(drive.volume, one, 2_000, two, 0, 5_000)).reached == 5_000
    assert drive.ok(c.CopyRange(drive.volume, two, 1_000, three, 500, 9_000)).reached == 4_000
    assert live() == 10_000 and drive.ask(m.GetVolumes()).volumes[0].used_bytes == 19_000
    drive.ok(c.Fallocate(drive.volume, one, 3, 0, 6_500))  # two has 2000..7000, three 3000..7000
    assert live() == 8_000
    drive.ok(c.SetAttr(drive.volume, two, c.SET_SIZE, size=500))
    assert live() == 7_500
    drive.ok(c.Unlink(drive.volume, 1, b"1"))
    assert live() == 4_500
    drive.ok(c.Unlink(drive.volume, 1, b"3"))
    assert live() == 500
    drive.ok(c.Unlink(drive.volume, 1, b"2"))
    (info,) = drive.ask(m.GetSegments([segment.segment])).segments
    assert (info.state, info.live_bytes) == (SEGMENT_FREE, 0)
    drive.machine.flush()
    assert check(drive.txn) == []


def test_a_piece_moves_to_another_place_only_if_it_is_still_there() -> None:
    drive = Drive()
    drive.make_volume()
    drive.open()
    old, new = drive.lease(2)
    ino, other = drive.create(b"f"), drive.create(b"g")
    drive.write(old, ino, 0, 5_000, sealed=True)
    drive.ok(c.CopyRange(drive.volume, ino, 0, other, 0, 5_000))
    extent = drive.frame(new, 0, 5_000)
    drive.ok(drive.commit(new))
    state = drive.machine.state
    for number in (ino, other):
        volume, row = state.volume(drive.volume), state.inode(drive.volume, number)
        assert volume is not None and row is not None
        filemap = FileMap(state, volume, number, row)
        ((offset, held),) = filemap.stored(0, 5_000)
        piece = extents.extent_of(offset, held)
        assert filemap.repoint(piece, [extent]) and not filemap.repoint(piece, [extent])
        state.save_inode(drive.volume, number, row)
        assert [one.segment for one in drive.ask(m.GetLayout(drive.volume, number, 0, 9_000)).extents] == [new.segment]
    drive.ok(c.Reap(1))
    live = [info.live_bytes for info in drive.ask(m.GetSegments([old.segment, new.segment])).segments]
    assert live == [0, 5_000]
    drive.machine.flush()
    assert check(drive.txn) == []
