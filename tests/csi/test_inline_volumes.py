"""Inline volumes (CSI ephemeral volumes), asked for as kubelet does: one publish without a stage, one unpublish, and nothing in between."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from awsomefsd.csi.inline_volumes import EPHEMERAL
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import DRIVER
from awsomefsd.csi.volumes import inline_id
from awsomefsd.keeper import mount_syscalls
from buildtools.nodes import await_true
from tests.conftest import making_nodes
from tests.csi.rig import Mode, Player, capability, cleared

pytestmark = pytest.mark.root
ALONE = capability(Mode.SINGLE_NODE_WRITER)
MIB = 1 << 20
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "kubernetes" / "inline.yaml"


class Pod:
    """A pod with one inline volume, as kubelet of its node sees it."""

    def __init__(self, player: Player, name: str, **attributes: str) -> None:
        self.player = player
        self.handle = "csi-" + hashlib.sha256(name.encode()).hexdigest()
        self.directory = player.kubelet / "pods" / name / "volumes" / "kubernetes.io~csi" / "scratch"
        self.target = self.directory / "mount"
        self.context = attributes | {EPHEMERAL: "true", "csi.storage.k8s.io/pod.name": name, "csi.storage.k8s.io/pod.uid": name}

    @property
    def volume(self) -> str:
        return f"csi-{inline_id(self.handle)}"

    def request(self, cap: pb.VolumeCapability = ALONE, readonly: bool = False) -> pb.NodePublishVolumeRequest:
        return pb.NodePublishVolumeRequest(
            volume_id=self.handle, target_path=str(self.target), volume_capability=cap, volume_context=self.context, readonly=readonly
        )

    def know(self) -> None:
        """kubelet makes its directory of the volume before it asks."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "vol_data.json").write_text("{}")

    def forget(self) -> None:
        (self.directory / "vol_data.json").unlink()
        for place in (self.directory, *list(self.directory.parents)[:3]):
            place.rmdir()

    def begin(self) -> Path:
        self.know()
        self.player.call("NodePublishVolume", self.request())
        return self.target

    def unpublish(self) -> None:
        self.player.call("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=self.handle, target_path=str(self.target)))

    def end(self) -> None:
        for _ in range(2):
            self.unpublish()
        self.forget()

    def refused(self, cap: pb.VolumeCapability = ALONE) -> tuple[str, str]:
        self.know()
        found = self.player.refused("NodePublishVolume", self.request(cap))
        self.forget()
        return found


def volumes(player: Player) -> list[str]:
    return [row["name"] for row in player.node.ask("volume", "ls")]


@pytest.fixture(scope="module")
def inline() -> Iterator[Player]:
    """A node with inline volumes switched on."""
    with contextmanager(making_nodes)() as make:
        node = make(up=False, size_bytes=16 << 30)
        player = Player(node)
        node.settings |= {"AWSOMEFSD_CSI_INLINE": "true", "AWSOMEFSD_CSI_INLINE_MAX": "1GiB"}
        with cleared(player):
            player.up()
            yield player


def test_a_pod_has_its_volume_for_as_long_as_it_lives(inline: Player) -> None:
    pod = Pod(inline, "pod-life", size="64Mi", inodes="20", mode="1770", uid="5", gid="3000")
    target = pod.begin()
    shown, free = target.stat(), os.statvfs(target)
    assert (stat.S_IMODE(shown.st_mode), shown.st_uid, shown.st_gid) == (0o1770, 5, 3000)
    assert (free.f_blocks * free.f_frsize, free.f_files) == (64 * MIB, 20)
    assert free.f_flag & os.ST_NOSUID and free.f_flag & os.ST_NODEV
    (target / "file").write_text("scratch")
    pod.begin()
    inline.kill_daemon()
    assert (pod.begin() / "file").read_text() == "scratch", "a publish is repeated after a restart"
    stats = inline.call("NodeGetVolumeStats", pb.NodeGetVolumeStatsRequest(volume_id=pod.handle, volume_path=str(target)))
    assert stats.usage[0].total == 64 * MIB
    for number in range(18):
        (target / f"more-{number}").touch()
    with pytest.raises(OSError, match="quota"):
        (target / "too-many").touch()
    inline.kill_daemon()
    pod.end()
    assert pod.volume not in volumes(inline) and not pod.target.exists()
    inline.await_nothing_left()


def test_two_pods_and_a_pod_that_only_reads(inline: Player) -> None:
    one, two = Pod(inline, "pod-one"), Pod(inline, "pod-two")
    (one.begin() / "file").write_text("of one")
    two.know()
    inline.call("NodePublishVolume", two.request(readonly=True))
    assert not list(two.target.iterdir()) and os.statvfs(two.target).f_flag & os.ST_RDONLY
    assert stat.S_IMODE(one.target.stat().st_mode) == 0o777, "as emptyDir: for containers that are not root"
    two.end()
    assert (one.target / "file").read_text() == "of one"
    one.end()
    inline.await_nothing_left()


def test_the_example(inline: Player) -> None:
    [volume] = yaml.safe_load(EXAMPLE.read_text())["spec"]["volumes"]
    pod = Pod(inline, "scratch", **volume["csi"]["volumeAttributes"])
    free = os.statvfs(pod.begin())
    assert (free.f_blocks * free.f_frsize, free.f_files) == (512 * MIB, 10_000)
    pod.end()
    inline.await_nothing_left()


def test_nobody_else_gets_it(inline: Player) -> None:
    pod = Pod(inline, "pod-own")
    (pod.begin() / "file").write_text("own")
    for handle in (pod.volume, inline_id(pod.handle)):
        request = pb.NodeStageVolumeRequest(volume_id=handle, staging_target_path=inline.staging("x"), volume_capability=ALONE)
        status, words = inline.refused("NodeStageVolume", request)
        assert status == "FAILED_PRECONDITION" and "inline" in words, handle
        unpublished = pb.NodeUnpublishVolumeRequest(volume_id=handle, target_path=str(pod.target))
        assert inline.refused("NodeUnpublishVolume", unpublished)[0] == "FAILED_PRECONDITION", handle
    Path(inline.staging("x")).parent.rmdir()
    assert inline.refused("DeleteVolume", pb.DeleteVolumeRequest(volume_id=inline_id(pod.handle)))[0] == "FAILED_PRECONDITION"
    same = pb.CreateVolumeRequest(name=pod.handle, volume_capabilities=[ALONE])
    assert inline.refused("CreateVolume", same)[0] == "ALREADY_EXISTS"
    assert not inline.call("ListVolumes", pb.ListVolumesRequest()).entries
    elsewhere = inline.kubelet / "pods" / "elsewhere"
    elsewhere.mkdir()
    other = pod.request()
    other.target_path = str(elsewhere / "mount")
    assert inline.refused("NodePublishVolume", other)[0] == "ALREADY_EXISTS", "one target"
    inline.refused("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=pod.handle, target_path=other.target_path))
    assert (pod.target / "file").read_text() == "own", "an unpublish of another target deletes nothing"
    elsewhere.rmdir()
    pod.end()
    inline.await_nothing_left()


def test_what_is_refused_leaves_nothing(inline: Player) -> None:
    wrong = [
        ({"quota": "none"}, "INVALID_ARGUMENT", "size"), ({"size": "2Gi"}, "OUT_OF_RANGE", "csi.inline_max"),
        ({"size": "much"}, "INVALID_ARGUMENT", "size"), ({"size": "1"}, "OUT_OF_RANGE", "4096"),
        ({"mode": "9"}, "INVALID_ARGUMENT", "octal"),
        ({"inodes": "0"}, "INVALID_ARGUMENT", "inodes"), ({"inline-node": "n"}, "INVALID_ARGUMENT", "unknown"),
    ]  # fmt: skip
    for attributes, status, word in wrong:
        said = Pod(inline, "pod-wrong", **attributes).refused()
        assert said[0] == status and word in said[1], (attributes, said)
    block, synchronous = capability(Mode.SINGLE_NODE_WRITER, block=True), capability(Mode.SINGLE_NODE_WRITER, "sync")
    for cap in (capability(Mode.MULTI_NODE_MULTI_WRITER), block, synchronous):
        assert Pod(inline, "pod-wrong").refused(cap)[0] == "INVALID_ARGUMENT"
    pod = Pod(inline, "pod-foreign")
    pod.know()
    pod.target.mkdir()
    (pod.target / "file").touch()
    assert inline.refused("NodePublishVolume", pod.request())[0] == "FAILED_PRECONDITION", "files where it would be mounted"
    (pod.target / "file").unlink()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(pod.target)], check=True)
    assert inline.refused("NodePublishVolume", pod.request())[0] == "FAILED_PRECONDITION"
    assert mount_syscalls.topmost(str(pod.target)) is not None, "what others have mounted stays"
    subprocess.run(["umount", str(pod.target)], check=True)
    assert pod.volume not in volumes(inline), "kubelet does not unpublish what was refused"
    pod.target.rmdir()
    pod.forget()
    inline.await_nothing_left()


