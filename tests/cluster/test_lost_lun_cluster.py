"""Three nodes on one LUN lose all their state directories.  One recovers the cluster, two come back with old state, and are refused."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError
from tests.rigs.network_namespaces import found_by_token

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(900)]
WAIT_S = 180
FILES = 60


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def codes(node: Node) -> list[str]:
    return [row["code"] for row in node.ask("status", accept=(0, 3))["health"]]


def await_on_the_device(cluster: Cluster) -> None:
    def durable() -> bool:
        leader = cluster.leader()
        figures: dict[str, Any] = leader.ask("status", accept=(0, 3))["figures"] if leader is not None else {}
        return figures.get("checkpoint") == "ok" and int(figures["checkpoint_durable"]) >= int(figures["applied"])

    await_true("the device to hold the log", durable, WAIT_S, 0.2)


def without_token(node: Node) -> None:
    for name in [name for name in node.settings if "TOKEN" in name]:
        del node.settings[name]


def test_a_cluster_comes_back_from_its_lun_and_old_nodes_are_refused(make_cluster: Callable[..., Cluster], seed: int) -> None:
    cluster = make_cluster(3, size_bytes=512 << 20)
    found_by_token(cluster)
    cluster.share()
    first, second, third = cluster.nodes
    disk = os.path.realpath(first.disk)
    cluster.launch()
    cluster.await_leader()
    await_true("three voters", cluster.whole, WAIT_S, 0.2)
    for node in cluster.nodes:
        node.await_daemon()
    cluster.provision()
    first.mount()
    chance = random.Random(seed)
    for number in range(FILES):
        with (first.mountpoint / f"file{number}").open("wb") as file:
            file.write(chance.randbytes(chance.randrange(1, 200_000)))
            file.flush()
            os.fsync(file.fileno())
    before = digests(first.mountpoint)
    await_on_the_device(cluster)
    for node in cluster.nodes:
        node.kill_everything()
        node.detach_mount()
        without_token(node)
        node.state.rename(node.directory / "state.old")
        node.state.mkdir()

    report = first.ask("device", "recover", disk, "--confirm-nobody-writes", timeout_s=120)
    assert report["done"] and report["faults"] == [] and report["missing_devices"] == []
    for node in (second, third):  # a majority of the old voters: they have a leader, and do not know of the recovery
        node.state.rmdir()
        (node.directory / "state.old").rename(node.state)
        node.launch()
    for node in (second, third):
        node.await_daemon()
        await_true("it is told so", lambda node=node: "DEVICE_RECOVERED" in codes(node), WAIT_S, 0.5)
    with pytest.raises(BuildError, match="rebuilt from"):
        second.mount()
    for node in (second, third):
        node.kill_everything()
        node.detach_mount()
        shutil.rmtree(node.state)
        node.state.mkdir()

    first.launch()
    first.await_daemon()
    cluster.await_leader([first])
    first.mount()
    assert digests(first.mountpoint) == before
    for node in (second, third):
        node.cli("join", "-", stdin=first.cli("token", "create", "--role", "node").strip())
        node.launch()
        node.await_daemon()
    for node in (second, third):
        await_true("the device to be found", lambda node=node: [row["state"] for row in node.ask("device", "ls")] == ["ok"], WAIT_S, 0.3)
        node.mount()
        assert digests(node.mountpoint) == before
    (third.mountpoint / "later").write_bytes(b"later")
    assert (first.mountpoint / "later").read_bytes() == b"later"
    cluster.umount()
