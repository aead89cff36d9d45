"""Segments whose bays cannot be opened: few are leased in vain, they are used when servers are back, and none is left over."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.types import SEGMENT_LEASED, Redundancy
from awsomefsd.io.pool import bay_leases
from awsomefsd.io.pool.bay_leases import LEASES_MAX, BayLeases
from awsomefsd.io.segment.writer import Piece, SegmentWriter
from awsomefsd.meta.api.messages import BaysLeased
from tests.rigs.machine_driver import sound
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.served_pool import ServedPool
from tests.unit.io.pool.test_fanout import File, until_written


@pytest.fixture(autouse=True)
def long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that happens here may happen because a pause is over."""
    for name in ("BAYS_PAUSE_MS", "BAYS_PAUSE_MS_MAX"):
        monkeypatch.setattr(bay_leases, name, 3_600_000)


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., ServedPool]]:
    made: list[ServedPool] = []

    def make(*args: Any) -> ServedPool:
        made.append(ServedPool(tmp_path, *args))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


class Counted:
    """Leases of a pool, counted."""

    def __init__(self, pool: ServedPool) -> None:
        self.pool, self.segments = pool, list[int]()
        self.refused: FsError | None = None

    def __call__(self, count: int, avoid: list[int]) -> BaysLeased:
        if self.refused is not None:
            raise self.refused
        reply = self.pool._lease(count, avoid)
        self.segments += [info.segment for info in reply.segments]
        return reply


def counted(pool: ServedPool, news: Callable[[], int] = lambda: 0) -> Counted:
    made = Counted(pool)
    pool.leases = BayLeases(pool.fanout, made, news)
    return made


def outage(pool: ServedPool, away: list[int]) -> None:
    for number in away:
        pool.cluster.nodes[number - 1].server.stop()


def back(pool: ServedPool, *numbers: int) -> None:
    for number in numbers:
        pool.cluster.nodes[number - 1].start()


def try_to_write(file: File, turns: int) -> None:
    """As a flusher does, which also reports what it can, and gives back what a writer at rest has."""
    for _ in range(turns):
        with pytest.raises((OSError, Unavailable)):
            file.writer.write([Piece(file.pool.drive.volume, file.ino, len(file.bytes), [memoryview(bytes(9_000))])])
        if progress := file.writer.rest().progress:
            file.pool.report(progress)


def leased(pool: ServedPool, numbers: list[int]) -> list[int]:
    return [number for number in numbers if (row := pool.drive.machine.state.segment(number)) is not None and row.state == SEGMENT_LEASED]


def test_an_outage_costs_few_bays_and_what_waits_is_used_then(make_pool: Callable[..., ServedPool]) -> None:
    pool = make_pool()
    leases, file = counted(pool), File(pool, pool.writer())
    file.write(10)
    leases.segments.clear()
    outage(pool, [2, 3])
    try_to_write(file, 20)
    assert 0 < len(leases.segments) <= LEASES_MAX
    assert leased(pool, leases.segments) == leases.segments, "they wait"
    back(pool, 2, 3)
    until_written(file, 9_000)
    assert file.extents[-1].segment in leases.segments
    file.check()
    pool.report(file.writer.seal_all())
    assert not leased(pool, leases.segments)
    sound(pool.drive)


def test_nothing_waits_after_the_end_or_a_writer_at_rest_or_a_device_that_is_left(make_pool: Callable[..., ServedPool]) -> None:
    pool = make_pool()
    leases, file = counted(pool), File(pool, pool.writer())
    outage(pool, [2, 3])
    ends: list[Callable[[SegmentWriter], Any]] = [
        lambda writer: writer.seal_all(),
        lambda writer: writer.rest().progress + writer.rest().progress,
        lambda writer: writer.leave({1}, {1}).progress,
    ]
    for end in ends:
        leases.segments.clear()
        pool.leases._not_before_ns = 0
        try_to_write(file, 1)
        assert leased(pool, leases.segments)
        assert 1 in file.writer.devices_in_use()
        pool.report(end(file.writer))
        assert not leased(pool, leases.segments)
        assert not file.writer.devices_in_use()
    sound(pool.drive)


def test_a_device_that_nothing_waits_for_is_leased_on_when_it_is_back(make_pool: Callable[..., ServedPool]) -> None:
    pool = make_pool(4, Redundancy(2, 2))
    leases, file = counted(pool), File(pool, pool.writer())
    outage(pool, [2, 3, 4])
    try_to_write(file, 5)
    others = {2, 3, 4}.difference(*(one.devices for one in pool.leases._waiting.values()))
    if not others:  # the leader drew all of them
        pool.report(file.writer.leave({4}).progress)
        others = {4}
    [came, *_] = others
    before = len(leases.segments)
    back(pool, came)
    until_written(file, 9_000)
    assert len(leases.segments) == before + 1
    file.check()


def test_news_end_the_pause(make_pool: Callable[..., ServedPool]) -> None:
    pool, heard = make_pool(), [0]
    leases, file = counted(pool, lambda: heard[0]), File(pool, pool.writer())
    outage(pool, [2, 3])
    try_to_write(file, 3)
    before = len(leases.segments)
    heard[0] = 1
    try_to_write(file, 3)
    assert len(leases.segments) == before + 1


def test_a_bay_that_is_lost_is_given_back_and_another_segment_is_used(make_pool: Callable[..., ServedPool]) -> None:
    """Two servers are away; the third begins again meanwhile, so what was opened there is closed for ever, or was never opened."""
    pool = make_pool()
    leases, file = counted(pool), File(pool, pool.writer())
    outage(pool, [2, 3])
    try_to_write(file, 2)
    for server in pool._servers.values():  # all connections end, and with them what was opened on them
        server.close()
    pool._servers.clear()
    back(pool, 2, 3)
    pool.leases._not_before_ns = 0
    until_written(file, 9_000)
    file.check()
    pool.report(file.writer.seal_all())
    assert not leased(pool, leases.segments)
    sound(pool.drive)


def test_a_replaced_session_reports_nothing_that_waits(make_pool: Callable[..., ServedPool]) -> None:
    pool = make_pool()
    leases, file = counted(pool), File(pool, pool.writer())
    outage(pool, [2, 3])
    try_to_write(file, 2)
    file.writer.abandon()
    pool.end_session()
    assert file.writer.seal_all() == []
    assert not file.writer.devices_in_use()
    assert not leased(pool, leases.segments)


def test_a_refused_lease_is_told_where_nothing_waits(make_pool: Callable[..., ServedPool]) -> None:
    pool = make_pool()
    leases, file = counted(pool), File(pool, pool.writer())
    leases.refused = FsError(errno.ENOSPC, "the pool has no room")
    with pytest.raises(FsError) as caught:
        file.writer.write([Piece(pool.drive.volume, file.ino, 0, [memoryview(bytes(9_000))])])
    assert caught.value.errno == errno.ENOSPC
