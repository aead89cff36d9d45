"""A rolling upgrade: the levels that the nodes know, and raising the cluster's when all know a higher one (base/levels.py).

Nodes of role client count too: a client reads the devices itself, and at a higher level it would meet there what its build does not know.
"""

from __future__ import annotations

from typing import NamedTuple

from awsomefsd.base import levels
from awsomefsd.base.errors import Refused
from awsomefsd.meta.api.commands import RaiseLevel
from awsomefsd.meta.api.messages.nodes import ListNodes, NodeInfo
from awsomefsd.node.catalog import Catalog


class Levels(NamedTuple):
    """The cluster's level.  `known`: the highest level that every node knows; `nodes`: those that are not removed."""

    level: int
    known: int
    nodes: list[NodeInfo]


class Upgrade:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def status(self) -> Levels:
        level = self._catalog.level()
        nodes = list(self._catalog.ask(ListNodes()).nodes)
        return Levels(level, min([levels.supported(), *(node.level for node in nodes)]), nodes)

    def finalize(self) -> Levels:
        """Raises the level to the highest that every node knows; returns the new levels.

        Blocks.  Raises Refused if there is no higher one.
        """
        found = self.status()
        if found.known <= found.level:
            if levels.supported() <= found.level:
                raise Refused(f"the cluster acts at level {found.level}, the highest that this build knows; there is nothing to finalize")
            behind = sorted((node for node in found.nodes if node.level <= found.level), key=lambda node: node.name)
            names = ", ".join(f"{node.name} (client)" if node.role == "client" else node.name for node in behind)
            remove = behind[0].node if len(behind) == 1 else "NODE"
            raise Refused(
                f"these nodes know no level above {found.level}: {names}; upgrade awsomefsd there and start the daemon again, or if one "
                f"does not come back: awsomefsd node remove {remove}"
            )
        self._catalog.propose(RaiseLevel(found.known))
        return self.status()
