"""Devices of a pool on real nodes are drained and removed: while programs write, over the deaths of who leads, and after they are lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from awsomefsd.base.identity import POOL_DEVICES
from awsomefsd.base.limits import MIB
from awsomefsd.base.types import BAY_MIRROR
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import read_superblock
from awsomefsd.meta.api.messages.devices import GetBays
from awsomefsd.meta.api.messages.pools import GetNeeds, GetPool, Pool, PoolDeviceInfo
from awsomefsd.meta.state.pools import DRAIN
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.cluster.test_pool import digest, write
from tests.rigs.pool_nodes import VOLUME, PoolNodes, pool_on

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
WAIT_S = 180.0
HEAL_BYTES_PER_S = 64 * MIB


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    cluster = make_cluster(3, size_bytes=256 * MIB)
    with pool_on(cluster, "replicas=2") as made:
        made.mount(made.nodes[0])
        yield made


def set_pool(pool: PoolNodes, heal_bytes_per_s: int, lost_after_s: int = 600) -> None:
    said = pool.nodes[0].ask("pool", "set", "--heal-rate", str(heal_bytes_per_s), "--lost-after", f"{lost_after_s}s")
    assert (said["heal_bytes_per_s"], said["lost_after_ms"]) == (heal_bytes_per_s, 1_000 * lost_after_s)


def lacks(pool: PoolNodes) -> dict[int, int]:
    """Priority → segments, as `pool status` shows it on a node that need not lead."""
    return {int(one.get("priority", 0)): int(one["segments"]) for one in pool.nodes[1].ask("pool", "status")["lacks"]}


def device(pool: PoolNodes, number: int) -> PoolDeviceInfo:
    found: Pool = pool.ask(GetPool(1))
    return next(one for one in found.devices if one.device == number)


def numbers(pool: PoolNodes) -> list[int]:
    found: Pool = pool.ask(GetPool(1))
    return [one.device for one in found.devices]


def mirrors_on(pool: PoolNodes, number: int) -> int:
    return sum(bay.role == BAY_MIRROR for bay in pool.ask(GetBays(number, 0, 1_000)).bays)


def is_calm(pool: PoolNodes) -> bool:
    found: Pool = pool.ask(GetPool(1))
    there = [one for one in found.devices if not one.lost]
    return not found.walks and not pool.ask(GetNeeds(0, 0, 256)).needs and not any(one.stale for one in there)


@contextmanager
def written(directory: Path) -> Iterator[dict[str, str]]:
    """A program that writes one file after the other, each durably, until the block ends; name → digest of what was acknowledged."""
    found: dict[str, str] = {}
    errors: list[OSError] = []
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            name = f"during-{len(found)}"
            try:
                found[name] = write(directory / name, 300_000)
            except OSError as err:
                errors.append(err)
                return
            ending.wait(0.05)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        ending.set()
        thread.join()
    assert not errors, errors


def has_no_server(node: Node) -> bool:
    """And gets none: the supervisor starts one while that file is there, also after one has just failed."""
    return not node.pids("segments") and not (node.state / POOL_DEVICES).exists()


def kill_leader(pool: PoolNodes) -> None:
    leader: Node = pool.cluster.await_leader()
    leader.replaced("daemon", leader.kill("daemon")["daemon"])
    leader.await_daemon()
    pool.cluster.await_leader()


def test_a_device_is_drained_under_a_writer_while_leaders_and_servers_die_and_is_removed(pool: PoolNodes) -> None:
    first, second, third = pool.nodes
    sums = {f"before-{one}": write(first.mountpoint / f"before-{one}", 6 * MIB) for one in range(6)}
    assert mirrors_on(pool, 3) > 2, "nothing is on the device that goes"
    assert "awsomefsd device drain 3" in third.cli_error("device", "remove", "3")
    set_pool(pool, MIB // 4)
    with written(first.mountpoint) as during:
        progress = third.ask("device", "drain", "3")
        assert progress["device"]["draining"] and int(progress["segments_used"]) > 2
        assert "device drain 3 --wait" in third.cli_error("device", "remove", "3")
        await_true("what is to be moved is counted", lambda: lacks(pool).get(DRAIN), WAIT_S, 0.5)
        told = await_true("copies are told", lambda: (one := second.ask("pool", "status")["healing"])["bytes_per_s"] and one, WAIT_S, 0.5)
        assert int(told["copies"]) and int(told["seconds_left"]) > 0, told
        assert "are to be moved from drained devices" in first.cli("pool", "status", "-v")
        for turn in range(2):
            kill_leader(pool)
            pid = third.kill("segments")["segments"]
            third.replaced("segments", pid)
            assert turn or mirrors_on(pool, 3), "all was moved before; nothing was interrupted"
        set_pool(pool, HEAL_BYTES_PER_S)
        done = second.ask("device", "drain", "3", "--wait", timeout_s=WAIT_S)
        assert int(done["segments_used"]) == 0
    sums |= during
    await_true("nothing lacks anything any more", lambda: not lacks(pool), WAIT_S, 0.5)
    assert is_calm(pool) or await_true("a pool without needs", lambda: is_calm(pool), WAIT_S, 0.2)
    assert "run the command there" in second.cli_error("device", "remove", "3")
    said = third.cli("device", "remove", "3")
    assert "device 3 is removed, its superblock is wiped" in said, said
    assert numbers(pool) == [1, 2]
    assert {name: digest(first.mountpoint / name) for name in sums} == sums
    assert mirrors_on(pool, 1) == mirrors_on(pool, 2) > 0, "both devices that are left have every segment"


def test_the_device_that_two_mirrors_need_is_not_drained(pool: PoolNodes) -> None:
    first, _, third = pool.nodes
    assert numbers(pool) == [1, 2], "the test before has removed device 3"
    said = first.cli_error("device", "drain", "1")
    assert "cannot be drained" in said and "add a device on another host first" in said, said
    assert not device(pool, 1).draining
    await_true("the segment server of a node without devices to end", lambda: has_no_server(third), WAIT_S)
    third.cli("device", "add", os.path.realpath(third.disk), "--pool", "--class", "ssd")
    pool.serve(third)
    assert numbers(pool) == [1, 2, 4], "the wiped device is a new one"
    first.cli("device", "drain", "1")
    first.cli("device", "drain", "1", "--undo")
    assert not device(pool, 1).draining


def test_a_device_that_is_lost_for_good_is_removed_without_it(pool: PoolNodes) -> None:
    first, second, third = pool.nodes
    if numbers(pool) == [1, 2, 3]:
        pytest.skip("the tests before make device 4")
    sums = {f"more-{one}": write(first.mountpoint / f"more-{one}", 6 * MIB) for one in range(6)}
    assert mirrors_on(pool, 4) > 2, "nothing is on the device that goes"
    set_pool(pool, HEAL_BYTES_PER_S, 1)
    third.kill_everything()
    await_true("device 4 is lost", lambda: device(pool, 4).lost, WAIT_S, 0.2)
    assert "device drain 4" in second.cli_error("device", "remove", "4")
    done = second.ask("device", "drain", "4", "--wait", timeout_s=WAIT_S)
    assert int(done["segments_used"]) == 0 and mirrors_on(pool, 4) == 0
    said = second.cli("device", "remove", "4")
    assert "device 4 is removed, its superblock could not be wiped: this node does not see it" in said, said
    assert numbers(pool) == [1, 2]
    assert {name: digest(first.mountpoint / name) for name in sums} == sums
    third.start()
    await_true("the segment server of the node that is back to end", lambda: has_no_server(third), WAIT_S)
    path = os.path.realpath(third.disk)
    assert "removed before; its superblock is wiped now" in third.cli("device", "remove", path)
    with Device.open(path, read_only=True) as wiped, pytest.raises(Exception, match="superblock"):
        read_superblock(wiped)
    assert {one["name"] for one in first.ask("volume", "ls")} == {VOLUME}
