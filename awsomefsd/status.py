"""How this node is: the answer to GetStatus, the reasons why it is degraded, and the same figures as metrics.

Degraded means that an operator should act: the keeper is away, a mount is not served, a device cannot be found, data lies in the conflict
area, space runs out, memory is over its budget.  Every reason says which thing, and what to look at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from awsomefsd import __version__
from awsomefsd.admin import admin_pb2 as pb
from awsomefsd.admin.service import Collecting, Devices, device_message, mount_message, volume_message
from awsomefsd.catalog import Catalog
from awsomefsd.config import Settings
from awsomefsd.devices import OF_NODE
from awsomefsd.errors import Error, Unavailable
from awsomefsd.metrics import Sample
from awsomefsd.mounts import MOUNTING, SERVING, Mounts
from awsomefsd.node import Node

DEVICE_FULL_PERCENT = 95
CONFLICTS_SHOWN_MAX = 100
_WELL = (SERVING, MOUNTING, "detached", "unmounting")


class KeeperPing(Protocol):
    def ping(self) -> dict[str, Any]:
        """Its pid under "pid"; raises Unavailable."""


class Status:
    """Asks everybody at every call and keeps nothing."""

    def __init__(
        self,
        settings: Settings,
        node: Node,
        catalog: Catalog,
        devices: Devices,
        mounts: Mounts,
        keeper: KeeperPing,
        collection: Collecting,
        checkpoints: Callable[[int], dict[str, int | float | str]] = lambda applied: {},
    ) -> None:
        """`checkpoints`: their figures when so many entries are applied."""
        self._settings = settings
        self._node = node
        self._catalog = catalog
        self._devices = devices
        self._mounts = mounts
        self._keeper = keeper
        self._collection = collection
        self._checkpoints = checkpoints
        self._started = time.monotonic()

    def __call__(self) -> pb.Status:
        keeper_pid = self._keeper_pid()
        figures = {**self._catalog.figures(), **self._collected()}
        figures |= self._checkpoints(int(figures["applied"]))
        devices, volumes = self._of_the_leader(self._devices.all), self._of_the_leader(self._catalog.volumes)
        mounts = [mount_message(view) for view in self._mounts.views()]
        where = {mount.volume: mount.directory for mount in mounts}
        status = pb.Status(
            cluster=self._node.cluster,
            node=self._node.node,
            site=self._node.site,
            version=__version__,
            state_dir=str(self._settings.state_dir),
            run_dir=str(self._settings.run_dir),
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            keeper=keeper_pid > 0,
            keeper_pid=keeper_pid,
            devices=[device_message(info, state) for info, state in devices],
            volumes=[volume_message(info, where) for info in sorted(volumes, key=lambda info: info.name)],
            mounts=mounts,
            conflicts=list(conflicts(self._settings.state_dir / "conflicts")),
            figures={name: str(value) for name, value in figures.items()},
            memory_bytes=memory_bytes(),
            memory_bytes_max=self._settings.memory.daemon,
        )
        status.reasons.extend(reasons(status))
        status.reasons.extend(self._workers_over_budget(mounts))
        return status

    def _workers_over_budget(self, mounts: list[pb.MountPoint]) -> Iterator[str]:
        """A worker gives up its caches first; this is for what is left when that was not enough."""
        try:
            reports = self._catalog.reports()
        except Unavailable:
            return
        for mount in mounts:
            figures = reports.get(int(mount.mount, 16), {})
            used, budget = figures.get("memory_bytes", 0), figures.get("memory_budget_bytes", 0)
            if used > budget and figures.get("memory_cache_percent", 100) < 100:
                yield f"the worker of {mount.directory} uses {used} bytes of memory, its budget (memory.worker) is {budget}"

    def _of_the_leader(self, ask: Callable[[], Iterable[Any]]) -> list[Any]:
        """Only the node that leads the metadata can tell; the others show nothing there, and who leads."""
        try:
            return list(ask())
        except Unavailable:
            return []

    def _collected(self) -> dict[str, int | str]:
        state, figures, error = self._collection.told()
        named = {f"collect_{name}": value for name, value in figures.items()}
        return {"collect_state": state, **named, **({"collect_last_error": error} if error else {})}

    def _keeper_pid(self) -> int:
        try:
            return int(self._keeper.ping()["pid"])
        except Error:
            return 0

    def samples(self) -> Iterable[Sample]:
        """The same as metrics, and what the workers report of themselves."""
        status = self()
        yield from samples_of(status)
        try:
            reports = self._catalog.reports()
        except Unavailable:
            return
        for mount in status.mounts:
            labels = (("volume", mount.volume), ("dir", mount.directory))
            for name, value in sorted(reports.get(int(mount.mount, 16), {}).items()):
                yield Sample(f"awsomefsd_worker_{name}", "gauge", "Figure of a mount's worker.", value, labels)


def reasons(status: pb.Status) -> Iterator[str]:
    """Why this node is degraded; nothing where all is well."""
    if not status.keeper:
        yield f"the keeper does not answer at {status.run_dir}/keeper.sock (running mounts go on); start it with `awsomefsd keeper`"
    yield from _without_leader(status.figures)
    if status.figures.get("members_diverged", "0") != "0":
        yield f"{status.figures['members_diverged']} times a voter's state differed from the others' and was rebuilt; check its disk"
    if status.figures.get("journal_full", "0") != "0":
        yield f"the journal in {status.state_dir}/meta has no room; this voter is silent until there is some"
    if status.figures.get("checkpoint", "").startswith("suspended"):
        lost = f"the device could not bring all back if {status.state_dir} were lost"
        yield f"checkpoints on the device are {status.figures['checkpoint']}; {lost}"
    for mount in status.mounts:
        if mount.state == "unwatched":
            continue  # the keeper's absence is the reason, and said
        if mount.state not in _WELL:
            yield f"mount {mount.directory} of volume {mount.volume} is {mount.state}" + (
                f": {mount.last_error}" if mount.last_error else ""
            )
    for device in status.devices:
        name = device.path or device.uuid
        if device.state.startswith(OF_NODE):
            continue  # in order there or not: that node's status says so
        if device.state != "ok":
            yield f"device {name}: {device.state}"
        elif device.segments and (device.segments - device.segments_free) * 100 >= device.segments * DEVICE_FULL_PERCENT:
            yield f"device {name} has {device.segments_free} of {device.segments} segments left; delete files or add a device"
    if damaged := int(status.figures.get("collect_corrupt_pieces", "0")):
        yield f"collection has found {damaged} extents with wrong bytes on a device; the daemon's log names the files"
    if status.conflicts:
        yield f"{len(status.conflicts)} files with data that could not be committed lie in {status.state_dir}/conflicts; look, then delete"
    if status.memory_bytes > status.memory_bytes_max:
        yield f"the daemon uses {status.memory_bytes} bytes of memory, its budget (memory.daemon) is {status.memory_bytes_max}"


def _without_leader(figures: Mapping[str, str]) -> Iterator[str]:
    """One of several voters that knows nobody who leads."""
    if figures.get("leader", "alone"):
        return
    if missing := figures.get("founding_waits_for"):
        yield f"the metadata cluster is not founded yet: all voters must be up once; not heard of yet: {missing.replace(' ', ', ')}"
    elif figures.get("members") == "0":
        yield "this voter is in no metadata cluster yet; it joins when a leader, or all other voters without a log, hear of it"
    else:
        yield "no node is known to lead the metadata: changes and lookups wait; see that more than half of the voters run and are connected"


def conflicts(directory: Path) -> Iterator[pb.Conflict]:
    """What was kept aside, at most CONFLICTS_SHOWN_MAX files."""
    shown = 0
    for parent, _directories, files in os.walk(directory):
        for name in sorted(files):
            if shown == CONFLICTS_SHOWN_MAX:
                return
            shown += 1
            path = os.path.join(parent, name)
            try:
                yield pb.Conflict(path=path, bytes=os.lstat(path).st_size)
            except OSError:
                continue  # removed meanwhile


def memory_bytes() -> int:
    """Resident bytes of this process that are its own (what LMDB maps of files is the page cache's)."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def samples_of(status: pb.Status) -> Iterator[Sample]:
    yield Sample("awsomefsd_info", "gauge", "What runs here.", 1, (("node", status.node), ("version", status.version)))
    yield Sample("awsomefsd_degraded_reasons", "gauge", "Reasons for which this node is degraded.", len(status.reasons))
    yield Sample("awsomefsd_keeper_up", "gauge", "Whether the keeper answers.", int(status.keeper))
    yield Sample("awsomefsd_daemon_memory_bytes", "gauge", "Memory of the daemon.", status.memory_bytes)
    yield Sample("awsomefsd_conflict_files", "gauge", "Files in the conflict area.", len(status.conflicts))
    for device in status.devices:
        place = (("device", str(device.device)), ("path", device.path))
        yield Sample("awsomefsd_device_bytes", "gauge", "Size of a device.", device.bytes, place)
        yield Sample("awsomefsd_device_segments", "gauge", "Segments of a device.", device.segments, place)
        yield Sample("awsomefsd_device_segments_free", "gauge", "Free segments of a device.", device.segments_free, place)
        yield Sample("awsomefsd_device_up", "gauge", "Whether this node can use a device.", int(device.state == "ok"), place)
    for volume in status.volumes:
        name_label = (("volume", volume.name),)
        yield Sample("awsomefsd_volume_used_bytes", "gauge", "Bytes used by a volume.", volume.used_bytes, name_label)
        yield Sample("awsomefsd_volume_used_inodes", "gauge", "Inodes used by a volume.", volume.used_inodes, name_label)
        yield Sample("awsomefsd_volume_reserved_bytes", "gauge", "Bytes promised to writers.", volume.reserved_bytes, name_label)
        yield Sample("awsomefsd_volume_quota_bytes", "gauge", "Quota of a volume, 0 for none.", volume.quota_bytes, name_label)
    for mount in status.mounts:
        labels = (("volume", mount.volume), ("dir", mount.directory))
        yield Sample("awsomefsd_mount_up", "gauge", "Whether a mount is served.", int(mount.state == SERVING), labels)
        yield Sample("awsomefsd_mount_workers_total", "counter", "Workers a mount has had.", mount.workers, labels)
    for name, value in sorted(status.figures.items()):
        try:
            whose = ("", "Figure of collection.") if name.startswith("collect_") else ("meta_", "Figure of the metadata service.")
            yield Sample(f"awsomefsd_{whose[0]}{name}", "gauge", whose[1], float(value))
        except ValueError:
            continue  # a word, not a figure
