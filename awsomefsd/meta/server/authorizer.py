"""Judges the requests of other nodes on the metadata thread: permissions.py's table over the state's rows.

The rows of the nodes are read again every STANDING_MS if anything was applied since, and a node that is not among them is looked up at
once: so whoever just joined is let in, and whoever is removed is cut off within a second.  A node that does not lead may be behind: it
greets whom it does not know (it only says who leads), and answers him nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.limits import NS_PER_MS, STANDING_MS
from awsomefsd.base.tls import PeerIdentity
from awsomefsd.meta.api.messages import Body, Hello
from awsomefsd.meta.server.permissions import AskingNode, Standing, standings, why_no_member, why_no_mount, why_not
from awsomefsd.meta.state.rows import NodeRow

log = logging.getLogger(__name__)
_LOG_NS = 1_000 * NS_PER_MS


class Rows(Protocol):
    """The part of the applied state that decides who a node is.  On the metadata thread."""

    @property
    def applied_index(self) -> int: ...

    def node_rows(self) -> list[NodeRow]: ...

    def session_node(self, session: int) -> str | None:
        """Returns the UUID of the node whose session it is; None for a session that is not known (any more)."""

    def was_opened(self, session: int) -> bool:
        """Returns False for a number that no session has had yet."""

    def mount_node(self, mount: int) -> str | None: ...


class OwnVoter(Protocol):
    """This node's voter.  On the metadata thread."""

    def rows(self) -> Rows:
        """Returns the applied state as it is now; after a state snapshot it may be another object."""

    def leads(self) -> bool:
        """Returns whether this node leads."""


class Authorizer:
    """Used by the metadata thread only; nothing blocks.  `members`: UUIDs of the nodes of a static configuration."""

    def __init__(self, voter: OwnVoter, members: frozenset[str], monotonic_ns: Callable[[], int]) -> None:
        self._voter = voter
        self._members = members
        self._monotonic_ns = monotonic_ns
        self._standings: dict[str, Standing] = {}
        self._applied = -1
        self._refresh_ns = 0
        self._owners: dict[int, str] = {}  # session → node; numbers are never used again
        self._log_ns = 0
        self.refused = 0

    def refresh(self) -> bool:
        """Reads the rows again when that is due.  True: some standing has changed."""
        now = self._monotonic_ns()
        if now < self._refresh_ns:
            return False
        self._refresh_ns = now + STANDING_MS * NS_PER_MS
        rows = self._voter.rows()
        if rows.applied_index == self._applied:
            return False
        self._applied = rows.applied_index
        before, self._standings = self._standings, standings(rows.node_rows())
        return before != self._standings

    def _standing(self, node: str) -> Standing | None:
        found = self._standings.get(node)
        if found is None:
            found = Standing("node", False) if node in self._members else standings(self._voter.rows().node_rows()).get(node)
            if found is not None:
                self._standings[node] = found
        return found

    def _role(self, who: PeerIdentity) -> str:
        """Returns the role of a certificate; one of a static configuration need not name any."""
        return "node" if who.node in self._members and not who.role else who.role

    def why_no_client(self, who: PeerIdentity) -> str:
        """Returns why nothing at all is answered to that node; "" if something is."""
        return why_no_member(who.node, self._role(who), self._standing(who.node))

    def why_no_voter(self, who: PeerIdentity | None) -> str:
        """Returns why that node may not be a voter here; "" if it may.  This node's state may be empty, so not being in it says nothing."""
        if who is None:
            return ""
        standing = self._standing(who.node)
        if standing is None:
            return "" if self._role(who) == "node" else f"node {who.node} cannot be a voter"
        reason = why_no_member(who.node, self._role(who), standing)
        return reason or ("" if standing.role == "node" else f"node {who.node} has the role {standing.role}")

    def refusal(self, who: PeerIdentity, mount: int, body: Body) -> str:
        """Returns why this request is not answered; "" if it is.  `mount`: of the connection."""
        reason = self.why_no_client(who)
        if reason and type(body) is Hello and self._standing(who.node) is None and not self._voter.leads():
            return ""
        if not reason:
            if type(body) is Hello and body.mount:
                reason = why_no_mount(who.node, body.mount, self._voter.rows().mount_node(body.mount))
            asker = AskingNode(who.node, self._role(who), lambda session: self._owns(who.node, session), mount)
            reason = reason or why_not(asker, body)
        if reason:
            self.refused += 1
            now = self._monotonic_ns()
            if now >= self._log_ns:  # one that asks again and again does not fill the log
                self._log_ns = now + _LOG_NS
                log.warning("refused a request", extra={"peer": who.node, "reason": reason, "refused": self.refused})
        return reason

    def _owns(self, node: str, session: int) -> bool:
        owner = self._owners.get(session)
        if owner is None:
            rows = self._voter.rows()
            owner = rows.session_node(session)
            if owner is None:  # a number that is still to be given may be another node's when the request is executed
                return rows.was_opened(session) or not self._voter.leads()  # which may be behind, and executes nothing
            if len(self._owners) > 100_000:
                self._owners.clear()
            self._owners[session] = owner
        return owner == node
