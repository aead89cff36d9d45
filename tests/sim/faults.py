"""What goes wrong, when: one fault after the other and several at once, drawn from the seed; a minority of the voters is harmed for good.

Every fault ends.  `episodes` draws how bad this seed is: some seeds are calm, so that long quiet runs are tried too.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from msgspec import structs

from awsomefsd.base.errors import Error
from awsomefsd.meta.voter.single_voter import SingleVoter
from tests.sim.episodes.directed import Directed
from tests.sim.episodes.named import EPISODES
from tests.sim.machines.network import Weather
from tests.sim.world import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class Faults:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.dice = simulation.world.dice("faults")
        self.over = False
        self._harm_again_ns = 0
        self.every_ns = int(self.dice.choice([3, 6, 12, 30]) * SECOND)
        self.focus = simulation.plan.focus
        self.directed = Directed(self, EPISODES, self.focus)

    def begin(self) -> None:
        self.directed.begin()
        if not self.focus:
            self._next()

    def _next(self) -> None:
        if not self.over:
            self.world.after(self.dice.expovariate(1) * self.every_ns, self._strike)

    def _strike(self) -> None:
        if self.over:
            return
        kinds: list[Any] = [
            self._weather, self._weather, self._partition, self._partition, self._one_way, self._bridge, self._isolate_mount,
            self._kill, self._kill, self._power, self._power, self._power_in_a_turn, self._power_in_a_turn, self._power_everywhere,
            self._pause, self._slow_disk, self._full_disk, self._failing_sync, self._drift, self._wall_jump, self._suspend, self._full_map,
            self._kill_worker, self._kill_worker, self._kill_host, self._pause_worker, self._late_answers,
        ]  # fmt: skip
        if len(self.simulation.nodes) > 1:
            kinds += [self._lose_journal, self._flip_bits, self._transfer, self._coup, self._coup, self._lag, self._membership]
        strike = self.dice.choice(kinds)
        self.world.count(f"fault {strike.__name__[1:]}")
        strike()
        self._next()

    def end(self) -> None:
        """Everything is well from now on."""
        self.over = True
        self.directed.end()
        simulation = self.simulation
        simulation.network.heal()
        simulation.network.calm()
        for node in simulation.nodes:
            node.disk.sync_ns = 100_000
            node.disk.full = False
            node.disk.fail_sync = 0
            node.disk.budget = -1
            node.clock.drift(0.0)
        for host in simulation.hosts:
            host.clock.drift(0.0)
        simulation.checks.leases.device.heal()

    # --- helpers -----------------------------------------------------------------------------------------------------------------
    def _node(self) -> Any:
        """Any node, the leader more often."""
        leader = self.simulation.leader()
        if leader is not None and self.dice.random() < 0.4:
            return leader
        return self.dice.choice(self.simulation.nodes)

    def _machines(self) -> list[str]:
        return [node.name for node in self.simulation.nodes] + [host.name for host in self.simulation.hosts]

    def _for_ns(self) -> int:
        return int(self.dice.choice([0.3, 1, 3, 8, 20]) * self.dice.uniform(0.5, 1.5) * SECOND)

    def _heal_after(self, pairs: set[tuple[str, str]]) -> None:
        self.world.say(f"cut {sorted(pairs)}")
        self.world.after(self._for_ns(), self.simulation.network.cut.difference_update, pairs)

    def _cut(self, one: list[str], other: list[str], back_too: bool = True) -> None:
        network = self.simulation.network
        before = set(network.cut)
        network.isolate(one, other, back_too=back_too)
        self._heal_after(network.cut - before)

    # --- the network ---------------------------------------------------------------------------------------------------------------
    def _weather(self) -> None:
        dice = self.dice
        bad = Weather(
            loss=dice.choice([0, 0, 0.02, 0.1, 0.3]),
            double=dice.choice([0, 0.05, 0.3]),
            late=dice.choice([0, 0.05, 0.3]),
            late_ns=int(dice.choice([0.05, 0.3, 2]) * SECOND),
            base_ns=int(dice.choice([0.2, 0.2, 5, 80]) * MS),
        )
        self.simulation.network.weather = bad
        self.world.say(f"weather {bad}")
        self.world.after(self._for_ns(), self.simulation.network.calm)

    def _partition(self) -> None:
        machines = self._machines()
        self.dice.shuffle(machines)
        at = self.dice.randrange(1, len(machines))
        self._cut(machines[:at], machines[at:])

    def _one_way(self) -> None:
        node = self._node().name
        others = [name for name in self._machines() if name != node]
        if self.dice.random() < 0.5:
            self._cut([node], others, back_too=False)
        else:
            self._cut(others, [node], back_too=False)

    def _bridge(self) -> None:
        names = [node.name for node in self.simulation.nodes]
        self.dice.shuffle(names)
        middle = len(names) // 2
        self._cut(names[:middle], names[middle + 1 :])

    def _late_answers(self) -> None:
        """A mount hears late, and then nothing at all: what it believes of its lease begins late."""
        host = self._host()
        self.simulation.network.weather = Weather(base_ns=int(self.dice.uniform(0.5, 1) * SECOND))
        self.world.after(4 * SECOND, self._hear_nothing, host.name)

    def _hear_nothing(self, name: str) -> None:
        self.simulation.network.calm()
        if self.over:
            return
        network = self.simulation.network
        before = set(network.cut)
        network.isolate([name], [node.name for node in self.simulation.nodes])
        self.world.after(14 * SECOND, network.cut.difference_update, network.cut - before)

    def _isolate_mount(self) -> None:
        host = self.dice.choice(self.simulation.hosts).name
        self._cut([host], [node.name for node in self.simulation.nodes])

    # --- nodes ---------------------------------------------------------------------------------------------------------------------
    def _kill(self) -> None:
        node = self._node()
        if node.up:
            node.die_and_return(power=False, after_ns=self._for_ns())

    def _power(self) -> None:
        node = self._node()
        if node.up:
            node.die_and_return(power=True, after_ns=self._for_ns())

    def _power_in_a_turn(self) -> None:
        """In the middle of whatever it does with its disk or its store next."""
        node = self._node()
        if node.up:
            node.disk.budget = self.dice.randrange(12)

    def _power_everywhere(self) -> None:
        for node in self.simulation.nodes:
            if node.up:
                node.die_and_return(power=True, after_ns=self._for_ns())

    def _pause(self) -> None:
        node = self._node()
        if node.up:
            node.pause(self._for_ns())

    def _slow_disk(self) -> None:
        node = self._node()
        node.disk.sync_ns = int(self.dice.choice([5, 50, 400]) * MS)
        self.world.after(self._for_ns(), setattr, node.disk, "sync_ns", 100_000)

    def _full_disk(self) -> None:
        node = self._node()
        node.disk.full = True
        self.world.after(self._for_ns(), setattr, node.disk, "full", False)

    def _failing_sync(self) -> None:
        self._node().disk.fail_sync = 1

    def _full_map(self) -> None:
        node = self._node()
        if node.replica is not None:
            node.replica.store.rows.full = True

    def _harmable(self) -> Any:
        """A voter whose journal may be lost now: all others are up, have journals of long standing, and form a majority without it."""
        nodes = self.simulation.nodes
        if self.world.now_ns < self._harm_again_ns or any(not node.up for node in nodes) or self.simulation.leader() is None:
            return None
        applied = [node.replica.machine.applied_index for node in nodes]
        if min(applied) < len(self.simulation.checks.truth) - 5:
            return None  # somebody else is still behind: two would be a majority
        leader: Any = self.simulation.leader()
        if isinstance(leader.replica.log, SingleVoter):
            return None
        membership = leader.replica.log._raft.membership
        if membership.joint or len(membership.voters()) < len(nodes):
            return None
        self._harm_again_ns = self.world.now_ns + 40 * SECOND
        return self._node()

    def _lose_journal(self) -> None:
        node = self._harmable()
        if node is not None:
            self.world.count("journals lost")
            node.die_and_return(power=True, after_ns=self._for_ns())
            node.disk.wipe()

    def _flip_bits(self) -> None:
        node = self._harmable()
        if node is not None:
            self.world.count("journals damaged")
            node.die_and_return(power=False, after_ns=self._for_ns())
            path = self.dice.choice([path for path in node.disk.paths() if path.endswith(".journal")])
            node.disk.flip(path, self.dice.randrange(max(node.disk.used_bytes(path), 1)))

    def _transfer(self) -> None:
        leader = self.simulation.leader()
        if leader is None or leader.replica is None or isinstance(leader.replica.log, SingleVoter):
            return
        raft: Any = leader.replica.log._raft  # type: ignore[attr-defined]
        others = [voter for voter in sorted(raft.membership.voters()) if voter != raft.id]
        if others:
            with contextlib.suppress(Error):
                raft.transfer(self.dice.choice(others))
            leader.wake()

    def _membership(self) -> None:
        """A member becomes a learner, and a voter again by itself (joining.py); or it is removed, wiped, and comes back as a new member."""
        node = self._harmable()
        leader = self.simulation.leader()
        if node is None or leader is None or leader.replica is None:
            return
        raft: Any = leader.replica.log._raft  # type: ignore[attr-defined]
        members = [member for member in raft.membership.members if member.node != node.uuid]
        removed = self.dice.random() < 0.4
        if not removed:
            members += [structs.replace(member, voter=False) for member in raft.membership.members if member.node == node.uuid]
        with contextlib.suppress(Error):
            raft.propose_membership(members)
            self.world.say(f"{node.name} shall be {'no member' if removed else 'a learner'}")
            self.world.count("members removed" if removed else "voters made learners")
            leader.wake()
            if removed:
                self.world.after(2 * SECOND, self._wipe, node)

    def _wipe(self, node: Any) -> None:
        if node.up:
            node.die_and_return(power=True, after_ns=self._for_ns())
            node.disk.wipe()

    def _coup(self) -> None:
        """Somebody else is elected at once, the leader cannot hear of it, and a mount goes over: whoever stays reads what is old."""
        leader = self.simulation.leader()
        if leader is None:
            return
        host = self._host()
        self._cut([*(node.name for node in self.simulation.nodes if node is not leader), host.name], [leader.name], back_too=False)
        self._transfer()
        if host.mount.up:
            host.mount.kill_worker(30 * MS)

    def _lag(self) -> None:
        """A follower so far behind that it needs a snapshot."""
        node = self.dice.choice(self.simulation.nodes)
        if node.up:
            node.die_and_return(power=False, after_ns=self.dice.randrange(30, 60) * SECOND)

    # --- clocks --------------------------------------------------------------------------------------------------------------------
    def _clock(self) -> Any:
        return self.dice.choice([*self.simulation.nodes, *self.simulation.hosts]).clock

    def _drift(self) -> None:
        self._clock().drift(self.dice.uniform(-0.02, 0.02))

    def _wall_jump(self) -> None:
        self._clock().set_wall(int(self.dice.uniform(-3600, 3600) * SECOND))

    def _suspend(self) -> None:
        """A machine that slept: nothing of it ran, and its boot clock says so."""
        thing = self.dice.choice([*self.simulation.nodes, *[host.mount for host in self.simulation.hosts]])
        if thing.up:
            thing.pause(self._for_ns())

    # --- mounts --------------------------------------------------------------------------------------------------------------------
    def _host(self) -> Any:
        return self.dice.choice(self.simulation.hosts)

    def _kill_worker(self) -> None:
        mount = self._host().mount
        if mount.up:
            mount.kill_worker(int(self.dice.choice([0.05, 0.3, 2, 15]) * SECOND))

    def _pause_worker(self) -> None:
        mount = self._host().mount
        if mount.up:
            mount.pause(self._for_ns())

    def _kill_host(self) -> None:
        host = self._host()
        if not host.mount.up:
            return
        host.mount.die()
        programs = next(programs for programs in self.simulation.programs if programs.host is host)
        self.world.after(self._for_ns(), self._boot, host, programs)

    def _boot(self, host: Any, programs: Any) -> None:
        host.boot()
        programs.start()
