"""What a node says of a device that it cannot use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import Refused
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.node.devices.devices import UNSERVED, NodeDevices
from awsomefsd.node.health import rules
from tests.unit.io.device.test_superblock import CLUSTER, image


@pytest.mark.parametrize("path", ["gone", "gone/with/its/directory"])
def test_a_device_whose_path_leads_nowhere_is_missing(tmp_path: Path, path: str) -> None:
    """The daemon knows the path from before: the disk was taken out while the machine was off."""
    info = DeviceInfo(1, "uuid", 1 << 30, 1 << 22, 256, 256, 1 << 20, str(tmp_path / path))
    state = NodeDevices("cluster", "node", DeviceTable(tmp_path), SimpleNamespace()).state(info)  # type: ignore[arg-type]
    assert state.startswith(rules.MISSING) and str(tmp_path / path) in state


def test_a_device_of_a_pool_that_the_segment_server_does_not_serve_is_not_in_order(tmp_path: Path) -> None:
    """Another node's device is its own server's, and one that cannot be read is that first."""
    uuid = image(tmp_path / "disk")
    info = replace(DeviceInfo(1, uuid, 1 << 30, 1 << 22, 256, 256, 1 << 20, str(tmp_path / "disk"), False, "node"), pool=1)
    said = ["rolled back"]
    devices = NodeDevices(CLUSTER, "node", DeviceTable(tmp_path), SimpleNamespace(), unserved=lambda of: said[0])  # type: ignore[arg-type]
    assert devices.state(info) == f"{UNSERVED}: rolled back"
    assert devices.state(replace(info, home="other")) == devices.state(replace(info, pool=0)) == "ok"
    assert devices.state(replace(info, path=str(tmp_path / "gone"))).startswith(rules.MISSING)
    said[0] = ""
    assert devices.state(info) == "ok"


def test_a_shared_device_that_another_node_has_just_added_is_searched_for(tmp_path: Path) -> None:
    """A mount comes on another node a second after `device add`: the next regular look at the devices may be seconds away."""
    uuid = image(tmp_path / "disk")
    table, there = DeviceTable(tmp_path), [DeviceInfo(1, uuid, 1 << 30, 1 << 22, 256, 256, 1 << 20, "", shared=True)]
    searches: list[str] = []

    def listed() -> list[DeviceInfo]:
        return [replace(one, path=table.paths().get(one.uuid, "")) for one in there]

    def search(found: str) -> None:
        searches.append(found)
        if found:
            table.add(uuid, found)

    places = ["", str(tmp_path / "disk")]
    catalog = SimpleNamespace(devices=listed)
    devices = NodeDevices(CLUSTER, "node", table, catalog, search=lambda: search(places.pop(0)))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="cannot use device 1: not found on this node; attach it here"):
        devices.require("")
    devices.require("")
    assert len(searches) == 2
    devices.require("")
    devices.require("another node")
    assert len(searches) == 2, "what is there is not searched for"
