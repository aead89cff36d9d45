"""The admin socket checks the caller's credentials with the kernel before a byte reaches gRPC.

The inner sockets are gRPC's, in a directory of mode 0700 that only this daemon's user can enter.  The outer one is run_dir/admin.sock, of
root and the admin group (mode 0660); every connection is checked by SO_PEERCRED and SO_PEERGROUPS (root, our own user, or the group) and
then spliced to an inner one: root and our own user have one, the group another.  gRPC's Python server shows a service neither uid nor
groups of a unix peer, and a file mode alone is lost with one careless chmod or a bind mount, so the splice is needed.  It costs two copies
a message on a path that carries a few requests a minute.

An inner server lives while somebody is connected, and REST_S longer.  gRPC's threads look by the clock, some 15 times a second for each
server, and a node that nobody asks is to be idle.
"""

from __future__ import annotations

import gc
import grp
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import trio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from awsomefsd.admin.grpc_errors import fail
from awsomefsd.admin.pb import admin_pb2, admin_pb2_grpc
from awsomefsd.base import sockets
from awsomefsd.base.errors import Overloaded, Refused
from awsomefsd.base.identity import make_directory
from awsomefsd.base.metrics import Counter

logger = logging.getLogger(__name__)

SERVICE_NAME = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
CALLS_MAX = 32  # at once, of root and our own user; and as many of the admin group; a mount or a follower holds one for as long as it takes
FOLLOWERS_MAX = CALLS_MAX // 2  # of root and our own user; and as many of the admin group
CONNECTIONS_MAX = 128  # of root and our own user; and as many of the members of the admin group
CHUNK_BYTES = 64 * 1024
INNER_DIRECTORY = "admin"
REST_S = 10.0  # a server outlives its last caller by so much: the next command of somebody at work finds it there

assert FOLLOWERS_MAX < CALLS_MAX, "followers never take all threads from the other calls"


class FollowerPlaces(grpc.ServerInterceptor):  # type: ignore[misc]
    """The followers behind one inner socket, FOLLOWERS_MAX at most; a further one is refused (Overloaded)."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(FOLLOWERS_MAX)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method != f"/{SERVICE_NAME}/Follow":
            return handler

        def follow(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            if not self._free.acquire(blocking=False):
                fail(context, Overloaded(f"{FOLLOWERS_MAX} followers are connected already; end one first"))
                return
            try:
                yield from handler.unary_stream(request, context)
            finally:
                self._free.release()

        return grpc.unary_stream_rpc_method_handler(follow, handler.request_deserializer, handler.response_serializer)


class _Inner:
    """One inner socket and its server, which begins when somebody comes.  The event loop's thread uses it, and the thread of `stop`."""

    def __init__(self, place: Path, make: Callable[[ThreadPoolExecutor, FollowerPlaces], grpc.Server]) -> None:
        self._place = place
        self._make = make
        self._calls = ThreadPoolExecutor(CALLS_MAX, "admin")  # of all its servers: a call may outlive its caller, and so its server
        self._followers = FollowerPlaces()
        self._servers = self._visitors = self._visits = 0
        self._resting = False
        self.server: grpc.Server | None = None

    @property
    def path(self) -> Path:
        """Returns where the server listens.  Each has a name of its own: one that ends removes its socket in its own time."""
        return self._place.with_suffix(f".{self._servers}.sock")

    def _begin(self) -> None:
        if self.server is None:
            self._servers += 1
            self.path.unlink(missing_ok=True)
            made = self._make(self._calls, self._followers)
            with sockets.address(self.path) as place:
                made.add_insecure_port(f"unix:{place}")
            made.start()
            self.server = made

    def end(self, grace_s: float | None) -> threading.Event:
        """Takes no more calls, and cancels those under way after `grace_s`; returns the event of the end."""
        server, self.server = self.server, None
        ended = threading.Event()
        if server is None:
            ended.set()
        else:
            ended = server.stop(grace_s)
        return ended

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Path]:
        """Somebody is connected, and gets the path of a server that serves.  Raises OSError, and RuntimeError of gRPC."""
        self._begin()
        self._visits += 1
        self._visitors += 1
        try:
            yield self.path
        finally:
            self._visitors -= 1

    async def rest(self) -> None:
        """Ends the server if nobody is connected, and nobody comes for REST_S.  One task waits for it, the others return at once."""
        if self._resting:
            return
        self._resting = True
        try:
            while self.server is not None and not self._visitors:
                seen = self._visits
                await trio.sleep(REST_S)
                if not self._visitors and seen == self._visits:
                    place, ended = self.path, self.end(None)
                    await trio.to_thread.run_sync(_let_go, ended, abandon_on_cancel=True)
                    place.unlink(missing_ok=True)
        finally:
            self._resting = False


def _let_go(ended: threading.Event) -> None:
    """Waits until a server has ended, and lets gRPC's threads end too: they do with the last object of gRPC.

    An error that a call has met may be part of a cycle with the frames of that call, and those hold the call.  The garbage collector,
    which finds them, comes by only when much is allocated, and a node that nobody asks allocates nothing.
    """
    ended.wait()
    gc.collect()


class GrpcServer:
    """The gRPC servers behind the inner sockets, with health and reflection.  Raises Refused for their directory.

    There are two, with CALLS_MAX threads and FOLLOWERS_MAX followers each: calls of the admin group that wait, for a mount or a
    device, keep root from nothing.
    """

    def __init__(self, service: admin_pb2_grpc.AdminServicer, run_dir: Path) -> None:
        self.directory = run_dir / INNER_DIRECTORY
        make_directory(self.directory, 0o700)
        os.chmod(self.directory, 0o700)
        for left in self.directory.glob("*.sock"):  # of a daemon that was killed
            left.unlink()
        self._service = service
        self._health = health.HealthServicer()
        self.inner = {ours: _Inner(self.directory / name, self._make) for ours, name in ((True, "grpc"), (False, "group"))}
        self._set_serving()

    def _make(self, calls: ThreadPoolExecutor, followers: FollowerPlaces) -> grpc.Server:
        made = grpc.server(calls, interceptors=[followers], options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServicer_to_server(self._service, made)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, made)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), made)
        return made

    def _set_serving(self) -> None:
        for name in ("", SERVICE_NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float = 1.0) -> None:
        """Takes no more calls, and blocks until those under way have ended; after `grace_s` they are cancelled."""
        self._health.enter_graceful_shutdown()
        for ended in [one.end(grace_s) for one in self.inner.values()]:
            ended.wait()
        for left in self.directory.glob("*.sock"):
            left.unlink(missing_ok=True)


class Door:
    """The outer socket.  The constructor opens it, so that a daemon that says it is ready can be asked; it raises Refused.

    `serve` runs on the event loop until it is cancelled.
    """

    def __init__(self, path: Path, inner: GrpcServer, group: str | None, refused: Counter) -> None:
        self._path = path
        self._inner = inner.inner  # by whether the caller is ours
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
                async with self._inner[ours].visit() as path:
                    await _splice(outer, path)
            except (OSError, RuntimeError) as err:
                logger.warning("admin connection dropped: the daemon's inner socket does not answer", extra={"reason": str(err)})
        await self._inner[ours].rest()


async def _splice(outer: trio.SocketStream, path: Path) -> None:
    inner = _connect(path)
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
