"""A node: the production journal, consensus, replica, machine, service and connections, one turn after the other, on simulated everything.

A turn is the production service's own turn (turns.Turns.turn).  It runs at one moment of simulated time; what it spends on the
disk moves the node's own clock ahead, delays what it sends afterwards, and makes it busy for so long.  A power cut may come in any call of
the disk or the store inside a turn: what was sent before is on its way, what comes after never happens.  A process that dies by an error
that production names (JournalFailed, JournalFull) is started again, as the supervisor does; any other exception breaks the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base import identity
from awsomefsd.base.clock import Clocks
from awsomefsd.base.errors import MembershipSuperseded, RejoinRequired
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.log.journal import Journal, JournalFailed, JournalFull
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.raft.messages import AppendReply
from awsomefsd.meta.replica.open_voter import Setting, open_voter
from awsomefsd.meta.replica.replica import Replica, ReplicaOptions, uuid_bytes
from awsomefsd.meta.server.admission import LocalRequests
from awsomefsd.meta.server.authorizer import Authorizer
from awsomefsd.meta.server.connections import Connections
from awsomefsd.meta.server.request import Request
from awsomefsd.meta.server.service import NoHost
from awsomefsd.meta.server.turns import Transport, Turns
from awsomefsd.meta.state import keys
from awsomefsd.meta.voter.peer_messages import decode_message, peer_encode
from awsomefsd.meta.voter.ports import RAFT_NOTE
from awsomefsd.meta.voter.single_voter import SeveralVoters, SingleVoter
from awsomefsd.meta.voter.voter import Voter
from tests.sim import shims
from tests.sim.machines.clock import SimClock
from tests.sim.machines.disk import PowerCut, SimDisk
from tests.sim.machines.network import Network
from tests.sim.machines.sockets import Listener
from tests.sim.machines.state_snapshot_files import SimFiles, SimPath
from tests.sim.world import MS, SECOND, World

CLUSTER = "11111111-2222-3333-4444-555555555555"
RESTART_NS = 500 * MS
JOURNAL_FILE_BYTES = 64 << 10
COMMIT_ENTRIES = 300


class _Again(Exception):
    """This voter alone became the first of several; service.MetadataService then begins another run."""


class _Local:
    """A request of the daemon itself.  Implements waiting.Origin."""

    mount = 0

    def __init__(self, body: m.Body, answered: Callable[[m.Reply], None]) -> None:
        self.body, self._answered = body, answered

    def answer(self, call: int, reply: m.Reply) -> None:
        self._answered(reply)


class SimPeers:
    """What is used of peers.Peers: messages as datagrams, which may be lost, doubled and late."""

    waiting = False

    def __init__(self, node: Node) -> None:
        self._node = node

    def send(self, node: str, message: Any) -> None:
        me = self._node
        if isinstance(message, AppendReply) and not message.refused:
            me.watch.acknowledges(me, message.index)
        target = me.peers[node]
        me.network.send(me.name, target.name, target.hear, me.uuid, peer_encode(message), owner=target, ahead_ns=me.clock.ahead_ns)

    def poll(self) -> list[tuple[str, Any]]:
        heard, self._node._heard = self._node._heard, []
        return heard

    def address_of(self, node: str) -> str:
        """Nobody moves."""
        return ""

    def tick(self) -> None:
        """Connections are no matter of this simulation's voters."""

    def next_deadline_ns(self) -> int:
        return self._node.clock.boot_ns() + SECOND


