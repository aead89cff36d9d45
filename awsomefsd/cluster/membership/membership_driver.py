"""The driver brings the membership of the metadata to what is wanted, step by step; only while the service of this node leads.

All decisions are in voters_policy.py; this asks the leader how things are, and asks it for the step.  A step that is refused, because
something has changed in between, is considered again the next time.  Nothing is kept here, so a driver that dies with its node leaves
nothing half done that the next one would not see.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from awsomefsd.cluster.membership.metadata_host import MetadataHost
from awsomefsd.cluster.membership.voters_policy import Carry, Grow, Step, Transfer, View, VoterCandidate, VoterChange, next_step
from awsomefsd.meta.api.commands import SetCarries
from awsomefsd.meta.api.messages import Failed, NotLeader, Propose
from awsomefsd.meta.api.messages.members import ChangeMembers, GetMembers, Members, TransferLead
from awsomefsd.meta.api.messages.nodes import ListNodes, NodeInfo, Nodes

log = logging.getLogger(__name__)
ASK_S = 5.0
_NEVER_MS = 1 << 40


def node_view(node: NodeInfo) -> VoterCandidate:
    """Returns a node's row as the policy sees it."""
    silent_ms = node.heard_ms_ago if node.heard_ms_ago >= 0 else _NEVER_MS
    zone = node.labels.get("zone", "")
    return VoterCandidate(node.node, node.role, node.state, zone, node.carries, bool(node.metadata), silent_ms, node.joined_ms)


class MembershipDriver:
    """The driver of one node.  `grown` is called before one voter alone becomes the first of several.  One thread calls `poll`."""

    def __init__(self, host: MetadataHost, replace_after_ms: int, grown: Callable[[], None] = lambda: None) -> None:
        self._host = host
        self._replace_after_ms = replace_after_ms
        self._grown = grown
        self._settled_index = 0  # what was applied before a look at a cluster of one node, which is as it should be

    def due(self) -> bool:
        """Returns whether `poll` may have something to do: this node leads, and there are others, or something was applied since.

        Does not wait.
        """
        return self._host.leads and (not self._settled_index or self._host.applied != self._settled_index)

    def poll(self) -> Step | None:
        """Takes at most one step; returns it, or None.  Blocks.  Raises Unavailable if the service does not answer."""
        if not self._host.carries:
            return None
        index, self._settled_index = self._host.applied, 0
        members = self._ask(GetMembers())
        listed = self._ask(ListNodes()) if isinstance(members, Members) else None
        if not isinstance(members, Members) or not isinstance(listed, Nodes) or not listed.nodes:
            return None  # another node leads, or this one stands alone, without a cluster
        view = View([node_view(node) for node in listed.nodes], members, self._replace_after_ms)
        step = next_step(view)
        if step is not None:
            self._do(step, members)
        elif len(listed.nodes) == 1:
            self._settled_index = index  # others fall silent without an entry
        return step

    def _ask(self, body: Any) -> Any:
        return self._host.query(body, ASK_S)

    def _do(self, step: Step, members: Members) -> None:
        match step:
            case Grow():
                self._grown()
                service = self._host.service
                if service is not None:
                    service.grow()
                reply = None
            case Carry():
                reply = self._ask(Propose(0, 0, 0, [], SetCarries(step.node, step.carries)))
            case VoterChange():
                reply = self._ask(ChangeMembers(members.index, step.add, [*step.promote], [*step.remove]))
            case Transfer():
                reply = self._ask(TransferLead(step.node))
        if isinstance(reply, (Failed, NotLeader)):
            log.debug("a step of a change of the membership failed: %s", reply, extra={"step": str(step)})
        else:
            log.info("membership of the metadata", extra={"step": str(step)})
