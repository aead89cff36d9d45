"""The turns of the metadata thread: one epoll, one turn after the other, from an opened replica to its end.

    wait → hear the other voters → start every request that is ready → leader.run (one journal sync) → send (one a connection) → leader.tick

With several voters the connections to the others are part of the same loop, and time goes to the log in every turn, after what they have
said.  Heartbeats and votes wait for at most one turn: its journal sync, and for the store only where its writer thread is far behind.

service.py makes one Turns for each opening of journal and state, and says what follows its end.  The simulator drives the same object.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.clock import Clocks
from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.base.tls import CLIENT_PROTOCOL
from awsomefsd.meta.api.commands import ChangeMembership
from awsomefsd.meta.net.listener import MetadataPort
from awsomefsd.meta.net.peers import Peers
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.server.admission import Admission, LocalRequests
from awsomefsd.meta.server.authorizer import Authorizer
from awsomefsd.meta.server.connections import ClientConnection, Connections
from awsomefsd.meta.server.leader import Answer, Leader
from awsomefsd.meta.voter.single_voter import SingleVoter

log = logging.getLogger(__name__)

_SLOW_CHECK_NS = 1_000_000_000


class ServiceHost(Protocol):
    """What the service asks of the process around it.  All on the metadata thread; nothing may block."""

    def device_paths(self) -> dict[str, str]:
        """Returns the path of each device that this node sees, by the device's UUID."""

    def turned(self) -> None:
        """A turn has ended: the metadata thread lives.  Also called while it waits out a pause."""


