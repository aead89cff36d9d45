"""One device seen by three nodes: found by its superblock, taken over when a node dies, freed by proof; grown and drained while mounted.

The nodes are in network namespaces on one machine, so they share block devices and the boot.  Mounting a volume on several nodes at once is
not tested: it is mounted by one at a time.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildtools import loops
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError
from tests.rigs.network_namespaces import found_static

WAIT_S = 120
MIB = 1 << 20
VOLUME = "shared"


class Rig:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes
        self.image = cluster.directory / "disk.img"
        with self.image.open("wb") as file:
            file.truncate(512 * MIB)
        try:
            self.path = loops.attach(self.image)
        except BuildError as err:
            pytest.skip(str(err))
        self.second = cluster.directory / "second.img"
        self.links = cluster.directory / "links"

    def show(self, node: Node, device: str = "1") -> dict[str, Any]:
        found: dict[str, Any] = node.ask("device", "show", device)
        return found

    def settled(self, node: Node) -> bool:
        """It sees every device well."""
        return all(row["state"] == "ok" for row in node.ask("device", "ls"))

    def provide(self) -> None:
        """Device and volume where no test before has made them: a soak runs one test of this file alone."""
        first = self.nodes[0]
        if first.ask("device", "ls"):
            return
        first.cli("device", "add", self.path, "--shared", timeout_s=120)
        for node in self.nodes:
            await_true("the device to be found", lambda node=node: self.settled(node), WAIT_S, 0.3)
        first.cli("volume", "create", VOLUME)

    def mount(self, node: Node) -> Path:
        """Waits for the end of a dead session: longer than `mount` itself does, for the dead node may have led."""
        node.mountpoint.mkdir(exist_ok=True)

        def mounted() -> bool:
            try:
                node.cli("mount", VOLUME, str(node.mountpoint), timeout_s=120)
            except BuildError as err:
                if "mounted by session" not in str(err):
                    raise
                return False
            return True

        await_true("the volume to be free", mounted, WAIT_S, 0.3)
        return node.mountpoint

    def quarantine(self, node: Node) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = node.ask("quarantine", "ls")["sessions"]
        return found


@pytest.fixture(scope="module")
def rig(make_cluster) -> Iterator[Rig]:
    cluster = make_cluster(3)
    found_static(cluster)
    made = Rig(cluster)
    for node in cluster.nodes:
        node.settings["AWSOMEFSD_DEVICES_SCAN"] = str(made.second)
    try:
        cluster.launch()
        cluster.await_leader()
        for node in cluster.nodes:
            node.await_daemon()
        yield made
    finally:
        for node in cluster.nodes:
            node.kill_everything()
            node.detach_mount()
        for device in loops.of_file(made.image):
            loops.detach(device)


def content(seed: int, name: int) -> bytes:
    return random.Random(seed * 1_000 + name).randbytes(200_000 + 4_096 * name)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_every_node_finds_the_device_and_a_dead_nodes_volume_goes_on_elsewhere(rig: Rig, seed: int) -> None:
    first, second, third = rig.nodes
    first.cli("device", "add", rig.path, "--shared", timeout_s=120)
    for node in rig.nodes:
        await_true("the device to be found", lambda node=node: rig.settled(node), WAIT_S, 0.3)
    await_true("three nodes to report it", lambda: [one["state"] for one in rig.show(third)["seen"]] == ["ok"] * 3, WAIT_S, 0.3)
    facts = {fact["name"]: fact["value"] for fact in second.ask("device", "identify", "1")}
    assert facts["serial"] == str(rig.image) and facts["path"] == rig.path and "generation 1" in facts["superblock"]
    scanned = {row["path"]: row["verdict"] for row in second.ask("device", "scan", timeout_s=120)}
    assert scanned[rig.path] == "ok"

    first.cli("volume", "create", VOLUME)
    place = rig.mount(first)
    for name in range(20):
        write_synced(place / f"file{name}", content(seed, name))
    first.kill_everything()  # as a power cut: nobody says goodbye
    place = rig.mount(second)
    for name in range(20):
        assert (place / f"file{name}").read_bytes() == content(seed, name), f"what was fsynced on node 1 is wrong on node 2: file{name}"
    held = rig.quarantine(second)
    assert held and sum(one["segments"] for one in held) > 0 and {one["volume"] for one in held} == {VOLUME}
    write_synced(place / "later", b"from node 2")

    first.detach_mount()  # its mount is gone, and the desired mount with it: only the lock of the dead worker proves that it has exited
    first.launch()
    first.await_daemon()
    await_true("node 1 to prove that its worker has exited", lambda: not rig.quarantine(second), WAIT_S, 0.3)
    refused = first.cli_error("mount", VOLUME, str(first.mountpoint))
    assert "mounted by session" in refused
    second.cli("umount", str(second.mountpoint), timeout_s=180)
    place = rig.mount(first)
    assert (place / "later").read_bytes() == b"from node 2"
    assert (place / "file7").read_bytes() == content(seed, 7)
    first.cli("umount", str(first.mountpoint), timeout_s=180)


@pytest.mark.soak  # the rules are in tests/unit/node/maintenance/test_quarantine.py; here another session has to expire
def test_an_operator_releases_what_a_node_that_is_gone_cannot_prove(rig: Rig, seed: int) -> None:
    _, second, third = rig.nodes
    rig.provide()
    place = rig.mount(third)
    write_synced(place / "third", content(seed, 99))
    third.kill_everything()
    (held,) = await_true("the session to expire", lambda: rig.quarantine(second), WAIT_S, 0.3)
    number = str(held["session"])
    assert "--reason" in second.cli_error("quarantine", "release", number)
    second.cli("quarantine", "release", number, "--reason", "x", "--confirm", "another", accept=(4,))
    node = held["node_name"] or held["node"]
    second.cli("quarantine", "release", number, "--reason", "its power supply is in my hand", "--confirm", node)
    assert not rig.quarantine(second)
    rows = second.cli("log", "follow", "--no-wait", "-o", "json").splitlines()
    assert any("ClearQuarantine" in row and "its power supply is in my hand" in row for row in rows)
    third.detach_mount()
    third.launch()
    third.await_daemon()
    assert (rig.mount(second) / "third").read_bytes() == content(seed, 99)


def test_devices_grow_and_leave_while_mounted(rig: Rig, seed: int) -> None:
    """Volume mounted on node 2.  Growth counts once every node sees the new size; a drained device is empty in the end, and files whole."""
    first, second, third = rig.nodes
    place = second.mountpoint if second.mounted() else rig.mount(second)
    before = rig.show(second)
    assert "enlarge it first" in second.cli_error("device", "grow", "1")
    with rig.image.open("r+b") as file:
        file.truncate(768 * MIB)
    subprocess.run(["losetup", "--set-capacity", rig.path], check=True)
    third.cli("device", "grow", "1")
    after = rig.show(second)
    assert after["segments"] > before["segments"] and after["bytes"] == 768 * MIB
    assert "generation 2" in str(first.ask("device", "identify", "1"))

    write_synced(place / "before", content(seed, 500))
    with rig.second.open("wb") as file:
        file.truncate(512 * MIB)
    first.cli("device", "add", str(rig.second), "--shared", timeout_s=120)
    for node in rig.nodes:
        await_true("the second device to be found", lambda node=node: rig.settled(node), WAIT_S, 0.3)
    second.cli("device", "remove", "1", accept=(4,))
    second.cli("device", "drain", "1", "--wait", timeout_s=240)  # the worker gives back its segments, collection moves what lives
    assert rig.show(second)["segments_free"] == rig.show(second)["segments"]
    write_synced(place / "after", content(seed, 501))
    third.cli("device", "remove", "1")
    assert [row["device"] for row in second.ask("device", "ls")] == [2]
    assert (place / "before").read_bytes() == content(seed, 500)
    second.cli("umount", str(place), timeout_s=180)
    place = rig.mount(first)
    for name, number in {"file3": 3, "before": 500, "after": 501}.items():
        assert (place / name).read_bytes() == content(seed, number), name
    first.cli("umount", str(place), timeout_s=180)
    assert rig.path not in {row["path"] for row in third.ask("device", "scan", timeout_s=120)}, "its superblock is wiped"
