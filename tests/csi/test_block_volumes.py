"""Block volumes: after the mount namespace that attached their loop device is gone, for pods that only read, and what is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import DRIVER
from awsomefsd.keeper import mount_syscalls
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


def test_a_device_of_another_node_on_this_kernel_keeps_nothing_mounted(player: Player) -> None:
    """Nodes that are containers (kind) have one kernel and one set of paths: the device of another one shows this node's path."""
    volume = player.create("pvc-b-kind", SIZE, ALONE)
    player.stage(volume, ALONE)
    home = player.kubelet / "plugins" / DRIVER / "volumes" / volume
    script = f"umount -i {home} && mount -t tmpfs other {home} && truncate -s 1M {home}/block.img && losetup --find --show {home}/block.img"
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{script}; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        device = other.stdout.readline().strip()
        try:
            assert backing(device.removeprefix("/dev/")) == f"{home}/block.img"
            player.unstage(volume)
            assert mount_syscalls.topmost(str(home)) is None, "the volume stays mounted, and nobody asks again"
            player.delete(volume)
        finally:
            loops.detach(device)
            other.kill()
    player.await_nothing_left()


def test_a_device_that_somebody_detached_keeps_no_pod(player: Player) -> None:
    """`losetup -D` on a node takes the files from all devices; the pod has had its errors, and must be able to end."""
    volume = player.create("pvc-b-detached", SIZE, ALONE)
    player.stage(volume, ALONE)
    target = player.publish(volume, "pod-d", ALONE)
    loops.detach(f"/dev/{number_of(target)}")
    assert not devices_of(player, volume)
    player.unpublish(volume, "pod-d")
    assert not target.exists()
    player.unstage(volume)
    player.delete(volume)
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


def test_a_target_of_another_volume_is_not_unpublished(player: Player) -> None:
    mine, other, files = player.create("pvc-b-mine", SIZE, ALONE), player.create("pvc-b-other", SIZE, ALONE), player.create("pvc-b-files")
    for volume in (mine, other):
        player.stage(volume, ALONE)
    target = player.publish(mine, "pod-mine", ALONE)
    player.publish(other, "pod-other", ALONE)
    strangers = (other, files, "0190c1a2-0000-4000-8000-000000000009", f"csi-{other}/block.img")
    for stranger in strangers:
        request = pb.NodeUnpublishVolumeRequest(volume_id=stranger, target_path=str(target))
        status, words = player.refused("NodeUnpublishVolume", request)
        assert status == "FAILED_PRECONDITION" and "another volume" in words, stranger
        assert mount_syscalls.topmost(str(target)) is not None, stranger
    attached_by_a_container(player, other)  # the path of such a device says nothing of its volume
    player.unpublish(other, "pod-other")
    again = player.publish(other, "pod-again", ALONE)
    status, words = player.refused("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=mine, target_path=str(again)))
    assert status == "FAILED_PRECONDITION" and "another volume" in words
    for volume, pod in ((mine, "pod-mine"), (other, "pod-again")):
        player.unpublish(volume, pod)
    for volume in (mine, other):
        player.unstage(volume)
    for volume in (mine, other, files):
        player.delete(volume)
    player.await_nothing_left()


def replaced(player: Player, volume: str, *options: str) -> str:
    """In place of the driver's device: another one over the volume's file."""
    for device in devices_of(player, volume):
        loops.detach(device)
    file = player.kubelet / "plugins" / DRIVER / "volumes" / volume / "block.img"
    subprocess.run(["losetup", "--find", *options, str(file)], check=True)
    [device] = devices_of(player, volume)
    return device.removeprefix("/dev/")


def test_without_direct_io_it_is_not_for_many_nodes(player: Player) -> None:
    """The pages that a kernel keeps of the file would not follow the writes of other nodes: it is refused, and nothing of it is left."""
    together = capability(Mode.MULTI_NODE_MULTI_WRITER, block=True)
    volume = player.create("pvc-b-many", SIZE, together)
    place = player.kubelet / "plugins" / DRIVER / "volumes" / volume
    player.stage(volume, together)
    request = pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=player.staging(volume), volume_capability=together)
    for options, word in ((["--offset", "100"], "direct I/O"), (["--sector-size", "4096", "--direct-io=on"], "4096")):
        name = replaced(player, volume, *options)
        status, words = player.refused("NodeStageVolume", request)
        assert status == "FAILED_PRECONDITION" and word in words
        assert not Path(f"/sys/block/{name}/loop/backing_file").exists() and mount_syscalls.topmost(str(place)) is None, "nothing is left"
        player.stage(volume, together)
    name = replaced(player, volume)
    assert Path(f"/sys/block/{name}/loop/dio").read_text().strip() == "0"
    player.stage(volume, together)
    assert Path(f"/sys/block/{name}/loop/dio").read_text().strip() == "1", "it got direct I/O"
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


def test_a_file_that_may_show_old_bytes_is_not_for_many_nodes(player: Player) -> None:
    together = capability(Mode.MULTI_NODE_MULTI_WRITER, block=True)
    player.node.cli("volume", "create", "images")
    place = player.node.directory / "images"
    place.mkdir()
    player.node.cli("mount", "images", str(place))
    with (place / "disk").open("wb") as file:
        file.truncate(SIZE)
    os.setxattr(place / "disk", "user.awsomefs.consistency", b"close-to-open")
    request = pb.NodeStageVolumeRequest(
        volume_id="images/disk", staging_target_path=player.staging("images/disk"), volume_capability=together
    )
    status, words = player.refused("NodeStageVolume", request)
    assert status == "FAILED_PRECONDITION" and "needs strict" in words
    os.setxattr(place / "disk", "user.awsomefs.consistency", b"strict")
    player.stage("images/disk", together)
    player.unstage("images/disk")
    player.node.cli("umount", str(place))
    place.rmdir()
    player.node.cli("volume", "delete", "images", "--force", stdin="images\n")
    player.await_nothing_left()
