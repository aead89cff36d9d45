"""A node of role client mounts a volume beside a node that carries the metadata, and lives on when its worker and its daemon die."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.faults.rig import refused
from tests.rigs.network_namespaces import ANY_STATUS

VOLUME, WAIT_S = "shared", 120.0


@pytest.fixture
def nodes(make_cluster: Callable[..., Cluster]) -> Iterator[list[Node]]:
    """The carrier and the client, both with the volume mounted."""
    cluster = make_cluster(2)
    carrier, client = cluster.nodes
    for node in cluster.nodes:
        node.settings["AWSOMEFSD_CLUSTER_NAME"] = node.directory.name
    carrier.start()
    client.cli("join", "-", stdin=carrier.cli("token", "create").strip())  # without options: for one client
    client.launch()
    client.await_daemon()
    disk = os.path.realpath(carrier.attach())
    carrier.cli("device", "add", "--shared", disk)
    client.cli("device", "add", "--shared", disk, accept=ANY_STATUS)  # so that it looks there
    carrier.cli("volume", "create", VOLUME)
    for node in cluster.nodes:
        await_true("the device", lambda node=node: [row["path"] for row in node.ask("device", "ls")] == [disk], WAIT_S, 0.2)
        node.cli("mount", VOLUME, str(node.mountpoint), "-O", "shared")
    yield cluster.nodes
    for node in cluster.nodes:
        node.cli("umount", str(node.mountpoint), timeout_s=WAIT_S)
    cluster.stop()


def test_a_client_mounts_reads_writes_and_locks(nodes: list[Node], seed: int) -> None:
    carrier, client = nodes
    assert {row["name"]: row["role"] for row in carrier.ask("node", "ls")}[client.directory.name] == "client"
    here, there = carrier.mountpoint, client.mountpoint
    data = bytes((seed + number) % 251 for number in range(300_000))
    (there / "dir").mkdir()
    with (there / "dir" / "file").open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    assert (here / "dir" / "file").read_bytes() == data
    (here / "dir" / "file").write_bytes(data[::-1])
    assert (there / "dir" / "file").read_bytes() == data[::-1]
    (there / "dir" / "file").rename(there / "moved")
    assert os.listdir(here / "dir") == [] and (here / "moved").stat().st_size == len(data)
    with (there / "moved").open("r+b") as mine, (here / "moved").open("r+b") as other:
        fcntl.lockf(mine, fcntl.LOCK_EX)
        assert refused(lambda: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
        fcntl.lockf(mine, fcntl.LOCK_UN)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (there / "kept").open("wb") as file:
        for role in ("worker", "daemon"):
            file.write(data)
            client.kill(role)
            file.write(b"after")
            os.fsync(file.fileno())
    assert (here / "kept").read_bytes() == 2 * (data + b"after")
    client.await_daemon()
    (there / "moved").unlink()
    assert sorted(os.listdir(here)) == ["dir", "kept"]