def test_after_a_reboot_it_is_deleted_too_or_goes_on(inline: Player) -> None:
    """Nothing is mounted then.  kubelet publishes the volumes of pods that go on again, and unpublishes those of pods that were deleted."""
    stays, goes = Pod(inline, "pod-stays"), Pod(inline, "pod-goes")
    for pod in (stays, goes):
        (pod.begin() / "file").write_text("durable")
        with (pod.target / "file").open() as file:
            os.fsync(file.fileno())
    inline.node.kill_everything()
    for pod in (stays, goes):
        for place in (pod.target, inline.kubelet / "plugins" / DRIVER / "volumes" / inline_id(pod.handle)):
            mount_syscalls.umount(str(place), mount_syscalls.MNT_DETACH)
    inline.node.start()
    inline.node.await_daemon()
    inline.insist("NodePublishVolume", stays.request())
    assert (stays.target / "file").read_text() == "durable"
    inline.insist("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=goes.handle, target_path=str(goes.target)))
    for pod in (goes, stays):
        pod.end()
    inline.await_nothing_left()


def test_a_pod_that_went_without_an_unpublish(inline: Player) -> None:
    """Its directories were deleted by hand: the daemon of its node sees that at its start, and now and then."""
    stays, gone = Pod(inline, "pod-there"), Pod(inline, "pod-gone")
    for pod in (stays, gone):
        (pod.begin() / "file").write_text("left")
    mount_syscalls.umount(str(gone.target))
    gone.target.rmdir()
    gone.forget()
    inline.kill_daemon()
    inline.node.await_daemon()
    await_true("the volume deleted", lambda: gone.volume not in volumes(inline), 60, 0.2)
    assert (stays.target / "file").read_text() == "left"
    stays.end()
    inline.await_nothing_left()


def test_they_are_off_until_somebody_switches_them_on(player: Player) -> None:
    status, words = Pod(player, "pod-off").refused()
    assert status == "FAILED_PRECONDITION" and "csi.inline" in words and "generic" in words
    player.await_nothing_left()
