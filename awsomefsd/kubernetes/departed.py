"""The nodes of ours that have gone for good with their Kubernetes nodes.  Pure.

A node counts as ours in this Kubernetes cluster when it has once been ready while a Kubernetes node of its name was there; nodes that were
installed as packages beside it are never touched.  It is away while that Kubernetes node is not there, or belongs to a younger node of ours
with the same name (a machine made anew), and the leader does not hear it.  Two that were ready at one time are two machines, as of two
Kubernetes clusters with the same names: neither takes the place of the other.

What is known is kept in the Secret, so that neither a restart nor a second controller begins to count anew.  Whatever says that it is back
ends the counting; what cannot be known changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

RECORD_KEY = "nodes"
AWAY_S_SLACK = 300  # a clock that ran ahead by more than this, when it wrote, is not believed


class NodeState(Protocol):
    """What the cluster knows of a node."""

    @property
    def node(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def joined_ms(self) -> int: ...
    @property
    def readiness(self) -> str: ...


class Known(Struct):
    """A node that was seen in this Kubernetes cluster.

    `away_s`: since when it is gone, in seconds of the wall clock, 0: it is there.  `namesake`: a younger node of its name was ready while
    it was ready, too.
    """

    name: str
    away_s: int = 0
    namesake: bool = False


Record = dict[str, Known]


def decode(text: str) -> Record:
    """Returns the record of a text; an empty one for a text that is none: nodes are seen again, and counting begins anew."""
    try:
        return msgspec.json.decode(text.encode(), type=Record)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return {}


def encode(record: Record) -> str:
    return msgspec.json.encode(record, order="sorted").decode()


def looked(record: Record, names: Collection[str], nodes: Sequence[NodeState], now_s: int) -> Record:
    """Returns the record after a look at the Kubernetes nodes and at ours that are not removed."""
    made: Record = {}
    for node in nodes:
        known = record.get(node.node)
        namesake = known is not None and known.name == node.name and (known.namesake or _has_namesake(node, nodes))
        there = node.name in names and (namesake or not _replaced(node, nodes, record))
        if known is None and not (there and node.readiness == "ready"):
            continue
        away = 0 if known is None or known.away_s > now_s + AWAY_S_SLACK else known.away_s
        if there or node.readiness == "ready":
            away = 0
        elif node.readiness == "not-ready":
            away = away or now_s
        made[node.node] = Known(node.name, away, namesake)
    return made


def _has_namesake(node: NodeState, nodes: Sequence[NodeState]) -> bool:
    return node.readiness == "ready" and any(one.readiness == "ready" for one in _younger(node, nodes))


def _younger(node: NodeState, nodes: Sequence[NodeState]) -> list[NodeState]:
    return [one for one in nodes if one.name == node.name and one.joined_ms > node.joined_ms]


def _replaced(node: NodeState, nodes: Sequence[NodeState], record: Record) -> bool:
    """Returns True if a younger node has the name, and was heard once: Kubernetes runs one pod of ours on a node."""
    return any(one.node in record or one.readiness == "ready" for one in _younger(node, nodes))


def due(record: Record, nodes: Sequence[NodeState], after_s: int, now_s: int) -> list[str]:
    """Returns the nodes that are to be removed: away for so long, and not heard at this moment either."""
    silent = {node.node for node in nodes if node.readiness == "not-ready"}
    return sorted(node for node, known in record.items() if known.away_s and now_s - known.away_s >= after_s and node in silent)
