"""Nodes of a pool go: for a while, announced, and for good, drained.  Real nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from awsomefsd.base.limits import MIB
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.cluster.test_pool import digest, write
from tests.cluster.test_pool_drain import HEAL_BYTES_PER_S, WAIT_S, device, is_calm, mirrors_on, numbers, set_pool
from tests.rigs.pool_nodes import PoolNodes, pool_on
from tests.unit.node.health.test_pool_rules import OF_POOLS

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
LOST_AFTER_S = 1


def codes(pool: PoolNodes) -> set[str]:
    """The health codes of the second node, but for that of a slow disk: it may be one."""
    return {str(row["code"]) for row in pool.nodes[1].ask("status", accept=(0, 3))["health"]} - {"DEVICE_SLOW"}


def state(pool: PoolNodes) -> list[str]:
    """Of the third node's devices, as `pool status` of another one says."""
    host = next(one for one in pool.nodes[1].ask("pool", "status")["hosts"] if one["host"] == pool.nodes[2].uuid())
    return [str(one["state"]) for one in host["devices"]]


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    cluster = make_cluster(3, size_bytes=256 * MIB)
    with pool_on(cluster, "replicas=2") as made:
        made.mount(made.nodes[0])
        set_pool(made, HEAL_BYTES_PER_S, LOST_AFTER_S)
        yield made


def test_nothing_is_copied_for_a_node_under_maintenance_until_that_ends(pool: PoolNodes) -> None:
    first, second, third = pool.nodes
    sums = {f"before-{one}": write(first.mountpoint / f"before-{one}", 6 * MIB) for one in range(4)}
    await_true("a pool without needs", lambda: is_calm(pool), WAIT_S, 0.2)
    held = mirrors_on(pool, 3)
    assert held, "nothing is on the device that goes"
    said = second.cli("node", "maintenance", third.uuid(), "--for", "1h")
    assert "is under maintenance until" in said, said
    third.kill_everything()
    await_true("device 3 is absent", lambda: device(pool, 3).absent, WAIT_S, 0.2)
    assert state(pool) == ["absent"]
    assert "NODE_MAINTENANCE" in codes(pool) and not codes(pool) & {"DEVICE_ABSENT", "DEVICE_LOST"}
    ends_s = time.monotonic() + 10 * LOST_AFTER_S
    while time.monotonic() < ends_s:
        assert not device(pool, 3).lost, "it is under maintenance"
        time.sleep(0.2)
    second.cli("node", "maintenance", third.uuid(), "--end")
    await_true("device 3 is lost", lambda: device(pool, 3).lost, WAIT_S, 0.2)
    found = codes(pool)
    assert "DEVICE_LOST" in found and "NODE_MAINTENANCE" not in found, found
    assert state(pool) == ["lost"]
    third.start()
    pool.serve(third)
    await_true("the device is back, and nothing is too much", lambda: not device(pool, 3).lost and is_calm(pool), WAIT_S, 0.2)
    assert {name: digest(first.mountpoint / name) for name in sums} == sums
    await_true("nothing is said of the pool", lambda: not codes(pool) & OF_POOLS, WAIT_S, 0.5)


def test_a_maintenance_ends_by_itself(pool: PoolNodes) -> None:
    first, _, third = pool.nodes
    first.cli("node", "maintenance", third.uuid(), "--for", "2s")
    third.kill_everything()
    await_true("device 3 is lost", lambda: device(pool, 3).lost, WAIT_S, 0.2)
    third.start()
    pool.serve(third)
    await_true("the device is back, and nothing is too much", lambda: not device(pool, 3).lost and is_calm(pool), WAIT_S, 0.2)


def test_a_node_is_drained_and_removed_with_its_devices(pool: PoolNodes) -> None:
    first, second, third = pool.nodes
    sums = {f"more-{one}": write(first.mountpoint / f"more-{one}", 6 * MIB) for one in range(4)}
    name = third.uuid()
    set_pool(pool, MIB // 4)
    assert mirrors_on(pool, 3), "nothing is on the device of the node that goes"
    assert "its devices of the pool hold" in first.cli_error("node", "remove", name)
    assert "are being moved away" in first.cli_error("node", "drain", name)
    assert device(pool, 3).draining
    first.cli("node", "uncordon", name)
    assert not device(pool, 3).draining, "a node that is used again takes data"
    set_pool(pool, HEAL_BYTES_PER_S)

    await_true("the node is empty", lambda: "is drained" in second.cli("node", "drain", name, accept=(0, 4)), WAIT_S, 1.0)
    second.cli("node", "remove", name, timeout_s=120)
    assert numbers(pool) == [1, 2]
    await_true("a pool without needs", lambda: is_calm(pool), WAIT_S, 0.2)
    assert {name: digest(first.mountpoint / name) for name in sums} == sums
    said = first.cli_error("node", "drain", second.uuid())
    assert "cannot be emptied" in said and not device(pool, 2).draining, said
