"""One run: nodes, mounts and faults of one seed, for so many simulated minutes, and then the end where everything must come to rest.

The last part is liveness: faults are healed, and within HEAL_NS every node must be up and equal, and every program must have finished.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.limits import RAFT_APPEND_BYTES_MAX
from awsomefsd.cluster.membership.voters_policy import Grow, View, VoterCandidate, VoterChange, next_step
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server.leases import contention
from awsomefsd.meta.state import invariants
from tests.sim import shims
from tests.sim.episodes.lost_majority import LostMajority
from tests.sim.episodes.named import MAJORITY_LOST
from tests.sim.episodes.upgrades import Upgrades
from tests.sim.faults import Faults
from tests.sim.judges.checks import Checks
from tests.sim.machines.network import Network
from tests.sim.mounts.mount import Host
from tests.sim.mounts.shared_programs import SharedPrograms
from tests.sim.mounts.workload import REGISTERS, Programs
from tests.sim.node import CLUSTER, Node
from tests.sim.world import MS, SECOND, World

invariants.ASSERTED = True

MIB = 1 << 20
CONTEST_RECALLS = 3  # instead of the product's: these programs are slower than real ones
HEAL_NS = 90 * SECOND
GROWS_NS = 20 * SECOND
LOST_SHARE = 0.25  # of the runs with three nodes or more
SMALL_APPENDS = 256  # bytes: a few entries a message, so that a majority may have some of what an election's winner sends
DEVICE = "dddddddd-dddd-dddd-dddd-dddddddddddd"


@dataclass
class Plan:
    """What a run is made of; the seed decides where nothing is said."""

    seed: int
    minutes: float = 3.0
    voters: int = 0
    mounts: int = 2
    shared: int = -1  # mounts that share a volume; one less has a volume of its own then
    faults: bool = True  # a lost majority is one of them
    grows: bool = False  # from one voter to all of them, by the policy
    upgrades: bool = False  # from an older build, node by node
    focus: str = ""  # one of named.EPISODES: that one again and again, and nothing else


class Simulation:
    def __init__(self, plan: Plan, trace: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.world = world = World(plan.seed, trace=trace)
        self.dice = world.dice("simulation")
        self.network = Network(world)
        self.checks = Checks(world)
        count = plan.voters or self.dice.choice([3, 3, 5] if plan.focus else [1, 3, 3, 3, 5])
        self.nodes = [Node(world, self.network, self.uuid(), f"n{number + 1}", self.checks) for number in range(count)]
        for node in self.nodes:
            node.peers = {peer.uuid: peer for peer in self.nodes}
        self.grows = plan.grows and count > 1
        for node in self.nodes:
            node.grows, node.founder = self.grows, self.grows and node is self.nodes[0]
        self.upgrades = Upgrades(self) if plan.upgrades else None
        self.hosts: list[Host] = []
        self.programs: list[Programs | SharedPrograms] = []
        self.faults = Faults(self)

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.dice.getrandbits(128)))

    def run(self) -> World:
        small = bool(self.plan.focus) or self.world.dice("appends").random() < 0.5
        contested = mock.patch.object(contention, "CONTEST_RECALLS", CONTEST_RECALLS)
        appends = SMALL_APPENDS if small else RAFT_APPEND_BYTES_MAX
        with contested, shims.installed(self.world.dice("urandom"), self.checks.journaled, appends), self.stand_ins():
            self._found()
            self._begin()
            self.checks.renewals.begin(self)
            if self.plan.faults:
                self.faults.begin()
            if self.upgrades is not None:
                self.upgrades.begin()
            self.world.run(self.world.now_ns + int(self.plan.minutes * 60 * SECOND))
            self._end()
            if len(self.nodes) > 2 and not self.grows and self._loses_majority():
                LostMajority(self).play()
        self.world.count("simulated seconds", self.world.now_ns // SECOND)
        return self.world

    def stand_ins(self) -> contextlib.AbstractContextManager[None]:
        """What else production modules shall see of the simulation."""
        return contextlib.nullcontext()

    def _loses_majority(self) -> bool:
        if self.plan.focus:
            return self.plan.focus == MAJORITY_LOST
        return self.plan.faults and self.world.dice("losing").random() < LOST_SHARE

    # --- the beginning -----------------------------------------------------------------------------------------------------------
    def _found(self) -> None:
        for node in self.nodes:
            node.start()

        if self.grows:
            self.world.after(self.world.dice("grows").random() * GROWS_NS, self._manage)  # among the faults, mostly

    def _manage(self) -> None:
        """As cluster/membership/membership_driver.py on the node that leads: all nodes shall vote."""
        self.world.after(SECOND, self._manage)
        leader = self.leader()
        if leader is None or leader.replica is None:
            return
        told = leader.replica.log.members()
        nodes = [VoterCandidate(node.uuid, carries=True, silent_ms=0 if node.up else 1 << 40) for node in self.nodes]
        step = next_step(View(nodes, told, 600_000))
        if isinstance(step, Grow):
            leader.grow_wanted = True
            leader.wake()
        elif isinstance(step, VoterChange):
            self.world.count("steps of the membership asked for")
            leader.request(m.ChangeMembers(told.index, step.add, [*step.promote], [*step.remove]), lambda reply: None)

    def _begin(self) -> None:
        volumes = [f"register{number + 1}" for number in range(REGISTERS)] + [f"home{number}" for number in range(self.plan.mounts)]
        volumes.append("shared")
        level = LEVEL if self.upgrades is None else self.upgrades.level
        commands: list[c.Command] = [c.Init(CLUSTER, 1, level), c.AddDevice(DEVICE, 256 * MIB, MIB, 250, MIB, shared=True)]
        commands += [c.CreateVolume(name, self.uuid()) for name in volumes]
        for command in commands:
            self.administer(command)
        shared = self.dice.choice([0, 2, 2, 3]) if self.plan.shared < 0 else self.plan.shared
        uncached = self.dice.random() < 0.5  # the last one
        self.checks.leases.volume = REGISTERS + self.plan.mounts + 1
        alone = self.plan.mounts - 1 if shared else self.plan.mounts
        for number in range(alone + shared):
            volume = REGISTERS + number + 1 if number < alone else self.checks.leases.volume
            without = uncached and alone < number == alone + shared - 1
            host = Host(self.world, self.network, f"m{number + 1}", self.nodes, volume, self.checks, number >= alone, without)
            self.hosts.append(host)
            host.boot()
            self.programs.append(self.programs_of(host))
            self.programs[-1].start()

    def programs_of(self, host: Host) -> Programs | SharedPrograms:
        return SharedPrograms(host, 2) if host.shared else Programs(host, list(range(1, REGISTERS + 1)), 2)

    def administer(self, command: c.Command) -> Any:
        """As the daemon of the leader does, while nothing fails; the reply."""
        answers: list[m.Reply] = []
        for _ in range(200):
            node = self.leader()
            if node is not None and node.ask(command, answers.append):
                self.world.run(self.world.now_ns + 5 * SECOND, lambda: bool(answers))
                if answers:
                    assert not isinstance(answers[0], m.Failed), answers
                    return answers[0]
            self.world.run(self.world.now_ns + 50 * MS)
        raise self.world.broken("no leader")

    def leader(self) -> Node | None:
        return next((node for node in self.nodes if node.up and node.leading), None)

    # --- the end -----------------------------------------------------------------------------------------------------------------
    def _end(self) -> None:
        world = self.world
        world.say("everything is healed")
        self.faults.end()
        self.rest()

    def rest(self) -> None:
        """All programs end, and all nodes are equal."""
        world = self.world
        for host in self.hosts:
            host.stopping = True
        until = world.now_ns + HEAL_NS
        while world.now_ns < until:
            world.run(world.now_ns + SECOND)
            if self._rests():
                break
        else:
            raise world.broken(f"{HEAL_NS // SECOND} s after the faults ended: {self._restless()}")
        self._compare()

    def _runners(self) -> list[str]:
        return [runner.name for programs in self.programs for runner in programs.runners if not runner.done]

    def _applied(self) -> list[int]:
        return [node.replica.machine.applied_index if node.replica is not None else -1 for node in self.nodes]

    def _rests(self) -> bool:
        return not self._runners() and set(self._applied()) == {len(self.checks.truth)}

    def _restless(self) -> str:
        return f"programs {self._runners()}, applied {self._applied()} of {len(self.checks.truth)}, leader {self.leader()}"

    def _compare(self) -> None:
        """The states of all nodes are the same rows."""
        states = []
        for node in self.nodes:
            assert node.replica is not None
            store = node.replica.store
            with shims.running(node.clock):
                node.replica.machine.flush()
            states.append({key: store.get(key) for key, _ in store.scan(b"", b"\xff" * 8)})
        for node, state in zip(self.nodes, states, strict=True):
            if state != states[0]:
                keys = [key.hex() for key in sorted(state.keys() | states[0].keys()) if state.get(key) != states[0].get(key)]
                raise self.world.broken(f"{node.name} and {self.nodes[0].name} have applied the same entries and differ in {keys[:5]}")
