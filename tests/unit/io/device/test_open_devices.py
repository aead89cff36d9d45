"""Devices of a worker: opened when first used, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.open_devices import OpenDevices

MIB = 1 << 20


def info(number: int, path: Path) -> DeviceInfo:
    return DeviceInfo(number, f"uuid-{number}", 64 * MIB, MIB, 60, 60, MIB, str(path))


def image(directory: Path, name: str) -> Path:
    path = directory / name
    path.write_bytes(bytes(MIB))
    return path


def test_a_device_added_later_is_found_and_one_that_is_not_there_is_a_key_error(tmp_path: Path) -> None:
    found = [info(1, image(tmp_path, "one"))]
    devices = OpenDevices(lambda: found)
    assert 1 in devices and 2 not in devices
    found.append(info(2, image(tmp_path, "two")))
    assert devices[2].path.endswith("two") and sorted(devices) == [1, 2]
    with pytest.raises(KeyError):
        devices[3]


def test_a_device_that_cannot_be_opened_stops_no_other(tmp_path: Path) -> None:
    devices = OpenDevices(lambda: [info(1, tmp_path / "gone"), info(2, image(tmp_path, "two"))])
    assert devices.get(2) is not None
    assert devices.get(1) is None
