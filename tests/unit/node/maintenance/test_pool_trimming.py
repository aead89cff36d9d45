"""Stale bays become free by their servers' word, once nothing that may come back names what they held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.types import BAY_MIRROR
from awsomefsd.io.pool.remote_errors import ServerAway
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.devices import GetBays
from awsomefsd.meta.api.messages.pools import StaleBays
from awsomefsd.node.maintenance.pool_trimming import PoolTrimming
from tests.rigs.machine_driver import sound
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.segment_servers import BAYS, until
from tests.rigs.upkept_pool import UpkeptPool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[UpkeptPool]:
    made = UpkeptPool(tmp_path)
    yield made
    made.close()


def trimming(pool: UpkeptPool) -> PoolTrimming:
    return PoolTrimming(pool.ask, pool.propose, pool.server_of)


def removed(pool: UpkeptPool, *lengths: int) -> int:
    """Writes files and removes them; returns how many bays of each device are stale."""
    for name in pool.written(*lengths):
        pool.drive.ok(c.Unlink(pool.drive.volume, 1, name))
    while pool.drive.machine.reap_pending():
        pool.drive.ok(c.Reap(1_000), session=0, epoch=0, mount=0)
    counts = {device.stale for device in pool.pool().devices}
    assert len(counts) == 1
    return counts.pop()


def test_what_was_removed_is_trimmed_and_free(pool: UpkeptPool) -> None:
    free = [device.free for device in pool.pool().devices]
    stale = removed(pool, 100_000, 200_000)
    assert stale >= 2
    assert trimming(pool).turn(pool.pool()) == (3 * stale, None)
    assert [(device.free, device.stale) for device in pool.pool().devices] == [(one, 0) for one in free]
    sound(pool.drive)


def test_nothing_is_trimmed_that_a_state_which_may_come_back_names(pool: UpkeptPool) -> None:  # row 39 of what goes wrong
    before = pool.drive.index
    stale = removed(pool, 100_000)
    pool.safe = before
    assert trimming(pool).turn(pool.pool()) == (0, None)
    assert not any(isinstance(command, c.BaysTrimmed) for command in pool.proposed)
    pool.safe = None
    assert trimming(pool).turn(pool.pool()) == (3 * stale, None)


def test_a_server_that_is_away_keeps_its_bays_and_holds_up_nobody(pool: UpkeptPool) -> None:
    stale = removed(pool, 100_000)
    away = pool.cluster.nodes[1]
    away.server.stop()
    freed, trouble = trimming(pool).turn(pool.pool())
    assert freed == 2 * stale and isinstance(trouble, ServerAway)
    assert [device.stale for device in pool.pool().devices] == [0, stale, 0]
    away.start()
    trimmer = trimming(pool)
    until(lambda: trimmer.turn(pool.pool())[0] == stale)
    sound(pool.drive)


def test_a_lost_answer_and_another_leader_free_nothing_twice(pool: UpkeptPool) -> None:  # rows 11, 13 and 38
    stale = removed(pool, 100_000)
    old, seen = trimming(pool), pool.pool()
    lost: list[Any] = []

    def lose(command: Any) -> Any:
        pool.propose(command)
        lost.append(command)
        raise Unavailable("nobody said whether that was done")

    with pytest.raises(Unavailable):
        PoolTrimming(pool.ask, lose, pool.server_of).turn(seen)
    [first] = lost
    assert trimming(pool).turn(pool.pool()) == (2 * stale, None), "the other two devices"
    pool.written(100_000)
    assert old.turn(seen) == (0, None), "nothing is stale any more"
    assert pool.propose(first).number == 0, "the bays are mirrors by now"
    sound(pool.drive)


def test_a_bay_that_is_something_else_by_now_is_left_alone(pool: UpkeptPool) -> None:  # row 11
    stale = removed(pool, 100_000)
    said: dict[str, Any] = {}

    def ask(body: Any) -> Any:
        reply = pool.ask(body)
        if isinstance(reply, StaleBays) and body.device == 1:
            said.update(bays=reply.bays)
            pool.drive.trim(1)
            pool.written(100_000)
        return reply

    trimmer = PoolTrimming(ask, pool.propose, pool.server_of)
    assert trimmer.turn(pool.pool()) == (2 * stale, None)
    bays = pool.drive.ask(GetBays(1, 0, BAYS)).bays
    assert said["bays"] and {bay.index for bay in bays if bay.role == BAY_MIRROR} >= {said["bays"][0][0]}
    sound(pool.drive)
