"""DeleteVolume of a directory: no node gets to use it while its files go, and a deletion that was interrupted goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import VolumeInfo
from awsomefsd.csi.controller import ControllerService
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.volume_health import VolumeHealth
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volumes import DriverVolumes
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.csi import GetClaims
from tests.rigs.machine_driver import Drive

ID = "0190c1a2-0000-4000-8000-000000000001"


class Aborted(Exception):
    pass


class Context:
    def abort(self, status: Any, words: str) -> None:
        raise Aborted(f"{status.name}: {words}")


class Rig:
    """The controller over a state machine; `removing` runs while the files of a directory are removed."""

    def __init__(self) -> None:
        self.drive = Drive()
        self.drive.make_volume("shared")
        self.drive.ok(c.MakeCsiVolume(ID, "pvc-1", 1 << 20, False, [], self.drive.volume, "pvc-1"))
        self.removing = lambda: None
        self.removed: list[str] = []
        catalog: Any = SimpleNamespace(propose=self.propose, volumes=lambda: self.drive.ask(m.GetVolumes()).volumes)
        volumes = DriverVolumes(self.drive.ask, catalog)
        volumes.sharable = lambda volume: True  # type: ignore[method-assign]
        figures: Any = SimpleNamespace(note=lambda *words: None)
        driver: Any = SimpleNamespace(node="n1", boot_id="b1", attach=False)
        self.service = ControllerService(driver, volumes, self, VolumeLocks(), figures, VolumeHealth(volumes, list))

    def propose(self, command: Any) -> Any:
        reply = self.drive.apply(command)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def remove_directory(self, volume: VolumeInfo, path: str, *, shared: bool) -> None:
        self.removing()
        self.removed.append(path)

    def delete(self) -> None:
        self.service.DeleteVolume(pb.DeleteVolumeRequest(volume_id=ID), Context())

    def claim(self) -> None:
        self.propose(c.ClaimVolume(self.drive.volume, "pvc-1", "n2", "b2", False))

    @property
    def claims(self) -> list[str]:
        return [one.node for one in self.drive.ask(GetClaims(self.drive.volume)).claims]


def test_no_node_gets_to_use_what_is_being_deleted() -> None:
    rig = Rig()

    def claimed() -> None:
        with pytest.raises(FsError, match="uses it alone"):
            rig.claim()

    rig.removing = claimed
    rig.delete()
    assert rig.removed == ["pvc-1"] and rig.claims == []
    rig.delete()
    assert rig.removed == ["pvc-1"], "there is nothing left"


def test_a_claim_that_came_first_keeps_its_files() -> None:
    rig = Rig()
    rig.claim()
    with pytest.raises(Aborted, match="in use"):
        rig.delete()
    every, late = rig.service._volumes.claims, [[]]
    rig.service._volumes.claims = lambda volume=0: late.pop() if late else every(volume)  # type: ignore[method-assign]
    with pytest.raises(Aborted, match="n2"):
        rig.delete()  # it came after the controller had looked
    assert rig.removed == [] and rig.claims == ["n2"]


def test_a_deletion_that_was_interrupted_goes_on() -> None:
    rig = Rig()

    def dies() -> None:
        raise SystemExit

    rig.removing = dies
    with pytest.raises(SystemExit):
        rig.delete()
    with pytest.raises(FsError):
        rig.claim()
    rig.removing = lambda: None
    rig.delete()
    assert rig.removed == ["pvc-1"] and rig.claims == []
