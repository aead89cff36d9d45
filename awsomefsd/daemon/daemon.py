"""The node daemon: the one place that knows all parts, builds them, and ends them.

A node without an identity waits for one first (daemon/without_identity.py).  The order of the start, each step relying on the one before:
identity, lock on the state directory, metadata service (recovers; listens on meta.sock), admin API, metrics, READY to the service manager;
then mounts are reconciled, for as long as the daemon runs.  The order of the end: the admin API stops taking calls, then the metadata
service commits its store.  Workers and keeper go on and wait.

If the metadata thread ends by itself (a failed fsync, damage) the daemon ends with status 1 and a reason: all that was acknowledged is in
the journal, and the next start replays it.  Going on with an admin API over a dead service was rejected: nothing would restart us.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from awsomefsd.base import identity, levels, sockets
from awsomefsd.base.errors import Error
from awsomefsd.base.limits import DEVICE_REPORT_MS, SCRUB_LOOK_MS, UPKEEP_BYTES_PER_S_MAX, VOUCH_MS
from awsomefsd.base.log import bound
from awsomefsd.base.metrics import Registry
from awsomefsd.base.rule_levels import POOLS, STORES
from awsomefsd.base.tls import TlsFiles
from awsomefsd.base.types import HOST_UNIQUE, VolumeInfo
from awsomefsd.base.watchdog import keep_fed
from awsomefsd.cluster.control.service import ControlService
from awsomefsd.cluster.founding.founder import certify_alone, enter_founder
from awsomefsd.cluster.membership.cluster_status import ClusterStatus
from awsomefsd.cluster.membership.known_voters import in_cluster, reports
from awsomefsd.cluster.membership.membership import MembershipTasks, again
from awsomefsd.cluster.membership.metadata_host import MetadataHost
from awsomefsd.cluster.pki.node_admin import NO_POOLS, NodePools
from awsomefsd.config.settings import Settings
from awsomefsd.daemon.keep_mounts import HostEvents, keep_mounts
from awsomefsd.daemon.loop_waits import ended
from awsomefsd.daemon.metadata_core import MetadataCore
from awsomefsd.daemon.web_page import WebPage
from awsomefsd.daemon.without_identity import wait
from awsomefsd.daemon.worker_config import certificates, places, worker_config
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.io.file.damaged_reads import DamagedReads
from awsomefsd.keeper.client import KeeperClient
from awsomefsd.meta.api.commands import Init
from awsomefsd.meta.api.messages import Done, Failed, Propose
from awsomefsd.meta.client.endpoints import ENDPOINTS_NAME, Endpoints
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.devices.device_watch import DeviceWatch
from awsomefsd.node.devices.devices import NodeDevices
from awsomefsd.node.devices.operations import DeviceOperations
from awsomefsd.node.devices.served_devices import ServedDevices
from awsomefsd.node.health.probes import LoopBeat, Probes, not_ready
from awsomefsd.node.health.upgrade import Upgrade
from awsomefsd.node.maintenance.checkpoints import Checkpointer
from awsomefsd.node.maintenance.collection import WAKE_MS, Collection, own_devices
from awsomefsd.node.maintenance.damage import LOOK_MS, Damage
from awsomefsd.node.maintenance.io_budget import IoBudget
from awsomefsd.node.maintenance.quarantine_admin import QuarantineAdmin
from awsomefsd.node.maintenance.quarantine_proofs import QuarantineProofs
from awsomefsd.node.metadata_access import LeaderAccess
from awsomefsd.node.mounts import Mounts, own_worker
from awsomefsd.node.pod.host_keeper import HostKeeper
from awsomefsd.recovery.backup import Backups

if TYPE_CHECKING:
    from awsomefsd.admin.service import AdminService
    from awsomefsd.admin.status import NodeStatus
    from awsomefsd.csi.server import CsiServer
    from awsomefsd.io.pool.bay_leases import Lease
    from awsomefsd.io.pool.pool_access import PoolAccess
    from awsomefsd.node.maintenance.scrub import ScrubbedPool

logger = logging.getLogger(__name__)
RECONCILE_S = 1.0
CALL_S = 10.0
CSI_POLL_S = 2.0
LEAVE_ANSWER_S = 0.3


class MetadataEnded(Error):
    """The metadata service ended by itself; the daemon must be started again."""


class Daemon:
    """All parts of a running daemon, complete and serving when constructed; the constructor blocks.  Raises Error.

    `close` ends the parts in order and blocks until they have ended; a second call does nothing.  The event loop's thread calls both.
    """

    def __init__(self, first: MetadataCore) -> None:
        self.settings = settings = first.settings
        self.node, self.table, self.checkpoint_progress, self.metadata = first.node, first.table, first.checkpoint_progress, first.metadata
        with ExitStack() as undo:
            undo.callback(first.close)
            self.figures = Registry()
            self.heartbeat = LoopBeat()
            alone = self.metadata.alone
            self.access = LeaderAccess(_endpoints(settings, self.node), self.node.node, settings.state_dir, self._own)
            undo.callback(self.access.close)
            self.catalog = Catalog(self.access.ask)
            if alone and not self.catalog.figures()["applied"]:
                self.catalog.propose(Init(self.node.cluster, self.node.site, levels.supported()))
            if alone:
                enter_founder(settings, self.node, self.catalog.propose)
                came_back = certify_alone(settings, self.node, self.catalog.propose, lambda body: self.metadata.query(body, CALL_S))
                if came_back and in_cluster(settings, self.node):
                    self.metadata.meet_others()
            self.served = ServedDevices(settings.state_dir, settings.run_dir)
            self.watch = DeviceWatch(
                self.node.cluster, self.node.node, self.table, self.access.ask, settings.devices.extra,
                mark_pools=self.served.mark,
            )  # fmt: skip
            self.devices = NodeDevices(
                self.node.cluster, self.node.node, self.table, self.catalog, self.watch.refused, self.served.unserved, self.watch.refresh
            )  # fmt: skip
            self.keeper = KeeperClient(settings.run_dir)
            self.host_keeper = HostKeeper(settings, self.keeper) if settings.kubernetes.host_keeper else None
            self.checkpoints = Checkpointer(
                settings.state_dir, self.node, self.access.ask, self.metadata.copy_store, self.checkpoint_progress, self.table.paths,
                leads=lambda: self.metadata.leads, alone=lambda: self.metadata.alone,
            )  # fmt: skip
            undo.callback(self.checkpoints.stop)
            self.checkpoints.start()
            self.membership = MembershipTasks(settings, self.node, self.access.ask, self.metadata, self.checkpoints.growing)
            reporter = self.membership.reporter
            self.mounts = self._mounts(lambda: reporter.removed)
            self.control = ControlService(
                settings, self.node, self.metadata.query, self.access.ask, reporter.state,
                mounted=lambda: [view.directory for view in self.mounts.views()],
                end_mount=lambda directory: self.mounts.umount(directory, force=True),
                leads=lambda: self.metadata.leads, applied=lambda: self.metadata.applied, pools=self._pools(),
            )  # fmt: skip
            self.host_events = HostEvents(settings.run_dir)
            undo.callback(self.host_events.close)
            self._start_collecting(undo)
            self._serve(undo)
            self._undo = undo.pop_all()

    def _pools(self) -> NodePools:
        if levels.highest() < POOLS:
            return NO_POOLS
        from awsomefsd.node.devices.node_pools import PoolsOfNodes
        from awsomefsd.node.devices.pool_operations import PoolOperations

        return PoolsOfNodes(self.catalog, PoolOperations(self.node.cluster, self.access.ask, self.catalog))

    def _mounts(self, removed: Callable[[], str]) -> Mounts:
        from awsomefsd.node.snapshots import SnapshotCatalog

        settings, worker = self.settings, own_worker if self.host_keeper is None else self.host_keeper.worker
        snapshots = SnapshotCatalog(self.catalog, self.access.ask)
        return Mounts(
            settings.state_dir, identity.boot_id(), self.keeper, self._mountable, worker_config(settings, self.node),
            settings.mount.readahead // 1024, self.catalog.end_session_of, worker, removed, node=self.node.node,
            find_snapshot=snapshots.find,
        )  # fmt: skip

    def _start_collecting(self, undo: ExitStack) -> None:
        place = self.node.node, identity.boot_id()
        self.upkeep_io = IoBudget(UPKEEP_BYTES_PER_S_MAX)
        repaired = self.figures.counter("awsomefsd_superblocks_repaired_total", "Superblocks rewritten from the other one by the daemon.")
        devices = OpenDevices(self.catalog.devices, self.node.cluster, repaired.add)
        may = self.node.role == "node"
        applied = self.membership.applied
        self.collection = Collection(
            self.access.ask, self.catalog.devices, devices, *place, self.upkeep_io, collects=may, applied=applied,
            access_pool=self._access_pool if levels.highest() >= POOLS else None,
        )  # fmt: skip
        self.quarantine_proofs = QuarantineProofs(
            self.settings.state_dir, *place, self.access.ask, self.catalog.propose, self.collection.proof, applied
        )
        self.damage = Damage(
            DamagedReads(self.settings.state_dir), self.access.ask, devices,
            lambda count, began: time.sleep(self.upkeep_io.spend(count, began)),
        )  # fmt: skip
        self._start_pool_upkeep(undo)
        self._start_store_eras(undo)
        self.collection.start()
        undo.callback(self.collection.stop)

    def _access_pool(self, session: Callable[[], tuple[int, int]], lease: Lease) -> PoolAccess:
        from awsomefsd.io.pool.pool_access import PoolAccess
        from awsomefsd.io.pool.server_state import BAYS_SOCKET

        settings = self.settings
        return PoolAccess(
            self.catalog.devices, self.node.cluster, self.node.node, str(settings.run_dir / BAYS_SOCKET),
            lambda: TlsFiles(*certificates(settings)), session, lease,
        )  # fmt: skip

    def _scrubbed_pool(self) -> ScrubbedPool | None:
        if levels.highest() < POOLS:
            return None
        from awsomefsd.io.pool.pool_devices import PoolDevices
        from awsomefsd.io.pool.server_state import BAYS_SOCKET
        from awsomefsd.io.pool.verifying import Verifying
        from awsomefsd.node.maintenance.scrub import ScrubbedPool

        own_socket = str(self.settings.run_dir / BAYS_SOCKET)
        verifying = Verifying(
            lambda: PoolDevices(
                self.catalog.devices, self.node.cluster, self.node.node, own_socket, lambda: TlsFiles(*certificates(self.settings)),
                lambda: (0, 0),
            )
        )  # fmt: skip
        return ScrubbedPool(self.node.node, self.catalog.propose, verifying.verify, verifying.close)

    def _start_pool_upkeep(self, undo: ExitStack) -> None:
        """Starts what looks after pools while this node leads; not in builds whose clusters have none (base/levels.py)."""
        if levels.highest() < POOLS or self.node.role != "node":
            return
        from awsomefsd.io.pool.server_state import BAYS_SOCKET
        from awsomefsd.node.maintenance.pool_upkeep import PoolServers, PoolUpkeep

        settings = self.settings
        tls = TlsFiles(*certificates(settings))
        servers, copying = (PoolServers(self.node.node, str(settings.run_dir / BAYS_SOCKET), tls) for _ in range(2))
        upkeep = PoolUpkeep(
            self.access.ask, self.catalog.propose, servers, copying, lambda: self.metadata.leads, self.membership.applied, self.node.node
        )  # fmt: skip
        upkeep.start()
        undo.callback(upkeep.stop)

    def _start_store_eras(self, undo: ExitStack) -> None:
        """Starts what begins eras of stores while this node leads; not in builds whose clusters have none (base/levels.py)."""
        if levels.highest() < STORES or self.node.role != "node":
            return
        from awsomefsd.node.store_eras import StoreEras
        from awsomefsd.node.stores import StoreCatalog

        eras = StoreEras(
            StoreCatalog(self.catalog, self.node.cluster), lambda: self.catalog.level() >= STORES, lambda: self.metadata.leads,
            self.membership.applied,
        )  # fmt: skip
        eras.start()
        undo.callback(eras.stop)

    def _mountable(self, name: str) -> VolumeInfo:
        found = self.catalog.mountable(name, node=self.node.node)
        self.devices.require(found.home)
        return found

    def _serve(self, undo: ExitStack) -> None:
        """Opens the admin API, the CSI driver, the web page and the metrics.

        gRPC and the exporter are imported here, when the metadata service, for which workers wait, serves already.
        """
        from awsomefsd.admin.server import Door, GrpcServer
        from awsomefsd.admin.status import NodeStatus
        from awsomefsd.node.maintenance.scrub import Scrub, Upkeep

        settings = self.settings
        upkeep = Upkeep(
            settings.scrub.every, self.upkeep_io, partial(own_devices, self.node.node, self.access.ask), lambda: self.metadata.carries,
            checks=self.node.role == "node", empty=self.collection.empty, pool=self._scrubbed_pool(),
        )  # fmt: skip
        self.scrub = Scrub(settings.state_dir, self.node.cluster, self.access.ask, self.metadata.copy_pages, upkeep)
        undo.callback(self.scrub.close)
        look = ClusterStatus(
            self.node, settings.state_dir, self.access.ask, lambda: self.metadata.carries, self.membership.reporter, certificates(settings),
            lambda: self.control.trouble,
        )  # fmt: skip
        status = NodeStatus(
            settings, self.node, self.catalog, self.devices, self.mounts, self.keeper, self.collection, self.checkpoints.figures, look,
            self.scrub.status, str if self.host_keeper is None else self.host_keeper.what_is_wrong, self.damage.shown,
            self.served,
        )  # fmt: skip
        stopping = threading.Event()
        page = WebPage(settings, undo)
        self.grpc = GrpcServer(self._admin(status, stopping, page), settings.run_dir)
        undo.callback(self.grpc.stop)
        undo.callback(stopping.set)
        refused = self.figures.counter("awsomefsd_admin_refused_total", "Admin connections of users that are not allowed.")
        self.door = Door(settings.admin_socket, self.grpc, settings.admin_group, refused)
        self.csi = self._serve_csi()
        if self.csi is not None:
            undo.callback(self.csi.close)
        self.figures.source(status.samples)
        self.figures.source(self.scrub.samples)
        self.scrub.resume()
        if settings.metrics.listen:
            from awsomefsd.node.health.exporter import Exporter

            probes = Probes(self.heartbeat, lambda: not_ready(status()))
            exporter = Exporter(self.figures, settings.metrics.listen, settings.run_dir, probes)
            undo.callback(exporter.close)
            logger.info("metrics are served", extra={"at": exporter.address})

    def _admin(self, status: NodeStatus, stopping: threading.Event, page: WebPage) -> AdminService:
        """The admin API; its followers of the change stream end when `stopping` is set."""
        from awsomefsd.admin.cluster_service import ClusterRpcs
        from awsomefsd.admin.device_service import DeviceRpcs
        from awsomefsd.admin.maintenance_service import MaintenanceRpcs
        from awsomefsd.admin.mount_service import MountRpcs
        from awsomefsd.admin.observe_service import ObserveRpcs
        from awsomefsd.admin.pool_service import PoolRpcs
        from awsomefsd.admin.service import AdminService
        from awsomefsd.admin.snapshot_service import SnapshotRpcs
        from awsomefsd.admin.store_service import StoreRpcs
        from awsomefsd.admin.stream_service import StreamRpcs
        from awsomefsd.admin.streams import Streams
        from awsomefsd.admin.ui_service import UiRpcs
        from awsomefsd.admin.volume_service import VolumeRpcs
        from awsomefsd.node.pools import PoolCatalog
        from awsomefsd.node.snapshots import SnapshotCatalog
        from awsomefsd.node.stores import StoreCatalog

        settings, cluster = self.settings, self.node.cluster
        backups = Backups(settings.state_dir / "backup", self.node, self.catalog.figures, self.access.ask, self.metadata.copy_store)
        operations = DeviceOperations(cluster, self.access.ask, self.catalog, self.table, self.watch)
        quarantine = QuarantineAdmin(self.node.node, self.access.ask, self.catalog.propose)
        return AdminService(
            ClusterRpcs(self.control),
            DeviceRpcs(self.devices, operations, self.watch, quarantine, self.served),
            VolumeRpcs(self.catalog, self.mounts),
            MountRpcs(self.mounts, self.catalog, self.control.check_open),
            MaintenanceRpcs(status, self.collection, self.scrub, Upgrade(self.catalog), backups),
            StreamRpcs(Streams(settings.state_dir / "readers", cluster, self.access.ask), stopping),
            ObserveRpcs(self.catalog, self.figures.samples, stopping),
            UiRpcs(page.login),
            StoreRpcs(StoreCatalog(self.catalog, cluster)),
            PoolRpcs(PoolCatalog(self.catalog)),
            SnapshotRpcs(SnapshotCatalog(self.catalog, self.access.ask)),
        )

    def _serve_csi(self) -> CsiServer | None:
        if not self.settings.csi.enabled:
            return None
        from awsomefsd.csi.server import serve_csi

        return serve_csi(self.settings, self.node, self.access.ask, self.catalog, self.mounts, self.keeper, self.figures)

    def _own(self) -> Callable[[Any, float], Any] | None:
        """Returns the function that asks this node's own metadata service; None if it runs none."""
        return self.metadata.query if self.metadata.carries else None

    def close(self) -> None:
        self._undo.close()


