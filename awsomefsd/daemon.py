"""The node daemon: the one place that knows all parts, builds them, and ends them.

A node without an identity waits for one first (cluster/waiting.py).  Order of the start, each step relying on the one before: identity,
lock on the state directory, metadata service (recovers; listens on meta.sock), admin API, metrics, READY to the service manager; then
mounts are brought into line, for as long as the daemon runs.  Order of the end: the admin API stops taking calls, then the metadata service
commits its store.  Workers and keeper go on and wait.

If the metadata thread ends by itself (a failed fsync, damage) the daemon ends with status 1 and a reason: what was acknowledged is in the
journal, and the next start replays it.  Carrying on with an admin API over a dead service was rejected: nothing would restart us.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import trio

from awsomefsd import levels, node, sockets
from awsomefsd.access import MetaAccess
from awsomefsd.backup import Backups
from awsomefsd.catalog import Catalog
from awsomefsd.checkpoints import Checkpointer
from awsomefsd.cluster.control_part import ControlPart
from awsomefsd.cluster.founder import certify_alone, enter_founder
from awsomefsd.cluster.host import MetadataHost
from awsomefsd.cluster.known_voters import in_cluster
from awsomefsd.cluster.look import ClusterLook
from awsomefsd.cluster.membership import Membership, again
from awsomefsd.cluster.waiting import wait
from awsomefsd.collection import Collection
from awsomefsd.config import Settings, parse_voters
from awsomefsd.device_pool import DevicePool
from awsomefsd.device_watch import DeviceWatch
from awsomefsd.devices import NodeDevices
from awsomefsd.errors import ConfigError, Error, FsError
from awsomefsd.fuse.keeper_client import KeeperClient
from awsomefsd.host_keeper import HostKeeper
from awsomefsd.limits import DEVICE_REPORT_MS, VOUCH_MS
from awsomefsd.log import bound
from awsomefsd.meta.commands import Init
from awsomefsd.meta.device_index import OFF
from awsomefsd.meta.endpoints import ENDPOINTS_NAME, Endpoints
from awsomefsd.meta.peers import address_text
from awsomefsd.metadata_part import MetadataPart
from awsomefsd.metrics import Registry
from awsomefsd.mount_options import MountOptions
from awsomefsd.mounts import Mounts, Wish, own_worker
from awsomefsd.quarantine import QuarantineDesk
from awsomefsd.tls import TlsFiles
from awsomefsd.types import VolumeInfo
from awsomefsd.vouching import Vouching
from awsomefsd.watchdog import keep_fed

if TYPE_CHECKING:
    from awsomefsd.csi.server import CsiServer

logger = logging.getLogger(__name__)
RECONCILE_S = 1.0
CALL_S = 10.0
CSI_LOOK_S = 2.0
LEAVE_ANSWER_S = 0.3
PINS_VARIABLE = "AWSOMEFSD_FUSE_PINS"


class MetadataEnded(Error):
    """The metadata service ended by itself; the daemon must be started again."""


class Parts:
    """Everything of a running daemon, complete when constructed.  `close` ends it in order; harmless twice."""

    def __init__(self, first: MetadataPart) -> None:
        self.settings = settings = first.settings
        self.node, self.table, self.on_device, self.metadata = first.node, first.table, first.on_device, first.metadata
        with ExitStack() as undo:
            undo.callback(first.close)
            self.figures = Registry()
            alone = self.metadata.alone
            if not alone:
                self.on_device.durable = OFF
            self.access = MetaAccess(_endpoints(settings, self.node), self.node.node, settings.state_dir, self._own)
            undo.callback(self.access.close)
            self.catalog = Catalog(self.access)
            if alone and not self.catalog.figures()["applied"]:
                self.catalog.propose(Init(self.node.cluster, self.node.site, levels.supported()))
            if alone:
                enter_founder(settings, self.node, self.catalog.propose)
                certify_alone(settings, self.node, self.catalog.propose, lambda body: self.metadata.query(body, CALL_S))
            self.devices = NodeDevices(self.node.cluster, self.node.node, self.table, self.catalog)
            self.watch = DeviceWatch(self.node.cluster, self.node.node, self.table, self.access, settings.devices.extra)
            self.keeper = KeeperClient(settings.run_dir)
            self.host_keeper = HostKeeper(settings, self.keeper) if settings.kubernetes.host_keeper else None
            self.checkpoints = Checkpointer(
                settings.state_dir, self.node, self.access, self.metadata.copy_store, self.on_device, self.table.paths
            )
            if alone:
                undo.callback(self.checkpoints.stop)
                self.checkpoints.start()
            readahead_kib = settings.mount.readahead // 1024
            config = worker_config(settings, self.node)
            worker = own_worker if self.host_keeper is None else self.host_keeper.worker
            self.mounts = Mounts(
                settings.state_dir, node.boot_id(), self.keeper, self._mountable, config, readahead_kib, self.catalog.end_session_of, worker
            )  # fmt: skip
            self.control = ControlPart(settings, self.node, self.metadata.query, self.access)
            self._start_collecting(undo)
            self.membership = Membership(settings, self.node, self.access, self.metadata, self.checkpoints.stop)
            self._serve(undo)
            self._undo = undo.pop_all()

    def _start_collecting(self, undo: ExitStack) -> None:
        place = self.node.node, node.boot_id()
        self.collection = Collection(self.access, self.catalog.devices, *place)
        self.vouching = Vouching(self.settings.state_dir, *place, self.access, self.catalog.propose, self.collection.proof)
        self.collection.start()
        undo.callback(self.collection.stop)

    def _mountable(self, name: str) -> VolumeInfo:
        found = self.catalog.mountable(name, node=self.node.node)
        self.devices.require(found.home)
        return found

    def _serve(self, undo: ExitStack) -> None:
        """gRPC and metrics are imported here, when the metadata service serves already: workers wait for that one."""
        from awsomefsd.admin.server import Door, GrpcServer
        from awsomefsd.admin.service import AdminService
        from awsomefsd.admin.streams import Streams
        from awsomefsd.scrub import Scrub
        from awsomefsd.status import Status

        settings = self.settings
        self.scrub = Scrub(settings.state_dir, self.node.cluster, self.access, self.metadata.copy_pages)
        undo.callback(self.scrub.close)
        look = ClusterLook(
            self.node, settings.state_dir, self.access, lambda: self.metadata.carries, self.membership.agent, certificates(settings),
            lambda: self.control.trouble,
        )  # fmt: skip
        status = Status(
            settings, self.node, self.catalog, self.devices, self.mounts, self.keeper, self.collection, self.checkpoints.figures, look,
            self.scrub.status,
        )  # fmt: skip
        if self.host_keeper is not None:
            status.host_problem = self.host_keeper.what_is_wrong
        streams = Streams(settings.state_dir / "readers", self.node.cluster, self.access)
        backups = Backups(settings.state_dir / "backup", self.node, self.catalog.figures, self.access, self.metadata.copy_store)
        self.admin = AdminService(self.catalog, self.devices, self.mounts, streams, self.collection, status, self.scrub, backups)
        self.admin.cluster = self.control
        self.admin.pool = DevicePool(self.node.cluster, self.access, self.catalog, self.table, self.watch)
        self.admin.watch, self.admin.node_devices = self.watch, self.devices
        self.admin.quarantine = QuarantineDesk(self.node.node, self.access, self.catalog.propose)
        self.control.state_told = self.membership.agent.state
        self.mounts.removed = lambda: self.membership.agent.removed
        self.grpc = GrpcServer(self.admin, settings.run_dir)
        undo.callback(self.grpc.stop)
        undo.callback(self.admin.stopping.set)
        refused = self.figures.counter("awsomefsd_admin_refused_total", "Admin connections of users that may not ask.")
        self.door = Door(settings.admin_socket, self.grpc.path, settings.admin_group, refused)
        self.csi = self._serve_csi()
        if self.csi is not None:
            undo.callback(self.csi.close)
        self.figures.source(status.samples)
        self.figures.source(self.scrub.samples)
        self.scrub.resume()
        if settings.metrics.listen:
            from awsomefsd.exporter import Exporter

            exporter = Exporter(self.figures, settings.metrics.listen, settings.run_dir)
            undo.callback(exporter.close)
            logger.info("metrics are served", extra={"at": exporter.address})

    def _serve_csi(self) -> CsiServer | None:
        if not self.settings.csi.enabled:
            return None
        from awsomefsd.csi.server import serve_csi

        return serve_csi(self.settings, self.node, self.access, self.catalog, self.mounts, self.keeper, self.figures)

    def _own(self) -> Callable[[Any, float], Any] | None:
        """How this node's own service is asked, if it runs one."""
        return self.metadata.query if self.metadata.carries else None

    def close(self) -> None:
        self._undo.close()


