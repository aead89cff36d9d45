"""What may be asked of the CSI driver, and what is said where it may not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from awsomefsd.csi import rules
from awsomefsd.csi.errors import CsiError
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.volume_locks import VolumeLocks

ROOT = Path(__file__).resolve().parents[3]
Mode = pb.VolumeCapability.AccessMode


def asked(required: int = 0, limit: int = 0) -> pb.CapacityRange:
    return pb.CapacityRange(required_bytes=required, limit_bytes=limit)


@pytest.mark.parametrize(
    ("required", "limit", "block", "size"),
    [
        (0, 0, False, 0),
        (1, 0, False, 4096),
        (5000, 5001, False, 5000),
        (0, 9000, False, 9000),
        (0, 0, True, 1 << 30),
        (0, 8191, True, 4096),
    ],
)
def test_sizes(required: int, limit: int, block: bool, size: int) -> None:
    made = rules.capacity_of(asked(required, limit), block=block)
    assert made == size and (not made or rules.fits(made, asked(required, limit)))


@pytest.mark.parametrize(
    ("required", "limit", "status"), [(-1, 0, "INVALID_ARGUMENT"), (2, 1, "OUT_OF_RANGE"), (1 << 60, 0, "OUT_OF_RANGE")]
)
def test_sizes_that_cannot_be(required: int, limit: int, status: str) -> None:
    with pytest.raises(CsiError) as caught:
        rules.capacity_of(asked(required, limit), block=False)
    assert caught.value.status == status


def test_a_block_volume_of_no_whole_block_is_refused() -> None:
    with pytest.raises(CsiError) as caught:
        rules.capacity_of(asked(5000, 6000), block=True)
    assert caught.value.status == "OUT_OF_RANGE"


def read(block: bool = False, **parameters: str) -> rules.WantedVolume:
    return rules.read_parameters(parameters, {}, block=block, name="pvc-1")


def test_parameters() -> None:
    assert (read().names, read(names="durable").names, read(names="delegated").names) == (None, 0, 1)
    wanted = read(mode="0750", uid="5", inodes="10k", quota="none")
    assert (wanted.mode, wanted.uid, wanted.hard) == (0o750, 5, False) and wanted.inodes > 0
    known = {"csi.storage.k8s.io/pvc/name": "claim", "volume": "v", "subdirectory": "${pvc.name}/${name}"}
    shared = rules.read_parameters(known, {}, block=False, name="pvc-1")
    assert (shared.volume, shared.subdirectory, shared.hard) == ("v", "claim/pvc-1", False)
    assert "csi.storage.k8s.io/pvc/name" not in shared.settings


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"qouta": "hard"}, "quota"), ({"quota": "soft"}, "hard"), ({"devices": "fast"}, "not supported"),
        ({"cache": "none"}, "not supported"),
        ({"mode": "rwx"}, "octal"), ({"mode": "9"}, "octal"), ({"uid": "-1"}, "uid"),
        ({"names": "eventually"}, "durable or delegated"), ({"volume": "v", "names": "durable"}, "volume set --names"),
        ({"subdirectory": "a"}, "volume"), ({"inodes": "x"}, "inodes"),
        ({"volume": "v", "quota": "hard"}, "quota"), ({"volume": "v", "subdirectory": "../x"}, "path"),
        ({"volume": "v", "subdirectory": "${x}"}, "known"),
    ],
)  # fmt: skip
def test_parameters_that_are_refused(parameters: dict[str, str], word: str) -> None:
    with pytest.raises(CsiError, match=word) as caught:
        read(**parameters)
    assert caught.value.status == "INVALID_ARGUMENT"


def test_names_of_a_directory_are_known_only_where_it_is_made() -> None:
    """GetCapacity, NodeStage and ControllerModify have the parameters of a class, and no claim."""
    parameters = {"volume": "shared", "subdirectory": "${pvc.namespace}/${pvc.name}", "mode": "0770"}
    assert rules.read_parameters(parameters, {}, block=False).mode == 0o770
    with pytest.raises(CsiError, match="extra-create-metadata"):
        rules.read_parameters(parameters, {}, block=False, name="pvc-1")
    claim = {"csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pvc/namespace": "team"}
    assert rules.read_parameters({**parameters, **claim}, {}, block=False, name="pvc-1").subdirectory == "team/data"


def test_a_name_with_slashes_is_no_directory() -> None:
    with pytest.raises(CsiError):
        rules.read_parameters({"volume": "v"}, {}, block=False, name="../etc")


def test_mount_options_by_whom_they_are_for() -> None:
    assert rules.split_flags(["ro,nosuid", "noatime", "readahead=1M", "_netdev"]) == (["ro", "nosuid"], ["noatime", "readahead=1M"])
    for bad in ("nosiud", "context=x", "readahead=zz", "uid=0"):
        with pytest.raises(CsiError):
            rules.split_flags([bad])


def test_capabilities() -> None:
    mount = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(), access_mode=Mode(mode=Mode.MULTI_NODE_MULTI_WRITER))
    block = pb.VolumeCapability(block=pb.VolumeCapability.BlockVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER))
    assert rules.check_capabilities([mount]) is False and rules.check_capabilities([block, block]) is True
    assert rules.check_capabilities([pb.VolumeCapability(block=block.block, access_mode=mount.access_mode)]) is True
    wrong = [[], [mount, block], [pb.VolumeCapability()], [pb.VolumeCapability(mount=mount.mount)]]
    wrong.append([pb.VolumeCapability(mount=mount.mount, access_mode=Mode(mode=Mode.MULTI_NODE_SINGLE_WRITER))])
    wrong.append([pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(fs_type="ext4"), access_mode=mount.access_mode)])
    for capabilities in wrong:
        with pytest.raises(CsiError):
            rules.check_capabilities(capabilities)
    with pytest.raises(CsiError):
        rules.check_capability(mount, of_block=True)


def test_a_second_operation_is_told_to_come_again() -> None:
    busy = VolumeLocks(wait_s=0.01)
    with busy.alone("a", "b"):
        with busy.alone("c"):
            pass
        with pytest.raises(CsiError) as caught, busy.alone("b"):
            pass
    assert caught.value.status == "ABORTED"
    with busy.alone("b"):
        pass


def test_stubs_are_of_the_schema(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    places = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    folder = "awsomefsd/csi/pb"
    places += [f"-I{ROOT}", f"-I{Path(protoc.__file__).parent}/_proto"]
    assert protoc.main(["protoc", *places, f"{folder}/csi.proto", f"{folder}/registration.proto"]) == 0
    for name in ("csi", "registration"):
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
            told = f"{name} is old: {sys.executable} -m grpc_tools.protoc -I. --{{python,pyi,grpc_python}}_out=. {folder}/{name}.proto"
            assert (ROOT / folder / f"{name}{suffix}").read_text() == (tmp_path / folder / f"{name}{suffix}").read_text(), told
