"""Who renews in time and reaches the leader keeps the session, whoever leads; part of checks.py.

Looked at all the time: a mount is *served* while it runs, one node leads, and nothing is cut, slow or full between the two, nor hangs on
the device.  Whatever doomed its session before that has shown when it was served for JUDGED_NS; from then on an end or a refusal is a
defect, unless an administrator has asked for it, or the mount has let the deadline of a recall pass: that costs the session by rule.

A change of the leader begins nothing again: the next one gives every session a full TTL, in which the mount finds it.  The time between
two leaders is not counted, and two at once are borne as long as the older one may take to notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.world import MS, SECOND, World

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

LOOK_NS = 250 * MS
JUDGED_NS = 15 * SECOND  # a recall may be overdue after 10 s, and the next renewal tells that
DISPUTED_NS = 3 * SECOND  # longer than any election timeout, and the mount has most of a TTL left
SLOW_NS = 10 * MS
LEADERS_CHANGED = "changes of the leader of mounts that were served for long"


@dataclass
class _Served:
    """`worker`: which one of which mount; `leader`: name and term; `ns`: for how long, without the time between leaders."""

    worker: tuple[int, int]
    leader: tuple[str, int]
    ns: int = 0


class RenewalChecks:
    def __init__(self, world: World) -> None:
        self.world = world
        self._served: dict[str, _Served] = {}  # host
        self._disputed_ns = 0  # for how long more than one leads
        self._exempt: set[int] = set()  # sessions

    def begin(self, simulation: Simulation) -> None:
        self._look(simulation)

    def exempt(self, session: int) -> None:
        """An administrator ends it."""
        self._exempt.add(session)

    def _look(self, simulation: Simulation) -> None:
        self.world.after(LOOK_NS, self._look, simulation)
        leaders = [node for node in simulation.nodes if node.up and node.leading]
        for node in leaders:
            self._exempt.update(node.leader._leases._table.recalls.overdue(node.clock.boot_ns()))
        self._disputed_ns = self._disputed_ns + LOOK_NS if len(leaders) > 1 else 0
        in_order = self._disputed_ns <= DISPUTED_NS and self._is_in_order(simulation)
        for host in simulation.hosts:
            if in_order and self._reaches(simulation, host, leaders):
                self._note(host, leaders)
            else:
                self._served.pop(host.name, None)

    def _note(self, host: Any, leaders: list[Any]) -> None:
        if len(leaders) != 1:
            return
        worker, leader = (host.mount.number, host.mount.workers), (leaders[0].name, leaders[0].replica.log.term)
        served = self._served.get(host.name)
        if served is None or served.worker != worker:
            self._served[host.name] = _Served(worker, leader)
            return
        if self._judged(host.name):
            self.world.count("looks at mounts that were served for long")
            self.world.count(LEADERS_CHANGED, served.leader != leader)
        served.leader = leader
        served.ns += LOOK_NS

    def _is_in_order(self, simulation: Simulation) -> bool:
        """Whether no disk and no wire is slow, lossy or full."""
        network = simulation.network
        weather = network.weather
        if weather.loss or weather.late or weather.base_ns > SLOW_NS or network.slow:
            return False
        return not any(node.disk.full or node.disk.sync_ns > SLOW_NS for node in simulation.nodes)

    def _reaches(self, simulation: Simulation, host: Any, leaders: list[Any]) -> bool:
        """Whether this mount can talk to each node that leads; who leads while nobody does is not asked."""
        mount, now_ns = host.mount, self.world.now_ns
        if not mount.up or mount.dead or max(mount.paused_until_ns, *(node.paused_until_ns for node in leaders), 0) > now_ns:
            return False
        if simulation.checks.leases.device.is_writing(mount):
            return False  # what hangs there keeps it from answering a recall
        return not any(name in pair for pair in simulation.network.cut for name in (host.name, *(node.name for node in leaders)))

    def _judged(self, host: str) -> bool:
        return host in self._served and self._served[host].ns >= JUDGED_NS

    def lost(self, mount: Any, session: int, how: str) -> None:
        """A session that its mount uses was ended or refused."""
        name = mount.host.name
        if self._judged(name) and session not in self._exempt:
            served_ns = self._served[name].ns
            raise self.world.broken(f"session {session} is {how} although {name} has reached the leader for {served_ns / SECOND:.1f} s")
