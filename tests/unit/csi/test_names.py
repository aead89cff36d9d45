"""The parameter `names` of a class, from CreateVolume and ControllerModifyVolume to the row of the volume."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.csi.controller import ControllerService
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.volume_health import VolumeHealth
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volumes import DriverVolumes
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.node.catalog import Catalog
from tests.rigs.machine_driver import Drive


class Aborted(Exception):
    pass


class Context:
    def abort(self, status: Any, words: str) -> None:
        raise Aborted(f"{status.name}: {words}")


class Rig:
    """The controller over a state machine, whose cluster acts at `level`."""

    def __init__(self, level: int = DELEGATION) -> None:
        self.drive, self.level = Drive(), level
        self.proposed: list[Any] = []
        figures: Any = SimpleNamespace(note=lambda *words: None)
        driver: Any = SimpleNamespace(reachable={}, attach=False)
        volumes, remover = DriverVolumes(self.call, Catalog(self.call)), cast(Any, None)
        self.service = ControllerService(driver, volumes, remover, VolumeLocks(), figures, VolumeHealth(volumes, list))

    def call(self, body: Any) -> Any:
        if isinstance(body, m.GetStatus):
            return m.Status({"level": self.level})
        if not isinstance(body, m.Propose):
            return self.drive.ask(body)
        command: Any = body.command
        if command.level_needed() > self.level:  # as the leader does
            raise FsError(errno.EOPNOTSUPP, "too low")
        self.proposed.append(type(command))
        reply = self.drive.apply(command)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def create(self, **parameters: str) -> str:
        mode = pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
        one = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(), access_mode=mode)
        request = pb.CreateVolumeRequest(name="pvc", volume_capabilities=[one], parameters=parameters)
        return str(self.service.CreateVolume(request, Context()).volume.volume_id)

    def modify(self, volume: str, **parameters: str) -> None:
        request = pb.ControllerModifyVolumeRequest(volume_id=volume, mutable_parameters=parameters)
        self.service.ControllerModifyVolume(request, Context())

    @property
    def delegated(self) -> bool:
        found = self.drive.ask(m.GetVolumes())
        return [one.volume for one in found.volumes] == found.delegated


def test_names_of_a_class_are_those_of_its_volumes_and_a_modification_changes_them() -> None:
    rig = Rig()
    volume = rig.create(names="delegated")
    assert rig.delegated and rig.create(names="delegated") == volume
    rig.modify(volume, names="durable")
    assert not rig.delegated
    rig.modify(volume, names="delegated", inodes="10")
    assert rig.delegated
    rig.proposed.clear()
    rig.modify(volume, inodes="20")
    assert rig.delegated and rig.proposed == [c.SetCsiVolume], "what is not asked for stays, also what `volume set` has changed"


@pytest.mark.parametrize(("level", "delegated"), [(DELEGATION, True), (DELEGATION - 1, False)])
def test_a_class_that_says_nothing_makes_volumes_as_new_ones_are(level: int, delegated: bool) -> None:
    rig = Rig(level)
    volume = rig.create()
    assert rig.delegated is delegated and rig.create() == volume
    rig.proposed.clear()
    rig.modify(volume, inodes="20")
    assert rig.delegated is delegated and rig.proposed == [c.SetCsiVolume]


def test_below_their_level_delegated_names_are_refused_and_nothing_is_made_or_changed() -> None:
    rig = Rig(level=2)
    with pytest.raises(Aborted, match=r"FAILED_PRECONDITION.*needs level 4.*awsomefsd upgrade finalize"):
        rig.create(names="delegated")
    assert rig.proposed == [] and rig.drive.ask(m.GetVolumes()).volumes == []
    volume = rig.create(names="durable")
    with pytest.raises(Aborted, match="FAILED_PRECONDITION"):
        rig.modify(volume, names="delegated", inodes="10")
    assert rig.proposed == [c.MakeCsiVolume] and rig.drive.ask(m.GetVolumes()).volumes[0].quota_inodes == 0
