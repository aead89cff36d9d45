"""What a node knows to be damaged in files: recorded when it is met, its segments checked, and forgotten when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.io.file.damaged_reads import DamagedRead, DamagedReads
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import GetLayout
from awsomefsd.meta.state import keys
from awsomefsd.node.maintenance.damage import Damage
from awsomefsd.node.maintenance.io_budget import DEBT_S_MAX, IoBudget
from tests.unit.node.maintenance.test_scrub import Ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path)
    yield made
    made.device.close()
    made.store.close()


class Watched:
    """The records over that ground, and a clock that stands still."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.records = DamagedReads(ground.directory)
        self.now = 0.0
        self.read = 0
        self.damage = Damage(self.records, ground.call, {1: ground.device}, self.pace, lambda: self.now)

    def pace(self, count: int, began: float) -> None:
        self.read += count

    def meet(self, ino: int, offset: int, length: int = 4_096) -> None:
        assert self.records.add(DamagedRead(1, ino, offset, length, "v", "/met", "why", 5))

    def poll(self) -> list[tuple[int, int]]:
        self.damage.poll()
        return [(one.ino, one.offset) for one in self.damage.shown()]

    def place(self, ino: int, offset: int) -> int:
        extent, info = self.ground.extents[ino][0]
        return info.byte_offset + extent.frame_offset + extent.header_bytes + offset


@pytest.fixture
def watched(ground: Ground) -> Watched:
    return Watched(ground)


def test_a_place_stays_until_its_bytes_are_right_again(watched: Watched) -> None:
    ground = watched.ground
    ground.flip(watched.place(ground.large, 20_000))
    watched.meet(ground.large, 16_384)
    assert watched.poll() == [(ground.large, 16_384)]
    assert watched.poll() == [(ground.large, 16_384)]
    ground.flip(watched.place(ground.large, 20_000))
    watched.now += 1e6
    assert watched.poll() == []


def test_what_was_never_wrong_is_forgotten(watched: Watched) -> None:
    watched.meet(watched.ground.large, 16_384)
    assert watched.poll() == []


def test_the_segment_is_checked_and_what_else_is_wrong_in_it_is_recorded(watched: Watched) -> None:
    ground = watched.ground
    ground.flip(watched.place(ground.large, 20_000))
    ground.flip(watched.place(ground.small, 5_000))
    watched.meet(ground.large, 16_384)
    assert watched.poll() == [(ground.small, 0), (ground.large, 16_384)]
    other = next(one for one in watched.damage.shown() if one.ino == ground.small)
    assert (other.path, other.by, other.volume_name) == ("/small", "scrub", "v")
    read = watched.read
    watched.poll()  # neither is the segment checked again, nor what stays as it was read
    assert watched.read - read <= 9_000
    read = watched.read
    watched.poll()
    assert watched.read == read
    watched.now += 1e6
    watched.poll()
    assert watched.read > read


def test_a_file_that_is_rewritten_truncated_or_removed_is_over(watched: Watched) -> None:
    ground = watched.ground
    ground.flip(watched.place(ground.large, 20_000))
    ground.flip(watched.place(ground.small, 5_000))
    watched.meet(ground.large, 16_384)
    watched.meet(ground.small, 4_096)
    assert len(watched.poll()) == 2
    drive = ground.drive
    drive.ok(c.Unlink(1, 1, b"small"))
    while drive.machine.state.inode(1, ground.small) is not None:
        drive.ok(c.Reap(64))
    assert watched.poll() == [(ground.large, 16_384)]
    drive.ok(c.SetAttr(1, ground.large, c.SET_SIZE, size=10_000))
    assert watched.poll() == []


def test_rows_that_are_gone_and_devices_that_are_away_keep_it(watched: Watched) -> None:
    ground = watched.ground
    watched.meet(ground.large, 16_384)
    away = Damage(watched.records, ground.call, {}, watched.pace, lambda: watched.now)
    away.poll()
    assert len(away.shown()) == 1, "without its device nothing is known"
    ground.store.delete(keys.extent(1, ground.large, 0))
    with pytest.raises(FsError):
        ground.call(GetLayout(1, ground.large, 16_384, 20_480))
    assert watched.poll() == [(ground.large, 16_384)]


def test_a_bound_and_two_who_met_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.io.file.damaged_reads.DAMAGED_READS_MAX", 2)
    records = DamagedReads(tmp_path)
    assert records.all() == []
    assert [records.add(DamagedRead(1, 2, offset, 1)) for offset in (0, 0, 1, 2)] == [True, True, True, False]
    (tmp_path / "damage" / "x.json").write_text("{")
    assert len(records.all()) == 2
    records.remove(DamagedRead(1, 2, 0, 1))
    records.remove(DamagedRead(1, 2, 0, 1))
    assert len(records.all()) == 1


def test_the_budget_is_one_for_all() -> None:
    now = 100.0
    budget = IoBudget(1_000, lambda: now)
    assert budget.spend(100, 100.0) == pytest.approx(0.1)
    assert budget.spend(100, 100.0) == pytest.approx(0.2), "the second one waits for the first"
    now = 101.0
    assert budget.spend(100, 100.5) == pytest.approx(0.5), "and half of the time is left to others"
    assert budget.spend(1 << 30, 101.0) == DEBT_S_MAX