def _endpoints(settings: Settings, node: identity.Node) -> Endpoints:
    return Endpoints(
        settings.meta_socket,
        node=node.node,
        file=settings.state_dir / ENDPOINTS_NAME,
        fixed=places(settings),
        tls=lambda: TlsFiles(*certificates(settings)),
    )


# --- lifecycles -----------------------------------------------------------------------------------------------------------------


async def _stop_on_signal(metadata: MetadataHost, scope: trio.CancelScope) -> None:
    """Hands the leadership to another voter before anything ends, so that clients wait for one election and for no timeout."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            logger.info("daemon stops; mounts continue", extra={"signal": signal.Signals(number).name})
            sockets.notify_systemd("STOPPING=1")
            await trio.to_thread.run_sync(metadata.hand_over)
            scope.cancel()
            return


async def _watch_metadata(metadata: MetadataHost, access: LeaderAccess, scope: trio.CancelScope) -> None:
    """Ends the daemon when the service has ended by itself.

    Collection, checkpoints and others end after their present request: each of them fails at once, because no answer will come.
    """
    await ended(metadata.failed)
    access.end(f"the metadata service of this node ended: {metadata.error}")
    scope.cancel()


async def _watch_leaving(control: ControlService, scope: trio.CancelScope) -> None:
    """Ends the daemon when this node has left its cluster and its state is to go."""
    await ended(control.purge)
    await trio.sleep(LEAVE_ANSWER_S)  # the answer to the client that asked for it is on its way
    scope.cancel()


async def _initialise(daemon: Daemon) -> None:
    """Writes the cluster's first row where several voters are configured: the daemon of the first leader does; later leaders find it there.

    It asks its own service only, since no service takes Init from another node; one that does not lead may lead the next time.
    """
    command = Propose(HOST_UNIQUE, 0, 0, [], Init(daemon.node.cluster, daemon.node.site, levels.supported()))
    while True:
        try:
            reply = await trio.to_thread.run_sync(daemon.metadata.query, command, CALL_S, abandon_on_cancel=True)
            if isinstance(reply, Done) or (isinstance(reply, Failed) and not reply.retry):
                return
        except Error:
            pass
        await trio.sleep(RECONCILE_S)


async def _keep_host(keeper: HostKeeper) -> None:
    while True:
        await trio.to_thread.run_sync(keeper.poll, abandon_on_cancel=True)
        await trio.sleep(RECONCILE_S)


async def _keep_csi(csi: CsiServer) -> None:
    while True:
        await trio.to_thread.run_sync(csi.poll, abandon_on_cancel=True)
        await trio.sleep(CSI_POLL_S)


async def serve(daemon: Daemon, ready: Callable[[], None]) -> None:
    """Runs the daemon's tasks until a signal or until this node has left; calls `ready` when all of them are started.

    Raises MetadataEnded if the metadata service ended by itself.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, daemon.metadata, nursery.cancel_scope)
        nursery.start_soon(_watch_metadata, daemon.metadata, daemon.access, nursery.cancel_scope)
        nursery.start_soon(keep_fed, lambda: not daemon.metadata.carries)
        nursery.start_soon(daemon.heartbeat.beat)
        nursery.start_soon(daemon.door.serve)
        nursery.start_soon(keep_mounts, daemon.mounts, daemon.host_events)
        if daemon.host_keeper is not None:
            nursery.start_soon(_keep_host, daemon.host_keeper)
        if daemon.csi is not None:
            nursery.start_soon(_keep_csi, daemon.csi)
        nursery.start_soon(again, daemon.watch.poll, DEVICE_REPORT_MS, "this node's devices cannot be reported to the leader now")
        nursery.start_soon(again, daemon.served.poll, DEVICE_REPORT_MS, "the segment server cannot be asked", daemon.served.due)
        nursery.start_soon(again, daemon.scrub.poll, SCRUB_LOOK_MS, "scrub cannot note how far it is")
        nursery.start_soon(again, daemon.scrub.mend, LOOK_MS, "what scrub found cannot be mended now", daemon.scrub.mend_due)
        nursery.start_soon(again, daemon.damage.poll, LOOK_MS, "places with wrong bytes cannot be looked at now")
        collection, proofs = daemon.collection, daemon.quarantine_proofs
        nursery.start_soon(again, collection.wake, WAKE_MS, "collection cannot be woken", collection.due)
        nursery.start_soon(again, proofs.poll, VOUCH_MS, "the quarantine cannot be checked now", proofs.due)
        nursery.start_soon(daemon.control.run)
        nursery.start_soon(_watch_leaving, daemon.control, nursery.cancel_scope)
        if daemon.settings.metadata.voters:
            nursery.start_soon(_initialise, daemon)
        if in_cluster(daemon.settings, daemon.node):
            nursery.start_soon(daemon.membership.run)
        elif reports(daemon.settings):
            nursery.start_soon(daemon.membership.report)
        ready()
    if daemon.metadata.error is not None:
        raise MetadataEnded(f"the metadata service ended: {daemon.metadata.error}; acknowledged changes are safe; start the daemon again")


def run(settings: Settings, first: MetadataCore | None, began: float) -> int:
    """Runs the daemon in the foreground until it ends, and returns the exit status.  Called by the main thread; raises Error.

    `first` is the core that serves already, None if this node had no identity yet; `began` is the time.monotonic() of the start.
    """
    os.chdir("/")  # keeps no mount busy
    if not wait(settings):
        return 0
    begun = first or MetadataCore(settings)

    async def main() -> None:
        daemon = Daemon(begun)
        log = bound(logger, node=daemon.node.node, cluster=daemon.node.cluster)
        try:
            await serve(daemon, lambda: _ready(log, began))
        finally:
            daemon.close()
        if daemon.control.purge.done:
            left = identity.purge(settings.state_dir, conflicts=daemon.control.purge_conflicts)
            log.warning("this node has left its cluster; its state is deleted", extra={"left": " ".join(left)})

    try:
        trio.run(main)
    except MetadataEnded as err:
        logger.critical("%s", err)
        return 1
    return 0


def _ready(log: Any, began: float) -> None:
    log.info("daemon is ready", extra={"ms": round((time.monotonic() - began) * 1000)})
    sockets.notify_systemd("READY=1")
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector looks at it no more
