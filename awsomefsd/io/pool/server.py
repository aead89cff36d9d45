"""A segment server: it serves the bays of the devices that this node has attached to the nodes of the cluster, and to this machine.

A thread a connection, blocking; one more accepts.  Strangers can connect to the port, so handshake and greeting have a deadline, and of
connections that have not greeted there are HANDSHAKES_MAX at most: over it the oldest of the address that has the most is given up
(base/sources.py).  Of those that have, each node has SEGMENT_CONNECTIONS_PER_NODE at most, and their requests SEGMENT_BUFFERS_PER_NODE of
the buffers, so no node takes all from the others by stopping inside its records.  A connection that sends nonsense is ended and counted;
whatever ends it closes its bays for ever.  The unix socket is for root of this machine, which is this node.

Who is a member is told to the server again and again (`members`); connections of nodes that are none any more, or in another role than
they were greeted in, are ended.  Devices come and go while it serves: what a connection was told of them in its greeting is not all.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from awsomefsd.base import levels
from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import HANDSHAKE_MS_MAX, HANDSHAKES_MAX, NS_PER_MS, SEGMENT_BUFFERS_PER_NODE, SEGMENT_CONNECTIONS_PER_NODE
from awsomefsd.base.sockets import peer_of
from awsomefsd.base.sources import gives_place
from awsomefsd.base.tls import TlsNow
from awsomefsd.io.device.buffers import BufferShare
from awsomefsd.io.pool.bay_copies import BayCopies
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.pool.gate import Gate
from awsomefsd.io.pool.requests import BayRequests, BayRows, body_buffers
from awsomefsd.io.pool.server_state import CopyState
from awsomefsd.io.transport.handshake import accept, deadline_after
from awsomefsd.io.transport.link import BulkLink, prepare
from awsomefsd.io.transport.messages import VERSION, BulkHello, BulkWelcome, ServedDevice, dumps, loads
from awsomefsd.io.transport.records import BulkRecord, Kind
from awsomefsd.io.transport.seal import Keys

log = logging.getLogger(__name__)
_LOG_NS = 1_000 * NS_PER_MS  # between two lines about connections that failed


class KnownNode(NamedTuple):
    """A node of the cluster: its role, and where its segment server is reached, as the leader's rows say."""

    role: str
    address: str = ""