class Wakeup:
    """Ends a wait of the metadata thread.  Any thread calls `wake`, which never blocks and is harmless after `close`."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()  # guards the descriptor against its end

    def wake(self) -> None:
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        with self._lock:
            if self.fd >= 0:
                fd, self.fd = self.fd, -1
                os.close(fd)


class Transport:
    """The three ways in: clients' connections, the metadata port, connections of other voters.  The last two are None for one voter alone.

    Used by the metadata thread only; `wait` alone blocks.  Whoever made the three closes them.
    """

    def __init__(
        self, connections: Connections, port: MetadataPort | None, peers: Peers | None, addresses: Callable[[], dict[str, str]] = dict
    ) -> None:
        """`addresses`: node → "HOST:PORT" of the metadata ports, as configured or known."""
        self.connections = connections
        self.port = port
        self.peers = peers
        self._addresses = addresses

    def address_of(self, node: str) -> str:
        """Returns where clients reach a voter: what it said itself, or else what is configured; "" if neither is known."""
        said = self.peers.address_of(node) if self.peers is not None else ""
        return said or self._addresses().get(node, "")

    def figures_of_nodes(self) -> dict[str, int]:
        """Returns the counters of port and peers."""
        several = (self.peers, self.port)
        return {name: value for one in several if one is not None for name, value in one.figures().items()}

    def hear_port(self) -> None:
        """Hands each connection that has proved its node to the part that its protocol names."""
        if self.port is None:
            return
        self.port.tick()
        for wire in self.port.poll():
            if wire.protocol == CLIENT_PROTOCOL:
                self.connections.adopt(wire)
            elif self.peers is not None:
                self.peers.adopt(wire)
            else:
                wire.close()


class _Surroundings:
    """Implements requests.LeaderHost."""

    def __init__(self, host: ServiceHost, transport: Transport, authorizer: Authorizer) -> None:
        self._host = host
        self._transport = transport
        self._authorizer = authorizer

    def device_paths(self) -> dict[str, str]:
        return self._host.device_paths()

    def address_of(self, node: str) -> str:
        return self._transport.address_of(node)

    def transport_figures(self) -> dict[str, int]:
        transport = self._transport
        return {**transport.connections.figures(), "requests_not_allowed": self._authorizer.refused, **transport.figures_of_nodes()}


class Turns:
    """One run of the service.  Used by the metadata thread only; `turn` and `grow` wait for the disk, `turn` also for something to do."""

    def __init__(
        self,
        replica: Replica,
        transport: Transport,
        authorizer: Authorizer,
        local: LocalRequests,
        *,
        node: Node,
        answer: Answer,
        host: ServiceHost,
        clocks: Clocks,
    ) -> None:
        self._replica = replica
        self._transport = transport
        self._connections = transport.connections
        self._local = local
        self._boot_ns = clocks.boot_ns
        self._monotonic_ns = clocks.monotonic_ns
        self._admission = Admission(authorizer)
        surroundings = _Surroundings(host, transport, authorizer)
        self.leader = Leader(replica, answer, cluster_uuid=node.cluster, site=node.site, host=surroundings, clocks=clocks)
        self._slow_check_ns = 0

    def turn(self) -> None:
        """Waits until there is something to do, and does it.

        Raises what ends a run: RejoinRequired, MembershipSuperseded, JournalFailed, and what a failing or damaged disk raises.
        """
        leader, connections = self.leader, self._connections
        ready = connections.wait(0 if self._local.any_waiting else self.idle_ms())
        self._transport.hear_port()
        self._hear_peers()
        for connection in ready:
            if not connection.closed:
                self._admission.start(leader, connections, connection)
        self._local.hand_in(leader)
        leader.run()
        hit("service.answer.before")
        gone = connections.send_all()
        hit("service.answer.after")
        ended = [connection for connection in ready if connection.ending and not connection.frames and not connection.closed]
        gone += [connection for connection in ended if connection not in gone]
        now = self._monotonic_ns()
        if now >= self._slow_check_ns:
            self._slow_check_ns = now + _SLOW_CHECK_NS
            gone += connections.poll_slow()
        gone += self._admission.poll_fallen(connections) if self._transport.port is not None else []
        gone += [connection for connection in connections.take_void() if connection not in gone]
        self._drop(gone)
        leader.tick()
        gone = connections.send_all() if connections.touched else []
        if void := leader.take_void():
            gone += [origin for origin in void if isinstance(origin, ClientConnection)]
        self._drop(gone)

    def _drop(self, gone: list[ClientConnection]) -> None:
        for connection in gone:
            self._connections.close(connection)
            self.leader.drop_origin(connection)

    def _hear_peers(self) -> None:
        """Hands the log the other voters' messages and then the time, before what the clients want.

        In this order: after a stall of this thread the time alone would look like the others' silence, though what they said is here.
        """
        peers, voter = self._transport.peers, self._replica.log
        if peers is None:
            return
        peers.tick()
        now_ns = self._boot_ns()
        voter.pass_time(now_ns)
        for sender, message in peers.poll():
            try:
                voter.receive(sender, message)
            except ProtocolError as err:
                log.warning("ignored a message of another voter", extra={"peer": sender, "reason": str(err)})
        voter.tick(now_ns)

    def idle_ms(self) -> int:
        """Returns how long the next turn may wait, in ms; 0: not at all."""
        idle_ms = self.leader.idle_ms()
        peers, port = self._transport.peers, self._transport.port
        if peers is None:
            return idle_ms
        if peers.waiting:
            return 0
        deadline_ns = self._replica.log.next_deadline_ns()
        waits = [idle_ms, -(-(peers.next_deadline_ns() - self._monotonic_ns()) // NS_PER_MS)]
        if port is not None and (due_ns := port.next_deadline_ns()) is not None:
            waits.append(-(-(due_ns - self._monotonic_ns()) // NS_PER_MS))
        if deadline_ns is not None:
            waits.append(-(-(deadline_ns - self._boot_ns()) // NS_PER_MS))
        return max(min(waits), 0)

    def grow(self, address: str) -> bool:
        """Makes this one voter the first of several; `address` is where the others reach it.

        True: the first membership is in the state, and committed; open journal and state again, as one of several voters'.  False: it is
        one of several already, or the journal has no room now.
        """
        voter = self._replica.log
        if not isinstance(voter, SingleVoter):
            return False
        if self._replica.machine.membership() is None:
            hit("service.grow.before")
            self.leader.enter_own(ChangeMembership(voter.first_membership(address)))
            self.leader.run()
        if self._replica.machine.membership() is None:
            return False
        hit("service.grow.proposed")
        self._replica.commit()
        hit("service.grow.committed")
        return True
