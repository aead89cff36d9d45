"""The control port of a node: joining, renewal, leaving, rotation; founding and the rest add their methods to the same table.

TLS 1.3.  A client certificate is requested and not required: a node that joins has none.  One that is shown must be valid, or there is no
connection.  `ControlMethod.needs` says what a method demands of the caller, and the node's row decides: a removed node is refused, whatever
it shows.  A frame has a bound and a time to arrive in.  Bytes that are no valid frame end their connection, and are counted.

Anybody may connect, so a stranger's connection has an end, and strangers take no place and no thread from nodes that show a certificate.
At its bound each of the two kinds gives up a connection for a new one, the oldest of the address that has the most (base/sources.py).

Calls run on threads, since they wait for the metadata.  A node that does not lead answers a call for the leader with the leader's address.
"""

from __future__ import annotations

import enum
import itertools
import logging
import math
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import trio

from awsomefsd.base.errors import Corrupt, Error, NotLeading, ProtocolError, Refused, Unavailable
from awsomefsd.base.limits import (
    CONTROL_CONNECTIONS_MAX,
    CONTROL_FOUNDING_MS,
    CONTROL_HANDSHAKE_MS,
    CONTROL_IDLE_MS,
    CONTROL_STRANGER_MS,
)
from awsomefsd.base.sources import gives_place
from awsomefsd.cluster import messages as m
from awsomefsd.cluster.founding import wire
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.signing import Signing
from awsomefsd.meta.api.messages.nodes import NodeInfo

logger = logging.getLogger(__name__)
_THREADS = 16
LOG_PAUSE_S = 1.0


class Needs(enum.Enum):
    """The proof that a method demands of its caller."""

    NOTHING = enum.auto()
    MEMBER = enum.auto()  # the certificate of a node in the cluster
    NODE = enum.auto()  # of one with the role "node"


class ControlCaller(NamedTuple):
    """The caller of a method.  `identity` None: no certificate was shown.  `row`: set for a method that needs one."""

    identity: ca.CertifiedNode | None
    row: NodeInfo | None
    own_certificate: bytes  # DER; what this server showed


class ControlMethod(NamedTuple):
    """One method.  `run` is called on a thread and may block; its domain errors are answered in words."""

    needs: Needs
    run: Callable[[Any, ControlCaller], m.ControlMessage]


def methods(signing: Signing, bundle: Callable[[], str], leave: Callable[[str, bool], None]) -> dict[type, ControlMethod]:
    """Returns the methods that a node with an identity serves, by the type of the call."""

    def node_of(caller: ControlCaller) -> str:
        assert caller.row is not None
        return caller.row.node

    def leaves(body: m.Leave, caller: ControlCaller) -> m.ControlMessage:
        leave(node_of(caller), body.force)
        return m.CallDone()

    return {
        m.Greet: ControlMethod(Needs.NOTHING, lambda body, caller: m.Greeting(m.VERSION, signing.cluster, bundle())),
        m.Join: ControlMethod(Needs.NOTHING, lambda body, caller: signing.join(body)),
        m.RenewCertificate: ControlMethod(Needs.MEMBER, lambda body, caller: signing.renew(node_of(caller), body)),
        m.Leave: ControlMethod(Needs.MEMBER, leaves),
        m.RotateCa: ControlMethod(Needs.NODE, lambda body, caller: m.Rotated(signing.rotate())),
    }


class ServerTls:
    """The server's TLS context, made again when a file has changed."""

    def __init__(self, bundle: Path, certificate: Path, key: Path) -> None:
        self._paths = bundle, certificate, key
        self._seen: object = None
        self._made: tuple[ssl.SSLContext, bytes] | None = None

    def __call__(self) -> tuple[ssl.SSLContext, bytes]:
        """Returns a TLS context and the DER of its certificate.  Raises OSError."""
        seen = [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in (path.stat() for path in self._paths)]
        if self._made is None or seen != self._seen:
            bundle, certificate, key = self._paths
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
            context.set_alpn_protocols([m.PROTOCOL, wire.ALPN])
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(str(bundle))
            context.load_cert_chain(str(certificate), str(key))
            self._made = context, ssl.PEM_cert_to_DER_cert(certificate.read_text())
            self._seen = seen
        return self._made


