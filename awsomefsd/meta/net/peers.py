"""The connections of a voter to the others: messages out by node, messages in with their proved sender.  Nothing here blocks.

All sockets are on one epoll of their own, whose descriptor is watched by the service's loop (an epoll can be watched like a socket); so
messages are read, sent and answered on the metadata thread, without a hand-over between threads.  Threads with queues were rejected: each
message would wake a thread, and wait for the interpreter's lock on the way in and on the way out.

The addresses of the others are asked for again and again (`addresses`): a node that appears is dialled, one that is there no more loses its
connections, both ways.  A known address may be old: a node that moved gives its address in its greeting, and is dialled there, if its
certificate proves its identity; so voters find each other again as long as of each two one is where the other believes.

A node that cannot be reached is dialled again, at growing intervals.  A message to it, or one over the bound of its queue, is dropped and
counted: Raft repeats what matters, and what waited would be old.  With TLS the certificates on both sides must name the node's
UUID as a DNS name, so a node cannot speak for another; without TLS (tests, benchmarks) there is no proof.  Connections of others come from
the metadata port (listener.py), with their handshake done.
"""

from __future__ import annotations

import ipaddress
import logging
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.levels import agreed
from awsomefsd.base.limits import (
    GREETINGS_PER_NODE_MAX,
    NS_PER_MS,
    PEER_REDIAL_MS_MAX,
    PEER_REDIAL_MS_MIN,
    PEER_STUCK_MS_MAX,
    PEERS_MAX,
    STANDING_MS,
)
from awsomefsd.base.tls import PeerIdentity, TlsNow
from awsomefsd.meta.net.connection import Wire, prepare
from awsomefsd.meta.net.traffic import VOTER, Traffic
from awsomefsd.meta.voter.peer_messages import (
    PEER_PROTOCOL_OLDEST,
    PEER_PROTOCOL_VERSION,
    Message,
    PeerHello,
    PeerRefused,
    PeerWelcome,
    decode_greeting,
    decode_message,
    peer_encode,
)

log = logging.getLogger(__name__)
_LOG_NS = 1_000_000_000


