"""The metadata service of one process: its thread, what that is made of, and what follows when a run of it ends.

The thread owns journal, machine and store: opened on it (LMDB's write transaction belongs to its thread), never touched from another.
Its loop is in turns.py.  Other threads of the daemon hand in requests through a queue and an eventfd (admission.py).  If the thread ends by
an exception (a failed fsync, damage), the store's transaction is dropped, `failed` is set, and the daemon must end: what was acknowledged
is in the journal, which is replayed.

A run begins with the opening of journal and state.  One voter alone that becomes the first of several ends its run and begins another.
When this node's journal or state must not be used any more (RejoinRequired), the thread closes everything, sets both aside and begins as a
new member.

Damage that is met in use ends a single voter.  One of several sets journal and state aside too, but only when another node has led for
DAMAGE_PAUSE_MS since it was met first: a leader applies every entry before its followers, so what stops this node does not stop that one.
Were it a fault of the program, which stops everybody at the same entry, nobody would lead, and nobody gives up what it has.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from awsomefsd.base import durable, sockets
from awsomefsd.base.clock import Clocks
from awsomefsd.base.errors import MembershipSuperseded, NotLeading, RejoinRequired, Unavailable
from awsomefsd.base.failpoints import hit
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import DAMAGE_PAUSE_MS, HAND_OVER_MS_MAX, NS_PER_MS
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.base.wait import Signal
from awsomefsd.meta.api.commands import AnyCommand
from awsomefsd.meta.api.messages import Body, Propose, Reply
from awsomefsd.meta.net.listener import MetadataPort
from awsomefsd.meta.net.peers import Peers, Voters
from awsomefsd.meta.replica.applied_machine import AppliedMachine
from awsomefsd.meta.replica.checkpoint_progress import CheckpointProgress
from awsomefsd.meta.replica.open_voter import Setting, open_voter
from awsomefsd.meta.replica.replica import DEFAULT_OPTIONS, MakeMachine, Replica, ReplicaOptions
from awsomefsd.meta.replica.state_snapshot_files import set_aside
from awsomefsd.meta.replica.store import DAMAGE
from awsomefsd.meta.server.admission import LocalRequests
from awsomefsd.meta.server.authorizer import Authorizer
from awsomefsd.meta.server.connections import Connections
from awsomefsd.meta.server.leader import Answer
from awsomefsd.meta.server.turns import ServiceHost, Transport, Turns, Wakeup
from awsomefsd.meta.voter.single_voter import SeveralVoters, SingleVoter

log = logging.getLogger(__name__)

SOCKET_NAME = "meta.sock"
SUPERSEDED = "left-behind"  # in the directory: why this journal and state are not to be used


class Rules(NamedTuple):
    """The state machine and its queries.  They are handed in: the service knows no rule."""

    make_machine: MakeMachine
    answer: Answer


class NoHost:
    """Implements turns.ServiceHost for a process that sees no device and is watched by nobody."""

    def device_paths(self) -> dict[str, str]:
        return {}

    def turned(self) -> None:
        pass


_NO_HOST, _CLOCKS = NoHost(), Clocks()


class _Next(enum.Enum):
    """What follows an end of a run."""

    END = enum.auto()
    AGAIN = enum.auto()  # with the same journal and state
    REJOIN = enum.auto()  # without


class _Current:
    """The replica of the present run, None between two.  Implements authorizer.OwnVoter.  The metadata thread changes it, any may look."""

    def __init__(self) -> None:
        self.replica: Replica | None = None

    def begin(self, replica: Replica) -> None:
        self.replica = replica

    def end(self) -> None:
        """Closes the replica, also after a failure: nothing is written here."""
        if self.replica is not None:
            self.replica.close()
            self.replica = None

    def rows(self) -> AppliedMachine:
        assert self.replica is not None
        return self.replica.machine

    def leads(self) -> bool:
        return self.replica is not None and self.replica.log.leading

    def applied(self) -> int:
        replica = self.replica
        return 0 if replica is None else replica.machine.applied_index


class MetadataService:
    """One voter of the metadata, in this process.

    `start` and `stop` are called by one thread; `propose`, `query`, the copies, `grow` and `hand_over` by any, and they block as they say.
    """

    def __init__(
        self,
        node: Node,
        directory: Path,
        socket_path: Path,
        rules: Rules,
        *,
        host: ServiceHost = _NO_HOST,
        clocks: Clocks = _CLOCKS,
        voters: Voters | None = None,
        options: ReplicaOptions = DEFAULT_OPTIONS,
    ) -> None:
        """`directory` holds journal and state; clients of this host connect at `socket_path`.  `voters` None: there is no other voter."""
        self._node = node
        self._directory = directory
        self._socket_path = socket_path
        self._rules = rules
        self._host = host
        self._clocks = clocks
        self._voters = voters
        self._checkpoint_progress = options.checkpoint_progress or CheckpointProgress()
        self._wakeup = Wakeup()
        self._options = replace(options, checkpoint_progress=self._checkpoint_progress, written=self._wakeup.wake)
        self._current = _Current()
        self._authorizer = Authorizer(self._current, voters.members if voters is not None else frozenset(), clocks.monotonic_ns)
        self._local = LocalRequests(self._wakeup.wake)
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stopping = self._growing = self._handing_over = False
        self._handed_over = threading.Event()
        self._pause_ns = self._damaged_ns = 0  # the last: when damage was met first
        self.failed = Signal()  # it ended by itself, with `error`
        self.error: BaseException | None = None

    # --- the daemon's side ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Recovers and listens; blocks until that is done.  Raises what recovery raised (Corrupt, FormatTooNew, Refused, OSError)."""
        assert self._thread is None, "a service starts once"
        self._thread = threading.Thread(target=self._main, name="metadata", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self.error is not None:
            self.stop()
            raise self.error

    def stop(self) -> None:
        """Finishes the turn, commits the store and closes; blocks until that is done.  Harmless after a failure."""
        if self._thread is not None:
            self._stopping = True
            self._wakeup.wake()
            self._thread.join()
        self._wakeup.close()

    def hand_over(self) -> None:
        """Lets another voter lead, before a clean stop.  Blocks until one does or none can, at most HAND_OVER_MS_MAX."""
        if self._local.accepting:
            self._handing_over = True
            self._wakeup.wake()
            self._handed_over.wait(HAND_OVER_MS_MAX / 1_000)

    def grow(self) -> None:
        """Asks that one voter alone become the first of several, in place; harmless for one that is.  Returns at once; `alone` tells when
        it is done."""
        self._growing = True
        self._wakeup.wake()

    @property
    def alone(self) -> bool:
        """True: this is the only voter, and it alone decides (meta/voter/single_voter.py)."""
        replica = self._current.replica
        return replica is not None and isinstance(replica.log, SingleVoter)

    @property
    def meets_others(self) -> bool:
        """True: it was made with voters, so it listens for other nodes, also while it is alone."""
        return self._voters is not None

    @property
    def leads(self) -> bool:
        """True: this voter decides, alone or as the leader of several.  Any thread; what it was a moment ago."""
        return self._current.leads()

    @property
    def applied(self) -> int:
        """The index of the newest entry that is applied here.  Any thread; what it was a moment ago, 0 before there is one."""
        return self._current.applied()

    def propose(self, command: AnyCommand, timeout_s: float) -> Reply:
        """Proposes one command of the daemon itself and returns its reply; Failed is a reply too.

        Blocks at most `timeout_s` seconds.  Raises Unavailable if there is no answer in time, or no service; the command may still be
        committed.
        """
        return self._local.ask(Propose(HOST_UNIQUE, 0, 0, [], command), timeout_s)

    def query(self, body: Body, timeout_s: float = 10.0) -> Reply:
        """Returns the reply to any other request of this process; blocks and raises as `propose`."""
        return self._local.ask(body, timeout_s)

    def copy_store(self, path: Path) -> None:
        """Writes a consistent copy of the last committed state into one file.

        Blocks the caller's thread for as long as that takes.  Raises Unavailable if the service does not run.
        """
        self._running().store.copy_to(path)

    def copy_pages(self, path: Path) -> None:
        """As `copy_store`, page by page and without a walk of the tree: a damaged state copies like any other."""
        self._running().store.copy_pages_to(path)

    def _running(self) -> Replica:
        replica = self._current.replica
        if replica is None or not self._local.accepting:
            raise Unavailable("the metadata service does not run")
        return replica

    # --- the thread: one run after the other --------------------------------------------------------------------------------
    def _main(self) -> None:
        try:
            while (following := self._serve()) is not _Next.END:
                self._pause()
                if following is _Next.REJOIN:
                    set_aside(self._directory)
        except BaseException as err:
            self.error = err
            self.failed.fire()
            if self._ready.is_set():
                log.critical("the metadata service failed: %s", err, exc_info=err)
        finally:
            self._ready.set()

    def _serve(self) -> _Next:
        """Serves from recovery to the end of a run, closes everything, and returns what follows."""
        with ExitStack() as undo:
            try:
                return self._run(self._begin(undo))
            except MembershipSuperseded as err:
                durable.write_file(self._directory / SUPERSEDED, str(err).encode())
                raise
            except RejoinRequired as err:
                log.error("this node joins the metadata again: %s", err)
                return _Next.REJOIN
            except DAMAGE as err:
                replica = self._current.replica
                if self._voters is None or replica is None or replica.log.leader in ("", self._node.node):
                    raise
                return self._after_damage(err)

    def _begin(self, undo: ExitStack) -> Turns:
        """Recovers, listens, and accepts requests of this process; `undo` closes all of it again, in the opposite order."""
        replica, peers = self._open()
        undo.callback(self._checkpoint_progress.wake)  # after the end: this node leads no more
        undo.callback(self._current.end)
        self._current.begin(replica)
        if peers is not None:
            undo.callback(peers.close)
        listener = sockets.listen_unix(self._socket_path, 0o600)
        hit("service.listen.after")
        connections = Connections(listener, self._wakeup.fd, self._clocks.monotonic_ns)
        undo.callback(connections.close_all)
        if peers is not None:
            connections.watch(peers.fd)
        port = None
        if self._voters is not None:
            port = MetadataPort.listen(self._voters.listen, self._voters.tls)
            undo.callback(port.close)
            connections.watch(port.fd)
        transport = Transport(connections, port, peers, dict if self._voters is None else self._voters.texts)
        turns = Turns(
            replica, transport, self._authorizer, self._local,
            node=self._node, answer=self._rules.answer, host=self._host, clocks=self._clocks,
        )  # fmt: skip
        undo.callback(self._local.close)
        self._local.open()
        self._ready.set()
        return turns

    def _run(self, turns: Turns) -> _Next:
        while not self._stopping:
            turns.turn()
            self._host.turned()
            if self._growing and self._grown(turns):
                return _Next.AGAIN
            if self._handing_over:
                self._give_away()
        self._running().commit()
        return _Next.END

    def _grown(self, turns: Turns) -> bool:
        """True: this journal and state go on as one of several voters'.  False: nothing to do, or no room yet, and it is tried again."""
        if not self.alone or self._voters is None or self._voters.founds is None:
            self._growing = False
            return False
        if not turns.grow(self._voters.address):
            return False
        self._growing = False
        log.info("the metadata of this node can be kept by several voters from now on")
        return True

    def _give_away(self) -> None:
        voter = self._running().log
        if not voter.leading:
            self._handed_over.set()
            return
        try:
            begun = voter.hand_over()
        except NotLeading:
            return  # it is under way
        if not begun:
            self._handed_over.set()

    def _after_damage(self, err: BaseException) -> _Next:
        """Handles damage while somebody else leads: begin again with what there is, after a pause; the second time without it."""
        now = self._clocks.monotonic_ns()
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
        while not self._stopping and self._clocks.monotonic_ns() < self._pause_ns:
            self._host.turned()
            time.sleep(0.02)

    # --- opening ------------------------------------------------------------------------------------------------------------
    def _open(self) -> tuple[Replica, Peers | None]:
        """Opens journal and state, and the connections to the other voters if there are several."""
        if (self._directory / SUPERSEDED).exists():
            raise MembershipSuperseded((self._directory / SUPERSEDED).read_text())
        voters = self._voters
        if voters is None:
            return self._open_single(), None
        if voters.founds is not None and voters.founds():
            try:
                return self._open_single(), None
            except SeveralVoters:
                pass
        return self._open_voter(voters)

    def _open_single(self) -> Replica:
        node = self._node
        return Replica.open_single(
            self._directory, node.cluster, node.node, self._rules.make_machine, self._options, refuse_several=True
        )  # fmt: skip

    def _open_voter(self, voters: Voters) -> tuple[Replica, Peers]:
        node, clocks = self._node, self._clocks
        setting = Setting(
            self._directory, node.cluster, node.node, node.site, voters.texts(), boot_ns=clocks.boot_ns, wall_ns=clocks.wall_ns
        )  # fmt: skip
        if voters.founds is not None:
            setting = replace(setting, growing=voters.texts, address=voters.address)
        connected: list[Peers] = []

        def links(incarnation: str) -> Peers:
            """A second call is for another journal: the connections of the first one end."""
            while connected:
                connected.pop().close()
            connected.append(voters.connect(node.cluster, node.node, incarnation, self._authorizer.why_no_voter))
            return connected[0]

        try:
            return open_voter(setting, links, self._rules.make_machine, self._options)[0], connected[0]
        except BaseException:
            while connected:
                connected.pop().close()
            raise
