"""The manifests of docs/examples/kubernetes, played against a driver: provisioner, kubelet and resizer ask for what they say.

One node; pods of several nodes on one volume are in test_three_nodes.py.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from awsomefsd.csi.pb import csi_pb2 as pb
from tests.csi.rig import Mode, Player, capability

pytestmark = pytest.mark.root
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples" / "kubernetes"
CHARTS = {"name": "awsomefs", "provisioner": "csi.awsomefs.io", "parameters": {}}
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
ACCESS = {
    "ReadWriteOnce": Mode.SINGLE_NODE_WRITER,
    "ReadWriteMany": Mode.MULTI_NODE_MULTI_WRITER,
    "ReadOnlyMany": Mode.MULTI_NODE_READER_ONLY,
}
PROVISIONER = "csi.storage.k8s.io/"


def every(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((FOLDER / name).read_text()) if one]


def one(name: str, kind: str) -> dict[str, Any]:
    [found] = [found for found in every(name) if found["kind"] == kind]
    return found


def size_of(claim: dict[str, Any]) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", claim["spec"]["resources"]["requests"]["storage"]).groups()
    return int(number) * UNITS[unit]


def capability_of(claim: dict[str, Any], *flags: str) -> pb.VolumeCapability:
    [mode] = claim["spec"]["accessModes"]
    return capability(ACCESS[mode], *flags, block=claim["spec"].get("volumeMode") == "Block")


def provision(player: Player, claim: dict[str, Any], made: dict[str, Any]) -> tuple[str, pb.VolumeCapability]:
    """As external-provisioner with --extra-create-metadata: the volume's id, and how it is mounted."""
    cap = capability_of(claim, *made.get("mountOptions", []))
    name = claim["metadata"]["name"]
    request = pb.CreateVolumeRequest(
        name=f"pvc-{name}",
        capacity_range=pb.CapacityRange(required_bytes=size_of(claim)),
        volume_capabilities=[cap],
        parameters={**made.get("parameters", {}), PROVISIONER + "pvc/name": name, PROVISIONER + "pvc/namespace": "default"},
    )
    volume = player.call("CreateVolume", request).volume
    assert volume.capacity_bytes == size_of(claim)
    return volume.volume_id, cap


def clear(player: Player, volume: str, pod: str, delete: bool = True) -> None:
    player.unpublish(volume, pod)
    player.unstage(volume)
    if delete:
        player.delete(volume)


@pytest.fixture
def mounted(player: Player, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A volume that a person has made and mounted; the parameter is its name."""
    where = player.node.directory / request.param
    where.mkdir()
    player.node.cli("volume", "create", request.param)
    player.node.cli("mount", request.param, str(where))
    yield where
    player.node.cli("umount", str(where))
    player.node.cli("volume", "delete", request.param, "--force", "--yes-destroy", request.param)
    where.rmdir()


def test_a_claim_and_its_growth(player: Player) -> None:
    claim, larger = one("claim.yaml", "PersistentVolumeClaim"), one("expand.yaml", "PersistentVolumeClaim")
    volume, cap = provision(player, claim, CHARTS)
    player.stage(volume, cap)
    target = player.publish(volume, "notes", cap)
    (target / "started").write_text("now\n")
    assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize == size_of(claim)
    asked = pb.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=pb.CapacityRange(required_bytes=size_of(larger)))
    grown = player.call("ControllerExpandVolume", asked)
    assert grown.capacity_bytes == size_of(larger) and not grown.node_expansion_required
    assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize == size_of(larger)
    assert (target / "started").read_text() == "now\n"
    clear(player, volume, "notes")


def test_a_claim_of_several_nodes(player: Player) -> None:
    volume, cap = provision(player, one("shared.yaml", "PersistentVolumeClaim"), CHARTS)
    player.stage(volume, cap)
    first, second = player.publish(volume, "together-1", cap), player.publish(volume, "together-2", cap)
    (first / "seen").write_text("a\n")
    with open(second / "seen", "a") as file:
        file.write("b\n")
    assert (first / "seen").read_text() == "a\nb\n"
    player.unpublish(volume, "together-2")
    clear(player, volume, "together-1")


def test_the_class_with_quota_owner_and_mount_options(player: Player) -> None:
    made = one("storageclass.yaml", "StorageClass")
    volume, cap = provision(player, one("claim.yaml", "PersistentVolumeClaim"), made)
    player.stage(volume, cap)
    target = player.publish(volume, "keep", cap)
    stat = target.stat()
    assert (stat.st_mode & 0o7777, stat.st_gid) == (0o770, 3000)
    assert os.statvfs(target).f_flag & os.ST_NOSUID and os.statvfs(target).f_files == int(made["parameters"]["inodes"])
    attributes = one("attributes.yaml", "VolumeAttributesClass")["parameters"]
    player.call("ControllerModifyVolume", pb.ControllerModifyVolumeRequest(volume_id=volume, mutable_parameters=attributes))
    assert os.statvfs(target).f_files == int(attributes["inodes"])
    clear(player, volume, "keep")


@pytest.mark.parametrize("mounted", ["team"], indirect=True)
def test_directories_of_one_volume(player: Player, mounted: Path) -> None:
    made, claim = one("storageclass-directories.yaml", "StorageClass"), one("shared.yaml", "PersistentVolumeClaim")
    assert made["parameters"]["volume"] == mounted.name
    directory, cap = provision(player, claim, made)
    player.stage(directory, cap)
    (player.publish(directory, "team", cap) / "file").write_text("of the team")
    assert (mounted / "claims" / f"pvc-{claim['metadata']['name']}" / "file").read_text() == "of the team"
    clear(player, directory, "team")
    assert list((mounted / "claims").iterdir()) == []


@pytest.mark.parametrize("name", ["block.yaml", "block-shared.yaml"])
def test_a_block_device(player: Player, seed: int, name: str) -> None:
    volume, cap = provision(player, one(name, "PersistentVolumeClaim"), CHARTS)
    player.stage(volume, cap)
    device = player.publish(volume, "raw", cap)
    written = random.Random(seed).randbytes(1 << 20)
    with open(device, "r+b") as file:
        file.write(written)
        os.fsync(file.fileno())
        assert file.seek(0, os.SEEK_END) == size_of(one(name, "PersistentVolumeClaim"))
    with open(device, "rb") as file:
        assert file.read(len(written)) == written
    clear(player, volume, "raw")


@pytest.mark.parametrize("mounted", ["media"], indirect=True)
def test_a_static_volume(player: Player, mounted: Path) -> None:
    spec = one("static.yaml", "PersistentVolume")["spec"]
    handle, cap = spec["csi"]["volumeHandle"], capability_of(one("static.yaml", "PersistentVolumeClaim"), *spec["mountOptions"])
    (mounted / "photos").mkdir()
    (mounted / "photos" / "one").write_text("a photo")
    player.stage(handle, cap)
    target = player.publish(handle, "photos", cap, readonly=True)
    assert (target / "one").read_text() == "a photo"
    with pytest.raises(OSError, match="Read-only"):
        (target / "two").write_text("no")
    clear(player, handle, "photos", delete=False)