def address_text(address: tuple[str, int]) -> str:
    """Returns "HOST:PORT", with brackets around an IPv6 address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int] | None:
    """Returns (host, port) of a text that `address_text` makes; None for any other, host names too."""
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return (host.strip("[]"), int(port)) if port.isdecimal() and 0 < int(port[:6]) <= 65_535 else None


Addresses = Callable[[], dict[str, tuple[str, int]]]
Refusal = Callable[[PeerIdentity | None], str]  # why the node of a certificate may not talk to us, "" if it may


@dataclass(frozen=True)
class Voters:
    """The way a metadata service reaches other nodes, and is reached by them.

    `addresses`: of the metadata ports of all nodes that carry the metadata or may be asked to, IP addresses, this one's among them; asked
    again and again.  `listen`: of this node's port.  `tls` None: no encryption and no proof, voters only.  `members`: nodes of a static
    configuration, which the rows do not know.

    `founds`: the membership is in the log and not in a configuration; returns True if no other node is known to carry the metadata, so that
    this node is the first one if its directory is empty.  `address`: of this node's port, for the others.
    """

    addresses: Addresses
    listen: tuple[str, int]
    tls: TlsNow | None
    members: frozenset[str] = frozenset()
    founds: Callable[[], bool] | None = None
    address: str = ""

    def texts(self) -> dict[str, str]:
        """Returns UUID → "HOST:PORT" of all nodes that carry the metadata or may be asked to."""
        return {node: address_text(address) for node, address in self.addresses().items()}

    def connect(self, cluster: str, node: str, incarnation: str, refusal: Refusal) -> Peers:
        """Returns the connections of this node to the others, for the journal of that incarnation."""
        return Peers(
            self.tls, cluster=cluster, node=node, incarnation=incarnation, addresses=self.addresses, refusal=refusal, address=self.address
        )


class _Outgoing:
    """The connection to one node, or the time of the next attempt."""

    __slots__ = ("address", "due_ns", "moved_ns", "node", "reason", "redial_ms", "welcomed", "wire")

    def __init__(self, node: str, address: tuple[str, int]) -> None:
        self.node = node
        self.address = address
        self.wire: Wire | None = None
        self.welcomed = False
        self.redial_ms = PEER_REDIAL_MS_MIN
        self.due_ns = 0
        self.moved_ns = 0
        self.reason = ""  # of the last failure, logged once

    @property
    def has_to_move(self) -> bool:
        """True while something waits to be sent or answered.  Two voters that follow have nothing to say to each other for days."""
        return self.wire is not None and (not self.welcomed or bool(self.wire.queued_bytes))


class _Incoming:
    __slots__ = ("node", "since_ns", "who", "wire")

    def __init__(self, wire: Wire, who: PeerIdentity | None, now_ns: int) -> None:
        self.wire = wire
        self.who = who  # what its certificate proves; None without TLS
        self.node = ""  # until it has greeted
        self.since_ns = now_ns


class Peers:
    """The connections of one voter; implements voter.Links.  One thread uses it; nothing blocks.  `fd` is readable when `poll` has work."""

    def __init__(
        self,
        tls: TlsNow | None,
        *,
        cluster: str,
        node: str,
        incarnation: str,
        addresses: Addresses,
        refusal: Refusal = lambda identity: "",
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        address: str = "",
    ) -> None:
        """`addresses`: of all nodes that may be voters, IP addresses; this one may be among them.

        `address`: this node's own, for its greetings.
        """
        self._tls = tls
        self._addresses = addresses
        self._refusal = refusal
        self._cluster = cluster
        self._node = node
        self._incarnation = incarnation
        self._address = address
        # node → the address in its greeting, and the one known then
        self._said_addresses: dict[str, tuple[tuple[str, int], tuple[str, int] | None]] = {}
        self._monotonic_ns = monotonic_ns
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        self._outgoing: dict[str, _Outgoing] = {}
        self._by_fd: dict[int, _Outgoing | _Incoming] = {}
        self._traffic = Traffic(VOTER)
        self._again: set[int] = set()  # with decrypted bytes for which no event comes
        self._received: list[tuple[str, Message]] = []
        self.dropped = self.refused = self.errors = self.dials = 0
        self._logged_ns = 0
        self._addresses_due_ns = 0  # when the addresses are due again
        self._follow_addresses()

    # --- what the service uses -------------------------------------------------------------------------------------------
    def send(self, node: str, message: Message) -> None:
        """Sends a message as soon as the socket takes it; it is dropped and counted if there is no connection or too much waits."""
        peer = self._outgoing.get(node)
        if peer is None or peer.wire is None or not peer.welcomed or not peer.wire.put(peer_encode(message)):
            self.dropped += 1
            return
        self._flush(peer, peer.wire)

    def address_of(self, node: str) -> str:
        """Returns "HOST:PORT" at which a node is dialled now, "" for one that is not."""
        peer = self._outgoing.get(node)
        return address_text(peer.address) if peer is not None else ""

    def poll(self) -> list[tuple[str, Message]]:
        """Returns (UUID of the sender, message) for each that has come; connections that break on the way are dialled again later."""
        for fd, _events in self._epoll.poll(0):
            self._event(fd)
        for fd in list(self._again):
            self._again.discard(fd)
            self._event(fd)
        received, self._received = self._received, []
        return received

    @property
    def waiting(self) -> bool:
        """True if `poll` has something to do though `fd` does not show it."""
        return bool(self._again)

    def tick(self) -> None:
        """Dials nodes that are due; gives up connections on which nothing moves."""
        now = self._monotonic_ns()
        if now >= self._addresses_due_ns:
            self._follow_addresses()
        stuck = now - PEER_STUCK_MS_MAX * NS_PER_MS
        for peer in self._outgoing.values():
            if peer.wire is None:
                if now >= peer.due_ns:
                    self._dial(peer)
            elif peer.moved_ns < stuck and peer.has_to_move:
                self._lost(peer, f"nothing moved for {PEER_STUCK_MS_MAX} ms")
        silent = [one for one in self._by_fd.values() if isinstance(one, _Incoming) and not one.node and one.since_ns < stuck]
        for incoming in silent:
            self._end(incoming, "no greeting in time")

    def next_deadline_ns(self) -> int:
        """Returns the monotonic time at which `tick` is due."""
        waits = [peer.due_ns for peer in self._outgoing.values() if peer.wire is None]
        waits += [peer.moved_ns + PEER_STUCK_MS_MAX * NS_PER_MS for peer in self._outgoing.values() if peer.has_to_move]
        return max(min(self._addresses_due_ns, *waits), self._monotonic_ns() + NS_PER_MS) if waits else self._addresses_due_ns

    def figures(self) -> dict[str, int]:
        """Returns the figures for metrics: name → count."""
        return {
            "peers_connected": sum(peer.welcomed for peer in self._outgoing.values()),
            "peers_incoming": sum(isinstance(one, _Incoming) and bool(one.node) for one in self._by_fd.values()),
            "peers_dials": self.dials,
            "peers_dropped": self.dropped,
            "peers_refused_hellos": self.refused,
            "peers_errors": self.errors,
            **self._traffic.figures(),
        }

    def close(self) -> None:
        for one in list(self._by_fd.values()):
            if one.wire is not None:
                one.wire.close()
        self._epoll.close()

    # --- connections -----------------------------------------------------------------------------------------------------------
    def _dial(self, peer: _Outgoing) -> None:
        self.dials += 1
        sock = None
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(*peer.address, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
            prepare(sock)
            sock.connect_ex(place)
            tls = self._tls().peer if self._tls else None
            wire = Wire(sock, tls, dialled=True, name=peer.node, tally=self._traffic.of(peer.node))
        except OSError as err:
            if sock is not None:
                sock.close()
            self._lost(peer, str(err))
            return
        peer.wire, peer.welcomed, peer.moved_ns = wire, False, self._monotonic_ns()
        self._by_fd[wire.fd] = peer
        self._epoll.register(wire.fd, wire.events)
        hello = PeerHello(PEER_PROTOCOL_VERSION, self._cluster, self._node, peer.node, self._incarnation, self._address)
        wire.put(peer_encode(hello))

    def adopt(self, wire: Wire) -> None:
        """Takes over another node's connection, which proved its identity and has not greeted.

        A node that may be no voter is told so and takes no place.  Each other one may have GREETINGS_PER_NODE_MAX that have not greeted:
        its next one takes the place of its oldest.  So whoever holds on to connections takes places from itself alone.
        """
        who = wire.identity
        reason = self._refusal(who) if who is not None else ""
        if who is not None and reason:
            self._refuse(wire, who.node, reason)
            wire.close()
            return
        incoming = [one for one in self._by_fd.values() if isinstance(one, _Incoming)]
        of_node = [one for one in incoming if who is not None and one.who == who and not one.node]
        if len(of_node) >= GREETINGS_PER_NODE_MAX:
            self.errors += 1
            self._end(of_node[0], "its node came again")
        elif len(incoming) >= PEERS_MAX:
            self.errors += 1
            wire.close()
            return
        self._by_fd[wire.fd] = _Incoming(wire, who, self._monotonic_ns())
        self._epoll.register(wire.fd, wire.events)
        self._again.add(wire.fd)  # what came with the end of the handshake may be decrypted already

    def _follow_addresses(self) -> None:
        """Dials a new node at once and one that moved at its new address; cuts off a node that is gone or may not talk any more."""
        self._addresses_due_ns = self._monotonic_ns() + STANDING_MS * NS_PER_MS
        now = {node: self._where(node, address) for node, address in self._addresses().items() if node != self._node}
        for node, peer in list(self._outgoing.items()):
            if node not in now:
                if peer.wire is not None:
                    self._forget(peer.wire)
                del self._outgoing[node]
            elif peer.address != now[node]:
                peer.address = now[node]
                if peer.wire is None or not peer.welcomed:
                    peer.due_ns, peer.redial_ms = 0, PEER_REDIAL_MS_MIN
        for node, address in now.items():
            if node not in self._outgoing:
                self._outgoing[node] = _Outgoing(node, address)
        for one in [one for one in self._by_fd.values() if isinstance(one, _Incoming) and one.node]:
            reason = self._refusal(one.who) if one.node in now else "it is not allowed to be a voter any more"
            if reason:
                self._end(one, reason)

    def _where(self, node: str, known: tuple[str, int]) -> tuple[str, int]:
        """Returns the address that the node gave itself, until a newer one is known."""
        said, before = self._said_addresses.get(node, (known, known))
        if before is None:
            self._said_addresses[node] = (said, known)
        elif before != known:
            self._said_addresses.pop(node, None)
            return known
        return said

    def _event(self, fd: int) -> None:
        one = self._by_fd.get(fd)
        if one is None or one.wire is None:
            return
        wire = one.wire
        try:
            if wire.connected or wire.advance():
                frames = wire.receive()
                if isinstance(one, _Outgoing):
                    self._answers(one, frames)
                else:
                    self._messages(one, frames)
                if wire.pending:
                    self._again.add(fd)
                if self._by_fd.get(fd) is one:
                    self._flush(one, wire)
            self._watch(one)
        except ProtocolError as err:
            self.errors += 1
            self._end(one, str(err))
        except OSError as err:
            self._end(one, str(err))

    def _flush(self, one: _Outgoing | _Incoming, wire: Wire) -> None:
        """Sends what the socket takes.  An error is handled when its event comes, since the caller may be in the middle of sending."""
        try:
            if wire.connected and wire.flush() and isinstance(one, _Outgoing):
                one.moved_ns = self._monotonic_ns()
        except OSError:
            return
        self._watch(one)

    def _watch(self, one: _Outgoing | _Incoming) -> None:
        if one.wire is not None and self._by_fd.get(one.wire.fd) is one:
            self._epoll.modify(one.wire.fd, one.wire.events)

    def _end(self, one: _Outgoing | _Incoming, why: str) -> None:
        if isinstance(one, _Outgoing):
            self._lost(one, why)
            return
        if one.node or why != "no greeting in time":
            log.info("a voter's connection ended", extra={"peer": one.node or "not greeted", "reason": why})
        self._forget(one.wire)

    def _forget(self, wire: Wire) -> None:
        self._again.discard(wire.fd)
        self._by_fd.pop(wire.fd, None)
        wire.close()

    def _lost(self, peer: _Outgoing, why: str) -> None:
        if peer.wire is not None:
            self._forget(peer.wire)
        if why != peer.reason:
            log.warning("no connection to a voter", extra={"peer": peer.node, "address": address_text(peer.address), "reason": why})
        peer.wire, peer.welcomed, peer.reason = None, False, why
        peer.due_ns = self._monotonic_ns() + peer.redial_ms * NS_PER_MS
        peer.redial_ms = min(peer.redial_ms * 2, PEER_REDIAL_MS_MAX)

    # --- the protocol -----------------------------------------------------------------------------------------------------------
    def _answers(self, peer: _Outgoing, frames: list[bytes]) -> None:
        """Handles frames on a connection that we dialled: the answer to the greeting, and nothing else."""
        for frame in frames:
            greeting = decode_greeting(frame)
            if isinstance(greeting, PeerRefused):
                raise ProtocolError(f"refused by it: {greeting.reason}")
            if not isinstance(greeting, PeerWelcome) or peer.welcomed or greeting.node != peer.node:
                raise ProtocolError("not the answer to a greeting")
            if not PEER_PROTOCOL_OLDEST <= greeting.version <= PEER_PROTOCOL_VERSION:
                raise ProtocolError(f"protocol {greeting.version}; this node speaks {PEER_PROTOCOL_OLDEST} to {PEER_PROTOCOL_VERSION}")
            peer.welcomed, peer.redial_ms, peer.reason = True, PEER_REDIAL_MS_MIN, ""
            wire = peer.wire
            if wire is not None:
                wire.greeted(self._traffic.of(peer.node))
            log.info("connected to a voter", extra={"peer": peer.node, "incarnation": greeting.incarnation})

    def _messages(self, incoming: _Incoming, frames: list[bytes]) -> None:
        for frame in frames:
            if incoming.node:
                self._received.append((incoming.node, decode_message(frame)))
            else:
                self._greet(incoming, decode_greeting(frame))

    def _greet(self, incoming: _Incoming, hello: object) -> None:
        if not isinstance(hello, PeerHello):
            raise ProtocolError("the first message must be a greeting")
        reason = self._why_refused(incoming, hello)
        if reason:
            self._refuse(incoming.wire, hello.node, reason)
            raise ConnectionAbortedError(f"refused: {reason}")
        version = agreed(hello.version, PEER_PROTOCOL_OLDEST, PEER_PROTOCOL_VERSION)
        incoming.wire.put(peer_encode(PeerWelcome(self._node, self._incarnation, version)))
        for other in [one for one in self._by_fd.values() if isinstance(one, _Incoming) and one.node == hello.node]:
            self._end(other, "replaced by a newer one")  # it restarted, or its network forgot the old one
        incoming.node = hello.node
        incoming.wire.greeted(self._traffic.of(hello.node))
        said = parse_address(hello.address)
        if said is not None and incoming.who is not None and said != self._outgoing[hello.node].address:
            log.info("a voter is elsewhere than was known", extra={"peer": hello.node, "address": hello.address})
            self._said_addresses[hello.node] = (said, None)
            self._addresses_due_ns = 0

    def _refuse(self, wire: Wire, node: str, reason: str) -> None:
        """Tells the other side why; the caller ends the connection."""
        self.refused += 1
        now = self._monotonic_ns()
        if now - self._logged_ns >= _LOG_NS:  # one that comes again and again does not fill the log
            self._logged_ns = now
            log.warning("refused a voter's greeting", extra={"peer": node, "reason": reason, "refused": self.refused})
        wire.put(peer_encode(PeerRefused(reason)))
        with suppress(OSError):
            wire.flush()

    def _why_refused(self, incoming: _Incoming, hello: PeerHello) -> str:
        if not agreed(hello.version, PEER_PROTOCOL_OLDEST, PEER_PROTOCOL_VERSION):
            return f"protocol {hello.version}; this node speaks {PEER_PROTOCOL_OLDEST} to {PEER_PROTOCOL_VERSION}"
        if hello.cluster != self._cluster:
            return f"cluster {hello.cluster}; this node is of cluster {self._cluster}"
        if hello.to != self._node:
            return f"for node {hello.to}; this is node {self._node}"
        if hello.node not in self._outgoing:
            return f"node {hello.node} is not among the voters that this node knows"
        if self._tls is None:
            return ""
        identity = incoming.who
        if identity is None or identity.node != hello.node:
            return f"its certificate does not name node {hello.node}"
        return self._refusal(identity)
