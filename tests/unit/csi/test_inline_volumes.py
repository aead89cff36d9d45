"""Inline volumes: their attributes, and what a daemon deletes that was left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import GIB, MIB
from awsomefsd.csi import rules
from awsomefsd.csi.errors import CsiError
from awsomefsd.csi.inline_volumes import InlineVolumes
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volumes import INLINE_NODE, INLINE_TARGET, DriverVolumes, inline_id
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.rigs.machine_driver import Drive


@pytest.mark.parametrize(
    ("attributes", "size", "inodes"),
    [
        ({}, GIB, 65536),
        ({"size": "64Mi", "csi.storage.k8s.io/ephemeral": "true"}, 64 * MIB, 4096),
        ({"size": "1MiB"}, MIB, 1024),
        ({"size": "5000", "inodes": "7"}, 5000, 7),
        ({"inodes": "100k"}, GIB, 102400),
    ],
)
def test_attributes(attributes: dict[str, str], size: int, inodes: int) -> None:
    wanted, found = rules.read_inline(attributes, 2 * GIB)
    assert (found, wanted.inodes, wanted.mode) == (size, inodes, 0o777)


def test_the_default_size_is_within_the_largest() -> None:
    assert rules.read_inline({}, MIB)[1] == MIB


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({"size": "3Gi"}, "csi.inline_max"), ({"size": "4095"}, "4096"), ({"size": "big"}, "size"), ({"inodes": "1M"}, "inodes"),
        ({"inodes": "0"}, "inodes"), ({"mode": "8"}, "octal"), ({"volume": "v"}, "known are gid, inodes, mode, size, uid"),
        ({INLINE_NODE: "n1"}, "unknown"),
    ],
)  # fmt: skip
def test_attributes_that_are_refused(attributes: dict[str, str], word: str) -> None:
    with pytest.raises(CsiError, match=word):
        rules.read_inline(attributes, 2 * GIB)


class Rig:
    """The driver of node n1 over a state machine; `nodes` are in the cluster, nothing is mounted."""

    def __init__(self, kubelet: Path) -> None:
        self.drive = Drive()
        self.kubelet = kubelet
        catalog: Any = SimpleNamespace(propose=self.propose, volumes=lambda: self.drive.ask(m.GetVolumes()).volumes)
        self.volumes = DriverVolumes(self.drive.ask, catalog)
        self.nodes = {"n1", "n2"}
        self.volumes.nodes = lambda: self.nodes  # type: ignore[method-assign]
        mounts: Any = SimpleNamespace(mounted=lambda volume: None, leave=lambda volume: None)
        driver: Any = SimpleNamespace(node="n1", kubelet_dir=kubelet, voters=frozenset())
        self.inline = InlineVolumes(driver, self.volumes, mounts, VolumeLocks())

    def propose(self, command: Any) -> Any:
        reply = self.drive.apply(command)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def make(self, handle: str, node: str) -> Path:
        """kubelet's directory of the volume; it is there."""
        place = self.kubelet / "pods" / handle
        place.mkdir(parents=True)
        settings = [(INLINE_NODE, node), (INLINE_TARGET, f"{place}/mount")]
        made = self.propose(c.MakeCsiVolume(inline_id(handle), handle, MIB, False, settings, quota_bytes=MIB))
        self.propose(c.ClaimVolume(made.number, "", node, "b1", True))
        return place

    def left(self) -> list[str]:
        self.inline._look_at_s = 0.0
        self.inline.poll()
        return sorted(row.name for row in self.volumes.page("", 100))


def test_what_kubelet_does_not_know_any_more_is_deleted(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    mine, other = rig.make("csi-mine", "n1"), rig.make("csi-other", "n2")
    assert rig.left() == ["csi-mine", "csi-other"]
    for place in (mine, other):
        place.rmdir()
    assert rig.left() == ["csi-other"], "those of other nodes are looked after there"
    assert not rig.drive.ask(m.GetVolumes()).volumes[1:], "with the volume"


def test_kubelets_disk_that_is_not_there_yet_is_no_proof(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.make("csi-mine", "n1")
    (tmp_path / "pods").rename(tmp_path / "elsewhere")
    assert rig.left() == ["csi-mine"]
    (tmp_path / "pods").mkdir()
    assert rig.left() == []


def test_a_removed_nodes_volumes_are_deleted_by_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.make("csi-of-another", "n2")
    rig.nodes.remove("n2")
    assert rig.left() == ["csi-of-another"], "it is claimed: the node is there, whatever its row says"
    rig.propose(c.EndClaims("n2", 0, "", "the node was removed"))
    assert rig.left() == []


def test_a_volume_that_people_or_claims_have_made_is_left_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "pods").mkdir()
    rig.drive.make_volume("by-hand")
    rig.propose(c.MakeCsiVolume("0190c1a2-0000-4000-8000-000000000001", "pvc-1", MIB, False, []))
    assert rig.left() == ["pvc-1"] and len(rig.drive.ask(m.GetVolumes()).volumes) == 2


def test_a_kubelet_directory_that_cannot_be_looked_at_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    place = rig.make("csi-mine", "n1")
    real = os.lstat

    def broken(path: Any, **words: Any) -> os.stat_result:
        if str(path) == str(place):
            raise OSError(errno.EIO, "the disk has an error")
        return real(path, **words)

    monkeypatch.setattr(os, "lstat", broken)
    assert rig.left() == ["csi-mine"]


def test_a_class_cannot_put_its_claims_into_an_inline_volume(tmp_path: Path) -> None:
    """They would be deleted with its pod."""
    rig = Rig(tmp_path)
    rig.make("csi-mine", "n1")
    rig.volumes.with_names = lambda words: words  # type: ignore[method-assign]
    with pytest.raises(CsiError, match="an inline volume of a pod"):
        rig.volumes.named(f"csi-{inline_id('csi-mine')}")