def certificates(settings: Settings) -> tuple[str, str, str]:
    """(authorities, certificate, key): PEM files of this node."""
    chosen, pki = settings.metadata, settings.state_dir / "pki"
    if chosen.voters:
        return str(chosen.ca), str(chosen.certificate), str(chosen.key)
    return str(pki / "ca.pem"), str(pki / "node.pem"), str(pki / "node.key")


def places(settings: Settings) -> dict[str, str]:
    """node → metadata port, by a static configuration."""
    return {node: address_text(address) for node, address in parse_voters(settings.metadata.voters).items()}


def _endpoints(settings: Settings, identity: node.Node) -> Endpoints:
    return Endpoints(
        settings.meta_socket,
        node=identity.node,
        file=settings.state_dir / ENDPOINTS_NAME,
        fixed=places(settings),
        tls=lambda: TlsFiles(*certificates(settings)),
    )


def worker_config(settings: Settings, identity: node.Node) -> Callable[[Wish, MountOptions], dict[str, Any]]:
    """What a worker is told: the keeper hands it on unread."""
    pins = pins_of(os.environ.get(PINS_VARIABLE, ""))
    boot_id = node.boot_id()

    def config(wish: Wish, options: MountOptions) -> dict[str, Any]:
        return {
            "volume": wish.volume,
            "volume_name": wish.volume_name,
            "mount": wish.mount,
            "node": identity.node,
            "boot_id": boot_id,
            "meta_sock": str(settings.meta_socket),
            "state_dir": str(settings.state_dir),
            "tls": certificates(settings),
            "endpoints": str(settings.state_dir / ENDPOINTS_NAME),
            "places": places(settings),
            "options": wish.options,  # as they were asked for: a lost mounts.json is made again from it
            "read_only": options.read_only,
            "shared": options.shared,
            "on_lease_loss": options.on_lease_loss,
            "caches": options.shared and options.caches,
            "consistency": options.consistency,
            "containers": settings.csi.enabled,
            "map_uid": options.map_uid.ranges,
            "map_gid": options.map_gid.ranges,
            "root_squash": options.root_squash,
            "check_all": not options.default_permissions,
            "atime": options.atime_policy,
            "log_level": settings.log.level,
            "log_format": settings.log.format,
            "memory_bytes": settings.memory.worker,
            "pins": pins,
        }

    return config


