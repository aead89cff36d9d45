"""Requests that mean harm or nothing: a clear refusal, never a mount or a removal outside the kubelet directory, or of other people's."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.keeper import mount_syscalls
from tests.csi.rig import Player, capability

pytestmark = pytest.mark.root
GOOD = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "ABORTED", "ALREADY_EXISTS", "UNIMPLEMENTED"}

# a link was there, or nothing, or what is mounted under the other name; or it was changed at every try
SWAPPED = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ABORTED"}


@pytest.fixture(scope="module")
def volume(player: Player) -> Iterator[str]:
    made = player.create("pvc-refusals")
    player.stage(made)
    yield made
    player.unstage(made)
    player.delete(made)


@pytest.fixture
def outside(player: Player) -> Iterator[Path]:
    """Something that nobody may touch."""
    place = player.node.directory / "outside"
    place.mkdir(exist_ok=True)
    (place / "mount").mkdir(exist_ok=True)
    (place / "precious").write_text("data")
    yield place
    assert (place / "precious").read_text() == "data" and (place / "mount").is_dir()
    assert not any(entry.dir.startswith(str(place)) for entry in mount_syscalls.mounts())


def publish_at(player: Player, volume: str, path: str) -> tuple[str, str]:
    return player.refused("NodePublishVolume", pb.NodePublishVolumeRequest(
        volume_id=volume, staging_target_path=player.staging(volume), target_path=path, volume_capability=capability()))  # fmt: skip


def unpublish_at(player: Player, volume: str, path: str) -> tuple[str, str]:
    return player.refused("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=path))


def test_paths_that_lead_out(player: Player, volume: str, outside: Path) -> None:
    pods = player.kubelet / "pods"
    (pods / "link").symlink_to(outside)
    (pods / "planted").symlink_to(outside / "mount")
    for path in (
        f"{outside}/mount", f"{pods}/../../outside/mount", f"{pods}/link/mount", f"{pods}/planted", "pods/relative", "/",
        str(player.kubelet),
        f"{pods}/" + "x" * 5000, f"{pods}/..",
    ):  # fmt: skip
        assert publish_at(player, volume, path)[0] == "INVALID_ARGUMENT", path
        assert unpublish_at(player, volume, path)[0] == "INVALID_ARGUMENT", path
        staged = pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=path, volume_capability=capability())
        assert player.refused("NodeStageVolume", staged)[0] == "INVALID_ARGUMENT", path
        unstaged = pb.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=path)
        assert player.refused("NodeUnstageVolume", unstaged)[0] == "INVALID_ARGUMENT", path
    for name in ("link", "planted"):
        assert (pods / name).is_symlink()
        (pods / name).unlink()


def test_what_is_not_ours_is_left_alone(player: Player, volume: str) -> None:
    pods = player.kubelet / "pods"
    (pods / "full").mkdir()
    (pods / "full" / "file").write_text("data")
    (pods / "file").write_text("data")
    (pods / "foreign").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(pods / "foreign")], check=True)
    try:
        (pods / "foreign" / "file").write_text("data")
        for name in ("full", "file", "foreign"):
            assert publish_at(player, volume, str(pods / name))[0] == "FAILED_PRECONDITION", name
            assert unpublish_at(player, volume, str(pods / name))[0] == "FAILED_PRECONDITION", name
        assert (pods / "full" / "file").read_text() == (pods / "file").read_text() == (pods / "foreign" / "file").read_text() == "data"
    finally:
        subprocess.run(["umount", str(pods / "foreign")], check=True)
    other = player.create("pvc-other")
    target = player.publish(volume, "mine")
    assert unpublish_at(player, other, str(target))[0] == "FAILED_PRECONDITION", "another volume's target"
    assert publish_at(player, other, str(target))[0] in ("FAILED_PRECONDITION", "ALREADY_EXISTS")
    assert mount_syscalls.topmost(str(target)) is not None
    player.unpublish(volume, "mine")
    player.delete(other)
    for name in ("full/file", "file"):
        (pods / name).unlink()
    for name in ("full", "foreign"):
        (pods / name).rmdir()


def test_names_and_parameters(player: Player) -> None:
    def made(name: str, **parameters: str) -> tuple[str, str]:
        return player.refused("CreateVolume", pb.CreateVolumeRequest(name=name, volume_capabilities=[capability()], parameters=parameters))

    assert made("x" * 129)[0] == made("é" * 65)[0] == made("")[0] == "INVALID_ARGUMENT"
    status, words = made("p", qouta="hard")
    assert status == "INVALID_ARGUMENT" and "quota" in words and "onDelete" in words
    assert "close-to-open" in made("p", consistency="relaxed")[1] and "not supported" in made("p", devices="fast")[1]
    assert made("../../etc", volume="demo")[0] == made("..", volume="demo")[0] == "INVALID_ARGUMENT"
    for name in ("../../etc/passwd", "a\0b", "$(reboot)", "'; drop", "\n\n", "x" * 128, "💾" * 32):
        player.delete(player.create(name))


def test_how_fresh_is_said_to_the_directory_and_inherited(player: Player) -> None:
    volume = player.create("pvc-fresh", volume="demo", consistency="bounded=2.5")
    player.stage(volume)
    try:
        made = player.staged(volume) / "made"
        made.mkdir()
        assert os.getxattr(player.staged(volume), "user.awsomefs.consistency") == b"bounded=2.5"
        assert os.getxattr(made, "user.awsomefs.consistency") == b"bounded=2.5"
    finally:
        player.unstage(volume)
        player.delete(volume)


def test_missing_fields(player: Player, volume: str) -> None:
    """Every field that the specification requires, one missing at a time; and nothing at all."""
    target, staging = f"{player.kubelet}/pods/missing", player.staging(volume)
    whole = {
        "CreateVolume": pb.CreateVolumeRequest(name="missing", volume_capabilities=[capability()]),
        "DeleteVolume": pb.DeleteVolumeRequest(volume_id=volume),
        "ControllerPublishVolume": pb.ControllerPublishVolumeRequest(
            volume_id=volume, node_id=player.node.uuid(), volume_capability=capability()
        ),
        "ValidateVolumeCapabilities": pb.ValidateVolumeCapabilitiesRequest(volume_id=volume, volume_capabilities=[capability()]),
        "ControllerExpandVolume": pb.ControllerExpandVolumeRequest(
            volume_id=volume, capacity_range=pb.CapacityRange(required_bytes=2 << 30)
        ),
        "NodeStageVolume": pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=staging, volume_capability=capability()),
        "NodeUnstageVolume": pb.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=staging),
        "NodePublishVolume": pb.NodePublishVolumeRequest(volume_id=volume, target_path=target, volume_capability=capability()),
        "NodeUnpublishVolume": pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=target),
        "NodeGetVolumeStats": pb.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=target),
        "NodeExpandVolume": pb.NodeExpandVolumeRequest(volume_id=volume, volume_path=target),
    }
    for rpc, request in whole.items():
        for name in [field.name for field, _ in request.ListFields()]:
            short = type(request)()
            short.CopyFrom(request)
            short.ClearField(name)
            assert player.refused(rpc, short)[0] == "INVALID_ARGUMENT", (rpc, name)
        assert player.refused(rpc, type(request)())[0] == "INVALID_ARGUMENT", rpc
    assert not Path(target).exists() and mount_syscalls.topmost(str(player.staged(volume))) is not None


def test_a_directory_that_turns_into_a_symlink_meanwhile(player: Player, volume: str, outside: Path) -> None:
    """Somebody swaps the target's parent for a link to elsewhere, again and again, while the driver works below it."""
    refused: dict[str, str] = {}
    pods, ended = player.kubelet / "pods", threading.Event()
    (pods / "real").mkdir()

    def swap() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                os.rename(pods / "swapped", pods / "real")
            with contextlib.suppress(OSError):
                (pods / "swapped").symlink_to(outside)
                (pods / "swapped").unlink()
            with contextlib.suppress(OSError):
                os.rename(pods / "real", pods / "swapped")

    path = f"{pods}/swapped/mount"
    publish = pb.NodePublishVolumeRequest(
        volume_id=volume, staging_target_path=player.staging(volume), target_path=path, volume_capability=capability()
    )
    unpublish = pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=path)
    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(40):
            for rpc, request in (("NodePublishVolume", publish), ("NodeUnpublishVolume", unpublish)):
                try:
                    player.once(rpc, request)
                except grpc.RpcError as err:
                    refused[err.code().name] = err.details()  # type: ignore[attr-defined]
    finally:
        ended.set()
        swapping.join()
    assert refused.keys() <= SWAPPED, refused
    for name in ("real", "swapped"):
        if (pods / name).is_dir() and not (pods / name).is_symlink():
            player.call("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=f"{pods}/{name}/mount"))
            (pods / name).rmdir()
    assert not os.path.lexists(pods / "swapped") and not os.path.lexists(pods / "real")


def test_fuzzed_protobufs(player: Player, volume: str, outside: Path, seed: int) -> None:
    """Any bytes on any method: no crash, no status of a bug, and the process stays the same."""
    chance, pid = random.Random(seed), player.node.pid("daemon")
    messages = [
        pb.NodePublishVolumeRequest(volume_id=volume, staging_target_path=player.staging(volume), target_path=f"{outside}/mount"),
        pb.CreateVolumeRequest(name="fuzz", volume_capabilities=[capability()], parameters={"quota": "hard"}),
        pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=f"{outside}/mount"),
        pb.ListVolumesRequest(max_entries=-1, starting_token="x"),
    ]
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods if service.name in ("Identity", "Controller", "Node") else ():
            call = player.channel.unary_unary(f"/{service.full_name}/{method.name}")
            for _ in range(25):
                raw = bytearray(chance.choice(messages).SerializeToString() or b"x")
                for _ in range(chance.randrange(4)):
                    raw[chance.randrange(len(raw))] = chance.randrange(256)
                status = "OK"
                try:
                    call(bytes(raw), timeout=60)
                except grpc.RpcError as err:
                    status = err.code().name  # type: ignore[attr-defined]
                    undecodable = status == "INTERNAL" and "deserializ" in (err.details() or "")  # type: ignore[attr-defined]
                    status = "INVALID_ARGUMENT" if undecodable else status
                assert status in GOOD, (method.name, bytes(raw), status)
    for row in player.call("ListVolumes", pb.ListVolumesRequest()).entries:  # what fuzzed CreateVolume made
        if row.volume.volume_id != volume:
            player.delete(row.volume.volume_id)
    assert player.node.pid("daemon") == pid and player.call("Probe", pb.ProbeRequest()).ready.value
