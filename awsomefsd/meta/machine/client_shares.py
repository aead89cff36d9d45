"""A node of role client has a share of what all members use (decision 191).

A client is trusted with less than a node: it mounts, and that is all.  So it must neither take the sessions that others need, nor fill the
claims, which are read as a whole.  Nodes have no share: whoever may administer the cluster can end everything anyhow.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import CLAIMS_PER_CLIENT_MAX, SESSIONS_PER_CLIENT_MAX
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State


def check_sessions(state: State, node: str, sessions: Iterable[rows.SessionRow]) -> None:
    """Raises FsError(ENFILE) if a client has as many sessions as one may have.  `sessions`: of all nodes."""
    if _is_bounded(state, node) and sum(row.node == node and not row.ended for row in sessions) >= SESSIONS_PER_CLIENT_MAX:
        raise FsError(errno.ENFILE, f"client {node} has {SESSIONS_PER_CLIENT_MAX} sessions open")


def check_claims(state: State, node: str, claims: Iterable[rows.ClaimRow]) -> None:
    """Raises FsError(ENOSPC) if as many claims are a client's as may be one's, whoever made them.  `claims`: of all nodes."""
    if _is_bounded(state, node) and sum(row.node == node for row in claims) >= CLAIMS_PER_CLIENT_MAX:
        raise FsError(errno.ENOSPC, f"client {node} has {CLAIMS_PER_CLIENT_MAX} claims already")


def _is_bounded(state: State, node: str) -> bool:
    if not state.acts_at(MENDED_RULES):
        return False
    row: rows.NodeRow | None = state.read(keys.node(node), rows.NODE)
    return row is not None and row.role == "client"
