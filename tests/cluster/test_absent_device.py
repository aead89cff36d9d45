"""A shared device that goes away under a shared mount: writes go on over the other one, and its return needs nobody."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buildtools.nodes import await_true
from tests.rigs.network_namespaces import found_static

MIB = 1 << 20
WAIT_S = 120

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
