"""What a node says of a device that it cannot use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.node.devices.devices import NodeDevices
from awsomefsd.node.health import rules


@pytest.mark.parametrize("path", ["gone", "gone/with/its/directory"])
def test_a_device_whose_path_leads_nowhere_is_missing(tmp_path: Path, path: str) -> None:
    """The daemon knows the path from before: the disk was taken out while the machine was off."""
    info = DeviceInfo(1, "uuid", 1 << 30, 1 << 22, 256, 256, 1 << 20, str(tmp_path / path))
    state = NodeDevices("cluster", "node", DeviceTable(tmp_path), SimpleNamespace()).state(info)  # type: ignore[arg-type]
    assert state.startswith(rules.MISSING) and str(tmp_path / path) in state
