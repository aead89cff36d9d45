"""The state of the cluster as this node knows it, read again for every GetStatus: from the leader if it answers, else from this node alone.

Only what a leaderless time needs is kept: when somebody who leads last answered, and who that was.  The agent hears that every other
second on a node of a cluster, so `without_leader_s` is exact to NODE_REPORT_MS; where voters are configured by hand there is no agent, and
it counts from the last look.  A client may not list nodes; it knows what its orders say.
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

ANSWER_S = 5.0  # longer than an election; then whoever asks for the status shall hear that nobody answers


class ClusterStatus:
    """`call` asks the leader.  `carries`: this node has a metadata service.  `files`: PEM of the authorities and of this node."""

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
        self._asked_s = time.monotonic()  # the start counts: nobody led before, as far as this node knows
        self._led = ""

    def __call__(self) -> ClusterView:
        """Raises nothing."""
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
            view = replace(view, figures=figures if carries else {}, term=int(figures["term"]), level=int(figures["level"]))
            view = replace(view, leader=str(figures.get("leader", "")) if carries else "")
            return self._told(self._asked(view))
        except (Unavailable, FsError) as err:
            removed = view.removed or (str(err) if WAS_REMOVED in str(err) else "")
            return self._alone(replace(view, trouble=str(err), removed=removed))

    def _asked(self, view: ClusterView) -> ClusterView:
        """The leader's answer."""
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
        """Nobody who leads has answered."""
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
    """The validity of the first certificate in a file; in the file of authorities that is the one that signs."""
    try:
        held: x509.Certificate = ca.load_bundle(Path(path).read_text())[0]
    except (OSError, Corrupt, IndexError):
        return None
    return Certificate(held.not_valid_before_utc.timestamp(), held.not_valid_after_utc.timestamp())
