"""The paths of the cluster's devices on this node: state_dir/devices.json, device uuid → path.

The daemon writes it when a device is added, before the log has the device; so a device in the log always has a path here, and a path
without a device in the log is harmless (the add can be repeated).  The metadata service of this node puts the path into its answer to
GetDevices.  That of another node cannot, and leaves the path out: then the caller reads it here (`with_paths`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import structs

from awsomefsd.base import durable
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.types import DeviceInfo


class DeviceTable:
    """The table of one node.  Thread-safe: the metadata thread reads `paths`, calls of the admin API write.

    `changed` is called after each change, on the thread that made it, and must not block.
    """

    def __init__(self, state_dir: Path, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._path = state_dir / "devices.json"
        self._lock = threading.Lock()
        self._paths = _load(self._path)

    def paths(self) -> dict[str, str]:
        """Returns uuid → path; the mapping is never changed afterwards."""
        return self._paths

    def add(self, uuid: str, path: str) -> None:
        """Stores the path of a device, durable when this returns.  Another device at the same path leaves the table.  Raises OSError."""
        with self._lock:
            paths = {known: place for known, place in self._paths.items() if place != path}
            paths[uuid] = path
            durable.write_json(self._path, paths)
            self._paths = paths
        self._changed()

    def forget(self, uuid: str) -> None:
        """Removes a device that is not in the cluster any more, durable when this returns.  Raises OSError."""
        with self._lock:
            paths = {known: place for known, place in self._paths.items() if known != uuid}
            durable.write_json(self._path, paths)
            self._paths = paths
        self._changed()


def with_paths(devices: Iterable[DeviceInfo], state_dir: Path | str) -> list[DeviceInfo]:
    """Returns the devices with their paths on this node, "" where there is none.  Reads the file; raises Corrupt."""
    known = list(devices)
    if all(device.path for device in known):
        return known
    paths = _load(Path(state_dir) / "devices.json")
    return [structs.replace(device, path=device.path or paths.get(device.uuid, "")) for device in known]


def _load(path: Path) -> dict[str, str]:
    value = durable.read_json(path, {})
    if not all(isinstance(place, str) for place in value.values()):
        raise Corrupt(f"{path} is damaged; it must map UUIDs of devices to paths; restore it from a backup")
    return dict(value)
