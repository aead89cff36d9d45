"""A shared device that goes away under a shared mount: writes go on over the other one, and its return needs nobody.

And one that a single node does not see: it writes to the others, and what lies there answers EIO on it alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.cluster.test_health import codes
from tests.rigs.network_namespaces import found_static

MIB = 1 << 20
WAIT_S = 120
WRITES = 40

pytestmark = pytest.mark.soak  # the parts are in tests/unit/meta/server/test_absent_devices.py and tests/unit/io/file/test_draining.py


def works(act: Callable[[], Any]) -> bool:
    """Returns False where the device failed."""
    try:
        act()
    except OSError as err:
        if err.errno not in (errno.EIO, errno.ENOSPC):
            raise
        return False
    return True


def write_synced(path: Path, data: bytes) -> bool:
    def write() -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return works(write)


def test_a_node_that_sees_one_of_two_devices_no_more_writes_to_the_other(make_cluster: Callable[..., Cluster]) -> None:
    """It has a name of its own for the first one, which goes; then its daemon and its worker come back without it."""
    cluster = make_cluster(3)
    found_static(cluster)
    disks = [cluster.directory / "one.img", cluster.directory / "two.img"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(512 * MIB)
    own = cluster.directory / "own-one.img"
    os.link(disks[0], own)  # the one that is written to first
    first, _, blind = cluster.nodes
    for node in cluster.nodes:
        node.settings["AWSOMEFSD_DEVICES_SCAN"] = f"{own if node is blind else disks[0]},{disks[1]}"
    try:
        cluster.launch()
        cluster.await_leader()
        for disk in disks:
            first.cli("device", "add", str(disk), "--shared", timeout_s=120)
        for node in cluster.nodes:
            await_true("all to see both", lambda node=node: [r["state"] for r in node.ask("device", "ls")] == ["ok"] * 2, WAIT_S, 0.3)
        first.cli("volume", "create", "v")
        for node in (first, blind):
            node.mountpoint.mkdir(exist_ok=True)
            node.cli("mount", "v", str(node.mountpoint), "-O", "shared", timeout_s=120)
        own.unlink()
        blind.replaced("daemon", blind.kill("daemon")["daemon"])
        blind.await_daemon()
        await_true("the device to be missing there", lambda: "DEVICE_MISSING" in codes(blind), WAIT_S, 0.3)
        blind.replaced("worker", blind.kill("worker")["worker"])
        for number in range(WRITES):
            assert write_synced(first.mountpoint / f"first-{number}", b"f" * MIB)
            assert write_synced(blind.mountpoint / f"blind-{number}", b"b" * MIB)
        lost = [number for number in range(WRITES) if not works((blind.mountpoint / f"first-{number}").read_bytes)]
        assert lost, "nothing was written to the device that the node does not see"
        for number in range(WRITES):
            assert (blind.mountpoint / f"blind-{number}").read_bytes() == b"b" * MIB == (first.mountpoint / f"blind-{number}").read_bytes()
            assert (first.mountpoint / f"first-{number}").read_bytes() == b"f" * MIB
        assert "DEVICE_MISSING" not in codes(first)
        for node in (first, blind):
            node.cli("umount", str(node.mountpoint), timeout_s=180)
    finally:
        for node in cluster.nodes:
            node.kill_everything()
            node.detach_mount()


def test_writes_to_a_shared_mount_go_on_without_one_of_two_devices(make_cluster) -> None:
    cluster = make_cluster(3)
    found_static(cluster)
    disks = [cluster.directory / "one.img", cluster.directory / "two.img"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(512 * MIB)
    for node in cluster.nodes:
        node.settings["AWSOMEFSD_DEVICES_SCAN"] = ",".join(map(str, [*disks, cluster.directory / "moved.img"]))
    try:
        cluster.launch()
        cluster.await_leader()
        first, second, _ = cluster.nodes

        def states() -> list[str]:
            rows: list[dict[str, Any]] = first.ask("device", "ls")
            return [row["state"] for row in rows]

        for disk in disks:
            first.cli("device", "add", str(disk), "--shared", timeout_s=120)
        for node in cluster.nodes:
            await_true("all to see both", lambda node=node: [r["state"] for r in node.ask("device", "ls")] == ["ok"] * 2, WAIT_S, 0.3)
        first.cli("volume", "create", "v")
        for node in (first, second):
            node.mountpoint.mkdir(exist_ok=True)
            node.cli("mount", "v", str(node.mountpoint), "-O", "shared", timeout_s=120)
        place = first.mountpoint
        assert write_synced(place / "before", b"b" * 200_000)
        content = disks[0].read_bytes()
        os.truncate(disks[0], 0)
        disks[0].rename(cluster.directory / "gone.img")
        await_true("the device to be absent", lambda: states()[0].startswith("absent"), WAIT_S, 0.3)
        await_true("writes to go on", lambda: write_synced(place / "meanwhile", b"m" * 200_000), WAIT_S, 0.3)
        assert (second.mountpoint / "meanwhile").read_bytes() == b"m" * 200_000
        with pytest.raises(OSError, match="Input/output error"):
            (second.mountpoint / "before").read_bytes()
        (cluster.directory / "moved.img").write_bytes(content)
        await_true("the device to be back", lambda: states() == ["ok", "ok"], WAIT_S, 0.3)
        for node in (first, second):
            path = node.mountpoint / "before"
            await_true("the node to find the device", lambda path=path: works(path.read_bytes), WAIT_S, 0.3)
            assert path.read_bytes() == b"b" * 200_000
        for node in (first, second):
            node.cli("umount", str(node.mountpoint), timeout_s=180)
    finally:
        for node in cluster.nodes:
            node.kill_everything()
            node.detach_mount()