def pins_of(text: str) -> dict[str, Any]:
    """AWSOMEFSD_FUSE_PINS, for tests: "minor=34,resend=off,without=0x40", the fields of negotiate.Pins."""
    pins: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        name, _, value = word.partition("=")
        try:
            if name == "resend":
                pins[name] = {"on": True, "off": False}[value]
            elif name in ("minor", "without"):
                pins[name] = int(value, 0)
            else:
                raise KeyError(name)
        except (KeyError, ValueError):
            raise ConfigError(f"{PINS_VARIABLE}: {word!r} is not minor=NUMBER, resend=off or without=FLAGS; correct or unset it") from None
    return pins


# --- lifecycles -----------------------------------------------------------------------------------------------------------------


async def _stop_on_signal(metadata: MetadataHost, scope: trio.CancelScope) -> None:
    """The leadership goes to another voter before anything ends, so that its clients wait for one election without a timeout."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            logger.info("daemon stops; mounts go on", extra={"signal": signal.Signals(number).name})
            sockets.notify_systemd("STOPPING=1")
            await trio.to_thread.run_sync(metadata.hand_over)
            scope.cancel()
            return


async def _watch_metadata(metadata: MetadataHost, access: MetaAccess, scope: trio.CancelScope) -> None:
    """Ends the daemon when the service has ended by itself.  Polled: a thread that waits for an Event cannot be cancelled.

    Collection, checkpoints and others end after what they are asking: they are told at once that there will be no answer.
    """
    while metadata.error is None:
        await trio.sleep(0.05)
    access.end(f"the metadata service of this node ended: {metadata.error}")
    scope.cancel()


async def _watch_leaving(control: ControlPart, scope: trio.CancelScope) -> None:
    """Ends the daemon when this node has left its cluster and its state is to go."""
    while not control.purge.is_set():
        await trio.sleep(0.05)
    await trio.sleep(LEAVE_ANSWER_S)  # the answer to whoever asked for it is on its way
    scope.cancel()


async def _initialise(parts: Parts) -> None:
    """With several voters: the first one that leads writes the cluster's first row; who leads later finds it there."""
    command = Init(parts.node.cluster, parts.node.site, levels.supported())
    while True:
        try:
            await trio.to_thread.run_sync(parts.catalog.propose, command, abandon_on_cancel=True)
        except FsError:
            return
        except Error:
            await trio.sleep(RECONCILE_S)
        else:
            return