class Node:
    """One machine with a daemon.  `life` counts its deaths."""

    def __init__(self, world: World, network: Network, uuid: str, name: str, watch: Any) -> None:
        self.world, self.network = world, network
        self.uuid, self.name = uuid, name
        self.life = 0
        self.up = False
        self.clock = SimClock(world, name)
        self.disk = SimDisk(world.dice(f"disk/{name}"), self.spend)
        self.files = SimFiles(self)
        self.paused_until_ns = 0
        self.watch = watch
        self.replica: Replica | None = None
        self.epoll = shims.Epoll()
        self.directory = SimPath("/sim") / name
        self._busy_until_ns = 0
        self._idle_ns = 0
        self._local: list[_Local] = []
        self._heard: list[tuple[str, Any]] = []
        self.peers: dict[str, Node] = {}
        self.grows = False  # the membership is in the log, and simulation.py chooses the voters by the policy
        self.founder = self.grow_wanted = False
        self.address = name
        self.build = LEVEL  # the highest level that its program knows, from its next start on
        self.left_behind = False  # a recovery has gone on without it
        self._turn_at_ns = -1  # of the turn that is scheduled
        self._in_turn = False
        self._store_dice = world.dice(f"store/{name}")
        self._dice = world.dice(f"node/{name}")

    @property
    def leading(self) -> bool:
        return self.replica is not None and self.replica.log.leading  # type: ignore[attr-defined]

    def ask(self, command: Any, answered: Callable[[m.Reply], None]) -> bool:
        """A command of the daemon itself, in the next turn."""
        self.request(m.Propose(HOST_UNIQUE, 0, 0, [], command), answered)
        return True

    def request(self, body: m.Body, answered: Callable[[m.Reply], None]) -> None:
        """In the next turn; lost if the node dies."""
        self._local.append(_Local(body, answered))
        self.wake()

    def spend(self, ns: int) -> None:
        self.clock.ahead_ns += ns

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        """The store's writer thread: it ends some time later, or never if the node dies; who waits for it spends that time."""
        takes_ns = 2 * MS if self._store_dice.random() < 0.7 else self._store_dice.randrange(2 * SECOND)
        ends_ns, done = self.world.now_ns + takes_ns, False

        def end() -> None:
            nonlocal done
            if not done:
                done = True
                work()

        def wait() -> None:
            if not done:
                self.spend(max(ends_ns - self.world.now_ns, 0))
                end()

        self.world.at(ends_ns, end, owner=self)
        return wait

    def step(self, name: str) -> None:
        """A step of the store: the power may go in it, if a turn waits for it."""
        if self._in_turn:
            self.disk.step(name)

    # --- life and death ----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        assert not self.up
        self.up = True
        self.world.say(f"{self.name} starts")
        self._in_a_turn(self._open)
        self.wake()

    def _open(self) -> None:
        self._heard.clear()
        self.replica = self._open_replica()
        several = isinstance(self.replica.log, Voter)
        self.listener = Listener(self)
        self.connections = Connections(self.listener, 1, self.clock.boot_ns)  # type: ignore[arg-type]
        self.epoll = self.connections._epoll  # type: ignore[assignment]
        boot_ns = self.clock.boot_ns
        transport = Transport(
            self.connections, None, SimPeers(self) if several else None, self.texts if several or self.grows else dict  # type: ignore[arg-type]
        )  # fmt: skip
        self.turns = Turns(
            self.replica, transport, Authorizer(self, frozenset(), boot_ns), LocalRequests(self.wake),
            node=identity.Node(CLUSTER, self.uuid, 1), answer=answer, host=NoHost(), clocks=Clocks(boot_ns, self.clock.wall_ns, boot_ns),
        )  # fmt: skip
        self.leader = self.turns.leader

    def rows(self) -> Any:
        """authorizer.OwnVoter: the applied state."""
        assert self.replica is not None
        return self.replica.machine

    def leads(self) -> bool:
        """authorizer.OwnVoter."""
        return self.leading

    def founds(self) -> bool:
        """peers.Voters: nobody else carries the metadata, as far as this node knows."""
        return self.founder

    def _open_replica(self) -> Replica:
        if len(self.peers) == 1:
            return self._open_single()
        if self.grows and self.founder:
            try:
                return self._open_single()
            except SeveralVoters:  # the power went in the turn that made it so, before _Again
                self.files.process_died()
                self.disk.process_died()
                self._first_of_several()
        return self._open_voter()

    def _open_single(self) -> Replica:
        store = self.files.open_store()
        if store.note(RAFT_NOTE) or store.get(keys.membership()) is not None:
            raise SeveralVoters("as Replica.open_single")
        journal = Journal.open(
            str(self.directory / "journal"),
            uuid_bytes(CLUSTER),
            uuid_bytes(self.uuid),
            create=store.identity is None,
            disk=self.disk,
            file_bytes=JOURNAL_FILE_BYTES,
        )
        store.claim(CLUSTER, self.uuid, journal.incarnation)
        voter = SingleVoter(journal, self.uuid, self.clock.boot_ns, refuse_several=True)
        return Replica(
            voter, store, self.watch.machine_of(self), -1, ReplicaOptions(commit_entries=COMMIT_ENTRIES, commit_ms=1000, written=self.wake)
        )  # type: ignore[arg-type]

    def _open_voter(self) -> Replica:
        setting = Setting(
            self.directory,  # type: ignore[arg-type]
            CLUSTER,
            self.uuid,
            1,
            self.texts(),
            boot_ns=self.clock.boot_ns,
            wall_ns=self.clock.wall_ns,
            dice=self._dice.random,
            growing=self.texts if self.grows else None,
            address=self.address,
        )
        machine = self.watch.machine_of(self)
        with shims.files_of(self):
            options = ReplicaOptions(self.disk, journal_file_bytes=JOURNAL_FILE_BYTES, commit_entries=COMMIT_ENTRIES, written=self.wake)  # type: ignore[arg-type]
            opened = open_voter(setting, lambda _: SimPeers(self), machine, options)
        self.watch.opened(self, opened[1])
        return opened[0]

    def texts(self) -> dict[str, str]:
        """peers.Voters: where each node is."""
        return {uuid: node.name for uuid, node in self.peers.items()}

    def set_aside(self) -> None:
        """The journal and the state are not used again (state_snapshot_files.set_aside)."""
        self.world.count("journals set aside")
        self.world.say(f"{self.name} begins anew")
        self.disk.wipe()
        self.files.set_aside()

    def hear(self, sender: str, raw: bytes) -> None:
        if self.up:
            self._heard.append((sender, decode_message(raw)))
            self.wake()

    def die(self, *, power: bool) -> None:
        """The process ends (`power`: the machine too)."""
        if not self.up:
            return
        self.up = False
        self.life += 1
        self._turn_at_ns = -1
        self.paused_until_ns = 0
        self.world.say(f"{self.name} {'loses power' if power else 'is killed'}")
        self._let_go(tells=not power)
        self.files.process_died()
        if power:
            self.disk.power_cut()
        else:
            self.disk.process_died()

    def _let_go(self, *, tells: bool) -> None:
        if self.replica is None:
            return
        for connection in list(self.connections._by_fd.values()):
            sock: Any = connection.sock
            sock.link.died(sock.end, tells=tells)
        self.replica = None

    def die_and_return(self, *, power: bool, after_ns: int) -> None:
        self.die(power=power)
        self.world.after(after_ns, self.start, owner=self)

    # --- turns ---------------------------------------------------------------------------------------------------------------
    def wake(self, at_ns: int | None = None) -> None:
        """A turn as soon as it can be."""
        when = max(self.world.now_ns if at_ns is None else at_ns, self._busy_until_ns, self.paused_until_ns)
        if self.up and (self._turn_at_ns < 0 or when < self._turn_at_ns):
            self._turn_at_ns = when
            self.world.at(when, self._turn, when, owner=self)

    def pause(self, for_ns: int) -> None:
        self.paused_until_ns = max(self.paused_until_ns, self.world.now_ns + for_ns)
        self.world.say(f"{self.name} is stopped for {for_ns / SECOND:.3f} s")

    def _turn(self, when: int) -> None:
        if when != self._turn_at_ns:
            return  # a later one was scheduled before an earlier one
        self._turn_at_ns = -1
        if self.world.now_ns < self.paused_until_ns:
            self.wake()
            return
        self._in_a_turn(self._run_service)
        if self.up:
            self.watch.after_turn(self)
            self.watch.turned()
        if self.up:
            self.wake(self._busy_until_ns + self._idle_ns)
            if self.epoll.ready:
                self.wake()

    def _run_service(self) -> None:
        local, self._local = self._local, []
        for request in local:
            self.leader.handle(Request(request, 0, request.body, 100))
        assert self.replica is not None
        self.turns.turn()
        if self.grow_wanted:
            self.grow_wanted = isinstance(self.replica.log, SingleVoter)
            if self.turns.grow(self.address):
                raise _Again
        self._idle_ns = self.turns.idle_ms() * MS

    def _first_of_several(self) -> None:
        """Counts, once, that this voter alone became the first of several."""
        self.world.count("voters alone that became the first of several")
        self.founder = self.grow_wanted = False

    def _in_a_turn(self, call: Any) -> None:
        self.clock.ahead_ns = 0
        self._in_turn = True
        try:
            with shims.running(self.clock):
                call()
        except PowerCut as cut:
            self.world.count("power cuts inside a turn")
            self.world.say(f"{self.name}: power cut at {cut}")
            self.die_and_return(power=True, after_ns=RESTART_NS + self._dice.randrange(10 * SECOND))
        except _Again:
            self._first_of_several()
            self.die_and_return(power=False, after_ns=MS)
        except RejoinRequired:
            self.set_aside()
            self.die_and_return(power=False, after_ns=RESTART_NS)
        except MembershipSuperseded as err:
            self.world.say(f"{self.name}: is left behind: {err}")
            self.left_behind = True
            self.die(power=False)
        except JournalFull as err:
            if self.replica is not None:
                raise
            self.world.say(f"{self.name}: cannot begin: {err}")
            self.die_and_return(power=False, after_ns=RESTART_NS)
        except JournalFailed as err:
            self.world.count("daemons that ended themselves")
            self.world.say(f"{self.name}: ends itself: {err}")
            self.die_and_return(power=False, after_ns=RESTART_NS)
        finally:
            self._in_turn = False
            self._busy_until_ns = self.world.now_ns + self.clock.ahead_ns
            self.clock.ahead_ns = 0
