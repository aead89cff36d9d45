"""Decides, while this node leads, which devices are absent, and proposes that.  No I/O here; the caller tells the time.

A device is present as soon as one node says that it finds it well; of a local device only its home node is heard: any other member, also
a client, could keep it in use by its word.  It is absent when for ABSENT_AFTER_MS no node could have it open: each that is to see it (its
home node, or all for a shared one) either reports without it, or is gone, which is: it does not report, and no session of it lives.  A
report that the device does not answer, or that the node could not look, decides nothing: workers may have it open, and their I/O tells
them.  A node whose daemon is down while its mounts go on says nothing about its devices, and nothing is decided then.  Nothing
is decided either before the nodes have had the time to report to a new leader, or where none reports at all.
"""

from __future__ import annotations

from collections.abc import Container

from awsomefsd.base.limits import ABSENT_AFTER_MS
from awsomefsd.meta.api.commands import SetAbsent
from awsomefsd.meta.api.messages.devices import UNDECIDED
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.server.device_reports import OK, SILENT_MS, DeviceReports
from awsomefsd.meta.server.proposals import BatchProposer
from awsomefsd.meta.state.rows import DeviceRow


class AbsentDevices:
    """`tick` is called again and again while this node leads, `forget` when it stops leading."""

    def __init__(self, replica: Replica, reports: DeviceReports, proposer: BatchProposer) -> None:
        self._replica = replica
        self._reports = reports
        self._proposer = proposer
        self._begun_ms: int | None = None  # of this leadership
        self._away_since: dict[int, int] = {}  # device → since when nobody can have it open
        self._proposed: dict[int, bool] = {}  # device → what was proposed last in this leadership, until it is so

    def forget(self) -> None:
        self._begun_ms = None
        self._away_since.clear()
        self._proposed.clear()

    def tick(self, now_ms: int) -> None:
        """Proposes what has changed."""
        if self._begun_ms is None:
            self._begun_ms = now_ms
        if self._replica.machine.level < SetAbsent.since:
            return
        devices = self._replica.machine.device_rows()
        fresh = self._reports.fresh(now_ms)
        homes = {device.uuid: device.home for device in devices if not device.shared and device.home}
        well = {one.uuid for node, seen in fresh.items() for one in seen if one.state == OK and homes.get(one.uuid, node) == node}
        undecided = {one.uuid for seen in fresh.values() for one in seen if one.state.startswith(UNDECIDED)}
        away: dict[int, int] = {}
        if fresh and now_ms - self._begun_ms > SILENT_MS and any(device.uuid not in well for device in devices):
            serving = self._replica.machine.serving_nodes()
            away = {
                device.device: self._away_since.get(device.device, now_ms)
                for device in devices
                if device.uuid not in well | undecided and _is_away(device, fresh, serving)
            }
        self._away_since = away
        for device in devices:
            absent = device.absent
            if device.uuid in well:
                absent = False
            elif now_ms - away.get(device.device, now_ms) >= ABSENT_AFTER_MS:
                absent = True
            self._propose(device, absent)

    def _propose(self, device: DeviceRow, absent: bool) -> None:
        if device.absent == absent:
            self._proposed.pop(device.device, None)
        elif self._proposed.get(device.device) != absent:  # what a leader has proposed is decided, or it leads no more
            self._proposed[device.device] = absent
            self._proposer.enter_own(SetAbsent(device.device, absent))


def _is_away(device: DeviceRow, fresh: Container[str], serving: set[str]) -> bool:
    """Returns True if nobody can have a device open that no report finds well.  `serving`: nodes with sessions that live.

    A device of a pool is open in a segment server alone, and no session of its node says anything about that.  A server that goes on
    without its daemon goes on, and nothing new is begun there; before the device is called lost the server itself is asked.
    """
    if device.pool:
        return True
    if device.shared or not device.home:
        return all(node in fresh for node in serving)
    return device.home in fresh or device.home not in serving
