"""One run of mounts that decide names of one volume under leases, with nodes, wire and faults of the other simulations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import NAMES_DELEGATED
from awsomefsd.io.file import shipper, shipper_core
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.client import recalls
from awsomefsd.meta.server.leases.contention import Contention
from awsomefsd.vfs.state import delegated_names, shared_names
from awsomefsd.worker import delegation, service_calls, session_change
from tests.sim import shims
from tests.sim.faults import Faults
from tests.sim.machines import threads
from tests.sim.machines.network import Weather
from tests.sim.names.judge import NamesJudge
from tests.sim.names.mount import NamesHost, NamesMount
from tests.sim.names.programs import NamesPrograms
from tests.sim.node import CLUSTER
from tests.sim.simulation import DEVICE, Plan, Simulation
from tests.sim.world import MS, SECOND, World

PROGRAMS = 2
VOTERS = (1, 1, 1, 3)
GAPS_MS = (10, 100, 1_000, 4_000)  # for so long records are collected, unless somebody waits
AWAY_MS = (0.2, 2, 10)  # to a node
EVERY_NS = (2 * SECOND, 4 * SECOND, 8 * SECOND)
MIB = 1 << 20
VOLUME = 1


class NamesFaults(Faults):
    """More of what concerns leases, sessions and op logs."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.every_ns = self.dice.choice(EVERY_NS)

    def begin(self) -> None:
        self._next()
        first = (self._lose_behind_a_record, self._kill_behind_a_record, self._lose_behind_a_question, self._lose_session)
        self.world.after(self.dice.uniform(2, 8) * SECOND, first[self.simulation.plan.seed // len(VOTERS) % len(first)])

    def _for_ns(self) -> int:
        return int(self.dice.choice([0.1, 0.5, 1, 3]) * self.dice.uniform(0.5, 1.5) * SECOND)

    def _strike(self) -> None:
        if self.over:
            return
        kinds: list[Any] = [
            self._kill_worker, self._kill_worker, *[self._kill_behind_a_record] * 3, self._kill_host, self._pause_worker, self._suspend,
            *[self._lose_session] * 3, *[self._lose_behind_a_record] * 4, *[self._lose_behind_a_question] * 2, self._weather,
            *[self._kill_behind_a_recall] * 2, self._kill, self._power, self._power_in_a_turn, self._partition, self._one_way,
            self._late_answers, self._full_map,
        ]  # fmt: skip
        if len(self.simulation.nodes) > 1:
            kinds += [self._transfer, self._transfer, self._coup]
        strike = self.dice.choice(kinds)
        self.world.count(f"fault {strike.__name__[1:]}")
        strike()
        self._next()

    def _kill_behind_a_record(self) -> None:
        """Between the record and the answer."""
        host = self._host()
        host.mount.at_record = host.mount.be_killed

    def _lose_behind_a_record(self) -> None:
        """With something that the log does not have."""
        mount = self._host().mount
        mount.at_record = lambda: self._lose(mount)

    def _kill_behind_a_recall(self) -> None:
        """The leader is gone while somebody does what it has asked for; the next one has not asked yet."""
        for host in self.simulation.hosts:
            host.mount.at_recall = partial(self.world.after, 1, self._kill_leader, host.mount)

    def _kill_leader(self, mount: Any) -> None:
        leader = self.simulation.leader()
        if leader is not None and not self.over:
            leader.die_and_return(power=False, after_ns=int(self.dice.choice([0.01, 0.1, 1]) * SECOND))
            if self.dice.random() < 0.7:  # it is stopped: the greeting of the next one and what programs want come together
                mount.pause(int(self.dice.uniform(1, 5) * SECOND))

    def _lose_behind_a_question(self) -> None:
        """It is stopped while rows are on their way, and decides with them when it goes on."""
        mount = self._host().mount
        mount.at_question = lambda: mount.pause(int(self.dice.uniform(8, 16) * SECOND))

    def _lose_session(self) -> None:
        self._lose(self._host().mount)

    def _lose(self, mount: Any) -> None:
        """It is cut off, or stopped, for longer than its session lives."""
        if self.over:
            return
        for_ns = int(self.dice.uniform(11, 18) * SECOND)
        if self.dice.random() < 0.3:
            mount.pause(for_ns)
            return
        if self.dice.random() < 0.3 and mount.up:
            self.world.after(1, mount.kill_worker, int(self.dice.choice([0.05, 3, 12]) * SECOND), owner=mount)
        network = self.simulation.network
        before = set(network.cut)
        network.isolate([mount.host.name], [node.name for node in self.simulation.nodes])
        self.world.after(for_ns, network.cut.difference_update, network.cut - before)


class NamesSimulation(Simulation):
    def __init__(self, plan: Plan, trace: Callable[[str], None] | None = None) -> None:
        plan.voters = plan.voters or VOTERS[plan.seed % len(VOTERS)]
        super().__init__(plan, trace)
        away_ns = int(self.dice.choice(AWAY_MS) * MS)
        self.network.calm = lambda: setattr(self.network, "weather", Weather(base_ns=away_ns, spread_ns=away_ns))  # type: ignore[method-assign]
        self.network.calm()
        self.judge = self.checks.names = NamesJudge(self.world, VOLUME)
        self.faults = NamesFaults(self)

    def run(self) -> World:
        try:
            return super().run()
        finally:
            for host in self.hosts:
                if isinstance(host.mount, NamesMount):
                    host.mount.end_strands()

    def stand_ins(self) -> AbstractContextManager[None]:
        return production(self.world)

    def _loses_majority(self) -> bool:
        return False

    def _begin(self) -> None:
        commands: list[c.Command] = [c.Init(CLUSTER, 1, LEVEL), c.AddDevice(DEVICE, 256 * MIB, MIB, 250, MIB, shared=True)]
        commands.append(c.CreateVolume("names", self.uuid(), names=NAMES_DELEGATED))
        for command in commands:
            self.administer(command)
        for number in range(self.plan.mounts):
            host = NamesHost(self.world, self.network, f"m{number + 1}", self.nodes, VOLUME, self.checks, shared=True)
            host.judge, host.place = self.judge, number
            self.hosts.append(host)
            host.boot()
            self.programs.append(NamesPrograms(host, PROGRAMS))
            self.programs[-1].start()

    def rest(self) -> None:
        super().rest()
        self.judge.at_rest()


@contextmanager
def production(world: World) -> Iterator[None]:
    """Production modules of a worker see the simulation."""
    dice = world.dice("production")
    gap_ms = dice.choice(GAPS_MS)
    patches: list[tuple[Any, str, Any]] = [
        (shipper, "threading", threads.OF_SHIPPER), (shipper, "time", shims.TIME), (shipper_core, "SHIP_GAP_MS", gap_ms),
        (session_change, "time", SimpleNamespace(sleep=threads.sleep)), (recalls, "threading", threads.OF_RECALLS),
        (recalls, "queue", threads.QUEUE), (delegated_names, "time", shims.TIME),
        *((module, "block_on", threads.block_on) for module in (delegated_names, shared_names, delegation, service_calls)),
    ]  # fmt: skip
    with ExitStack() as stack:
        for module, name, stand_in in patches:
            stack.enter_context(mock.patch.object(module, name, stand_in))
        if dice.random() < 0.6:  # nothing is contested
            stack.enter_context(mock.patch.object(Contention, "pause_ms", return_value=0))
        if dice.random() < 0.7:  # a lease is asked for at the first miss
            eager = lambda names, ino: names.leases.want_to_decide(ino)  # noqa: E731
            stack.enter_context(mock.patch.object(shared_names.SharedNames, "_miss", eager))
        logger = logging.getLogger("awsomefsd")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)
