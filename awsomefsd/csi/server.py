"""The two sockets of the CSI driver: CSI for kubelet and the sidecars, and the registration.

Both are bound under another name, get their mode, and are then renamed into place, so that no process can connect before the mode is set,
and the socket of a dead daemon is replaced without a gap.  Only root may ask: mounting needs root, and kubelet runs as root.  `poll` makes
them again when they were removed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from awsomefsd.base import identity, sockets
from awsomefsd.base.errors import ConfigError, Error, Refused
from awsomefsd.base.metrics import Registry
from awsomefsd.config.settings import Settings, parse_voters
from awsomefsd.csi import staging_paths
from awsomefsd.csi.controller import ControllerService
from awsomefsd.csi.grpc_errors import CallFigures
from awsomefsd.csi.identity import IdentityService
from awsomefsd.csi.inline_volumes import InlineVolumes
from awsomefsd.csi.node import NodeService
from awsomefsd.csi.pb import csi_pb2_grpc, registration_pb2_grpc
from awsomefsd.csi.registration import RegistrationService
from awsomefsd.csi.settings import DRIVER, REGISTRATION_SOCKET_NAME, SOCKET_NAME, DriverSettings
from awsomefsd.csi.volume_health import VolumeHealth
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volume_mounts import VolumeMounts
from awsomefsd.csi.volumes import DriverVolumes
from awsomefsd.io.file.damaged_reads import DamagedRead, DamagedReads
from awsomefsd.meta.api.commands import EndClaims
from awsomefsd.node.catalog import Call, Catalog
from awsomefsd.node.mounts import MountKeeper, Mounts

logger = logging.getLogger(__name__)
CALLS_MAX = 32  # at once; one that mounts takes its thread for as long
STOP_S = 2.0
HANDSHAKE_MS = 10_000  # a connection that has not said what HTTP/2 begins with is closed: each takes a file descriptor of the daemon


class DriverSocket:
    """A gRPC server on a unix socket of mode 0600.  One thread opens and closes it."""

    def __init__(self, path: Path, calls_max: int) -> None:
        self._path = path
        self._calls_max = calls_max
        self._server: grpc.Server | None = None
        self._inode = 0

    def open(self, *servicers: tuple[object, object]) -> None:
        """Binds and serves.  `servicers`: (the function that adds one, the servicer).  Raises ConfigError, Refused."""
        if len(os.fsencode(self._path)) > sockets.ADDRESS_BYTES_MAX:
            raise ConfigError(f"csi: {self._path} is longer than a unix socket's path may be ({sockets.ADDRESS_BYTES_MAX} bytes)")
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            early = self._path.parent / f".{self._path.name[:32]}.new"
            early.unlink(missing_ok=True)
            options = [("grpc.so_reuseport", 0), ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS)]
            server = grpc.server(ThreadPoolExecutor(self._calls_max, "csi"), options=options)
            for add, servicer in servicers:
                add(servicer, server)  # type: ignore[operator]
            with sockets.address(early) as place, sockets.owner_only():
                server.add_insecure_port(f"unix:{place}")
            os.chmod(early, 0o600)
            server.start()
            os.rename(early, self._path)
            self._inode = os.lstat(self._path).st_ino
        except (OSError, RuntimeError) as err:
            raise Refused(f"cannot listen on {self._path}: {err}; run as root, or set csi.kubelet_dir") from err
        self._server = server

    def present(self) -> bool:
        """Returns True while the file at the path is the socket of this server."""
        try:
            return os.lstat(self._path).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        if self._server is None:
            return
        if self.present():
            self._path.unlink(missing_ok=True)
        self._server.stop(STOP_S).wait()
        self._server = None


def serve_csi(
    settings: Settings, node: identity.Node, call: Call, catalog: Catalog, mounts: Mounts, keeper: MountKeeper, registry: Registry
) -> CsiServer:
    """Returns the driver with the settings of the configuration, serving on its sockets.  Raises ConfigError, Refused."""
    chosen = settings.csi
    plugins = chosen.registration_dir or chosen.kubelet_dir / "plugins_registry"
    driver = DriverSettings(
        node=node.node,
        cluster=node.cluster,
        boot_id=identity.boot_id(),
        socket=chosen.socket or chosen.kubelet_dir / "plugins" / DRIVER / SOCKET_NAME,
        kubelet_dir=chosen.kubelet_dir,
        registration_dir=plugins if chosen.register_plugin else None,
        health_api=chosen.health_api,
        attach=chosen.attach,
        zone=chosen.zone,
        rack=chosen.rack,
        max_volumes=chosen.max_volumes,
        inline=chosen.inline,
        inline_max=chosen.inline_max,
        voters=frozenset(parse_voters(settings.metadata.voters)),
    )
    return CsiServer(driver, call, catalog, mounts, keeper, registry, DamagedReads(settings.state_dir).all)


class CsiServer:
    """The CSI driver of this node; it serves when constructed, which raises ConfigError (not root) or Refused.

    `close` blocks until calls under way have ended, STOP_S for each socket at most.
    """

    def __init__(
        self, driver: DriverSettings, call: Call, catalog: Catalog, mounts: Mounts, keeper: MountKeeper, registry: Registry,
        damaged: Callable[[], Iterable[DamagedRead]],
    ) -> None:  # fmt: skip
        if os.geteuid() != 0:
            raise ConfigError(
                "csi.enabled needs root, because the driver mounts for other users; run the daemon as root, or turn csi.enabled off"
            )
        self._driver = driver
        self._volumes = DriverVolumes(call, catalog)
        self._keeper = keeper
        locks, figures, health = VolumeLocks(), CallFigures(registry), VolumeHealth(self._volumes, damaged)
        volume_mounts = VolumeMounts(driver.volumes_dir, mounts)
        controller = ControllerService(driver, self._volumes, volume_mounts, locks, figures, health)
        self._mounts = mounts
        self._locks = locks
        self._warm = self._moved = False
        self._inline = InlineVolumes(driver, self._volumes, volume_mounts, locks)
        self._servicers = (
            (csi_pb2_grpc.add_IdentityServicer_to_server, IdentityService(self._ready, figures)),
            (csi_pb2_grpc.add_ControllerServicer_to_server, controller),
            (
                csi_pb2_grpc.add_NodeServicer_to_server,
                NodeService(driver, self._volumes, volume_mounts, self._inline, locks, figures, health),
            ),
        )
        self._registration = RegistrationService(str(driver.socket))
        self._csi = DriverSocket(driver.socket, CALLS_MAX)
        self._kubelet: DriverSocket | None = None
        self._cleared = False
        self._csi.open(*self._servicers)
        self._open_registration()

    def _ready(self) -> None:
        self._volumes.figures()
        self._volumes.claims()
        self._keeper.list()

    def _open_registration(self) -> None:
        directory = self._driver.registration_dir
        if directory is None or not directory.is_dir():  # no kubelet yet; `poll` comes back to it
            return
        self._kubelet = DriverSocket(directory / REGISTRATION_SOCKET_NAME, 2)
        self._kubelet.open((registration_pb2_grpc.add_RegistrationServicer_to_server, self._registration))

    def poll(self) -> None:
        """Does the work that is due; the daemon calls it every few seconds, in a thread.  It blocks, and logs errors instead of raising.

        Makes removed sockets again, ends the claims of earlier boots of this node, moves what earlier builds bound to staging paths,
        deletes inline volumes whose pods are gone, and loads the program of workers before the first volume needs it.
        """
        if not self._moved:
            self._moved = staging_paths.move_all(self._driver.kubelet_dir, self._locks)
        if not self._cleared:
            try:
                command = EndClaims(
                    self._driver.node, 0, "", "this node was booted after the claim was made", keep_boot_id=self._driver.boot_id
                )
                if any(one.node == self._driver.node and one.boot_id != self._driver.boot_id for one in self._volumes.claims()):
                    self._volumes.propose(command)
                self._cleared = True
            except Error as err:
                logger.debug("the claims of earlier boots cannot be read yet; the daemon tries again", extra={"reason": str(err)})
        self._inline.poll()
        if not self._warm:
            try:
                self._warm = self._mounts.warm()
            except Error as err:
                logger.debug("workers cannot be prepared yet; the daemon tries again", extra={"reason": str(err)})
        try:
            if not self._csi.present():
                self._csi.close()
                self._csi.open(*self._servicers)
                logger.warning("the CSI socket was removed; it is made again")
            if self._kubelet is None or not self._kubelet.present():
                if self._kubelet is not None:
                    self._kubelet.close()
                    self._kubelet = None
                self._open_registration()
        except Error as err:
            logger.warning("a socket of the CSI driver cannot be made again yet; the daemon tries again", extra={"reason": str(err)})

    def close(self) -> None:
        if self._kubelet is not None:
            self._kubelet.close()
        self._csi.close()
