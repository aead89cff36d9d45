"""umount(2) without our helper, with dirty data that cannot be flushed yet: the worker, or its successor, stays until it could."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.client import KeeperClient
from buildtools import procs
from buildtools.nodes import Node, await_true
from tests.faults.rig import faults

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
TRIES = 3  # flushes that failed


@pytest.fixture(scope="module")
def node(make_node):
    return make_node(faults=True)


def await_failed_flushes(node: Node) -> None:
    before = node.fault_hits("device.flush")
    await_true("flushes that fail", lambda: node.fault_hits("device.flush") >= before + TRIES, 60)


def written(directory: Path, seed: int) -> dict[Path, bytes]:
    """Small files, which live in their inodes, and large ones; nothing is fsynced."""
    choose = random.Random(seed)
    files = {directory / f"{size}-{seed}": choose.randbytes(size) for size in (100, 5_000, 300_000, 3 << 20)}
    for path, data in files.items():
        path.write_bytes(data)
    return files


@pytest.mark.parametrize("killed", [(), ("worker",), ("keeper", "worker")], ids=lambda roles: "+".join(roles) or "nobody")
def test_the_worker_stays_until_its_dirty_data_is_durable(node, seed, killed):
    node.mount()
    files = written(node.mountpoint, seed + len(killed))
    worker = node.pid("worker")
    with faults(node, "device.flush=EIO", hits="device.flush"):
        mount_syscalls.umount(str(node.mountpoint))
        assert not node.mounted()
        await_failed_flushes(node)
        assert procs.alive(worker), "it has data that nobody else has"
        if killed:
            await_true("holders", lambda: all(procs.holds(node.pid(role), "/dev/fuse") for role in ("daemon", "supervisor")), 60)
            hit = node.kill(*killed)
            worker = node.replaced("worker", hit["worker"])
            await_failed_flushes(node)
            assert procs.alive(worker)
    await_true("the end of the worker", lambda: not node.pids("worker"), 120)
    await_true("the end of the mount in the keeper", lambda: not KeeperClient(node.run).list(), 60)
    node.mount()
    for path, data in files.items():
        assert path.read_bytes() == data
