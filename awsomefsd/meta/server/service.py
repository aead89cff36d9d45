"""Runs the metadata service: one thread, one epoll, one turn after the other.

    wait → start every request that is ready → leader.run (one journal sync) → send (one a connection) → leader.tick

The thread owns journal, machine and store: opened on it (LMDB's write transaction belongs to its thread), never touched from another.
Other threads of the daemon hand in requests through a queue and an eventfd.  If the loop ends by an exception (a failed fsync, damage), the
store's transaction is dropped, `failed` is set, and the daemon must end: what was acknowledged is in the journal, which is replayed.

With several voters (`voters`) the connections to the others are part of the same loop, and time goes to the log in every turn.  Heartbeats
and votes wait for at most one turn: its journal sync, and what bounds a commit of the store (meta/replica/commit_pace.py).  When this
node's journal or state must not be used any more (RejoinRequired), the thread closes everything, sets both aside and begins as a new
member.

Damage that is met in use ends a single voter.  One of several sets journal and state aside too, but only when another node has led for
DAMAGE_PAUSE_MS since it was met first: a leader applies every entry before its followers, so what stops this node does not stop that one.
Were it a fault of the program, which stops everybody at the same entry, nobody would lead, and nobody gives up what it has.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from awsomefsd.base import clock, durable, sockets
from awsomefsd.base.codec import encode
from awsomefsd.base.errors import MembershipSuperseded, NotLeading, ProtocolError, RejoinRequired, Unavailable
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import DAMAGE_PAUSE_MS, HAND_OVER_MS_MAX, NS_PER_MS, SESSION_TTL_MS
from awsomefsd.base.tls import CLIENT_PROTOCOL
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api.bounds import check
from awsomefsd.meta.api.commands import AnyCommand, ChangeMembership
from awsomefsd.meta.api.messages import Body, Failed, Propose, Reply
from awsomefsd.meta.net.listener import MetadataPort
from awsomefsd.meta.net.peers import Peers, Voters
from awsomefsd.meta.replica.applied_machine import AppliedMachine
from awsomefsd.meta.replica.checkpoint_progress import OFF, CheckpointProgress
from awsomefsd.meta.replica.open_voter import Setting, open_voter
from awsomefsd.meta.replica.replica import DEFAULT_OPTIONS, MakeMachine, Replica, ReplicaOptions
from awsomefsd.meta.replica.state_snapshot_files import set_aside
from awsomefsd.meta.replica.store import DAMAGE
from awsomefsd.meta.server.admission import Admission
from awsomefsd.meta.server.authorizer import Authorizer
from awsomefsd.meta.server.connections import ClientConnection, Connections
from awsomefsd.meta.server.leader import Answer, Leader
from awsomefsd.meta.server.request import Request
from awsomefsd.meta.voter.single_voter import SeveralVoters, SingleVoter

log = logging.getLogger(__name__)

SOCKET_NAME = "meta.sock"
SUPERSEDED = "left-behind"  # in the directory: why this journal and state are not to be used
LOCAL_REQUESTS_MAX = 1_024
_SLOW_CHECK_NS = 1_000_000_000


class _Next(enum.Enum):
    """What follows an end of the service."""

    END = enum.auto()
    AGAIN = enum.auto()  # with the same journal and state
    REJOIN = enum.auto()  # without


class _Local:
    """A request of this process and its answer.  Implements request.Origin."""

    mount = 0

    def __init__(self, body: Body, size: int) -> None:
        self.body = body
        self.size = size
        self.done = threading.Event()
        self.reply: Reply | None = None

    def answer(self, call: int, reply: Reply) -> None:
        self.reply = reply
        self.done.set()


class _Voter:
    """Implements authorizer.OwnVoter."""

    def __init__(self, service: MetadataService) -> None:
        self._service = service

    def rows(self) -> AppliedMachine:
        replica = self._service._replica
        assert replica is not None
        return replica.machine

    def leads(self) -> bool:
        replica = self._service._replica
        return replica is not None and replica.log.leading


class _Surroundings:
    """Implements requests.LeaderHost."""

    def __init__(self, service: MetadataService, connections: Connections) -> None:
        self._service = service
        self._connections = connections

    def device_paths(self) -> dict[str, str]:
        return self._service._device_paths()

    def transport_figures(self) -> dict[str, int]:
        return self._service._transport_figures(self._connections)

    def address_of(self, node: str) -> str:
        return self._service._address_of(node)


class MetadataService:
    """One voter of the metadata, in this process.

    `start` and `stop` are called by one thread; `propose`, `query`, the copies, `grow` and `hand_over` by any, and they block as they say.
    """

    def __init__(
        self,
        *,
        directory: Path,
        socket_path: Path,
        cluster_uuid: str,
        node_uuid: str,
        site: int,
        make_machine: MakeMachine,
        answer: Answer,
        device_paths: Callable[[], dict[str, str]] = dict,
        boot_ns: Callable[[], int] = clock.boot_ns,
        wall_ns: Callable[[], int] = clock.wall_ns,
        session_ttl_ms: int = SESSION_TTL_MS,
        voters: Voters | None = None,
        replica_options: ReplicaOptions = DEFAULT_OPTIONS,
        checkpoint_progress: CheckpointProgress | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._socket_path = socket_path
        self._cluster_uuid = cluster_uuid
        self._node_uuid = node_uuid
        self._site = site
        self._make_machine = make_machine
        self._answer = answer
        self._device_paths = device_paths
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self._session_ttl_ms = session_ttl_ms
        self._voters = voters
        self._peers: Peers | None = None
        self._port: MetadataPort | None = None
        self._authorizer = Authorizer(_Voter(self), voters.members if voters is not None else frozenset(), time.monotonic_ns)
        self._admission = Admission(self._authorizer)
        self._checkpoint_progress = checkpoint_progress or CheckpointProgress()
        self._replica_options = replace(replica_options, checkpoint_progress=self._checkpoint_progress)
        self._alive = alive  # called in every turn, on the thread
        self._local: deque[_Local] = deque()
        self._local_lock = threading.Lock()  # guards _local against _accepting
        self._accepting = self._stopping = False
        self._wake_fd = -1
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._replica: Replica | None = None
        self._slow_check_ns = self._pause_ns = self._damaged_ns = 0  # the last: when damage was met first
        self._growing = self._handing_over = False
        self._handed_over = threading.Event()
        self.failed = threading.Event()
        self.error: BaseException | None = None

    # --- the daemon's side ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Recovers and listens; blocks until that is done.  Raises what recovery raised (Corrupt, FormatTooNew, Refused, OSError)."""
        assert self._thread is None, "a service starts once"
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._main, name="metadata", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self.error is not None:
            self.stop()
            raise self.error

    def stop(self) -> None:
        """Finishes the turn, commits the store and closes; blocks until that is done.  Harmless after a failure."""
        if self._thread is None:
            return
        self._stopping = True
        self._wake()
        self._thread.join()
        if self._wake_fd >= 0:
            with self._local_lock:
                fd, self._wake_fd = self._wake_fd, -1
                os.close(fd)

    def hand_over(self) -> None:
        """Lets another voter lead, before a clean stop.  Blocks until one does or none can, at most HAND_OVER_MS_MAX."""
        if self._thread is not None and self._accepting:
            self._handing_over = True
            self._wake()
            self._handed_over.wait(HAND_OVER_MS_MAX / 1_000)

    def grow(self) -> None:
        """Asks that one voter alone become the first of several, in place; harmless for one that is.  Returns at once; `alone` tells when
        it is done."""
        self._growing = True
        self._wake()

    @property
    def alone(self) -> bool:
        """True: this is the only voter, and it alone decides (meta/voter/single_voter.py)."""
        replica = self._replica
        return replica is not None and isinstance(replica.log, SingleVoter)

    def propose(self, command: AnyCommand, timeout_s: float) -> Reply:
        """Proposes one command of the daemon itself and returns its reply; Failed is a reply too.

        Blocks at most `timeout_s` seconds.  Raises Unavailable if there is no answer in time; the command may still be committed.
        """
        return self._ask(Propose(HOST_UNIQUE, 0, 0, [], command), timeout_s)

    def query(self, body: Body, timeout_s: float = 10.0) -> Reply:
        return self._ask(body, timeout_s)

    def copy_store(self, path: Path) -> None:
        """Writes a consistent copy of the last committed state into one file.

        Blocks the caller's thread for as long as that takes.  Raises Unavailable if the service does not run.
        """
        replica = self._replica
        if replica is None or not self._accepting:
            raise Unavailable("the metadata service does not run")
        replica.store.copy_to(path)

    def copy_pages(self, path: Path) -> None:
        """As `copy_store`, page by page and without a walk of the tree: a damaged state copies like any other."""
        replica = self._replica
        if replica is None or not self._accepting:
            raise Unavailable("the metadata service does not run")
        replica.store.copy_pages_to(path)

    def _ask(self, body: Body, timeout_s: float) -> Reply:
        try:
            check(body)  # before it is encoded: a number over 64 bits cannot be
        except ProtocolError as err:
            return Failed(errno.EINVAL, str(err))
        local = _Local(body, len(encode(body)))
        with self._local_lock:
            if not self._accepting:
                raise Unavailable("the metadata service does not run")
            if len(self._local) >= LOCAL_REQUESTS_MAX:
                raise Unavailable("too many requests of the daemon itself wait for the metadata service")
            self._local.append(local)
            self._wake()
        if not local.done.wait(timeout_s):
            raise Unavailable(f"the metadata service gave no answer within {timeout_s} s")
        if local.reply is None:
            raise Unavailable("the metadata service has ended")
        return local.reply

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    # --- the thread ---------------------------------------------------------------------------------------------------------
    def _main(self) -> None:
        taken: list[_Local] = []
        try:
            while (following := self._serve(taken)) is not _Next.END:
                self._pause()
                if following is _Next.REJOIN:
                    set_aside(self._directory)
        except BaseException as err:
            self.error = err
            self.failed.set()
            if self._ready.is_set():
                log.critical("the metadata service failed: %s", err, exc_info=err)
        finally:
            self._ready.set()

    def _serve(self, taken: list[_Local]) -> _Next:
        """Serves from recovery to the end; returns what follows."""
        connections = None
        try:
            self._replica = replica = self._open()
            listener = sockets.listen_unix(self._socket_path, 0o600)
            hit("service.listen.after")
            connections = Connections(listener, self._wake_fd, time.monotonic_ns)
            if self._peers is not None:
                connections.watch(self._peers.fd)
            if self._voters is not None:
                self._port = MetadataPort.listen(self._voters.listen, self._voters.tls)
                connections.watch(self._port.fd)
            leader = self._make_leader(replica, connections)
            self._accepting = True
            self._ready.set()
            while not self._stopping:
                self._turn(leader, connections, taken)
                self._alive()
                if self._growing and self._grown(leader, replica):
                    return _Next.AGAIN
                if self._handing_over:
                    self._give_away(replica)
            replica.commit()
            return _Next.END
        except MembershipSuperseded as err:
            durable.write_file(self._directory / SUPERSEDED, str(err).encode())
            raise
        except RejoinRequired as err:
            log.error("this node joins the metadata again: %s", err)
            return _Next.REJOIN
        except DAMAGE as err:
            if self._voters is None or self._replica is None or self._replica.log.leader in ("", self._node_uuid):
                raise
            return self._after_damage(err)
        finally:
            self._close(connections, taken)

    def _grown(self, leader: Leader, replica: Replica) -> bool:
        """Proposes the first membership.  True: it is applied, and this journal and state go on as one of several voters'."""
        if not isinstance(replica.log, SingleVoter) or self._voters is None or self._voters.founds is None:
            self._growing = False
            return False
        if replica.machine.membership() is None:
            hit("service.grow.before")
            leader.enter_own(ChangeMembership(replica.log.first_membership(self._voters.address)))
            leader.run()
        if replica.machine.membership() is None:
            return False  # no room in the journal; tried again
        hit("service.grow.proposed")
        replica.commit()
        hit("service.grow.committed")
        self._checkpoint_progress.durable = OFF
        self._growing = False
        log.info("the metadata of this node can be kept by several voters from now on")
        return True

    def _give_away(self, replica: Replica) -> None:
        if not replica.log.leading:
            self._handed_over.set()
            return
        try:
            begun = replica.log.hand_over()
        except NotLeading:
            return  # it is under way
        if not begun:
            self._handed_over.set()

    def _after_damage(self, err: BaseException) -> _Next:
        """Handles damage while somebody else leads: begin again with what there is, after a pause; the second time without it."""
        now = time.monotonic_ns()
        if self._damaged_ns and now - self._damaged_ns >= DAMAGE_PAUSE_MS * NS_PER_MS:
            self._damaged_ns = 0
            log.error("journal and metadata state are moved aside, and this node joins again: %s", err)
            return _Next.REJOIN
        self._damaged_ns = self._damaged_ns or now
        log.error("damage in the metadata; it is checked again in %d ms: %s", DAMAGE_PAUSE_MS, err)
        self._pause_ns = now + DAMAGE_PAUSE_MS * NS_PER_MS
        return _Next.AGAIN

    def _pause(self) -> None:
        """Waits out the pause after damage, as if this node were down."""
        while not self._stopping and time.monotonic_ns() < self._pause_ns:
            self._alive()
            time.sleep(0.02)

    def _open(self) -> Replica:
        voters = self._voters
        if (self._directory / SUPERSEDED).exists():
            raise MembershipSuperseded((self._directory / SUPERSEDED).read_text())
        if voters is None:
            return self._open_single()
        setting = Setting(
            self._directory, self._cluster_uuid, self._node_uuid, self._site, voters.texts(), boot_ns=self._boot_ns, wall_ns=self._wall_ns
        )
        if voters.founds is not None:
            if voters.founds():
                try:
                    return self._open_single()
                except SeveralVoters:
                    pass
            setting = replace(setting, growing=voters.texts, address=voters.address)

        def links(incarnation: str) -> Peers:
            if self._peers is not None:
                self._peers.close()
            self._peers = voters.connect(self._cluster_uuid, self._node_uuid, incarnation, self._authorizer.why_no_voter)
            return self._peers

        try:
            return open_voter(setting, links, self._make_machine, self._replica_options)[0]
        except BaseException:
            if self._peers is not None:
                self._peers.close()
                self._peers = None
            raise

    def _open_single(self) -> Replica:
        own = self._cluster_uuid, self._node_uuid
        return Replica.open_single(self._directory, *own, self._make_machine, self._replica_options, refuse_several=True)

    def _transport_figures(self, connections: Connections) -> dict[str, int]:
        several = (self._peers, self._port)
        others = {name: value for one in several if one is not None for name, value in one.figures().items()}
        return {**connections.figures(), "requests_not_allowed": self._authorizer.refused, **others}

    def _address_of(self, node: str) -> str:
        """Returns where clients reach a voter: what it said itself, or else what is configured; "" if neither is known."""
        said = self._peers.address_of(node) if self._peers is not None else ""
        return said or (self._voters.texts().get(node, "") if self._voters is not None else "")

    def _hear_port(self, connections: Connections) -> None:
        """Hands each connection that has proved its node to the part that its protocol names."""
        port = self._port
        if port is None:
            return
        port.tick()
        for wire in port.poll():
            if wire.protocol == CLIENT_PROTOCOL:
                connections.adopt(wire)
            elif self._peers is not None:
                self._peers.adopt(wire)
            else:
                wire.close()

    def _hear_peers(self) -> None:
        """Gives the log the time and then the other voters' messages, before what the clients want."""
        peers, replica = self._peers, self._replica
        if peers is None or replica is None:
            return
        peers.tick()
        replica.log.tick(self._boot_ns())
        for sender, message in peers.poll():
            try:
                replica.log.receive(sender, message)
            except ProtocolError as err:
                log.warning("ignored a message of another voter", extra={"peer": sender, "reason": str(err)})

    def _idle_ms(self, leader: Leader) -> int:
        idle_ms = leader.idle_ms()
        replica = self._replica
        if self._peers is None or replica is None:
            return idle_ms
        if self._peers.waiting:
            return 0
        deadline_ns = replica.log.next_deadline_ns()
        waits = [idle_ms, -(-(self._peers.next_deadline_ns() - time.monotonic_ns()) // NS_PER_MS)]
        if self._port is not None and (due_ns := self._port.next_deadline_ns()) is not None:
            waits.append(-(-(due_ns - time.monotonic_ns()) // NS_PER_MS))
        if deadline_ns is not None:
            waits.append(-(-(deadline_ns - self._boot_ns()) // NS_PER_MS))
        return max(min(waits), 0)

    def _make_leader(self, replica: Replica, connections: Connections) -> Leader:
        return Leader(
            replica,
            self._answer,
            cluster_uuid=self._cluster_uuid,
            site=self._site,
            host=_Surroundings(self, connections),
            clocks=clock.Clocks(self._boot_ns, self._wall_ns, time.monotonic_ns),
            session_ttl_ms=self._session_ttl_ms,
        )

    def _turn(self, leader: Leader, connections: Connections, taken: list[_Local]) -> None:
        ready = connections.wait(0 if self._local else self._idle_ms(leader))
        self._hear_port(connections)
        self._hear_peers()
        for connection in ready:
            if not connection.closed:
                self._admission.start(leader, connections, connection)
        if self._local or taken:
            taken[:] = [local for local in taken if not local.done.is_set()]
        while self._local and not leader.is_full:
            local = self._local.popleft()
            taken.append(local)
            try:
                leader.handle(Request(local, 0, local.body, local.size))
            except ProtocolError as err:
                local.answer(0, Failed(errno.EINVAL, str(err)))
        leader.run()
        hit("service.answer.before")
        gone = connections.send_all()
        hit("service.answer.after")
        ended = [connection for connection in ready if connection.ending and not connection.frames and not connection.closed]
        gone += [connection for connection in ended if connection not in gone]
        now = time.monotonic_ns()
        if now >= self._slow_check_ns:
            self._slow_check_ns = now + _SLOW_CHECK_NS
            gone += connections.poll_slow()
        gone += self._admission.poll_fallen(connections) if self._port is not None else []
        for connection in gone:
            connections.close(connection)
            leader.drop_origin(connection)
        leader.tick()
        gone = connections.send_all() if connections.touched else []
        if void := leader.take_void():
            gone += [origin for origin in void if isinstance(origin, ClientConnection)]
        for connection in gone:
            connections.close(connection)
            leader.drop_origin(connection)

    def _close(self, connections: Connections | None, taken: list[_Local]) -> None:
        """Closes everything, also after a failure: nothing is written here."""
        with self._local_lock:
            self._accepting = False
            waiting = [*taken, *self._local]
            self._local.clear()
        for local in waiting:
            local.done.set()
        if connections is not None:
            connections.close_all()
        taken.clear()
        if self._port is not None:
            self._port.close()
            self._port = None
        if self._peers is not None:
            self._peers.close()
            self._peers = None
        if self._replica is not None:
            self._replica.close()
            self._replica = None