class ControlServer:
    """The control port of a node.  `tls`: context and own certificate for the next connection.

    `standing` returns the row of a node that is in the cluster, or raises Refused; `leader_at` returns the control port of a node, "" if it
    is not known; both are called on threads.  `founding` takes connections that speak founding (cluster/founding/admit.py), with this
    server's certificate and their remote address.
    """

    def __init__(
        self,
        tls: Callable[[], tuple[ssl.SSLContext, bytes]],
        table: dict[type, ControlMethod],
        standing: Callable[[str], NodeInfo],
        leader_at: Callable[[str], str],
        founding: Callable[[Any, bytes, str], Awaitable[None]] | None = None,
    ) -> None:
        self._founding = founding
        self._tls = tls
        self._table = table
        self._standing = standing
        self._leader_at = leader_at
        self._threads = {False: trio.CapacityLimiter(_THREADS), True: trio.CapacityLimiter(_THREADS)}  # by: a certificate was shown
        self._strangers: dict[int, str] = {}  # connection → its address, oldest first
        self._members: dict[int, str] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._numbers = itertools.count()
        self.port = 0
        self.dropped = 0  # connections that spoke nonsense, or too slowly, or that were over before they were served
        self._logged = -math.inf  # when one was logged last: strangers do not fill the log
        self.refused = 0  # calls
        self.turned_away = 0  # connections that lost their place to a newer one

    def figures(self) -> dict[str, int]:
        return {
            "control_connections": len(self._strangers) + len(self._members),
            "control_dropped": self.dropped,
            "control_refused": self.refused,
            "control_turned_away": self.turned_away,
        }

    async def serve(self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled; reports the port when it listens.  Raises OSError if the address is taken."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        self.port = int(listeners[0].socket.getsockname()[1])
        task_status.started(self.port)
        await trio.serve_listeners(self._serve_one, listeners)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        number = next(self._numbers)
        with trio.move_on_after(CONTROL_STRANGER_MS / 1_000) as scope:
            self._scopes[number] = scope
            try:
                remote = _remote(stream)
                self._give_place(self._strangers, number, remote)
                await self._talk(stream, number, remote)
            except (ProtocolError, Unavailable, trio.TooSlowError, trio.BrokenResourceError) as err:
                self._dropped(str(err) or type(err).__name__)
            except OSError as err:
                logger.warning("the control port cannot serve: %s", err)
            finally:
                self._strangers.pop(number, None)
                self._members.pop(number, None)
                del self._scopes[number]
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)

    def _dropped(self, reason: str) -> None:
        self.dropped += 1
        if trio.current_time() - self._logged >= LOG_PAUSE_S:
            self._logged = trio.current_time()
            logger.info("a control connection was dropped", extra={"reason": reason, "dropped": self.dropped})

    def _give_place(self, places: dict[int, str], number: int, remote: str) -> None:
        if len(places) >= CONTROL_CONNECTIONS_MAX:
            gone = gives_place(places, remote)
            del places[gone]
            self._scopes[gone].cancel()
            self.turned_away += 1
        places[number] = remote

    async def _talk(self, plain: trio.SocketStream, number: int, remote: str) -> None:
        context, own = self._tls()
        stream = trio.SSLStream(plain, context, server_side=True, https_compatible=True)
        with trio.fail_after(CONTROL_HANDSHAKE_MS / 1_000):
            await stream.do_handshake()
        if self._founding is not None and stream.selected_alpn_protocol() == wire.ALPN:
            self._scopes[number].deadline = trio.current_time() + CONTROL_FOUNDING_MS / 1_000
            await self._founding(stream, own, remote)
            return
        shown = stream.getpeercert(binary_form=True)
        try:
            identity = ca.identity(shown) if shown else None
        except Corrupt as err:
            raise ProtocolError(str(err)) from err
        if identity is not None and self._strangers.pop(number, None) is not None:
            self._scopes[number].deadline = math.inf
            self._give_place(self._members, number, remote)
        while True:
            with trio.fail_after(CONTROL_IDLE_MS / 1_000):
                raw = await _frame(stream)
            if raw is None:
                return
            answer = await self._answer(m.decode_call(raw), identity, own)
            with trio.fail_after(CONTROL_IDLE_MS / 1_000):
                await stream.send_all(m.frame(answer))

    async def _answer(self, body: m.ControlMessage, identity: ca.CertifiedNode | None, own: bytes) -> m.ControlMessage:
        run = lambda: self._run(body, identity, own)  # noqa: E731
        return await trio.to_thread.run_sync(run, limiter=self._threads[identity is not None], abandon_on_cancel=True)

    def _run(self, body: m.ControlMessage, identity: ca.CertifiedNode | None, own: bytes) -> m.ControlMessage:
        what = type(body).__name__
        method = self._table.get(type(body))
        try:
            if method is None:
                raise Refused(f"{what} is not for a node in this state")
            row = None if method.needs is Needs.NOTHING else self._member(what, method.needs, identity)
            return method.run(body, ControlCaller(identity, row, own))
        except NotLeading as err:
            return m.Redirect(self._leader_at(err.leader) if err.leader else "")
        except Error as err:
            self.refused += 1
            logger.info("a control call was refused", extra={"call": what, "reason": str(err)})
            return m.No(type(err).__name__, str(err))
        except Exception:
            logger.exception("a control call failed", extra={"call": what})
            return m.No("Error", "a bug in the daemon; its log has the details")

    def _member(self, what: str, needs: Needs, identity: ca.CertifiedNode | None) -> NodeInfo:
        if identity is None:
            raise Refused(f"{what} needs the certificate of a node of this cluster")
        row = self._standing(identity.node)
        if (row.role, row.key) != (identity.role, identity.key):
            raise Refused(f"the certificate of node {identity.node} is not the one it has in this cluster")
        if needs is Needs.NODE and row.role != "node":
            words = f"node {row.node} is a {row.role} of this cluster and may not do this ({what})"
            raise Refused(f"{words}; run the command on a machine with the role node")
        return row


def _remote(stream: trio.SocketStream) -> str:
    """Returns the address of the other side.  Raises ProtocolError if that is gone already."""
    try:
        return str(stream.socket.getpeername()[0])
    except OSError as err:
        raise ProtocolError("it was closed before it was served") from err


async def _frame(stream: trio.SSLStream[trio.SocketStream]) -> bytes | None:
    """Returns the next frame's body, or None if the other side has ended.  Raises ProtocolError."""
    head = await _exactly(stream, m.HEAD_BYTES)
    if not head:
        return None
    body = await _exactly(stream, m.body_bytes(head))
    if not body:
        raise ProtocolError("a control frame ends in the middle")
    return body


async def _exactly(stream: trio.SSLStream[trio.SocketStream], count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        part = await stream.receive_some(count - len(got))
        if not part:
            if got:
                raise ProtocolError("a control frame ends in the middle")
            return b""
        got += part
    return bytes(got)
