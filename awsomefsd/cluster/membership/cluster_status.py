"""The state of the cluster as this node knows it, read again for every GetStatus: from the leader if it answers, else from this node alone.

Only what a time without a leader needs is kept: when a leader last answered, and which node that was.  The reporter hears that every other
second on a node of a cluster, so `without_leader_s` is exact to NODE_REPORT_MS.  Where voters are configured by hand there is no reporter,
and it counts from the last call.  A client may not list nodes; it knows what its orders say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509

from awsomefsd.base.errors import WAS_REMOVED, Corrupt, Error, FsError, Unavailable
from awsomefsd.base.identity import Node
from awsomefsd.cluster import endpoints
from awsomefsd.cluster.membership.node_reporter import NodeReporter
from awsomefsd.cluster.membership.view import Certificate, ClusterView, of_members, of_nodes
from awsomefsd.cluster.pki import ca
from awsomefsd.meta.api.messages import GetStatus
from awsomefsd.meta.api.messages.members import GetMembers
from awsomefsd.meta.api.messages.nodes import ListNodes

ANSWER_S = 5.0  # longer than an election; then the status shall say that no leader answers


class ClusterStatus:
    """The view of one node, made at each call.  Any thread; blocks for the leader, ANSWER_S a question at most.

    `call` asks the leader.  `carries` returns whether this node has a metadata service.  `files`: paths of the PEMs of the authorities and
    of this node.
    """

    def __init__(
        self,
        identity: Node,
        state_dir: Path,
        call: Callable[[Any, float], Any],
        carries: Callable[[], bool],
        agent: NodeReporter,
        files: tuple[str, str, str],
        control_trouble: Callable[[], str] = lambda: "",
    ) -> None:
        self._identity = identity
        self._state_dir = state_dir
        self._call = call
        self._carries = carries
        self._agent = agent
        self._authorities, self._certificate, _ = files
        self._control_trouble = control_trouble
        self._asked_s = time.monotonic()  # the start counts: no leader was known before
        self._led = ""

    def __call__(self) -> ClusterView:
        """Returns the present view; without a leader `trouble` has the reason.  Raises no Unavailable and no FsError."""
        carries = self._carries()
        view = ClusterView(
            me=self._identity.node,
            carries=carries,
            names=self._names(),
            removed=self._agent.removed,
            control_trouble=self._control_trouble(),
            now_s=time.time(),
            certificate=_life(self._certificate),
            authority=_life(self._authorities),
        )
        try:
            figures: Mapping[str, Any] = self._call(GetStatus(), ANSWER_S).figures
            level = int(figures["level"]) if figures["applied"] else 0  # a voter that has just joined knows none yet
            view = replace(view, figures=figures if carries else {}, term=int(figures["term"]), level=level)
            view = replace(view, leader=str(figures.get("leader", "")) if carries else "")
            return self._told(self._asked(view))
        except (Unavailable, FsError) as err:
            removed = view.removed or (str(err) if WAS_REMOVED in str(err) else "")
            return self._alone(replace(view, trouble=str(err), removed=removed))

    def _asked(self, view: ClusterView) -> ClusterView:
        """Returns the view with the leader's answer."""
        if self._identity.role != "node":
            orders = self._agent.orders
            return replace(view, asked=True, leader=orders.leader if orders is not None else "")
        listed = self._call(ListNodes(), ANSWER_S)
        names = {**view.names, **{row.node: row.name for row in listed.nodes}}
        if any(row.leader for row in listed.nodes):
            members = of_nodes(listed.nodes)
            leader = next(row.node for row in listed.nodes if row.leader)
        else:
            listing = self._call(GetMembers(), ANSWER_S)
            leader, members = listing.leader, of_members(listing.members, listing.leader)
            members = [replace(one, name=names.get(one.node, one.name)) for one in members]
        return replace(view, asked=True, leader=leader, nodes=listed.nodes, members=members, names=names, led_ms=listed.led_ms)

    def _told(self, view: ClusterView) -> ClusterView:
        self._asked_s, self._led = time.monotonic(), view.leader
        return view

    def _alone(self, view: ClusterView) -> ClusterView:
        """Returns the view of this node alone: no leader has answered."""
        asked_s, led = self._asked_s, self._led
        if self._agent.orders is not None and self._agent.told_s > asked_s:
            asked_s, led = self._agent.told_s, self._agent.orders.leader
        return replace(view, without_leader_s=time.monotonic() - asked_s, last_leader=led)

    def _names(self) -> dict[str, str]:
        try:
            return {node: one.name for node, one in endpoints.read(self._state_dir).items()}
        except Error:
            return {}


def _life(path: str) -> Certificate | None:
    """Returns the validity of the first certificate in a file; in the file of authorities that is the one that signs."""
    try:
        held: x509.Certificate = ca.load_bundle(Path(path).read_text())[0]
    except (OSError, Corrupt, IndexError):
        return None
    return Certificate(held.not_valid_before_utc.timestamp(), held.not_valid_after_utc.timestamp())
