"""The paths of the cluster's devices on this node: state_dir/devices.json, device uuid → path.

The daemon writes it when a device is added, before the log says that the device exists; so a device that the log knows always has a path
here, and a path without a device in the log is harmless (the add can be repeated).  The metadata service of this node says it with the
answer to GetDevices; one of another node cannot, and leaves the path out: then whoever asked looks here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from msgspec import structs

from awsomefsd.base import durable
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.types import DeviceInfo


class DeviceTable:
    """Thread-safe: the metadata thread reads `paths`, calls of the admin API write."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "devices.json"
        self._lock = threading.Lock()
        self._paths = _load(self._path)

    def paths(self) -> dict[str, str]:
        """uuid → path; the mapping is never changed afterwards."""
        return self._paths

    def add(self, uuid: str, path: str) -> None:
        """Durable when this returns.  A path has one device: an earlier one that was never added to the log makes room."""
        with self._lock:
            paths = {known: place for known, place in self._paths.items() if place != path}
            paths[uuid] = path
            durable.write_json(self._path, paths)
            self._paths = paths

    def forget(self, uuid: str) -> None:
        """It is no device of the cluster any more."""
        with self._lock:
            paths = {known: place for known, place in self._paths.items() if known != uuid}
            durable.write_json(self._path, paths)
            self._paths = paths


def with_paths(devices: Iterable[DeviceInfo], state_dir: Path | str) -> list[DeviceInfo]:
    """As this node finds them."""
    known = list(devices)
    if all(device.path for device in known):
        return known
    paths = _load(Path(state_dir) / "devices.json")
    return [structs.replace(device, path=device.path or paths.get(device.uuid, "")) for device in known]


def _load(path: Path) -> dict[str, str]:
    value = durable.read_json(path, {})
    if not all(isinstance(place, str) for place in value.values()):
        raise Corrupt(f"{path} is damaged (it maps device uuids to paths); restore it from a backup")
    return dict(value)
