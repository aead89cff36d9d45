"""Remembers what the leader knows of the nodes beside their rows: when each reported last, and how far behind each member is.

In memory only, from the beginning of a leadership: a new leader has heard nobody, and says so (`heard_ms_ago` -1).  What a node says of
itself, when it differs from its row, becomes an entry, once: one that the machine refuses is not proposed again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import structs

from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.meta.api.commands import DescribeNode
from awsomefsd.meta.api.messages.nodes import NodeInfo, NodeOrders, NodeReport, Nodes
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.server.proposals import BatchProposer


class NodeReports:
    def __init__(self, replica: Replica, proposer: BatchProposer, monotonic_ns: Callable[[], int], wall_ns: Callable[[], int]) -> None:
        self._replica = replica
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._proposer = proposer
        self._heard: dict[str, tuple[int, NodeReport]] = {}
        self._skew_ms: dict[str, int] = {}  # of those that say their time
        self._described: dict[str, DescribeNode] = {}  # proposed in this leadership
        self._first_ns = 0  # when the first report of this leadership came

    def forget(self) -> None:
        """Forgets all reports: the leadership has ended."""
        self._heard.clear()
        self._skew_ms.clear()
        self._described.clear()
        self._first_ns = 0

    def take_report(self, report: NodeReport, reply: Any) -> Any:
        """Takes up a report and returns its answer: `carry` for every member, whatever its row says, because only a node that is no longer
        needed may be told to stop."""
        if not isinstance(reply, NodeOrders):
            return reply
        now = self._monotonic_ns()
        self._first_ns = self._first_ns or now
        self._heard[report.node] = (now, report)
        self._skew_ms[report.node] = report.wall_ms - self._wall_ns() // NS_PER_MS if report.wall_ms else 0
        row = next((row for row in self._replica.machine.node_rows() if row.node == report.node), None)
        said = DescribeNode(
            report.node, report.name, report.control, report.metadata, report.labels, report.version, report.level
        )  # fmt: skip
        known = row and DescribeNode(row.node, row.name, row.control, row.metadata, row.labels, row.version, row.level)
        if said != known and said != self._described.get(report.node):
            self._described[report.node] = said
            self._proposer.enter_own(said)
        listing = self._replica.log.members()
        members = {listing.leader, *(member.node for member in listing.members)}
        applied = self._replica.machine.applied_index
        return structs.replace(reply, carry=reply.carry or report.node in members, leader=listing.leader, applied=applied)

    def complete(self, reply: Nodes) -> Nodes:
        listing = self._replica.log.members()
        members = {member.node: member for member in listing.members}
        led_ms = (self._monotonic_ns() - self._first_ns) // NS_PER_MS if self._first_ns else 0
        return Nodes([self._completed(node, members.get(node.node), listing.leader) for node in reply.nodes], led_ms)

    def _completed(self, node: NodeInfo, member: Any, leader: str) -> NodeInfo:
        at_ns, report = self._heard.get(node.node, (0, None))
        heard_ms_ago = (self._monotonic_ns() - at_ns) // NS_PER_MS
        said: dict[str, Any] = {}
        if report is not None:
            said = {"heard_ms_ago": heard_ms_ago, "bundle": report.bundle, "issuer": report.issuer}
            said["skew_ms"] = self._skew_ms[node.node]
        if member is not None:
            said |= {"member": "voter" if member.voter else "learner", "lag": member.lag, "leader": member.node == leader}
            said["silent_ms"] = member.silent_ms
        return structs.replace(node, **said)
