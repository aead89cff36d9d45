"""The status of this node: the answer to GetStatus, the findings of the rules of node/health/rules.py, and the same figures as metrics.

It works on every node, with and without metadata, and without a leader: figures that cannot be asked for are left out, and a finding says
so.  Degraded means that an operator should act (node/health/codes.py); `reasons` are those findings in words, as before there were codes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from awsomefsd import __version__
from awsomefsd.admin.device_service import DeviceCatalog, device_message
from awsomefsd.admin.maintenance_service import Collecting
from awsomefsd.admin.mount_service import mount_message
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.served import samples_of_server, server_messages
from awsomefsd.admin.volume_service import volume_message
from awsomefsd.base import levels
from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.base.metrics import Sample
from awsomefsd.base.rule_levels import POOLS
from awsomefsd.cluster.membership.view import ClusterView
from awsomefsd.config.settings import Settings
from awsomefsd.io.file.damaged_reads import DamagedRead
from awsomefsd.keeper.client import LOOK_S_MAX
from awsomefsd.meta.api.messages import GetSessions
from awsomefsd.meta.api.messages.devices import GetSightings
from awsomefsd.meta.api.messages.nodes import ListTokens
from awsomefsd.meta.net.traffic import REQUESTS
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.devices.pool_view import PoolView
from awsomefsd.node.devices.served_devices import ServedDevices
from awsomefsd.node.health import figures as described
from awsomefsd.node.health import join_token, rules
from awsomefsd.node.health.codes import CODES, INFO, HealthFinding
from awsomefsd.node.health.stopped_workers import is_stopped
from awsomefsd.node.maintenance.scrub import FAILED, ScrubProgress
from awsomefsd.node.mounts import SERVING, Mounts
from awsomefsd.node.pools import PoolCatalog

CONFLICTS_SHOWN_MAX = 100
_REQUESTS_HELP = "Requests that the metadata service took while it led, by what they want."
_BYTES_HELP = "Bytes of requests (way client) and of the log's copies (way voter) with a node, before TLS; peer local: not over a network."


class KeeperPing(Protocol):
    """The call of KeeperClient that the status needs."""

    def ping(self, timeout_s: float) -> dict[str, Any]:
        """Returns the keeper's pid under "pid", its version under "version".  Raises Unavailable."""


def damaged_places(records: Iterable[DamagedRead], names: Mapping[int, str]) -> list[tuple[str, str, int]]:
    """Returns (volume, path, offset) of each place with wrong bytes, once, though a read and scrub may both have met it.

    `names` is volume number → name: scrub's records have no name, and volumes may be renamed.
    """
    found: list[tuple[str, str, int]] = []
    ends: dict[tuple[int, int], int] = {}  # of the last place of each file
    paths: dict[tuple[int, int], str] = {}
    for one in sorted(records, key=lambda one: (one.volume, one.ino, one.offset)):
        file = one.volume, one.ino
        if one.offset >= ends.get(file, 0):
            path = paths.setdefault(file, one.path or f"inode {one.ino}")
            found.append((names.get(one.volume) or one.volume_name or str(one.volume), path, one.offset))
        ends[file] = max(ends.get(file, 0), one.offset + one.length)
    return found


