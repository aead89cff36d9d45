"""What a pod may ask of its volume beside files: fsGroup, subPath, ReadWriteOncePod, VolumeAttributesClass, topology, health.

kubelet and the sidecars are played call by call, with what kubelet does on the volume by itself: it changes owners (fsGroup policy File),
and binds subdirectories and files of what is published (subPath), which it unbinds before it asks for NodeUnpublishVolume.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import TOPOLOGY
from awsomefsd.io.file.damaged_reads import DamagedRead, DamagedReads
from tests.csi.rig import GIB, Mode, Player, capability

pytestmark = pytest.mark.root
ALONE = capability(Mode.SINGLE_NODE_WRITER)
ONE_POD = capability(Mode.SINGLE_NODE_SINGLE_WRITER)
RW, EXEC, SETGID = 0o660, 0o110, stat.S_ISGID
GROUP = 4242


# --- fsGroup ----------------------------------------------------------------------------------------------------------------
def requires_change(root: Path, group: int) -> bool:
    """requiresPermissionChange of Kubernetes 1.36, for a volume that is written."""
    found = root.stat()
    wanted = RW | EXEC
    return found.st_gid != group or (found.st_mode & wanted) != wanted or not found.st_mode & SETGID


def set_ownership(root: Path, group: int, policy: str = "Always") -> int:
    """SetVolumeOwnership: children first, the root last; returns how many were changed."""
    if policy == "OnRootMismatch" and not requires_change(root, group):
        return 0
    changed = 0
    for above, directories, files in os.walk(root, topdown=False):
        for name in (*files, *directories):
            changed += change_permission(Path(above, name), group)
    return changed + change_permission(root, group)


def change_permission(path: Path, group: int) -> int:
    os.lchown(path, -1, group)
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode) | RW | (SETGID | EXEC if stat.S_ISDIR(mode) else 0))
    return 1


def as_user(place: Path, words: str) -> str:
    """What a container of user 1000 with this supplementary group gets of a command in the volume."""
    command = ["setpriv", "--reuid", "1000", "--regid", "1000", "--groups", str(GROUP), "sh", "-c", words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout


def test_kubelet_gives_a_volume_to_the_group_of_a_pod(player: Player) -> None:
    volume = player.create("pvc-group", GIB, ALONE)
    player.stage(volume, ALONE)
    place = player.publish(volume, "pod-group", ALONE)
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "er" / "file").write_text("x")
    (place / "file").write_text("x")
    (place / "file").chmod(0o400)
    (place / "link").symlink_to("/etc/passwd")
    before = Path("/etc/passwd").stat()
    assert set_ownership(place, GROUP) == 6
    assert Path("/etc/passwd").stat().st_gid == before.st_gid, "not what a link points to"
    assert (place / "link").lstat().st_gid == GROUP and stat.S_IMODE((place / "file").stat().st_mode) == 0o660
    assert as_user(place, "echo more >> file; echo new > deep/er/new; stat -c %g deep/er/new").strip() == str(GROUP), "setgid is inherited"
    player.unpublish(volume, "pod-group")
    again = player.publish(volume, "pod-again", ALONE)
    assert set_ownership(again, GROUP, "OnRootMismatch") == 0, "it is remembered by the root's group and mode"
    again.chmod(0o755)
    assert set_ownership(again, GROUP, "OnRootMismatch") == 7
    player.unpublish(volume, "pod-again")
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


# --- subPath ----------------------------------------------------------------------------------------------------------------
@contextmanager
def subpath(player: Player, pod: str, path: str, number: int) -> Iterator[Path]:
    """doBindSubPath and CleanSubPaths: what is below the target is opened through no link, and that descriptor is bound."""
    target = player.kubelet / "pods" / f"{pod}-subpaths" / "data" / "container" / str(number)
    at = os.open(player.target(pod), os.O_PATH | os.O_NOFOLLOW)
    for part in path.split("/"):
        below = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=at)
        os.close(at)
        at = below
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir() if stat.S_ISDIR(os.fstat(at).st_mode) else target.touch()
    subprocess.run(["mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{at}", str(target)], check=True, pass_fds=[at])
    os.close(at)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)
        target.rmdir() if target.is_dir() else target.unlink()
        for above in list(target.parents)[:3]:
            if not any(above.iterdir()):
                above.rmdir()


@pytest.mark.parametrize("shared", [False, True])
def test_parts_of_a_volume_are_bound_into_containers(player: Player, shared: bool) -> None:
    """A whole volume, and a directory of one, for one pod.  The driver is killed meanwhile, and kubelet publishes again."""
    more = {"volume": "parts"} if shared else {}
    if shared:
        player.node.cli("volume", "create", "parts")
    volume = player.create("pvc-sub", GIB, ONE_POD, **more)
    player.stage(volume, ONE_POD)
    place = player.publish(volume, "pod-sub", ONE_POD)
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "settings").write_text("before")
    with subpath(player, "pod-sub", "a/b", 0) as directory, subpath(player, "pod-sub", "a/settings", 1) as file:
        (directory / "of-the-container").write_text("x")
        assert file.read_text() == "before"
        file.write_text("after")
        player.kill_daemon()
        player.publish(volume, "pod-sub", ONE_POD)
        player.stage(volume, ONE_POD)
        (directory / "after-the-kill").write_text("y")
        assert player.refused("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume))[0] == "FAILED_PRECONDITION"
    assert (place / "a" / "settings").read_text() == "after"
    assert sorted(path.name for path in (place / "a" / "b").iterdir()) == ["after-the-kill", "of-the-container"]
    player.unpublish(volume, "pod-sub")
    player.unstage(volume)
    player.delete(volume)
    if shared:
        player.node.cli("volume", "delete", "parts", "--force", stdin="parts\n")
    player.await_nothing_left()


# --- ReadWriteOncePod -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shared", [False, True])
def test_a_second_pod_is_refused_until_the_first_is_gone(player: Player, shared: bool) -> None:
    """On the same node; that other nodes are refused is in test_three_nodes.py."""
    more = {"volume": "pods"} if shared else {}
    if shared:
        player.node.cli("volume", "create", "pods")
    volume = player.create("pvc-one-pod", GIB, ONE_POD, **more)
    player.stage(volume, ONE_POD)
    first = player.publish(volume, "first", ONE_POD)
    assert player.publish(volume, "first", ONE_POD) == first, "the same pod again"
    for readonly in (False, True):
        status, words = player.refused("NodePublishVolume", player.publication(volume, "second", ONE_POD, readonly))
        assert status == "FAILED_PRECONDITION" and str(first) in words and "one target" in words
    player.kill_daemon()
    assert player.refused("NodePublishVolume", player.publication(volume, "second", ONE_POD))[0] == "FAILED_PRECONDITION"
    player.unpublish(volume, "first")
    player.publish(volume, "second", ONE_POD)
    player.unpublish(volume, "second")
    player.unstage(volume)
    player.delete(volume)
    if shared:
        player.node.cli("volume", "delete", "pods", "--force", stdin="pods\n")
    player.await_nothing_left()


# --- VolumeAttributesClass --------------------------------------------------------------------------------------------------
def modify(volume: str, **parameters: str) -> pb.ControllerModifyVolumeRequest:
    return pb.ControllerModifyVolumeRequest(volume_id=volume, mutable_parameters=parameters)


def row_of(player: Player, volume: str) -> dict[str, object]:
    return next(row for row in player.node.ask("volume", "ls") if row["uuid"] == volume)


def test_the_attributes_of_a_volume_are_those_of_its_class(player: Player) -> None:
    """At creation by external-provisioner, and while it is used by external-resizer, which asks again until it is told that it is done."""
    request = pb.CreateVolumeRequest(
        name="pvc-vac", capacity_range=pb.CapacityRange(required_bytes=GIB), volume_capabilities=[ALONE],
        mutable_parameters={"inodes": "3", "names": "delegated"},
    )  # fmt: skip
    volume = player.call("CreateVolume", request).volume.volume_id
    assert player.call("CreateVolume", request).volume.volume_id == volume
    assert row_of(player, volume)["names"] == "delegated"
    player.stage(volume, ALONE)
    place = player.publish(volume, "pod-vac", ALONE)
    (place / "one").touch()
    (place / "two").touch()
    with pytest.raises(OSError, match="quota"):
        (place / "three").touch()
    for _ in range(2):
        player.call("ControllerModifyVolume", modify(volume, inodes="10", quota="none", names="durable"))
    (place / "three").touch()
    row = row_of(player, volume)
    assert (row["names"], row["quota_bytes"], row["quota_inodes"]) == ("durable", 0, 10)
    for wrong, word in (({"inodes": "many"}, "not a number"), ({"onDelete": "retain"}, "known are"), ({"names": "soon"}, "delegated")):
        status, words = player.refused("ControllerModifyVolume", modify(volume, **wrong))
        assert status == "INVALID_ARGUMENT" and word in words, "the resizer says Infeasible, and a user goes back to the class before"
    assert player.refused("ControllerModifyVolume", modify("a1b2c3d4-0000-4000-8000-000000000001", inodes="1"))[0] == "NOT_FOUND"
    for names in ("delegated", "durable"):
        player.node.cli("volume", "create", "by-hand", "--names", names)
        assert player.node.ask("volume", "show", "by-hand")["names"] == names
        player.node.cli("volume", "delete", "by-hand")
    player.call("ControllerModifyVolume", modify(volume, quota="hard"))
    assert row_of(player, volume)["quota_bytes"] == GIB
    player.unpublish(volume, "pod-vac")
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


# --- topology and capacity --------------------------------------------------------------------------------------------------
def test_a_volume_is_where_its_cluster_is(player: Player) -> None:
    ours = player.call("NodeGetInfo", pb.NodeGetInfoRequest()).accessible_topology
    other = pb.Topology(segments={TOPOLOGY + "cluster": "another"})
    assert list(ours.segments) == [TOPOLOGY + "cluster"]

    def create(*requisite: pb.Topology) -> pb.CreateVolumeRequest:
        wish = pb.TopologyRequirement(requisite=requisite, preferred=requisite[::-1])
        return pb.CreateVolumeRequest(name="pvc-where", volume_capabilities=[ALONE], accessibility_requirements=wish)

    status, words = player.refused("CreateVolume", create(other))
    assert status == "RESOURCE_EXHAUSTED" and "topologies" in words, "the scheduler tries another node then"
    made = player.call("CreateVolume", create(other, ours)).volume
    assert list(made.accessible_topology) == [ours]
    found = player.call("GetCapacity", pb.GetCapacityRequest(accessible_topology=ours))
    device = player.node.ask("device", "ls")[0]
    assert 0 < found.available_capacity <= device["segments"] * device["segment_bytes"] and not found.HasField("maximum_volume_size")
    assert player.call("GetCapacity", pb.GetCapacityRequest(accessible_topology=other)).available_capacity == 0
    player.delete(made.volume_id)
    player.await_nothing_left()


# --- health -----------------------------------------------------------------------------------------------------------------
def conditions(player: Player, volume: str, path: Path) -> list[bool]:
    """Of the node as kubelet asks, and of the controller as external-health-monitor asks."""
    stats = player.call("NodeGetVolumeStats", pb.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(path)))
    got = player.call("ControllerGetVolume", pb.ControllerGetVolumeRequest(volume_id=volume))
    listed = [one for one in player.call("ListVolumes", pb.ListVolumesRequest()).entries if one.volume.volume_id == volume]
    found = [stats.volume_condition, got.status.volume_condition, listed[0].status.volume_condition]
    assert all("kaput" in one.message for one in found if one.abnormal)
    return [one.abnormal for one in found]


def test_a_damaged_file_is_said_to_whoever_watches_volumes(player: Player) -> None:
    volume = player.create("pvc-ill", GIB, ALONE)
    player.stage(volume, ALONE)
    place = player.publish(volume, "pod-ill", ALONE)
    assert conditions(player, volume, place) == [False] * 3
    met = DamagedRead(int(str(row_of(player, volume)["volume"])), 1 << 40, 0, 4096, path="/kaput")
    records = DamagedReads(player.node.state)
    for _ in range(200):  # the daemon removes the record when it looks: there is no such file
        records.add(met)
        told = conditions(player, volume, place)
        health = player.call("ControllerGetVolumeHealth", pb.ControllerGetVolumeHealthRequest(volume_id=volume)).volume_health
        if records.knows(met):
            break
    records.remove(met)
    assert told == [True] * 3 and [one.status for one in health.health_statuses] == [pb.DATA_LOSS]
    assert conditions(player, volume, place) == [False] * 3
    player.unpublish(volume, "pod-ill")
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()
