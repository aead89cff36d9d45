"""What may happen to a device while `device grow` waits for other nodes to see its new size."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import NotFound, Refused
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.signature import format_device
from awsomefsd.io.device.superblock import Superblock
from awsomefsd.node.devices import operations as module
from awsomefsd.node.devices.operations import DeviceOperations
from tests.unit.node.devices.test_device_states import CLUSTER

MIB = 1 << 20


class Rig:
    """One device of 64 MiB that was enlarged; another node still sees it as it was at the first look, and a while later it does not."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "disk"
        with self.path.open("wb") as file:
            file.truncate(64 * MIB)
        made = format_device(str(self.path), CLUSTER, force=True)
        os.truncate(self.path, 128 * MIB)
        self.table = DeviceTable(directory)
        self.table.add(made.device_uuid, str(self.path))
        self.devices = [self._row(made)]
        self.proposed: list[Any] = []
        catalog = SimpleNamespace(devices=lambda: list(self.devices), propose=self.proposed.append)
        watch = SimpleNamespace(poll=lambda: None)
        self.grows = DeviceOperations(CLUSTER, lambda body: None, catalog, self.table, watch)  # type: ignore[arg-type]
        self.seen = [64 * MIB, 128 * MIB]
        monkeypatch.setattr(self.grows, "seen_of", lambda uuid: [SimpleNamespace(name="other", bytes=self.seen.pop(0))])
        self.meanwhile: Any = lambda: None
        monkeypatch.setattr(module.time, "sleep", lambda seconds: self.meanwhile())

    def _row(self, made: Superblock) -> DeviceInfo:
        return DeviceInfo(
            1, made.device_uuid, made.device_bytes, made.segment_bytes, made.segments, made.segments, made.first_segment_offset,
            str(self.path), shared=True,
        )  # fmt: skip


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_a_device_grows_when_the_last_node_sees_its_size(rig: Rig) -> None:
    rig.grows.grow("1")
    assert not rig.seen and rig.proposed[0].bytes == 128 * MIB


def test_a_device_that_was_removed_meanwhile_and_is_used_by_others_is_not_written(rig: Rig) -> None:
    def remove() -> None:
        rig.devices.clear()
        with rig.path.open("r+b") as file:
            for _ in range(128):
                file.write(b"o" * MIB)

    rig.meanwhile = remove
    with pytest.raises(NotFound):
        rig.grows.grow("1")
    assert rig.path.read_bytes() == b"o" * (128 * MIB) and not rig.proposed


def test_a_device_that_another_grow_took_into_use_meanwhile_keeps_what_that_wrote(rig: Rig) -> None:
    def grow() -> None:
        rig.seen.insert(0, 128 * MIB)
        rig.grows.grow("1")
        rig.devices[0] = replace(rig.devices[0], segments=rig.proposed[0].segments)

    rig.meanwhile = grow
    with pytest.raises(Refused, match="no segment beyond"):
        rig.grows.grow("1")
    assert len(rig.proposed) == 1