class NodeStatus:
    """The status of this node: calling it asks every part, and keeps nothing.  Blocks; any thread may call."""

    def __init__(
        self,
        settings: Settings,
        node: Node,
        catalog: Catalog,
        devices: DeviceCatalog,
        mounts: Mounts,
        keeper: KeeperPing,
        collection: Collecting,
        checkpoints: Callable[[int], dict[str, int | float | str]],
        cluster: Callable[[], ClusterView],
        scrub: Callable[[], ScrubProgress],
        host_problem: Callable[[], str],
        damaged: Callable[[], list[DamagedRead]],
        served: ServedDevices,
    ) -> None:
        """`checkpoints` returns their figures when so many entries are applied; `host_problem` the trouble with the daemon's host files."""
        self._settings = settings
        self._node = node
        self._catalog = catalog
        self._devices = devices
        self._mounts = mounts
        self._keeper = keeper
        self._collection = collection
        self._checkpoints = checkpoints
        self._cluster = cluster
        self._scrub = scrub
        self._started = time.monotonic()
        self._host_problem = host_problem
        self._damaged = damaged
        self._served = served

    def __call__(self) -> pb.Status:
        """Returns the answer to GetStatus."""
        keeper_pid, keeper_version = self._keeper_is()
        view = self._cluster()
        devices, volumes = self._of_the_leader(view, self._devices.all), self._of_the_leader(view, self._catalog.volumes)
        delegated = self._of_the_leader(view, self._catalog.delegated)
        reports = dict(self._of_the_leader(view, lambda: self._catalog.reports().items()))
        names = dict(self._of_the_leader(view, lambda: self._catalog.names().items()))
        mounts = [mount_message(one, names, reports) for one in self._mounts.views(watched=keeper_pid > 0)]
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
            keeper_version=keeper_version,
            devices=[device_message(info, state, served=self._served.of(info.uuid)) for info, state in devices],
            volumes=[volume_message(info, where, delegated) for info in sorted(volumes, key=lambda info: info.name)],
            mounts=mounts,
            conflicts=list(conflicts(self._settings.state_dir / "conflicts")),
            figures={name: str(value) for name, value in self._figures(view).items()},
            memory_bytes=memory_bytes(),
            memory_bytes_max=self._settings.memory.daemon,
            metadata=metadata_message(view),
            segment_servers=list(server_messages(self._served.report())),
        )
        tell(status, rules.find(node_view(status), view, self._facts(view, mounts, reports)))
        return status

    def _figures(self, view: ClusterView) -> dict[str, int | float | str]:
        """Returns the figures of this node's metadata service; without one, those that are known of the leader's."""
        if not view.carries:
            known = {"term": view.term, "level": view.level} if view.asked else {}
            return {**known, "role": "none", "leader": view.leader, **self._collected()}
        figures = {**view.figures, **self._collected()}
        return figures | self._checkpoints(int(figures.get("applied", 0)))

    def _facts(self, view: ClusterView, mounts: list[pb.MountPoint], reports: Mapping[int, Mapping[str, int]]) -> rules.Facts:
        scrub = self._scrub()
        ended = [one for one in self._of_the_leader(view, lambda: self._catalog.ask(GetSessions()).sessions) if one.quarantined]
        names = {one.volume: one.name for one in self._of_the_leader(view, self._catalog.volumes)}
        report = self._served.report()
        devices = self._of_the_leader(view, self._catalog.devices) if report is not None and report.gone else []
        return rules.Facts(
            scrub_open=scrub.open,
            scrub_behind_s=scrub.behind_s(self._settings.scrub.every, time.time_ns()),
            damaged=damaged_places(self._damaged(), names),
            scrub_failed=scrub.reason if scrub.state == FAILED else "",
            quarantined=sum(one.quarantined for one in ended),
            quarantined_of=sorted({view.name(one.node) for one in ended}),
            alone_ms=dict(self._of_the_leader(view, lambda: self._catalog.ask(GetSightings()).alone_ms.items())),
            workers=list(self._workers_over_budget(mounts, reports)),
            stopped=[(mount.directory, mount.worker_pid) for mount in mounts if mount.state == SERVING and is_stopped(mount.worker_pid)],
            diverged=[mount.directory for mount in mounts if reports.get(int(mount.mount, 16), {}).get("names_diverged")],
            host=self._host_problem(),
            segment_server=report.gone if report is not None else "",
            served_devices=[info.path or info.uuid for info in devices if info.pool and info.home == self._node.node],
            pool=self._pool(view),
            served=report.state.devices if report is not None and report.state is not None else (),
            join_token=self._join_token(view),
        )

    def _pool(self, view: ClusterView) -> PoolView | None:
        """Returns the pool as the leader has it; None where there is none, or nobody can say."""
        if levels.highest() < POOLS or self._node.role != "node":
            return None
        pools = PoolCatalog(self._catalog)
        for pool, volumes, names in self._of_the_leader(view, lambda: [pools.look()] if pools.exists() else []):
            return PoolView(pool, volumes, names, time.time_ns() // NS_PER_MS)
        return None

    def _join_token(self, view: ClusterView) -> str:
        """Returns why the token that is renewed for machines that come later would not do; "" where there need not be one yet."""
        path = self._settings.kubernetes.join_token
        if path is None or time.monotonic() - self._started < join_token.LATE_S:
            return ""
        tokens = partial(self._of_the_leader, view, lambda: self._catalog.ask(ListTokens()).tokens)
        return join_token.trouble(path, self._node.cluster, tokens, time.time_ns() // NS_PER_MS)

    def _workers_over_budget(self, mounts: list[pb.MountPoint], reports: Mapping[int, Mapping[str, int]]) -> Iterator[tuple[str, int, int]]:
        """Yields (directory, used bytes, budget) of each worker above its budget that has dropped caches already, and still is."""
        for mount in mounts:
            figures = reports.get(int(mount.mount, 16), {})
            used, budget = figures.get("memory_bytes", 0), figures.get("memory_budget_bytes", 0)
            if used > budget and figures.get("memory_cache_percent", 100) < 100:
                yield mount.directory, used, budget

    def _of_the_leader(self, view: ClusterView, ask: Callable[[], Iterable[Any]]) -> list[Any]:
        """Returns the leader's rows; none while no leader answers (each call would wait for one), or where this node may not ask."""
        if not view.asked:
            return []
        try:
            return list(ask())
        except (Unavailable, FsError):
            return []

    def _collected(self) -> dict[str, int | str]:
        state, figures, error = self._collection.status()
        named = {f"collect_{name}": value for name, value in figures.items()}
        return {"collect_state": state, **named, **({"collect_last_error": error} if error else {})}

    def _keeper_is(self) -> tuple[int, str]:
        """Returns the keeper's pid and version; 0 and "" where none answers soon: one that is stopped must not hold up who looks."""
        try:
            keeper = self._keeper.ping(LOOK_S_MAX)
        except Error:
            return 0, ""
        return int(keeper["pid"]), str(keeper.get("version", ""))

    def samples(self) -> Iterable[Sample]:
        """Yields the same figures as metrics, and those that the workers report of themselves.  Blocks as the status does."""
        status = self()
        yield from samples_of(status)
        if status.metadata.trouble:
            return  # no leader would answer
        try:
            reports = self._catalog.reports()
        except (Unavailable, FsError):
            return
        for mount in status.mounts:
            labels = (("volume", mount.volume), ("dir", mount.directory))
            yield from described.of_worker(reports.get(int(mount.mount, 16), {}), labels)


def node_view(status: pb.Status) -> rules.NodeView:
    """Returns the status as plain values, for the rules of health."""
    return rules.NodeView(
        keeper=status.keeper,
        run_dir=status.run_dir,
        state_dir=status.state_dir,
        memory_bytes=status.memory_bytes,
        memory_bytes_max=status.memory_bytes_max,
        conflicts=len(status.conflicts),
        figures=dict(status.figures),
        mounts=[rules.MountFacts(one.directory, one.volume, one.state, one.last_error) for one in status.mounts],
        devices=[
            rules.DeviceView(one.uuid, one.path, one.state, one.segments, one.segments_free, one.shared, bool(one.pool))
            for one in status.devices
        ],
    )


def tell(status: pb.Status, found: Iterable[HealthFinding]) -> None:
    """Adds the findings to the answer."""
    for one in found:
        status.health.add(code=one.code, severity=one.severity, what=one.what, fix=one.remedy())
        if one.severity != INFO:
            status.reasons.append(one.words())


def metadata_message(view: ClusterView) -> pb.Metadata:
    return pb.Metadata(
        leader=view.leader,
        leader_name=view.name(view.leader) if view.leader else "",
        term=view.term,
        level=view.level,
        voters=view.voters,
        voters_heard=view.voters_heard,
        failures_survived=view.failures_survived,
        members=[
            pb.Member(
                node=one.node, name=one.name, member=one.member, leader=one.leader, heard=one.heard, lag=one.lag, silent_ms=one.silent_ms
            )
            for one in view.members
        ],
        without_leader_s=view.without_leader_s,
        last_leader=view.last_leader,
        last_leader_name=view.name(view.last_leader) if view.last_leader else "",
        carries=view.carries,
        trouble=view.trouble,
    )


def conflicts(directory: Path) -> Iterator[pb.Conflict]:
    """Yields the files of the conflict area, at most CONFLICTS_SHOWN_MAX."""
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
    """Returns the resident bytes of this process that are its own (the pages that LMDB maps are the page cache's)."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def samples_of(status: pb.Status) -> Iterator[Sample]:
    yield Sample("awsomefsd_info", "gauge", "What runs here.", 1, (("node", status.node), ("version", status.version)))
    yield Sample("awsomefsd_degraded_reasons", "gauge", "Reasons for which this node is degraded.", len(status.reasons))
    here = {one.code for one in status.health}
    for code in (code for code in CODES.values() if not code.doctor):
        labels = (("code", code.name), ("severity", code.severity))
        yield Sample(
            "awsomefsd_health", "gauge", "Whether a health code is found (awsomefsd status --codes).", int(code.name in here), labels
        )
    yield from _samples_of_cluster(status.metadata)
    yield Sample("awsomefsd_keeper_up", "gauge", "Whether the keeper answers.", int(status.keeper))
    yield Sample("awsomefsd_daemon_memory_bytes", "gauge", "Memory of the daemon.", status.memory_bytes)
    yield Sample("awsomefsd_conflict_files", "gauge", "Files in the conflict area.", len(status.conflicts))
    for device in status.devices:
        place = (("device", str(device.device)), ("path", device.path))
        yield Sample("awsomefsd_device_bytes", "gauge", "Size of a device.", device.bytes, place)
        yield Sample("awsomefsd_device_segments", "gauge", "Segments of a device.", device.segments, place)
        yield Sample("awsomefsd_device_segments_free", "gauge", "Free segments of a device.", device.segments_free, place)
        yield Sample("awsomefsd_device_up", "gauge", "Whether this node can use a device.", int(device.state == "ok"), place)
    yield from samples_of_server(status)
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
        if ":" in name:
            yield _sample_of_traffic(name.split(":"), int(value))
            continue
        try:
            yield described.sample(name if name.startswith("collect_") else f"meta_{name}", float(value))
        except ValueError:
            continue  # a word, not a figure


def _sample_of_traffic(words: list[str], value: int) -> Sample:
    """Returns the sample of a figure with the name that meta/net/traffic.py gives it."""
    if words[0] == REQUESTS:
        return Sample("awsomefsd_leader_requests_total", "counter", _REQUESTS_HELP, value, (("kind", words[1]),))
    _, way, peer, direction = words
    labels = (("peer", peer), ("way", way), ("direction", direction))
    return Sample("awsomefsd_peer_bytes_total", "counter", _BYTES_HELP, value, labels)


def _samples_of_cluster(metadata: pb.Metadata) -> Iterator[Sample]:
    for name, what, value in (
        ("leader_known", "Whether this node knows who leads the metadata.", int(bool(metadata.leader))),
        ("term", "Term of the metadata's log.", metadata.term),
        ("level", "Level at which the cluster acts.", metadata.level),
        ("voters", "Voters of the metadata.", metadata.voters),
        ("voters_heard", "Voters that the leader hears, itself among them; 0 where no leader answers.", metadata.voters_heard),
        ("failures_survived", "So many more voters may fail; -1 where no leader answers.", metadata.failures_survived),
    ):
        yield Sample(f"awsomefsd_{name}", "gauge", what, value)
