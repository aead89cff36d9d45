"""A pool on real nodes looks after itself: what was removed is room again, and what a lost node had is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.meta.api.commands import SetPool
from awsomefsd.meta.api.messages import Propose
from awsomefsd.meta.api.messages.pools import GetNeeds, GetPool, NeedsFound, Pool, SegmentNeed
from awsomefsd.meta.state.pools import NEED_POLICY
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.cluster.test_pool import digest, write
from tests.rigs.pool_nodes import PoolNodes, pool_on

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    cluster = make_cluster(3, size_bytes=256 * MIB)
    with pool_on(cluster, "replicas=2") as made:
        yield made


def state(pool: PoolNodes) -> Pool:
    found: Pool = pool.ask(GetPool(1))
    return found


def is_empty(pool: PoolNodes) -> bool:
    return all(device.free == device.bays and not device.stale for device in state(pool).devices)


def test_what_was_removed_is_room_again(pool: PoolNodes) -> None:
    first = pool.nodes[0]
    room = sum(device.bays for device in state(pool).devices) * state(pool).segment_bytes
    length = 60 * MIB
    for turn in range(room // (2 * length) + 1):
        pool.mount(first)
        expected = write(first.mountpoint / f"file-{turn}", length)
        assert digest(first.mountpoint / f"file-{turn}") == expected
        (first.mountpoint / f"file-{turn}").unlink()
        first.umount()
        await_true("all bays are free", lambda: is_empty(pool), WAIT_S, 0.2)


def needs(pool: PoolNodes) -> list[SegmentNeed]:
    found: NeedsFound = pool.ask(GetNeeds(0, 0, 256))
    return found.needs


def is_healed(pool: PoolNodes) -> bool:
    """Every segment has its mirrors; of more than enough the one on a lost device may be named."""
    return not state(pool).walks and all(need.reasons == NEED_POLICY for need in needs(pool))


def is_calm(pool: PoolNodes) -> bool:
    return is_healed(pool) and not needs(pool) and not any(device.stale for device in state(pool).devices)


def test_a_node_that_dies_for_good_is_replaced_by_the_others_and_what_is_too_much_goes_when_it_returns(pool: PoolNodes) -> None:
    first, second, third = pool.nodes
    pool.ask(Propose(0, 0, 0, [], SetPool(1, 64 * MIB, 1_000, 4)))
    pool.mount(first)
    sums = {f"before-{one}": write(first.mountpoint / f"before-{one}", 6 * MIB) for one in range(6)}
    assert state(pool).devices[2].free < state(pool).devices[2].bays, "nothing is on the device that goes"
    third.kill_everything()
    sums["without"] = write(first.mountpoint / "without", 3 * MIB)
    first.umount()
    await_true("device 3 is lost", lambda: state(pool).devices[2].lost, WAIT_S, 0.2)
    await_true("every segment has two mirrors again", lambda: is_healed(pool), WAIT_S, 0.2)
    for alone, away in ((first, second), (second, first)):
        pool.kill(away)
        pool.mount(alone)
        assert {name: digest(alone.mountpoint / name) for name in sums} == sums
        alone.umount()
        pool.serve(away)
    third.start()
    pool.serve(third)
    await_true("the device is back, nothing is too much or stale", lambda: not state(pool).devices[2].lost and is_calm(pool), WAIT_S, 0.2)
    await_true("each segment twice", lambda: sum(one.bays - one.free for one in state(pool).devices) % 2 == 0, WAIT_S, 0.2)
    pool.mount(third)
    assert {name: digest(third.mountpoint / name) for name in sums} == sums
    third.umount()