class SegmentServer:
    """`start` → connections are served → `stop`.  `node`: the UUID of this node, `role`: its role.

    `gate` and `changed` (its lock) are those of `devices`.  `listeners`: TCP for other nodes, unix for this one.
    """

    def __init__(
        self, node: str, role: str, devices: Sequence[DeviceBays], gate: Gate, changed: threading.Condition, rows: BayRows, tls: TlsNow,
        listeners: Sequence[socket.socket],
    ) -> None:  # fmt: skip
        self._node, self._role, self._rows, self._tls, self._listeners = node, role, rows, tls, list(listeners)
        self._devices = {device.number: device for device in devices}
        self._gate, self._changed = gate, changed
        self._buffers = body_buffers()
        self._copies = BayCopies(node, tls, gate, changed, self._address_of)
        self._id = secrets.token_bytes(16)
        self._lock = threading.Lock()  # of what follows
        self._members: Mapping[str, KnownNode] = {node: KnownNode(role)}
        self._shares: dict[str, BufferShare] = {}  # of the buffers, by node
        self._waiting: dict[int, tuple[socket.socket, str]] = {}  # connections that have not greeted, and from where; the oldest first
        self._serving: dict[int, tuple[BulkLink, str, str]] = {}  # and those that have, the node, and its role
        self._threads: set[threading.Thread] = set()
        self._numbers = 0
        self._stopping = False
        self._tell_ns = 0  # when the next connection that failed is told in the log
        self._new_listeners: list[socket.socket] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # of the thread that accepts
        self.accepted = self.strangers = self.nonsense = self.crowded_out = self.lost = 0
        self._accepting = threading.Thread(target=self._accept_loop, name="segments-accept", daemon=True)

    def start(self) -> None:
        for device in self._devices.values():
            device.start()
        self._accepting.start()

    def members(self, nodes: Mapping[str, KnownNode]) -> None:
        """Takes up who is a member now, by UUID.  Ends the connections of all others, and of those that have another role now."""
        with self._lock:
            self._members = dict(nodes)
            for link, node, role in self._serving.values():
                if node not in nodes or nodes[node].role != role:
                    link.interrupt()

    def _address_of(self, node: str) -> str:
        member = self._members.get(node)
        return member.address if member is not None else ""

    def listen(self, listener: socket.socket) -> None:
        """Accepts connections there too from now on."""
        with self._lock:
            self._listeners.append(listener)
            self._new_listeners.append(listener)
        os.eventfd_write(self._wake, 1)

    def tidy(self) -> None:
        """Gives back memory for bodies that nobody uses now."""
        self._buffers.tidy()

    def serve(self, device: DeviceBays) -> None:
        """Serves one more device from now on."""
        device.start()
        self._devices[device.number] = device

    def give_up(self, number: int) -> None:
        """Serves a device no more, and returns when nobody uses it; then it may be closed.  Blocks for its I/O."""
        device = self._devices.pop(number)
        self._copies.give_up(number)
        device.give_up()

    def copying(self, number: int) -> list[CopyState]:
        """Returns the copies into the bays of a device that are under way."""
        return self._copies.under_way(number)

    def figures(self) -> dict[str, int]:
        """Returns the figures for metrics: name → count."""
        with self._lock:
            return {
                "segment_connections": len(self._serving),
                "segment_handshakes": len(self._waiting),
                "segment_accepted": self.accepted,
                "segment_strangers": self.strangers,
                "segment_nonsense": self.nonsense,
                "segment_crowded_out": self.crowded_out,
                "segment_connections_lost": self.lost,
                **self._copies.figures(),
            }

    def stop(self) -> None:
        """Ends all connections, which closes their bays, and awaits what is under way.  A second call does nothing."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            for link, _, _ in self._serving.values():
                link.interrupt()
            for sock, _ in self._waiting.values():
                _shut(sock)
        os.eventfd_write(self._wake, 1)
        self._accepting.join()
        self._copies.stop()
        for device in list(self._devices.values()):
            device.stop()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        for listener in self._listeners:
            listener.close()
        os.close(self._wake)

    # --- connections ----------------------------------------------------------------------------------------------------
    def _accept_loop(self) -> None:
        poll, by_fd = select.poll(), {}
        poll.register(self._wake, select.POLLIN)
        with self._lock:
            self._new_listeners = list(self._listeners)
        while not self._stopping:
            with self._lock:
                new, self._new_listeners = self._new_listeners, []
            for listener in new:
                listener.setblocking(False)
                by_fd[listener.fileno()] = listener
                poll.register(listener, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    continue
                try:
                    sock, place = by_fd[fd].accept()
                except OSError as err:
                    if not self._stopping and not isinstance(err, BlockingIOError | ConnectionAbortedError):
                        log.warning("cannot accept a connection: %s", err)
                        threading.Event().wait(1.0)  # no free descriptors: the kernel's queue keeps those that wait
                    continue
                self._begin(sock, str(place[0]) if isinstance(place, tuple) else "")

    def _begin(self, sock: socket.socket, place: str) -> None:
        with self._lock:
            if self._stopping:
                sock.close()
                return
            self._numbers += 1
            self.accepted += 1
            number = self._numbers
            if len(self._waiting) >= HANDSHAKES_MAX:
                self.crowded_out += 1
                oldest = gives_place({at: remote for at, (_, remote) in self._waiting.items()}, place)
                _shut(self._waiting.pop(oldest)[0])
            self._waiting[number] = (sock, place)
            thread = threading.Thread(target=self._run, args=(sock, number, place), name=f"segments-{number}", daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as err:  # no memory, or no more threads for this process: the others go on
            log.warning("no thread for a connection: %s", err)
            sock.close()
            with self._lock:
                self.crowded_out += 1
                self._waiting.pop(number, None)
                self._threads.discard(thread)

    def _run(self, sock: socket.socket, number: int, place: str) -> None:
        try:
            with sock:
                self._serve(sock, number)
        except ProtocolError as err:
            self._count("nonsense", place, err)
        except OSError as err:
            self._count("lost" if number in self._serving else "strangers", place, err)
        finally:
            with self._changed:
                self._gate.lose(number)
                self._changed.notify_all()
            with self._lock:
                self._waiting.pop(number, None)
                self._serving.pop(number, None)
                self._threads.discard(threading.current_thread())

    def _count(self, what: str, place: str, err: Exception) -> None:
        now_ns = time.monotonic_ns()
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)
            is_told = what != "lost" and now_ns >= self._tell_ns  # strangers must not fill the log
            if is_told:
                self._tell_ns = now_ns + _LOG_NS
            failed = self.strangers + self.nonsense
        if is_told:
            log.warning("a connection to the segment server failed", extra={"from": place, "reason": str(err), "failed": failed})

    def _serve(self, sock: socket.socket, number: int) -> None:
        end = deadline_after(HANDSHAKE_MS_MAX)
        node, role, keys = self._prove(sock, end)
        link = BulkLink(sock, keys)
        hello = self._greet(link, number, node, role, end)
        with self._lock:
            share = self._shares.setdefault(node, BufferShare(self._buffers, SEGMENT_BUFFERS_PER_NODE))
        requests = BayRequests(
            link, number, hello, role, self._devices, self._gate, self._changed, self._rows, share,
            self._copies,
        )  # fmt: skip
        while True:
            requests.serve_one()

    def _prove(self, sock: socket.socket, end: int) -> tuple[str, str, Keys | None]:
        """Returns who is at the other end: node and role, and the keys of its connection."""
        if sock.family == socket.AF_UNIX:
            if peer_of(sock).uid != 0:
                raise ProtocolError("only root may use the socket of the segment server")
            return self._node, self._role, None
        prepare(sock)
        peer, keys = accept(sock, self._tls().segment_server, self._node, end)
        return peer.node, peer.role, keys

    def _greet(self, link: BulkLink, number: int, node: str, role: str, end: int) -> BulkHello:
        record = link.receive(end)
        if record.kind is not Kind.HELLO:
            raise ProtocolError(f"{record.kind.name} before a Hello")
        hello = loads(link.receive_small(record), BulkHello)
        version = levels.agreed(hello.version, VERSION, VERSION)
        if hello.node != node or not version:
            raise ProtocolError("it greets as another node, or in a version that this build does not speak")
        with self._lock:
            member = self._members.get(node)
            if member is None or member.role != role or self._stopping:
                raise ProtocolError(f"node {node} is no member with the role {role!r}")
            if Counter(of for _, of, _ in self._serving.values())[node] >= SEGMENT_CONNECTIONS_PER_NODE:
                raise ProtocolError(f"node {node} has {SEGMENT_CONNECTIONS_PER_NODE} connections already")
            if self._waiting.pop(number, None) is None:
                raise ProtocolError("it gave its place to another connection")
            self._serving[number] = (link, node, role)
        served = [ServedDevice(one.number, one.bays, one.bay_bytes) for one in list(self._devices.values())]
        body = dumps(BulkWelcome(version, self._id, served))
        link.send(BulkRecord(Kind.WELCOME, record.call, body_bytes=len(body)), [memoryview(body)])
        return hello


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended already
