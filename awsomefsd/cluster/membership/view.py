"""The cluster as one node sees it: which node leads, which vote, which are heard, and how many more failures that bears.  Pure.

A leader's view is exact; a node that follows or carries nothing has asked the leader.  If no leader can be asked, what is left is
what this node itself knows (its own voter's figures) and its last orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from awsomefsd.base.limits import NODE_HEALTHY_MS, VOTER_LIVING_MS
from awsomefsd.meta.api.messages.members import MemberInfo
from awsomefsd.meta.api.messages.nodes import NodeInfo

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Seen:
    """A member of the metadata, as the leader sees it."""

    node: str
    name: str
    member: str
    leader: bool
    lag: int
    silent_ms: int

    @property
    def heard(self) -> bool:
        return self.leader or 0 <= self.silent_ms < VOTER_LIVING_MS


@dataclass(frozen=True, slots=True)
class Certificate:
    """The life of a certificate, in seconds of the wall clock."""

    begins_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as one node knows it.  `asked`: a leader has answered.  `figures`: of this node's own service, empty without one."""

    me: str
    carries: bool = False
    asked: bool = False
    leader: str = ""
    term: int = 0
    level: int = 0
    led_ms: int = 0
    nodes: Sequence[NodeInfo] = ()
    members: Sequence[Seen] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    without_leader_s: float = 0.0
    last_leader: str = ""
    trouble: str = ""
    removed: str = ""
    control_trouble: str = ""
    now_s: float = 0.0
    certificate: Certificate | None = None
    authority: Certificate | None = None

    def name(self, node: str) -> str:
        return self.names.get(node) or node

    @property
    def voters(self) -> int:
        known = sum(one.member == "voter" for one in self.members)
        return known or int(self.figures.get("voters", 0))

    @property
    def voters_heard(self) -> int:
        return sum(one.member == "voter" and one.heard for one in self.members)

    @property
    def failures_survived(self) -> int:
        """The number of voters that may still fail; UNKNOWN without a leader's answer."""
        if not self.asked or not self.members:
            return UNKNOWN
        return max(self.voters_heard - majority(self.voters), 0)


def silent_ms(row: NodeInfo, led_ms: int) -> int:
    """Returns the time in ms since a node was last heard; 0 if it is there, or if that cannot be known yet."""
    silent = row.heard_ms_ago if row.heard_ms_ago >= 0 else led_ms
    return silent if silent > NODE_HEALTHY_MS else 0


def readiness(row: NodeInfo, led_ms: int) -> str:
    """Returns "ready", "not-ready", or "unknown" for a node that this leader has not heard yet."""
    if silent_ms(row, led_ms):
        return "not-ready"
    return "ready" if row.heard_ms_ago >= 0 else "unknown"


def majority(voters: int) -> int:
    return voters // 2 + 1


def of_nodes(nodes: Sequence[NodeInfo]) -> list[Seen]:
    return [Seen(one.node, one.name, one.member, one.leader, one.lag, one.silent_ms) for one in nodes if one.member]


def of_members(members: Sequence[MemberInfo], leader: str) -> list[Seen]:
    """Returns nodes made from the members, where nodes have no rows: voters by configuration, and clusters of older builds."""
    return [
        Seen(one.node, one.node, "voter" if one.voter else "learner", one.node == leader, one.lag, one.silent_ms) for one in members
    ]  # fmt: skip
