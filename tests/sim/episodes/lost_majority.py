"""A majority is lost for good, and one that lagged goes on alone: recovery/force_single.py in the simulation, at the end of a run.

What the lost ones had committed and the survivor never got is no part of the truth any more.  What they handed out is: no number of
theirs may be handed out again.  Then they come back, and must find that they are left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.replica.replica import Replica, ReplicaOptions, uuid_bytes
from awsomefsd.meta.state import keys
from awsomefsd.meta.voter.ports import RAFT_NOTE
from awsomefsd.meta.voter.single_voter import SingleVoter
from awsomefsd.recovery import force_single
from awsomefsd.recovery.first_entries import propose_one
from tests.sim import shims
from tests.sim.episodes.named import LOST_MAJORITIES
from tests.sim.node import CLUSTER, JOURNAL_FILE_BYTES, Node
from tests.sim.world import SECOND

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

LOST_ENTRIES = "entries lost with a majority"
REFUSED_NS = 15 * SECOND
WORK_NS = 4 * SECOND


def _open_alone(node: Node) -> Replica:
    store = node.files.open_store()
    directory = str(node.directory / "journal")
    ids = uuid_bytes(CLUSTER), uuid_bytes(node.uuid)
    journal = Journal.open(directory, *ids, create=False, disk=node.disk, file_bytes=JOURNAL_FILE_BYTES)
    voter = SingleVoter(journal, node.uuid, node.clock.boot_ns)
    return Replica(voter, store, node.watch.machine_of(node), -1, ReplicaOptions())  # type: ignore[arg-type]


def recover_alone(node: Node, incarnation: bytes, incarnation_seen: int) -> None:
    """The steps of recovery/force_single.py, over the simulated disk of a stopped node."""
    with shims.running(node.clock):
        replica = _open_alone(node)
        at = replica.machine.membership()
        assert at is not None
        replica.commit()
        index, term = replica.machine.applied_index, replica.log.term
        replica.store.delete(keys.membership())
        replica.store.set_note(RAFT_NOTE, b"")
        replica.store.commit()
        replica.store.adopt(CLUSTER, node.uuid, incarnation, index, term)
        replica.log.close()
        node.disk.wipe()
        directory, ids = str(node.directory / "journal"), (uuid_bytes(CLUSTER), uuid_bytes(node.uuid))
        journal = Journal.open(directory, *ids, create=True, disk=node.disk, file_bytes=JOURNAL_FILE_BYTES, incarnation=incarnation)
        journal.set_hard_state(term + force_single.TERMS_JUMP, ids[1])
        journal.reset_to(index, term)
        journal.sync()
        journal.close()
        replica = _open_alone(node)
        mine = Membership([Member(node.uuid, incarnation.hex(), True, node.address)], generation=at.membership.generation + 1)
        for command in force_single.first_commands(mine, incarnation_seen, "the simulation ended them"):
            propose_one(replica, command)
        replica.commit()
        replica.log.close()


class LostMajority:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.world, self.checks = simulation, simulation.world, simulation.checks
        self.dice = simulation.world.dice("lost majority")

    def play(self) -> None:
        leader = self.simulation.leader()
        assert leader is not None
        survivor = self.dice.choice([node for node in self.simulation.nodes if node is not leader])
        lost = [node for node in self.simulation.nodes if node is not survivor]
        self.world.say(f"{survivor.name} lags, and the others will be lost")
        self._work_without(survivor)
        for host in self.simulation.hosts:
            host.mount.die()  # type: ignore[union-attr]
            self.checks.leases.device.drain(host.mount)
        for node in lost:
            node.die(power=True)
        survivor.die(power=self.dice.random() < 0.5)
        self.simulation.network.heal()
        self._recover(survivor)
        self._begin_again()
        self._come_back(survivor, lost)
        self.world.count(LOST_MAJORITIES)

    def _work_without(self, survivor: Node) -> None:
        simulation = self.simulation
        others = [node.name for node in simulation.nodes if node is not survivor] + [host.name for host in simulation.hosts]
        simulation.network.isolate([survivor.name], others)
        for host, programs in zip(simulation.hosts, simulation.programs, strict=True):
            host.stopping = False
            programs.start()
        self.world.run(self.world.now_ns + WORK_NS)
        for host, programs in zip(simulation.hosts, simulation.programs, strict=True):
            host.mount.die()  # type: ignore[union-attr]
            host.boot()  # with a session that only the lost ones know
            programs.start()
        self.world.run(self.world.now_ns + WORK_NS)

    def _recover(self, survivor: Node) -> None:
        """The truth ends where the survivor's journal does, and goes on with what nobody else has."""
        checks = self.checks
        with shims.running(survivor.clock):
            replica = _journal_of(survivor)
            common = min(replica.last_index, len(checks.truth))
            while common >= replica.first_index and replica.term_of(common) != checks.truth[common - 1][0]:
                common -= 1
            replica.close()
        self.world.count(LOST_ENTRIES, len(checks.truth) - common)
        checks.rewind(common)
        seen = max((frame.incarnation for frame in checks.leases.device.frames.values()), default=0)
        checks.handed_out.judging = False  # what only the survivor has was never told to anybody
        recover_alone(survivor, self.dice.randbytes(16), seen)
        checks.handed_out.judging = True
        survivor.start()

    def _begin_again(self) -> None:
        """All mounts are new, and so are their volumes: what the old ones hold is not known any more."""
        simulation = self.simulation
        volumes = [simulation.administer(c.CreateVolume(f"after {host.name}", simulation.uuid())).number for host in simulation.hosts]
        shared = next((volume for host, volume in zip(simulation.hosts, volumes, strict=True) if host.shared), -1)
        self.checks.leases.begin_again(shared)
        for host, volume in zip(simulation.hosts, volumes, strict=True):
            host.volume = shared if host.shared else volume
            host.boot()
        simulation.programs = [simulation.programs_of(host) for host in simulation.hosts]
        for programs in simulation.programs:
            programs.start()
        self.world.run(self.world.now_ns + WORK_NS)

    def _come_back(self, survivor: Node, lost: list[Node]) -> None:
        together = self.dice.random() < 0.5
        for node in lost:
            node.start()
            if not together:
                self.world.run(self.world.now_ns + SECOND)
        if not self.world.run(self.world.now_ns + REFUSED_NS, lambda: all(node.left_behind for node in lost)):
            raise self.world.broken(f"not refused after a recovery: {[node.name for node in lost if not node.left_behind]}")
        self.world.run(self.world.now_ns + WORK_NS)
        self.simulation.nodes = [survivor]
        self.simulation.rest()


def _journal_of(node: Node) -> Any:
    ids = uuid_bytes(CLUSTER), uuid_bytes(node.uuid)
    return Journal.open(str(node.directory / "journal"), *ids, create=False, disk=node.disk, file_bytes=JOURNAL_FILE_BYTES)
