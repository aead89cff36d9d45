"""A rolling upgrade among all other faults: each node begins with an older build, and comes back from one of its deaths with this one.

Nodes of both builds apply one log meanwhile.  When the last one is new, the level of the cluster is raised (`awsomefsd upgrade finalize`),
and the rules of the log change at that entry, for all of them.  An older build is one that acts at a lower level (AWSOMEFSD_LEVEL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from awsomefsd.base.levels import LEVEL
from awsomefsd.meta.api import commands as c
from tests.sim.world import SECOND

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.simulation import Simulation

OLDEST = 2
SPREAD_NS = 50 * SECOND  # over which the nodes are upgraded
NEW = "nodes upgraded"
MIXED = "entries applied by nodes of both builds"
RAISED = "levels raised"


class Upgrades:
    """`level` is that of the older build, at which the cluster is founded."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation, self._world = simulation, simulation.world
        self._dice = simulation.world.dice("upgrades")
        self.level = self._dice.randrange(OLDEST, LEVEL)
        for node in simulation.nodes:
            node.build = self.level

    def begin(self) -> None:
        for node in self._simulation.nodes:
            self._world.after(int(self._dice.random() * SPREAD_NS), self._upgrade, node)
        self._world.after(SECOND, self._finalize)

    def _upgrade(self, node: Node) -> None:
        """Its next start is of this build; one that is down already comes back so."""
        index = len(self._simulation.checks.truth)
        if all(one.build == self.level for one in self._simulation.nodes):
            self._mixed_since = index
        node.build = LEVEL
        self._world.count(NEW)
        if all(one.build == LEVEL for one in self._simulation.nodes):
            self._world.count(MIXED, index - self._mixed_since)
        if node.up:
            node.die_and_return(power=False, after_ns=int(self._dice.uniform(0.3, 3) * SECOND))

    def _finalize(self) -> None:
        """As the daemon does: asked for again and again, since an answer may be lost; the entry changes nothing the second time."""
        nodes, leader = self._simulation.nodes, self._simulation.leader()
        known = all(node.replica is not None and node.replica.machine.level_known == LEVEL for node in nodes)
        if leader is not None and leader.replica is not None:
            if leader.replica.machine.level == LEVEL:
                self._world.count(RAISED)
                return
            if known:
                leader.ask(c.RaiseLevel(LEVEL), lambda _reply: None)
        self._world.after(SECOND, self._finalize)
