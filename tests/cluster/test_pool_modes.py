"""A volume in a pool together with what else a mount may be: shared, synchronous, of an old kernel, of a client, full, or killed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest

from awsomefsd.base.limits import MIB
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.cluster.test_pool import digest, write
from tests.rigs.pool_nodes import VOLUME, PoolNodes

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(1_200)]
SHARED = "shared,cache=none"


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    """Three nodes with small devices, and a client without one; the second node's mounts speak an old protocol."""
    cluster = make_cluster(4, size_bytes=400 * MIB)
    cluster.nodes[1].pins = "minor=34"
    made = PoolNodes(cluster, "replicas=3", clients=1, segment_size="4M")
    yield made
    for node in cluster.nodes:
        node.umount()
    made.close()
    cluster.stop()


@contextmanager
def mounted(pool: PoolNodes, node: Node, options: str = "") -> Iterator[Path]:
    pool.mount(node, options)
    yield node.mountpoint
    node.umount()


def write_synced(path: Path, length: int) -> str:
    """By O_SYNC: each write(2) is durable when it returns."""
    data = os.urandom(length)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_SYNC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[:30_000]) :]
    finally:
        os.close(fd)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("options", ["", "shared", SHARED])
def test_a_synchronous_write_waits_for_mirrors_and_is_told_nothing_wrong(pool: PoolNodes, options: str) -> None:
    first, second, third = pool.nodes
    with mounted(pool, first, options) as place:
        sums = {"before": write_synced(place / "before", 100_000)}
        pool.kill(second)
        sums["one-away"] = write_synced(place / "one-away", 100_000)
        pool.kill(third)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(write_synced, place / "waits", 100_000)
            assert not wait([waiting], 2).done, "one mirror of three is not enough"
            pool.serve(second)
            sums["waits"] = waiting.result(120)
        pool.serve(third)
        assert {name: digest(place / name) for name in sums} == sums


@pytest.mark.parametrize("options", ["", SHARED])
def test_a_worker_is_killed_while_mirrors_are_away(pool: PoolNodes, options: str) -> None:
    first, second, third = pool.nodes
    with mounted(pool, first, options) as place:
        sums = {"kept": write(place / "kept", 500_000)}
        for node in (second, third):
            pool.kill(node)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(write, place / "over", 300_000)
            assert not wait([waiting], 1).done
            first.kill("worker")
            assert not wait([waiting], 1).done
            for node in (second, third):
                pool.serve(node)
            sums["over"] = waiting.result(120)
        assert {name: digest(place / name) for name in sums} == sums


def test_a_client_without_a_device_and_an_old_kernel_share_it(pool: PoolNodes) -> None:
    _, old, third = pool.nodes
    [client] = pool.clients
    with mounted(pool, client, "shared") as there, mounted(pool, old, "shared") as here:
        sums = {"of-client": write(there / "of-client", 5 * MIB), "of-old": write(here / "of-old", 5 * MIB)}
        pool.kill(third)
        sums["of-client-2"] = write_synced(there / "of-client-2", 100_000)
        for place in (here, there):
            assert {name: digest(place / name) for name in sums} == sums
        pool.serve(third)
        assert {name: digest(there / name) for name in sums} == sums


def test_a_client_holds_it_whole_and_its_worker_is_killed(pool: PoolNodes) -> None:
    [client] = pool.clients
    with mounted(pool, client) as place:
        sums = {"whole": write(place / "whole", 3 * MIB)}
        client.kill("worker")
        sums["whole-2"] = write(place / "whole-2", 3 * MIB)
        assert {name: digest(place / name) for name in sums} == sums


def fill(path: Path, most: int) -> int:
    """Returns the errno that ends write(2), 0 if nothing does."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(most // MIB):
            os.write(fd, bytes(MIB))
    except OSError as err:
        return err.errno
    finally:
        os.close(fd)
    return 0


@pytest.mark.parametrize("options", ["", SHARED])
def test_a_quota_ends_writes_and_a_delete_gives_room(pool: PoolNodes, options: str) -> None:
    first = pool.nodes[0]
    with mounted(pool, first, options) as place:
        used = os.statvfs(place)
        in_use = (used.f_blocks - used.f_bfree) * used.f_frsize
        first.cli("volume", "set", VOLUME, "--quota", f"{in_use // MIB + 16}M")
        try:
            assert fill(place / "much", 120 * MIB) in (errno.ENOSPC, errno.EDQUOT)
            os.unlink(place / "much")
            await_true("room after a delete", lambda: fill(place / "little", MIB) == 0, 60, 0.2)  # what was deleted is reaped by and by
        finally:
            first.cli("volume", "set", VOLUME, "--quota", "none")


def test_a_full_pool_is_told_by_write_and_files_can_be_deleted(pool: PoolNodes) -> None:
    """The last test: it leaves the pool full."""
    first = pool.nodes[0]
    with mounted(pool, first) as place:
        kept = write(place / "kept", MIB)
        assert fill(place / "all", 400 * MIB) == errno.ENOSPC
        os.unlink(place / "all")
        assert digest(place / "kept") == kept
        assert not (place / "all").exists()
