"""Episodes: orders of events that blind dice would need very many seeds for, played with the same means as faults.py.

Cuts, deaths, late answers, clocks, and elections whose time has come: nothing here is impossible in production, so production code runs
under all of it in the normal seeds too, now and then and beside all other faults; Plan.focus plays one kind only, one after the other.
named.py has the rest, and all of them by name.

An episode is a generator.  It yields how long to wait, or an Until: what is looked at after each turn of any node, in the same event, so
that a wire can be cut before what the turn has sent arrives.  What does not come in time ends the episode, and its cuts are healed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from awsomefsd.base.errors import Error
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.raft.types import Role
from tests.sim.mounts.workload import REGISTERS
from tests.sim.world import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.faults import Faults

NUDGE_NS = 150 * MS
EVERY_NS = 60 * SECOND


@dataclass
class Until:
    """`nudge`: a node whose election timeout ends now, and again while it does not lead."""

    holds: Callable[[], Any]
    nudge: Any = None
    within_ns: int = 8 * SECOND


Episode = Generator["int | Until", None, None]


def raft_of(node: Any) -> Any:
    return getattr(node.replica.log, "_raft", None) if node.up and node.replica is not None else None


@dataclass
class _Reader:
    """What checks.after_read wants to know of a mount."""

    host: Any


class Directed:
    def __init__(self, faults: Faults, episodes: Mapping[str, Callable[[Directed], Episode]], focus: str) -> None:
        self.faults, self.simulation, self.world, self.focus = faults, faults.simulation, faults.world, focus
        self.episodes = episodes
        self.dice = self.world.dice("directed")
        self.network = self.simulation.network
        self._episode: Episode | None = None
        self._step = 0  # timers of earlier steps are void
        self._until: Until | None = None
        self._pairs: set[tuple[str, str]] = set()

    # --- how episodes are run -----------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        self.simulation.checks.turned = self._look
        self._later()

    def _later(self) -> None:
        wait = self.dice.uniform(0.5, 3) * SECOND if self.focus else self.dice.expovariate(1) * EVERY_NS
        self.world.after(wait, self._start)

    def _start(self) -> None:
        if self.faults.over:
            return
        name = self.focus or self.dice.choice(sorted(self.episodes))
        self.world.say(f"episode: {name}")
        self.world.count("episodes")
        self._episode = self.episodes[name](self)
        self._go()

    def end(self) -> None:
        if self._episode is not None:
            self._episode.close()
        self._episode, self._until = None, None

    def _go(self) -> None:
        assert self._episode is not None
        self._step += 1
        self._until = None
        try:
            wanted = next(self._episode)
        except StopIteration:
            self._over()
            return
        if isinstance(wanted, Until):
            self._until = wanted
            self.world.after(wanted.within_ns, self._give_up, self._step)
            if wanted.nudge is not None:
                self._nudge(self._step)
        else:
            self.world.after(wanted, self._resume, self._step)

    def _resume(self, step: int) -> None:
        if step == self._step and self._episode is not None:
            self._go()

    def _look(self) -> None:
        if self._until is not None and self._until.holds():
            self._until = None
            self._go()

    def _nudge(self, step: int) -> None:
        if step == self._step and self._until is not None:
            node = self._until.nudge
            raft = raft_of(node)
            if raft is not None and raft.role is Role.FOLLOWER:
                raft.member.election_at_ms = 0
                node.wake()
            self.world.after(NUDGE_NS, self._nudge, step)

    def _give_up(self, step: int) -> None:
        if step == self._step and self._episode is not None:
            self.world.count("episodes given up")
            self._episode.close()
            self._over()

    def _over(self) -> None:
        self._episode, self._until = None, None
        self._step += 1
        self._heal()
        self.world.say("the episode is over")
        self._later()

    # --- what they are made of ------------------------------------------------------------------------------------------------------
    def _heal(self) -> None:
        """All that this episode has cut."""
        self.network.cut -= self._pairs
        self._pairs.clear()

    def _apart(self, one: Iterable[Any], other: Iterable[Any], *, back_too: bool = True) -> None:
        before = set(self.network.cut)
        self.network.isolate([each.name for each in one], [each.name for each in other], back_too=back_too)
        self._pairs |= self.network.cut - before

    def _together(self, one: Iterable[Any], other: Iterable[Any]) -> None:
        others = list(other)
        for here in one:
            for there in others:
                pairs = {(here.name, there.name), (there.name, here.name)}
                self.network.cut -= pairs
                self._pairs -= pairs

    def _cast(self) -> tuple[Any, list[Any]] | None:
        """The leader, and the others in any order; None if not all take part now."""
        nodes = self.simulation.nodes
        leader = self.simulation.leader()
        if leader is None or len(nodes) < 3 or any(raft_of(node) is None for node in nodes):
            return None
        raft = raft_of(leader)
        if raft.membership.joint or not {raft_of(node).id for node in nodes} <= raft.membership.voters():
            return None
        others = [node for node in nodes if node is not leader]
        self.dice.shuffle(others)
        return leader, others

    def _leads(self, node: Any, above: int = 0) -> Callable[[], bool]:
        """It was elected; its first entry may still be on its way."""

        def holds() -> bool:
            raft = raft_of(node)
            return raft is not None and raft.role is Role.LEADER and raft.term > above

        return holds

    def _write(self, node: Any, answered: Callable[[m.Reply], None]) -> int:
        """A register is set by that node's daemon; the value."""
        value = self.simulation.checks.new_value()
        node.ask(c.SetVolume(self.dice.randrange(1, REGISTERS + 1), -1, value), answered)
        return value

    def _stays_alone(self, leader: Any, near: list[Any], far: list[Any], count: int) -> Episode:
        """The leader commits with `near` what `far` does not get."""
        self._apart(far, self.simulation.nodes)
        answers: list[m.Reply] = []
        for _ in range(count):
            self._write(leader, answers.append)
        yield Until(lambda: len(answers) == count)

    # --- the episodes -----------------------------------------------------------------------------------------------------------------
    def figure_8(self) -> Episode:
        """Of the Raft paper: an entry of an older term comes to a majority, and is overwritten by one that was elected in between."""
        cast = self._cast()
        if cast is None:
            return
        first, (second, *rest) = cast
        self._apart([first], [second, *rest])
        old = raft_of(first).last_index + 1
        for _ in range(6):
            self._write(first, lambda reply: None)
        yield 50 * MS
        yield Until(self._leads(second), second)
        self._apart([second], rest)  # its first entry stays with it
        term = raft_of(second).term
        self._together([first], rest)
        yield Until(self._leads(first, term), first)
        raft, needed = raft_of(first), len(self.simulation.nodes) // 2
        yield Until(lambda: sum(peer.match >= old for peer in raft.peers()) >= needed)
        term = raft.term
        self._apart([first], rest)
        self._together([second], rest)
        yield Until(self._leads(second, term), second)

    def deposed(self) -> Episode:
        """A leader is cut off from the others, but not from who asks it, while another one is elected and changes what it is asked for."""
        cast = self._cast()
        if cast is None:
            return
        old, (new, *rest) = cast
        self._apart([new, *rest], [old], back_too=False)
        with contextlib.suppress(Error):
            raft_of(old).transfer(raft_of(new).id)
        old.wake()
        yield Until(lambda: new.up and new.leading and raft_of(new).serving, within_ns=SECOND)
        checks, register = self.simulation.checks, self.dice.randrange(1, REGISTERS + 1)
        value = checks.new_value()
        told: list[m.Reply] = []
        new.ask(c.SetVolume(register, -1, value), told.append)
        yield Until(lambda: told, within_ns=SECOND)
        if not isinstance(told[0], m.Done):
            return
        checks.told(value)
        before, life = checks.before_read(), old.life
        read: list[Any] = []
        old.request(m.GetVolumes(f"register{register}"), read.append)
        yield Until(lambda: read or old.life != life, within_ns=3 * SECOND)
        if read and isinstance(read[0], m.Volumes):
            checks.after_read(_Reader(old), register, read[0].volumes[0].quota_inodes, before)

    def laggard(self) -> Episode:
        """One that lacks what is committed stands for election among those that have it, without the leader."""
        cast = self._cast()
        if cast is None:
            return
        leader, (late, *rest) = cast
        yield from self._stays_alone(leader, rest, [late], 3)
        self._apart([leader], rest)
        self._together([late], rest)
        term = raft_of(leader).term if leader.up else 0
        yield Until(lambda: any(self._leads(node, term)() for node in (late, *rest)), late)

    def wiped(self) -> Episode:
        """A voter of the smallest majority loses its journal, and then those elect that never had what this majority committed."""
        cast = self._cast()
        if cast is None or self.faults._harmable() is None:
            return
        leader, others = cast
        half = len(self.simulation.nodes) // 2
        near, far = others[:half], others[half:]
        yield from self._stays_alone(leader, near, far, 3)
        lost, *kept = near
        if not lost.up:
            return
        self.world.count("journals lost")
        lost.die_and_return(power=True, after_ns=200 * MS)
        lost.disk.wipe()
        self._apart([leader, *kept], [lost, *far])
        self._together(far, [lost, *far])
        yield Until(lambda: any(self._leads(node)() for node in far), far[0])

    def promise(self) -> Episode:
        """Those that the smallest majority needs lose power while they store; then those elect that never had it, with these."""
        cast = self._cast()
        if cast is None:
            return
        leader, others = cast
        half = len(self.simulation.nodes) // 2
        near, far = others[:half], others[half:]
        self._apart(far, self.simulation.nodes)
        yield 20 * MS
        self._write(leader, lambda reply: None)
        for node in near:
            node.disk.budget = self.dice.randrange(3)
        yield 30 * MS
        self._apart([leader], others)
        self._together(far, others)
        yield Until(lambda: all(node.up for node in near), within_ns=12 * SECOND)
        yield Until(lambda: any(self._leads(node)() for node in others), far[0])

    def late_lease(self) -> Episode:
        """A mount hears late of its renewals, its clock is slow, and then it hears nothing, until its session is ended for others."""
        hosts = [host for host in self.simulation.hosts if host.mount is not None and host.mount.up and host.mount.session]
        leader = self.simulation.leader()
        if not hosts or leader is None:
            return
        host = self.dice.choice(hosts)
        nodes, network = self.simulation.nodes, self.network
        pairs = [(node.name, host.name) for node in nodes]
        host.clock.drift(-0.02)
        leader.clock.drift(0.02)
        late_ns = int(self.dice.uniform(1.2, 2.8) * SECOND)
        try:
            network.slow.update(dict.fromkeys(pairs, late_ns))
            lease = host.mount.lease
            yield late_ns
            since = lease._since_ns
            yield Until(lambda: lease._since_ns > since and not lease._asked)
            self._apart([host], nodes)
            yield 14 * SECOND
        finally:
            for pair in pairs:
                network.slow.pop(pair, None)
            host.clock.drift(0.0)
            leader.clock.drift(0.0)
