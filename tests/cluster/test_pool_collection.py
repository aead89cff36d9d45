"""Space of overwritten data in a pool comes back: what lives in sparse segments is copied together, with all its mirrors."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from awsomefsd.base.limits import KIB, MIB
from awsomefsd.base.types import BAY_MIRROR, bays_of
from awsomefsd.meta.api.messages.collection import GetSparse
from awsomefsd.meta.api.messages.pools import GetNeeds, GetPool, Pool
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.cluster.test_pool import digest
from tests.rigs.pool_nodes import PoolNodes, pool_on

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
WAIT_S = 120.0
PIECE = 256 * KIB
LENGTH = 48 * MIB


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    cluster = make_cluster(3, size_bytes=512 * MIB)
    with pool_on(cluster, "replicas=2", segment_size="4M") as made:
        yield made


def used(pool: PoolNodes) -> int:
    state: Pool = pool.ask(GetPool(1))
    return sum(device.bays - device.free for device in state.devices)


def test_what_was_overwritten_is_room_again(pool: PoolNodes) -> None:
    dice = random.Random(seed := random.randrange(1 << 32))
    print(f"seed {seed}")
    first, second, third = pool.nodes
    for node in pool.nodes:
        node.cli("device", "collect", "stop")  # it begins by itself while a slow machine still writes
    pool.mount(first)
    place = first.mountpoint / "overwritten"
    fd = os.open(place, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, dice.randbytes(LENGTH), 0)
    os.fsync(fd)
    for _ in range(3):  # at random, so that no segment dies as a whole
        for piece in range(LENGTH // PIECE):
            if dice.random() < 0.6:
                os.pwrite(fd, dice.randbytes(PIECE), piece * PIECE)
        os.fsync(fd)
    os.close(fd)
    expected = digest(place)
    first.umount()
    before = used(pool)
    for node in (first, second, third):
        node.cli("device", "collect", "start")
    bound = 2 * (LENGTH // (4 * MIB)) * 5 // 4 + 8
    assert before > bound, (before, bound)
    await_true("the room of dead bytes is free", lambda: used(pool) <= bound, WAIT_S, 0.2)
    await_true("nothing lacks a mirror", lambda: not pool.ask(GetNeeds(0, 0, 256)).needs, WAIT_S, 0.2)
    segments = pool.ask(GetSparse(0, 1_000)).segments
    assert segments and all(len({bay.device for bay in bays_of(one) if bay.role == BAY_MIRROR}) == 2 for one in segments)
    pool.mount(third)
    assert digest(third.mountpoint / "overwritten") == expected
    third.umount()
