"""The admin socket checks the caller's credentials with the kernel before a byte reaches gRPC.

The inner sockets are gRPC's, in a directory of mode 0700 that only this daemon's user can enter.  The outer one is run_dir/admin.sock, of
root and the admin group (mode 0660); every connection is checked by SO_PEERCRED and SO_PEERGROUPS (root, our own user, or the group) and
then spliced to an inner one: root and our own user have one, the group another.  gRPC's Python server shows a service neither uid nor
groups of a unix peer, and a file mode alone is lost with one careless chmod or a bind mount, so the splice is needed.  It costs two copies
a message on a path that carries a few requests a minute.
"""

from __future__ import annotations

import grp
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import trio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from awsomefsd.admin.pb import admin_pb2, admin_pb2_grpc
from awsomefsd.base import sockets
from awsomefsd.base.errors import Refused
from awsomefsd.base.identity import make_directory
from awsomefsd.base.metrics import Counter

logger = logging.getLogger(__name__)

SERVICE_NAME = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
CALLS_MAX = 32  # at once, of root and our own user; and as many of the admin group; a mount or a follower holds one for as long as it takes
FOLLOWERS_MAX = CALLS_MAX // 2
CONNECTIONS_MAX = 128  # of root and our own user; and as many of the members of the admin group
CHUNK_BYTES = 64 * 1024
INNER_DIRECTORY = "admin"

assert FOLLOWERS_MAX < CALLS_MAX, "followers never take all threads from the other calls"


class GrpcServer:
    """The gRPC servers on the inner sockets, with health and reflection; they serve when constructed.  Raises Refused for their directory.

    There are two, with CALLS_MAX threads each: calls of the admin group that wait, for a mount or a device, keep root from nothing.
    """

    def __init__(self, service: admin_pb2_grpc.AdminServicer, run_dir: Path) -> None:
        directory = run_dir / INNER_DIRECTORY
        make_directory(directory, 0o700)
        os.chmod(directory, 0o700)
        self.path, self.group_path = directory / "grpc.sock", directory / "group.sock"
        self._health = health.HealthServicer()
        self._servers = [self._serve(service, path) for path in (self.path, self.group_path)]
        self.set_serving(True)

    def _serve(self, service: admin_pb2_grpc.AdminServicer, path: Path) -> grpc.Server:
        path.unlink(missing_ok=True)
        made = grpc.server(ThreadPoolExecutor(CALLS_MAX, "admin"), options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServicer_to_server(service, made)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, made)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), made)
        with sockets.address(path) as place:
            made.add_insecure_port(f"unix:{place}")
        made.start()
        return made

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            self._health.set(name, status)

    def stop(self, grace_s: float = 1.0) -> None:
        """Takes no more calls, and blocks until those under way have ended; after `grace_s` they are cancelled."""
        self._health.enter_graceful_shutdown()
        for ended in [one.stop(grace_s) for one in self._servers]:
            ended.wait()
        for path in (self.path, self.group_path):
            path.unlink(missing_ok=True)


class Door:
    """The outer socket.  The constructor opens it, so that a daemon that says it is ready can be asked; it raises Refused.

    `serve` runs on the event loop until it is cancelled.
    """

    def __init__(self, path: Path, inner: GrpcServer, group: str | None, refused: Counter) -> None:
        self._path = path
        self._inner = {True: inner.path, False: inner.group_path}  # by whether the caller is ours
        self._group = grp.getgrnam(group).gr_gid if group else -1
        self._refused = refused
        self._limits = {ours: trio.CapacityLimiter(CONNECTIONS_MAX) for ours in (True, False)}  # nobody of the group keeps root out
        try:
            listener = sockets.listen_unix(path, 0o660 if group else 0o600, self._group)
        except OSError as err:
            raise Refused(f"cannot listen on {path}: {err.strerror}; run as root, or choose another --run-dir") from err
        listener.setblocking(False)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))

    def admits(self, peer: sockets.Peer) -> bool:
        """Returns True for root, our own user, and members of the admin group."""
        return _is_ours(peer) or (self._group >= 0 and self._group in peer.gids)

    async def serve(self) -> None:
        """Serves connections until it is cancelled, then removes the socket."""
        try:
            await trio.serve_listeners(self._visit, [self._listener])
        finally:
            self._path.unlink(missing_ok=True)

    async def _visit(self, outer: trio.SocketStream) -> None:
        """Serves one connection; an error on it ends it and nothing else."""
        peer = sockets.peer_of(outer.socket)
        if not self.admits(peer):
            self._refused.add()
            logger.warning(
                "admin connection refused: not root and not in the admin group", extra={"peer_pid": peer.pid, "peer_uid": peer.uid}
            )
            await outer.aclose()
            return
        ours = _is_ours(peer)
        async with self._limits[ours], outer:
            try:
                inner = _connect(self._inner[ours])
            except OSError as err:
                logger.warning("admin connection dropped: the daemon's inner socket does not answer", extra={"errno": err.errno})
                return
            async with inner, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, inner, outer, nursery.cancel_scope)
                await _pump(outer, inner, nursery.cancel_scope)


def _is_ours(peer: sockets.Peer) -> bool:
    return peer.uid in (0, os.geteuid())


def _connect(path: Path) -> trio.SocketStream:
    sock = sockets.connect_unix(path)  # local and listening: does not wait
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Copies until one side ends, then ends the other: HTTP/2 has no half-closed connections worth keeping."""
    try:
        while chunk := await source.receive_some(CHUNK_BYTES):
            await sink.send_all(chunk)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    scope.cancel()
