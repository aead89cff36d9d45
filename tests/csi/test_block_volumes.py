"""Block volumes after the mount namespace that attached their loop device is gone, and for pods that only read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import DRIVER
from buildtools import loops
from tests.csi.rig import Mode, Player, capability

pytestmark = pytest.mark.root
ALONE = capability(Mode.SINGLE_NODE_WRITER, block=True)
SIZE = 1 << 24


def backing(name: str) -> str:
    return Path(f"/sys/block/{name}/loop/backing_file").read_text().strip()


def number_of(target: Path) -> str:
    return f"loop{os.minor(target.stat().st_rdev)}"


def devices_of(player: Player, volume: str) -> list[str]:
    """The loop devices over the volume's file, by its superblock and inode."""
    file = (player.kubelet / "plugins" / DRIVER / "volumes" / volume / "block.img").stat()
    words = ["losetup", "--list", "--noheadings", "--output", "NAME,BACK-INO,BACK-MAJ:MIN"]
    wanted = [str(file.st_ino), f"{os.major(file.st_dev)}:{os.minor(file.st_dev)}"]
    rows = [row.split() for row in subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()]
    return [name for name, *about in rows if about == wanted]


def attached_by_a_container(player: Player, volume: str) -> str:
    """In place of the driver's device: one whose file was opened in a mount namespace that is gone, as by builds before."""
    [device] = devices_of(player, volume)
    loops.detach(device)
    file = player.kubelet / "plugins" / DRIVER / "volumes" / volume / "block.img"
    subprocess.run(["unshare", "--mount", "--propagation", "private", "losetup", device, file], check=True)
    assert backing(device.removeprefix("/dev/")) == "/block.img"
    return device


def test_a_device_outlives_the_namespace_that_attached_it(player: Player) -> None:
    volume, other = (player.create(name, SIZE, ALONE) for name in ("pvc-b", "pvc-b2"))
    for one in (volume, other):
        player.stage(one, ALONE)
        attached_by_a_container(player, one)
    device = devices_of(player, volume)
    player.stage(volume, ALONE)
    assert devices_of(player, volume) == device, "no second device over one file: its cache would be another one"
    target = player.publish(volume, "pod-1", ALONE)
    assert f"/dev/{number_of(target)}" == device[0], "and not the one of the other volume"
    asked = pb.CapacityRange(required_bytes=2 * SIZE)
    player.call("ControllerExpandVolume", pb.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=asked))
    player.call("NodeExpandVolume", pb.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(target), capacity_range=asked))
    with target.open("rb") as file:
        assert file.seek(0, os.SEEK_END) == 2 * SIZE
    stats = player.call("NodeGetVolumeStats", pb.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target)))
    assert stats.usage[0].total == 2 * SIZE
    player.unpublish(volume, "pod-1")
    player.unstage(volume)
    assert devices_of(player, other), "the other volume's stays"
    player.unstage(other)
    for one in (volume, other):
        player.delete(one)
    player.await_nothing_left()


def test_a_pod_may_ask_for_a_block_volume_read_only(player: Player) -> None:
    """kubelet gives the container the device without the right to write, so the driver just publishes it."""
    cap = capability(Mode.SINGLE_NODE_MULTI_WRITER, block=True)
    volume = player.create("pvc-b-ro", SIZE, cap)
    player.stage(volume, cap)
    with player.publish(volume, "writer", cap).open("r+b", buffering=0) as file:
        file.write(b"a" * 4096)
        os.fsync(file.fileno())
    with player.publish(volume, "reader", cap, readonly=True).open("rb") as file:
        assert file.read(4096) == b"a" * 4096
    for pod in ("writer", "reader"):
        player.unpublish(volume, pod)
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()
