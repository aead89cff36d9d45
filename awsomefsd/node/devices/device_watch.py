"""The devices of the cluster that this node sees: it reports them to the leader every few seconds, and searches for those that are missing.

The node that adds a device knows its path.  All others find it by its superblock (device_scan.py): when the daemon starts, when a device
appears in the state, when the path they know leads to something else, on command, before a mount is refused for one, and every
DEVICE_SCAN_MS while a shared one is missing.  A path that works is never replaced by another one, so a process that has the device open
keeps what it has.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import structs

from awsomefsd.base.limits import DEVICE_SCAN_MS, DEVICES_REPORTED_MAX, NS_PER_MS
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.identified import RECOVERED, other_era
from awsomefsd.meta.api.messages.devices import ReportDevices, Sighting
from awsomefsd.node.devices.device_scan import OK, Looked, Prober, scan

log = logging.getLogger(__name__)

Scan = Callable[..., list[Looked]]


class DeviceWatch:
    """The watch over the cluster's devices.  One thread calls `poll`; any thread may call the others."""

    def __init__(
        self,
        cluster: str,
        node: str,
        table: DeviceTable,
        ask: Callable[[Any], Any],
        extra: Iterable[str] = (),
        scanning: Scan = scan,
        prober: Prober | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        mark_pools: Callable[[bool], None] = lambda has: None,
    ) -> None:
        """`mark_pools` is told at each poll whether devices of pools are this node's."""
        self._node = node
        self._table = table
        self._ask = ask
        self._extra = tuple(extra)
        self._scan = scanning
        self._prober = prober or Prober(cluster)
        self._now_ns = now_ns
        self._mark_pools = mark_pools
        self._lock = threading.Lock()  # one search at a time
        self._devices: list[DeviceInfo] = []
        self._missing: frozenset[str] = frozenset()
        self._search_ns = 0  # when missing devices are searched for again
        self._reasons: dict[str, str] = {}  # of the last search, for devices that it refused
        self._refused: dict[str, str] = {}  # of the last poll, for those that are not in order

    def poll(self) -> None:
        """Reports the devices to the leader, and searches if one is missing.  Blocks for both.  Raises Unavailable while no node leads."""
        sightings = [self.sighting(device) for device in self._devices if self._concerns(device)][:DEVICES_REPORTED_MAX]
        self._refused = bad = {one.uuid: one.state for one in sightings if one.state != OK}
        self._devices = list(self._ask(ReportDevices(self._node, [one for one in sightings if one.path])).devices)
        missing = frozenset(d.uuid for d in self._devices if self._concerns(d) and (d.uuid in bad or d.uuid not in self._table.paths()))
        if missing - self._missing or (missing and self._now_ns() >= self._search_ns):
            self.search()
        self._missing = missing
        self._mark_pools(any(one.pool and one.home == self._node for one in self._devices))

    def refused(self, uuid: str) -> str:
        """Returns what the last poll found wrong with a device, or "".  Does not block."""
        return self._refused.get(uuid, "")

    def _concerns(self, device: DeviceInfo) -> bool:
        return device.shared or device.home in ("", self._node)

    def sighting(self, device: DeviceInfo) -> Sighting:
        """Returns the device as this node finds it now, without a path if it is not found.  Blocks for the device, in bounded time."""
        path = self._table.paths().get(device.uuid, "")
        if not path:
            return Sighting(device.uuid, "", 0, self._reasons.get(device.uuid, "not found on this node"))
        seen = self._prober.probe(path)
        if seen is None:
            return Sighting(device.uuid, path, 0, "no device of the cluster is at this path")
        if seen.verdict == OK and seen.uuid != device.uuid:
            return Sighting(device.uuid, path, seen.bytes, f"device {seen.uuid} is at this path now")
        era = other_era(path, seen.era, device.era) if seen.verdict == OK else ""
        return Sighting(device.uuid, path, seen.bytes, era or seen.verdict)

    def search(self) -> list[Looked]:
        """Scans all block devices, adds the paths of the cluster's to the table, and returns what was found.  One search runs at a time."""
        with self._lock:
            self._search_ns = self._now_ns() + DEVICE_SCAN_MS * NS_PER_MS
            wanted = {device.uuid: device for device in self._devices if self._concerns(device)}
            listed = self._scan(self._prober, {device.uuid for device in self._devices}, self._extra)
            found = [self._with_era(one, wanted.get(one.uuid)) for one in listed]
            self._reasons = {one.uuid: _words(one) for one in found if one.verdict != OK and one.uuid}
            for one in found:
                device = wanted.get(one.uuid)
                if one.verdict == OK and device is not None and self.sighting(device).state != OK:
                    self._table.add(one.uuid, one.path)
                    log.info("device found", extra={"path": one.path, "device": device.device, "uuid": one.uuid})
            return found

    def _with_era(self, one: Looked, device: DeviceInfo | None) -> Looked:
        """Returns what was found, with the reason in its verdict if it is of another era than this node's state."""
        if one.verdict != OK or device is None:
            return one
        return structs.replace(one, verdict=other_era(one.path, one.era, device.era) or OK)

    def refresh(self) -> list[Looked]:
        """Searches, and reports to the leader before and after.  Returns what was found.  Raises Unavailable while no node leads."""
        self.poll()
        found = self.search()
        self.poll()
        return found


def _words(one: Looked) -> str:
    """Why a device was refused; that the cluster was rebuilt from it stays at the beginning, where a health code is told by it."""
    return one.verdict if one.verdict.startswith(RECOVERED) else f"{one.path}: {one.verdict}"
