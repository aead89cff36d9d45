"""Remembers which node sees which device, and how, from the beginning of a leadership.  Pure; the caller tells the time.

A report replaces the one before.  A node that has not reported for SILENT_MS is not counted: it may be down, and says nothing about paths.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.msgpack import encode as encoded

from awsomefsd.base.limits import DEVICE_REPORT_MS, DEVICES_REPORTED_MAX, REPORTS_PAGE_BYTES
from awsomefsd.meta.api.messages.devices import ReportDevices, SeenDevice, Sighting, Sightings

SILENT_MS = 5 * DEVICE_REPORT_MS
OK = "ok"


class DeviceReports:
    def __init__(self) -> None:
        self._reports: dict[str, tuple[int, list[Sighting]]] = {}
        self._alone_since: dict[str, int] = {}

    def forget(self) -> None:
        """Forgets all reports: the leadership has ended."""
        self._reports.clear()
        self._alone_since.clear()

    def take_report(self, report: ReportDevices, shared: Iterable[str], now_ms: int) -> None:
        """Takes up the report of a node.  `shared`: UUIDs of the devices that more than one node is to see."""
        self._reports[report.node] = (now_ms, report.sightings[:DEVICES_REPORTED_MAX])
        self._reports = {node: kept for node, kept in self._reports.items() if now_ms - kept[0] <= 100 * SILENT_MS}
        fresh = self.fresh(now_ms)
        alone = set()
        for uuid in shared:
            seeing = sum(any(one.uuid == uuid and one.state == OK for one in seen) for seen in fresh.values())
            if len(fresh) > 1 and seeing <= 1:
                alone.add(uuid)
        self._alone_since = {uuid: self._alone_since.get(uuid, now_ms) for uuid in alone}

    def fresh(self, now_ms: int) -> dict[str, list[Sighting]]:
        """Returns the reports of the nodes that are heard."""
        return {node: seen for node, (at_ms, seen) in self._reports.items() if now_ms - at_ms <= SILENT_MS}

    def listing(self, names: dict[str, str], now_ms: int, after: str = "") -> Sightings:
        """Returns what the nodes behind `after` reported, which nodes report, and for how long each shared device has been seen by one node
        only.  A page ends with the node that makes it REPORTS_PAGE_BYTES.

        `names`: of nodes, by UUID, as far as they have one.
        """
        nodes = sorted(node for node in self._reports if node > after)
        seen: list[SeenDevice] = []
        total, more = 0, ""
        for node in nodes:
            at_ms, found = self._reports[node]
            page = [SeenDevice(node, names.get(node, node), one.uuid, one.path, one.bytes, one.state, now_ms - at_ms) for one in found]
            seen += page
            total += len(encoded(page))
            if total >= REPORTS_PAGE_BYTES and node != nodes[-1]:
                more = node
                break
        alone = {uuid: now_ms - since for uuid, since in self._alone_since.items()}
        return Sightings(seen, sorted(self.fresh(now_ms)), alone, more)