async def _keep_mounts(mounts: Mounts) -> None:
    """Bring mounts into line, again and again; each dead one comes back in a task of its own."""
    reviving: set[str] = set()
    away = False

    async def revive(wish: Wish) -> None:
        try:
            await trio.to_thread.run_sync(mounts.revive, wish, abandon_on_cancel=True)
        finally:
            reviving.discard(wish.directory)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                dead = await trio.to_thread.run_sync(mounts.reconcile, abandon_on_cancel=True)
            except Error as err:
                if not away:
                    logger.warning("mounts cannot be looked at; running ones go on", extra={"reason": str(err)})
                away, dead = True, []
            else:
                away = False
            for wish in dead:
                if wish.directory not in reviving:
                    reviving.add(wish.directory)
                    nursery.start_soon(revive, wish)
            await trio.sleep(RECONCILE_S)


async def _keep_host(keeper: HostKeeper) -> None:
    while True:
        await trio.to_thread.run_sync(keeper.look, abandon_on_cancel=True)
        await trio.sleep(RECONCILE_S)


async def _keep_csi(csi: CsiServer) -> None:
    while True:
        await trio.to_thread.run_sync(csi.look, abandon_on_cancel=True)
        await trio.sleep(CSI_LOOK_S)


async def serve(parts: Parts, ready: Callable[[], None]) -> None:
    """Runs until a signal; raises MetadataEnded."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, parts.metadata, nursery.cancel_scope)
        nursery.start_soon(_watch_metadata, parts.metadata, parts.access, nursery.cancel_scope)
        nursery.start_soon(keep_fed, lambda: not parts.metadata.carries)
        nursery.start_soon(parts.door.serve)
        nursery.start_soon(_keep_mounts, parts.mounts)
        if parts.host_keeper is not None:
            nursery.start_soon(_keep_host, parts.host_keeper)
        if parts.csi is not None:
            nursery.start_soon(_keep_csi, parts.csi)
        nursery.start_soon(again, parts.watch.look, DEVICE_REPORT_MS, "the leader is not told of this node's devices now")
        nursery.start_soon(again, parts.vouching.look, VOUCH_MS, "quarantine cannot be looked at now")
        nursery.start_soon(parts.control.run)
        nursery.start_soon(_watch_leaving, parts.control, nursery.cancel_scope)
        if parts.settings.metadata.voters:
            nursery.start_soon(_initialise, parts)
        if in_cluster(parts.settings, parts.node):
            nursery.start_soon(parts.membership.run)
        ready()
    if parts.metadata.error is not None:
        raise MetadataEnded(f"the metadata service ended: {parts.metadata.error}; what was acknowledged is safe, start the daemon again")


def run(settings: Settings, first: MetadataPart | None, began: float) -> int:
    """The daemon, in the foreground, around the part that serves already; the exit status.  None: this node had no identity yet."""
    os.chdir("/")  # keeps no mount busy
    if not wait(settings):
        return 0
    begun = first or MetadataPart(settings)

    async def main() -> None:
        parts = Parts(begun)
        log = bound(logger, node=parts.node.node, cluster=parts.node.cluster)
        try:
            await serve(parts, lambda: _ready(log, began))
        finally:
            parts.close()
        if parts.control.purge.is_set():
            node.purge(settings.state_dir)
            log.warning("this node has left its cluster; its state is deleted")

    try:
        trio.run(main)
    except MetadataEnded as err:
        logger.critical("%s", err)
        return 1
    return 0


def _ready(log: Any, began: float) -> None:
    log.info("daemon is ready", extra={"ms": round((time.monotonic() - began) * 1000)})
    sockets.notify_systemd("READY=1")
