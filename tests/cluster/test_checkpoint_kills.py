"""Three real nodes on one LUN: the leader's daemon is killed at each step of a checkpoint, and the LUN alone brings back what was promised.

The same among three voters of one process, where the second leader dies too: tests/unit/node/maintenance/test_checkpoint_kills.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.failpoints import POINTS, FailpointControl
from awsomefsd.recovery import device_recover
from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.network_namespaces import found_on_one_disk

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(3_600)]
STEPS = [name for name in POINTS if name.startswith("checkpoint.")]
WAIT_S = 300.0


class Files:
    """Files on the first node's mount, each fsynced, and their digests."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory, self.chance = directory, chance
        self.digests: dict[str, str] = {}

    def write(self) -> None:
        for _ in range(5):
            name, data = f"file{len(self.digests)}", self.chance.randbytes(self.chance.randrange(1, 200_000))
            with (self.directory / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.digests[name] = hashlib.sha256(data).hexdigest()

    def wrong(self) -> list[str]:
        return [name for name, digest in self.digests.items() if hashlib.sha256((self.directory / name).read_bytes()).hexdigest() != digest]


def durable(cluster: Cluster) -> int:
    """Waits until the device has all that is applied now; returns up to which entry it has the log."""

    def look() -> int:
        leader = cluster.leader()
        figures: dict[str, Any] = leader.ask("status", accept=(0, 3), timeout_s=WAIT_S)["figures"] if leader is not None else {}
        reached = int(figures.get("checkpoint_durable", 0))
        return reached if figures.get("checkpoint") == "ok" and reached >= int(figures["applied"]) else 0

    return int(await_true("the device to hold the log", look, WAIT_S, 0.2))


def killed(cluster: Cluster, control: FailpointControl, step: str, files: Files) -> None:
    """The leader's daemon dies at the step."""
    before = control.fired(step)
    control.arm(step, 1)
    if POINTS[step] == "load":
        files.write()
    else:  # a new leader makes a copy
        leader = cluster.await_leader()
        leader.kill("daemon")
    await_true(f"a death at {step}", lambda: control.fired(step) > before, WAIT_S, 0.02)
    pid = control.died(step)
    await_true(f"the end of {pid}", lambda: not procs.alive(pid), WAIT_S)


def recovered(cluster: Cluster, directory: Path) -> int:
    """Copies the LUN as it is now, while nobody runs, and recovers from the copy.  Returns which entry it ends with."""
    image, new = directory / "image", directory / "new"
    for node in cluster.nodes:
        cluster.pause(node)
    subprocess.run(["cp", "--sparse=always", cluster.nodes[0].image, image], check=True)
    for node in cluster.nodes:
        cluster.resume(node)
    report = device_recover.recover(new, [str(image)], "test", dry_run=False)
    assert (report.faults, report.checkpointed, report.done) == ([], True, True)
    shutil.rmtree(new)
    image.unlink()
    return report.index


def lose_all_and_recover(cluster: Cluster, disk: str) -> Node:
    """All three lose their state directories; the first one goes on from the LUN."""
    for node in cluster.nodes:
        node.kill_everything()
        node.detach_mount()
        shutil.rmtree(node.state)
        node.state.mkdir()
        for name in [name for name in node.settings if name.startswith("AWSOMEFSD_METADATA")]:
            del node.settings[name]
    first = cluster.nodes[0]
    report = first.ask("device", "recover", disk, "--confirm-nobody-writes", timeout_s=WAIT_S)
    assert report["done"] and report["faults"] == [] and report["missing_devices"] == []
    first.launch()
    first.await_daemon(WAIT_S)
    return first


def test_the_leaders_node_dies_at_each_step_of_a_checkpoint(
    make_cluster: Callable[..., Cluster], tmp_path: Path, seed: int, figures: list[str]
) -> None:
    control = FailpointControl(tmp_path / "failpoints")
    cluster = make_cluster(3, size_bytes=512 << 20)
    for node in cluster.nodes:
        node.failpoints = control.path
    found_on_one_disk(cluster)
    first = cluster.nodes[0]
    disk = os.path.realpath(first.disk)
    first.cli("volume", "create", "v")
    first.mountpoint.mkdir(exist_ok=True)
    first.cli("mount", "v", str(first.mountpoint), "-O", "shared", timeout_s=WAIT_S)
    files = Files(first.mountpoint, random.Random(seed))
    files.write()
    lost = 0
    for step in STEPS:
        promised = durable(cluster)
        killed(cluster, control, step, files)
        reached = recovered(cluster, tmp_path)
        assert reached >= promised, step
        lost += 1
        files.write()
        assert not files.wrong(), step
    durable(cluster)
    digests = dict(files.digests)
    lose_all_and_recover(cluster, disk)
    first.cli("mount", "v", str(first.mountpoint), "-O", "shared", timeout_s=WAIT_S)
    assert not files.wrong()
    figures.append(f"the leader's daemon died at each of {lost} steps of a checkpoint; {len(digests)} files came back from the LUN")
    first.cli("umount", str(first.mountpoint), timeout_s=WAIT_S)
