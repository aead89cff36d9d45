"""The clients' connections of the metadata service: bytes in, requests out, answers collected and sent once a turn.

They come over the unix socket (root of this machine), or from the metadata port (meta/net/listener.py), with their handshake done and their
node known:
those have to greet in time, and with a small frame.

Bounds.  A connection with answers above OUT_PAUSE_BYTES in its buffer is not read and none of its requests is started until the buffer is
down; one that takes nothing for SLOW_MS_MAX is dropped (its client connects again and asks again).  A connection's unread requests stay in
the socket: of what was received, only what fits one receive waits here.  A frame that was begun is to be whole within FRAME_MS_MAX.

Connections of this host and of other nodes have bounds of their own.  When the places of the others are all taken, a node gets one as long
as another node has more: the one with the most gives up its newest.  So each of n nodes has an nth of them, whatever the others do.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import get_args

import msgspec

from awsomefsd.base.codec import encode
from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.frames import FrameReader, pack_length
from awsomefsd.base.limits import GREETING_BYTES_MAX, HANDSHAKE_MS_MAX, MIB, NS_PER_MS, RPC_FRAME_BYTES_MAX, SESSIONS_MAX
from awsomefsd.base.sockets import peer_of
from awsomefsd.base.tls import PeerIdentity
from awsomefsd.meta.api.commands import AnyCommand
from awsomefsd.meta.api.messages import Answer, Body, Failed, Hello, Propose, Reply, RequestEnvelope
from awsomefsd.meta.net.connection import Wire
from awsomefsd.meta.net.traffic import CLIENT, LOCAL, Tally, Traffic
from awsomefsd.meta.server.request import AnyRequest, Request

log = logging.getLogger(__name__)

RECEIVE_BYTES = 64 << 10
OUT_PAUSE_BYTES = 2 * RPC_FRAME_BYTES_MAX
SLOW_MS_MAX = 30_000
FRAME_MS_MAX = 30_000
CONNECTIONS_MAX = SESSIONS_MAX + 64  # of this host, and as many of all other nodes
SEND_BUFFER_BYTES = MIB
_ACCEPTS_PER_TURN = 64
_EMSGSIZE = 90
_TLS_RECORD_BYTES = 16 << 10
_RECEIVES_PER_TURN = 8  # of TLS records, which are what one recv gives at most
_WAITING = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_REQUESTS = {kind.__struct_config__.tag for kind in get_args(Body)}  # the tags that this build knows
_COMMANDS = {kind.__struct_config__.tag for kind in get_args(AnyCommand)}
_PROPOSE = Propose.__struct_config__.tag


class _Tagged(msgspec.Struct, array_like=True):
    """The beginning of a request or a command.  What follows is skipped and no object is made of it: it may be 4 MiB of anything."""

    tag: int


class _Proposed(msgspec.Struct, array_like=True):
    """A Propose as far as its command."""

    tag: int
    unique: msgspec.Raw
    session: msgspec.Raw
    epoch: msgspec.Raw
    acks: msgspec.Raw
    command: msgspec.Raw


assert _Proposed.__struct_fields__[1:] == Propose.__struct_fields__, "the command stands at the same place"

_decode = msgspec.msgpack.Decoder(RequestEnvelope).decode
_decode_envelope = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
_decode_tagged = msgspec.msgpack.Decoder(_Tagged).decode
_decode_proposed = msgspec.msgpack.Decoder(_Proposed).decode


def _is_newer(body: msgspec.Raw) -> bool:
    """Returns True for the body of a request with a tag, or a Propose of a command with one, that this build does not know.

    Raises msgspec.DecodeError for what is neither.
    """
    tag = _decode_tagged(body).tag
    return tag not in _REQUESTS if tag != _PROPOSE else _decode_tagged(_decode_proposed(body).command).tag not in _COMMANDS


def decode_request(frame: bytes) -> RequestEnvelope:
    """Returns the decoded request.  Raises ProtocolError for anything that is none."""
    try:
        request: RequestEnvelope = _decode(frame)
        return request
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"not a request: {err}") from err


class ClientConnection:
    """One client, over the unix socket or the metadata port.  Implements request.Origin.  Used by the metadata thread only."""

    __slots__ = (
        "_buffer", "_owner", "_replies", "_reply_bytes", "begun_ns", "closed", "ending", "fd", "frames", "greeted", "mount", "pid",
        "reader", "since_ns", "sock", "stuck_ns", "tally", "watched", "who",
    )  # fmt: skip

    def __init__(
        self, owner: Connections, sock: socket.socket, tally: Tally, *, pid: int = 0, who: PeerIdentity | None = None, since_ns: int = 0
    ) -> None:
        """`pid`: of a client of this host.  `who`: the certificate of one over the network, which has to greet soon after `since_ns`."""
        self._owner = owner
        self._replies: list[bytes] = []  # of this turn
        self._reply_bytes = 0
        self._buffer = b""  # answers that the socket did not take
        self.sock = sock
        self.fd = sock.fileno()
        self.pid = pid
        self.tally = tally
        self.who = who
        self.since_ns = since_ns
        self.mount = 0
        self.reader = FrameReader() if who is None else FrameReader(GREETING_BYTES_MAX)
        self.frames: deque[bytes] = deque()  # received, not started
        self.greeted = self.ending = self.closed = False
        self.stuck_ns = 0  # since when the buffer has not moved; 0 while it is empty
        self.begun_ns = 0  # since when it could have sent the rest of a frame; 0 between two frames, and while it is not read
        self.watched = select.EPOLLIN

    @property
    def paused(self) -> bool:
        return len(self._buffer) + self._reply_bytes > OUT_PAUSE_BYTES

    def answer(self, call: int, reply: Reply) -> None:
        if self.closed:
            return
        body = encode(Answer(call, reply))
        if len(body) > RPC_FRAME_BYTES_MAX:
            body = encode(Answer(call, Failed(_EMSGSIZE, f"the answer has {len(body)} bytes")))
        if not self._replies:
            self._owner.touched.append(self)
        self._replies.append(pack_length(len(body)))
        self._replies.append(body)
        self._reply_bytes += len(body)

    def send(self, now_ns: int) -> None:
        """Gives the socket what it takes without waiting, and buffers the rest.  Raises OSError when the connection is gone."""
        data = b"".join((self._buffer, *self._replies)) if self._buffer else b"".join(self._replies)
        self._replies.clear()
        self._reply_bytes = 0
        sent = 0
        try:
            if data:
                sent = self.sock.send(data)
                while self.who is not None and sent < len(data):  # one TLS record a time
                    sent += self.sock.send(data[sent : sent + OUT_PAUSE_BYTES])
        except _WAITING:
            pass
        self.tally.sent += sent
        if sent == len(data):
            self._buffer, self.stuck_ns = b"", 0
        else:
            self._buffer = data[sent:]
            self.stuck_ns = now_ns if sent or not self.stuck_ns else self.stuck_ns


class Connections:
    """All clients and the listener, on one epoll.  Used by the metadata thread only; `wait` alone blocks."""

    def __init__(self, listener: socket.socket, wake_fd: int, monotonic_ns: Callable[[], int]) -> None:
        self._listener = listener
        self._deaf = False  # to new connections, for want of descriptors
        self._wake_fd = wake_fd
        self._monotonic_ns = monotonic_ns
        self._epoll = select.epoll()
        self._foreign: set[int] = set()
        self._by_fd: dict[int, ClientConnection] = {}
        self._of_nodes: dict[str, dict[ClientConnection, None]] = {}  # over the network; the newest of each node last
        self._void: list[ClientConnection] = []  # have lost their places
        self._traffic = Traffic(CLIENT)
        self.touched: list[ClientConnection] = []  # with new answers
        self._backlog: dict[ClientConnection, None] = {}  # with frames not started, in order
        self.protocol_errors = self.peers_refused = self.slow_dropped = 0
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(wake_fd, select.EPOLLIN)

    def watch(self, fd: int) -> None:
        """Lets `wait` also end when that descriptor is readable; its owner reads it."""
        self._foreign.add(fd)
        self._epoll.register(fd, select.EPOLLIN)

    def figures(self) -> dict[str, int]:
        return {
            "connections": len(self._by_fd),
            "protocol_errors": self.protocol_errors,
            "peers_refused": self.peers_refused,
            "slow_dropped": self.slow_dropped,
            **self._traffic.figures(),
        }

    def wait(self, timeout_ms: int) -> list[ClientConnection]:
        """Waits at most `timeout_ms` ms and returns the connections with requests to start."""
        if any(not connection.paused for connection in self._backlog):
            timeout_ms = 0
        ready: list[ClientConnection] = []
        for fd, events in self._epoll.poll(timeout_ms / 1000):
            connection = self._by_fd.get(fd)
            if connection is not None:
                if events & select.EPOLLOUT:
                    self.touched.append(connection)
                if events & ~select.EPOLLOUT and not connection.frames and self._receive(connection):
                    ready.append(connection)
            elif fd == self._wake_fd:
                os.eventfd_read(fd)
            elif fd not in self._foreign:
                self._accept()
        if self._backlog:
            ready += [connection for connection in self._backlog if not connection.paused]
            for connection in ready:
                self._backlog.pop(connection, None)
        return ready

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as err:  # no descriptors left: who waits in the listen queue is taken later, without looking all the time
                log.warning("cannot accept a connection: %s", err)
                self._epoll.unregister(self._listener.fileno())
                self._deaf = True
                return
            peer = peer_of(sock)
            if peer.uid not in (0, os.geteuid()) or len(self._by_fd) - self._remote_count >= CONNECTIONS_MAX:
                self.peers_refused += 1
                log.warning("refused a connection of uid %d, pid %d", peer.uid, peer.pid)
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._add(ClientConnection(self, sock, self._traffic.of(LOCAL), pid=peer.pid))

    def adopt(self, wire: Wire) -> None:
        """Takes over a client that came over the network; it has proved which node it is, and has not greeted."""
        who = wire.identity
        if who is None or not self._has_place(who.node):
            self.peers_refused += 1
            log.warning("refused a connection of another node", extra={"peer": who.node if who else "unknown"})
            wire.close()
            return
        connection = ClientConnection(self, wire.sock, self._traffic.of(who.node), who=who, since_ns=self._monotonic_ns())
        self._add(connection)
        if self._receive(connection):  # what came with the end of the handshake may be decrypted already
            self._backlog[connection] = None

    def _has_place(self, node: str) -> bool:
        """Returns whether that node may have one connection more.  At the bound, the newest of the node with the most is ended for it."""
        if self._remote_count < CONNECTIONS_MAX:
            return True
        most = max(self._of_nodes, key=lambda each: len(self._of_nodes[each]))
        count = len(self._of_nodes[most])
        if count <= len(self._of_nodes.get(node, ())) + 1:
            return False
        log.warning("ended a connection of the node with the most", extra={"peer": most, "connections": count, "for": node})
        self.peers_refused += 1
        newest, _ = self._of_nodes[most].popitem()
        self.end(newest)
        self._void.append(newest)
        return True

    @property
    def _remote_count(self) -> int:
        return sum(map(len, self._of_nodes.values()))

    def take_void(self) -> list[ClientConnection]:
        """Returns the connections that lost their places since the last call; the caller closes them."""
        taken, self._void = self._void, []
        return taken

    def _add(self, connection: ClientConnection) -> None:
        self._by_fd[connection.fd] = connection
        if connection.who is not None:
            self._of_nodes.setdefault(connection.who.node, {})[connection] = None
        self._epoll.register(connection.fd, connection.watched)

    def remote(self) -> list[ClientConnection]:
        """Returns the connections that came over the network."""
        return [connection for connection in self._by_fd.values() if connection.who is not None]

    def _data(self, connection: ClientConnection) -> bytes | None:
        """Returns what the socket has; b"" at the end of the stream, None if nothing is there."""
        pieces: list[bytes] = []
        try:
            pieces.append(connection.sock.recv(RECEIVE_BYTES))
            while connection.who is not None and len(pieces[-1]) == _TLS_RECORD_BYTES and len(pieces) < _RECEIVES_PER_TURN:
                pieces.append(connection.sock.recv(RECEIVE_BYTES))
        except _WAITING:
            if not pieces:
                return None
        except OSError:
            return b""
        return b"".join(pieces)

    def _receive(self, connection: ClientConnection) -> bool:
        data = self._data(connection)
        if data is None:
            return False
        if not data:
            connection.ending = True
            return True  # so that the service drops it, after what was asked before
        connection.tally.received += len(data)
        try:
            connection.frames.extend(connection.reader.feed(data))
        except ProtocolError as err:
            self.blame(connection, err)
            return True
        if connection.frames:
            connection.begun_ns = 0  # nothing more is read before these are started
        elif not connection.begun_ns:
            connection.begun_ns = self._monotonic_ns()
        return bool(connection.frames)

    def next_request(self, connection: ClientConnection) -> AnyRequest | None:
        """Returns the next request; None if there is none now.  Raises ProtocolError for a client that breaks the protocol."""
        while connection.frames and not connection.paused:
            frame = connection.frames.popleft()
            if not connection.frames and connection.reader.begun:
                connection.begun_ns = self._monotonic_ns()
            try:
                asked = decode_request(frame)
            except ProtocolError:
                self._answer_unknown(connection, frame)
                continue
            if not connection.greeted:
                if type(asked.body) is not Hello:
                    raise ProtocolError("the first request must be Hello")
                connection.greeted = True
                connection.mount = asked.body.mount
                connection.reader.bytes_max = RPC_FRAME_BYTES_MAX
            elif type(asked.body) is Hello:
                raise ProtocolError("a second Hello")
            return Request(connection, asked.call, asked.body, len(frame))
        return None

    def _answer_unknown(self, connection: ClientConnection, frame: bytes) -> None:
        """Answers EOPNOTSUPP to a request, or a command, of a newer build; to drop its connection would only bring it again.

        Raises ProtocolError for anything else.
        """
        try:
            call, body = _decode_envelope(frame)
            newer = _is_newer(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("not a request") from None
        if not connection.greeted or not newer:
            raise ProtocolError("not a request")
        connection.answer(
            call, Failed(errno.EOPNOTSUPP, "this daemon does not know this request; if awsomefsd was upgraded, restart the daemon")
        )

    def put_back(self, connection: ClientConnection) -> None:
        """Lists the connection for the next `wait` if it has frames that could not be started in this turn."""
        if connection.frames:
            self._backlog[connection] = None

    def blame(self, connection: ClientConnection, err: ProtocolError) -> None:
        self.protocol_errors += 1
        whose = f"pid {connection.pid}" if connection.who is None else f"node {connection.who.node}"
        log.warning("dropped the connection of %s: %s", whose, err)
        self.end(connection)

    def end(self, connection: ClientConnection) -> None:
        """Reads nothing more from the connection; the service closes it at the end of the turn."""
        connection.frames.clear()
        connection.ending = True

    def send_all(self) -> list[ClientConnection]:
        """Sends the answers of this turn, once for each connection; returns the connections that are gone."""
        gone = []
        if self.touched:
            now = self._monotonic_ns()
            touched, self.touched = self.touched, []
            for connection in touched:
                if connection.closed:
                    continue
                try:
                    connection.send(now)
                except OSError:
                    gone.append(connection)
                else:
                    self._watch(connection)
        return gone

    def _watch(self, connection: ClientConnection) -> None:
        wanted = (0 if connection.paused else select.EPOLLIN) | (select.EPOLLOUT if connection.stuck_ns else 0)
        if wanted != connection.watched:
            if connection.begun_ns:
                connection.begun_ns = self._monotonic_ns()  # what it could not send while it was paused is no fault of it
            connection.watched = wanted
            self._epoll.modify(connection.fd, wanted)

    def poll_slow(self) -> list[ClientConnection]:
        """Returns the connections that took nothing for SLOW_MS_MAX, did not end a frame in FRAME_MS_MAX, or did not greet in time.

        Listens again if descriptors had run out.
        """
        if self._deaf:
            self._deaf = False
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        now = self._monotonic_ns()
        limit = now - SLOW_MS_MAX * NS_PER_MS
        found = [connection for connection in self._by_fd.values() if connection.stuck_ns and connection.stuck_ns < limit]
        late = now - HANDSHAKE_MS_MAX * NS_PER_MS
        found += [one for one in self._by_fd.values() if one.who is not None and not one.greeted and one.since_ns < late]
        overdue = now - FRAME_MS_MAX * NS_PER_MS
        found += [one for one in self._by_fd.values() if one.begun_ns and one.begun_ns < overdue and not one.paused and one not in found]
        self.slow_dropped += len(found)
        return found

    def close(self, connection: ClientConnection) -> None:
        if not connection.closed:
            connection.closed = True
            self._backlog.pop(connection, None)
            del self._by_fd[connection.fd]
            if connection.who is not None and (of_node := self._of_nodes.get(connection.who.node)) is not None:
                of_node.pop(connection, None)
                if not of_node:
                    del self._of_nodes[connection.who.node]
            connection.sock.close()

    def of_mount(self, mount: int) -> list[ClientConnection]:
        """Returns the open connections of one mount; none for mount 0, clients without one."""
        return [connection for connection in self._by_fd.values() if mount and connection.mount == mount]

    def close_all(self) -> None:
        for connection in list(self._by_fd.values()):
            self.close(connection)
        self._listener.close()
        self._epoll.close()
