"""kubelet unstages every kind of volume: its own check, which reads the mount table of the host, lets it (kubelet_checks.py)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.keeper import mount_syscalls
from buildtools.nodes import await_true
from tests.csi import kubelet_checks
from tests.csi.rig import GIB, Mode, Player, capability

pytestmark = pytest.mark.root


def holders(player: Player, volume: str) -> list[str]:
    """For which kubelet would leave it staged."""
    place = Path(player.staging(volume))
    others = kubelet_checks.device_mount_refs(place)
    return others if kubelet_checks.has_mount_refs(place, others) else []


def test_nothing_keeps_a_volume_staged(player: Player) -> None:
    """Whole volumes and directories of one, made by the driver and by people, two handles of one thing, a volume that people mounted."""
    player.node.cli("volume", "create", "halls")
    player.node.cli("volume", "create", "mounted")
    place = player.node.directory / "by-hand"
    place.mkdir()
    player.node.cli("mount", "mounted", str(place))
    made = [player.create("pvc-whole"), player.create("pvc-part", volume="halls")]
    handles = [*made, "halls#one", "halls#two", "halls/pvc-part#again", "mounted#whole"]
    for number, handle in enumerate(handles):
        player.stage(handle)
        (player.publish(handle, f"pod-{number}") / "file").write_text(handle)
    for number, handle in enumerate(handles):  # the others are still staged and published
        player.unpublish(handle, f"pod-{number}")
        assert not holders(player, handle), handle
        player.unstage(handle)
        assert not Path(player.staging(handle)).exists()
    assert (place / "file").read_text() == "mounted#whole", "what people have mounted stays"
    player.node.cli("umount", str(place))
    place.rmdir()
    for volume in made:
        player.delete(volume)
    for name in ("halls", "mounted"):
        player.node.cli("volume", "delete", name, "--force", stdin=f"{name}\n")
    player.await_nothing_left()


def test_a_block_volume_is_not_kept_staged(player: Player) -> None:
    cap = capability(Mode.SINGLE_NODE_WRITER, block=True)
    volume = player.create("pvc-block-staged", 1 << 24, cap)
    player.stage(volume, cap)
    player.publish(volume, "pod-block", cap)
    player.unpublish(volume, "pod-block")
    assert not holders(player, volume)
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


def test_what_an_earlier_build_has_staged_is_moved(player: Player) -> None:
    """It bound the volume to the staging path itself."""
    cap = capability(Mode.SINGLE_NODE_WRITER, "noexec")
    volume = player.create("pvc-before", GIB, cap)
    player.stage(volume, cap)
    (player.publish(volume, "pod-before", cap) / "file").write_text("before")
    inner, outer = player.staged(volume), Path(player.staging(volume))
    subprocess.run(["umount", "-i", inner], check=True)
    inner.rmdir()
    subprocess.run(["mount", "--bind", "-o", "noexec", player.target("pod-before"), outer], check=True)
    assert holders(player, volume)
    player.unpublish(volume, "pod-before")
    assert (player.publish(volume, "pod-after", cap) / "file").read_text() == "before"
    player.kill_daemon()
    await_true("the bind moved", lambda: mount_syscalls.topmost(str(inner)) and not holders(player, volume), 60)
    entry = mount_syscalls.topmost(str(inner))
    assert entry is not None and "noexec" in entry.options and mount_syscalls.topmost(str(outer)) is None
    player.stage(volume, cap)
    player.unpublish(volume, "pod-after")
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()


def test_a_staging_path_with_files_is_refused(player: Player) -> None:
    volume = player.create("pvc-full")
    outer = Path(player.staging(volume))
    (outer / "volume").mkdir(parents=True)
    for place in (outer, outer / "volume"):
        (place / "file").write_text("data")
        request = pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=str(outer), volume_capability=capability())
        assert player.refused("NodeStageVolume", request)[0] == "FAILED_PRECONDITION"
        (place / "file").unlink()
    player.stage(volume)
    player.unstage(volume)
    player.delete(volume)
    player.await_nothing_left()
