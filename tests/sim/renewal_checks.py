"""Who renews in time and reaches the leader keeps the session; part of checks.py.

Looked at all the time: a mount is *served* while it runs, one node leads in one term, and nothing is cut, slow or full between the two, nor
hangs on the device.  Whatever doomed its session before that has shown within JUDGED_NS; from then on an end or a refusal is a defect,
unless an administrator has asked for it, or the mount has let the deadline of a recall pass: that costs the session by rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.sim.world import MS, SECOND, World

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

LOOK_NS = 250 * MS
JUDGED_NS = 15 * SECOND  # a recall may be overdue after 10 s, and the next renewal tells that
SLOW_NS = 10 * MS


class RenewalChecks:
    def __init__(self, world: World) -> None:
        self.world = world
        self._since: dict[str, tuple[Any, int]] = {}  # host → what must stay the same, since when it was served
        self._exempt: set[int] = set()  # sessions

    def begin(self, simulation: Simulation) -> None:
        self._look(simulation)

    def exempt(self, session: int) -> None:
        """An administrator ends it."""
        self._exempt.add(session)

    def _look(self, simulation: Simulation) -> None:
        self.world.after(LOOK_NS, self._look, simulation)
        served_by = self._leadership(simulation)
        for node in simulation.nodes:
            if node.up and node.leading:
                self._exempt.update(node.leader._leases._table.recalls.overdue(node.clock.boot_ns()))
        for host in simulation.hosts:
            same = None if served_by is None else self._served(simulation, host, served_by[0])
            if same is None:
                self._since.pop(host.name, None)
            elif host.name not in self._since or self._since[host.name][0] != (served_by, same):
                self._since[host.name] = ((served_by, same), self.world.now_ns)
            elif self._judged(host.name):
                self.world.count("looks at mounts that were served for long")

    def _leadership(self, simulation: Simulation) -> tuple[str, int] | None:
        """Name and term of the one node that leads, if all disks and wires are in order."""
        network, nodes = simulation.network, simulation.nodes
        weather = network.weather
        if weather.loss or weather.late or weather.base_ns > SLOW_NS or network.slow:
            return None
        if any(node.disk.full or node.disk.sync_ns > SLOW_NS for node in nodes):
            return None
        leaders = [node for node in nodes if node.up and node.leading]
        if len(leaders) != 1 or leaders[0].paused_until_ns > self.world.now_ns:
            return None
        return leaders[0].name, leaders[0].replica.log.term  # type: ignore[union-attr]

    def _served(self, simulation: Simulation, host: Any, leader: str) -> Any:
        mount = host.mount
        if not mount.up or mount.dead or mount.paused_until_ns > self.world.now_ns:
            return None
        if simulation.checks.leases.device.is_writing(mount):
            return None  # what hangs there keeps it from answering a recall
        if any(name in pair for pair in simulation.network.cut for name in (host.name, leader)):
            return None
        return mount.number, mount.workers

    def _judged(self, host: str) -> bool:
        return host in self._since and self.world.now_ns - self._since[host][1] >= JUDGED_NS

    def lost(self, mount: Any, session: int, how: str) -> None:
        """A session that its mount uses was ended or refused."""
        name = mount.host.name
        if self._judged(name) and session not in self._exempt:
            served_ns = self.world.now_ns - self._since[name][1]
            raise self.world.broken(f"session {session} is {how} although {name} has reached the leader for {served_ns / SECOND:.1f} s")
