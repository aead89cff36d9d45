"""Judges the requests of other nodes on the metadata thread: authority.py's table over the state's rows.

The rows of the nodes are read again every STANDING_MS if anything was applied since, and a node that is not among them is looked up at
once: so whoever just joined is let in, and whoever is removed is cut off within a second.  A node that does not lead may be behind: it
greets whom it does not know (it only says who leads), and answers him nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from awsomefsd.limits import STANDING_MS
from awsomefsd.meta.authority import Asker, Standing, standings, why_no_member, why_no_mount, why_not
from awsomefsd.meta.messages import Body, Hello
from awsomefsd.meta.rows import NodeRow
from awsomefsd.tls import Identity

log = logging.getLogger(__name__)
_MS = 1_000_000
_LOG_NS = 1_000 * _MS


class Rows(Protocol):
    """What is asked of the state."""

    @property
    def applied_index(self) -> int: ...

    def node_rows(self) -> list[NodeRow]: ...

    def session_node(self, session: int) -> str | None:
        """None for a session that is not known (any more)."""

    def mount_node(self, mount: int) -> str | None: ...


class Guard:
    """`rows` is the state as it is now (it may be another object after a snapshot); `leads`: this node."""

    def __init__(
        self, rows: Callable[[], Rows], leads: Callable[[], bool], members: frozenset[str], monotonic_ns: Callable[[], int]
    ) -> None:
        self._rows = rows
        self._leads = leads
        self._members = members
        self._monotonic_ns = monotonic_ns
        self._standings: dict[str, Standing] = {}
        self._applied = -1
        self._look_ns = 0
        self._owners: dict[int, str] = {}  # session → node; numbers are never used again
        self._log_ns = 0
        self.refused = 0

    def look(self) -> bool:
        """The rows were looked at again, and some standing may have changed."""
        now = self._monotonic_ns()
        if now < self._look_ns:
            return False
        self._look_ns = now + STANDING_MS * _MS
        rows = self._rows()
        if rows.applied_index == self._applied:
            return False
        self._applied = rows.applied_index
        before, self._standings = self._standings, standings(rows.node_rows())
        return before != self._standings

    def _standing(self, node: str) -> Standing | None:
        found = self._standings.get(node)
        if found is None:
            found = Standing("node", False) if node in self._members else standings(self._rows().node_rows()).get(node)
            if found is not None:
                self._standings[node] = found
        return found

    def _role(self, who: Identity) -> str:
        """Certificates of a static configuration need not name a role."""
        return "node" if who.node in self._members and not who.role else who.role

    def no_client(self, who: Identity) -> str:
        """Why nothing at all is answered to that node, "" if something is."""
        return why_no_member(who.node, self._role(who), self._standing(who.node))

    def no_voter(self, who: Identity | None) -> str:
        """The same for another voter; this node's state may be empty, so not being in it says nothing."""
        if who is None:
            return ""
        standing = self._standing(who.node)
        if standing is None:
            return "" if self._role(who) == "node" else f"node {who.node} is not one that can be a voter"
        reason = why_no_member(who.node, self._role(who), standing)
        return reason or ("" if standing.role == "node" else f"node {who.node} has the role {standing.role}")

    def refusal(self, who: Identity, mount: int, body: Body) -> str:
        """Why this request is not answered, "" if it is.  `mount`: of the connection."""
        reason = self.no_client(who)
        if reason and type(body) is Hello and self._standing(who.node) is None and not self._leads():
            return ""
        if not reason:
            if type(body) is Hello and body.mount:
                reason = why_no_mount(who.node, body.mount, self._rows().mount_node(body.mount))
            reason = reason or why_not(Asker(who.node, self._role(who), lambda session: self._owns(who.node, session)), body)
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
            owner = self._rows().session_node(session)
            if owner is None:
                return True
            if len(self._owners) > 100_000:
                self._owners.clear()
            self._owners[session] = owner
        return owner == node
