"""What the driver says of space and of the health of volumes, over devices as the leader lists them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from awsomefsd.base.types import DeviceInfo, VolumeInfo
from awsomefsd.csi import rules
from awsomefsd.csi.controller import ControllerService
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import TOPOLOGY
from awsomefsd.csi.volume_health import VolumeHealth, condition
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volumes import DriverVolumes
from awsomefsd.io.file.damaged_reads import DamagedRead
from awsomefsd.meta.api import messages as m

SEGMENT = 1 << 20


def device(number: int, free: int, home: str = "", **more: bool) -> DeviceInfo:
    return DeviceInfo(number, f"uuid-{number}", 1 << 30, SEGMENT, 1024, free, 4096, "", not home, home, **more)


def volume(number: int = 1, home: str = "") -> VolumeInfo:
    return VolumeInfo(number, f"v{number}", f"csi-v{number}", 0, 0, 0, 1, 0, 0, 0, 0, home)


class Rig:
    def __init__(self, devices: list[DeviceInfo], damaged: list[DamagedRead] | None = None, corrupt: int = 0) -> None:
        catalog: Any = SimpleNamespace(devices=lambda: devices, figures=lambda: m.Status({"collect_corrupt_pieces": corrupt}).figures)
        volumes = DriverVolumes(lambda body: None, catalog)
        self.health = VolumeHealth(volumes, lambda: damaged or [])
        driver: Any = SimpleNamespace(reachable={TOPOLOGY + "cluster": "c"}, health_api="1.12")
        figures: Any = SimpleNamespace(note=lambda *words: None)
        self.service = ControllerService(driver, volumes, cast(Any, None), VolumeLocks(), figures, self.health)

    def capacity(self, cluster: str = "c", **parameters: str) -> pb.GetCapacityResponse:
        """As external-provisioner asks for each topology segment and class."""
        segment = pb.Topology(segments={TOPOLOGY + "cluster": cluster})
        return self.service.GetCapacity(pb.GetCapacityRequest(parameters=parameters, accessible_topology=segment), None)


@pytest.mark.parametrize(
    ("devices", "free"),
    [
        ([device(1, 10), device(2, 5)], 15),
        ([device(1, 10), device(2, 5, "node-a")], 10),  # a new volume goes to the shared ones
        ([device(1, 10, "node-a"), device(2, 5, "node-a"), device(3, 12, "node-b")], 15),  # no volume has more than one node has
        ([device(1, 10), device(2, 5, draining=True), device(3, 7, absent=True)], 10),
        ([device(1, 10, absent=True), device(2, 5, "node-a")], 0),  # it would go to the shared one all the same
        ([], 0),
    ],
)
def test_capacity_is_what_one_new_volume_can_have(devices: list[DeviceInfo], free: int) -> None:
    assert Rig(devices).capacity().available_capacity == free * SEGMENT


def test_the_scheduler_is_told_of_no_maximum_that_hides_what_is_available() -> None:
    """kube-scheduler looks at maximumVolumeSize alone where it is named: a claim of a petabyte was said to fit everywhere."""
    rig = Rig([device(1, 10)])
    found = rig.capacity()
    assert found.available_capacity == 10 * SEGMENT and not found.HasField("maximum_volume_size")
    for unbounded in ({"quota": "none"}, {"volume": "shared", "subdirectory": "${pvc.namespace}/${pvc.name}"}):
        assert rig.capacity(**unbounded).maximum_volume_size.value == rules.FILE_BYTES_MAX, "its size is no bound of a quota"


def test_another_cluster_has_no_capacity_for_us() -> None:
    assert Rig([device(1, 10)]).capacity("other").available_capacity == 0


def reasons(rig: Rig, of: VolumeInfo) -> list[tuple[str, str]]:
    return [(pb.VolumeHealthErrorType.Name(one.status), one.reason) for one in rig.health.of(of)]


def test_a_volume_is_not_well_while_no_node_sees_a_device_of_its_data() -> None:
    rig = Rig([device(1, 10), device(2, 5, absent=True), device(3, 9, "node-a", absent=True)])
    assert reasons(rig, volume()) == [("DEGRADED", "DeviceAbsent")]
    assert reasons(rig, volume(home="node-a")) == [("INACCESSIBLE", "DeviceAbsent")], "all that it has"
    assert reasons(rig, volume(home="node-b")) == reasons(rig, volume(home="*")) == [], "other devices are not its own"
    shown = condition(rig.health.of(volume()), "well")
    assert shown.abnormal and "uuid-2" in shown.message and "EIO" in shown.message
    assert condition(rig.health.of(volume(home="*")), "well") == pb.VolumeCondition(abnormal=False, message="well")


def test_damaged_files_are_named_with_their_volume() -> None:
    met = [DamagedRead(1, 7, offset, 4096, "v", "/d/f") for offset in (0, 4096)] + [DamagedRead(1, 8, 0, 4096), DamagedRead(2, 9, 0, 1)]
    rig = Rig([device(1, 10)], met, corrupt=3)
    assert reasons(rig, volume(1)) == [("DATA_LOSS", "DamagedFile"), ("DEGRADED", "Damage")]
    assert rig.health.of(volume(1))[0].message.endswith("/d/f, inode 8")
    assert reasons(rig, volume(3)) == [("DEGRADED", "Damage")]
    assert condition(rig.health.of(volume(1)), "").message.count(";") >= 1
