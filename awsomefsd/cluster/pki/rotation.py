"""The rotation of the authority, which any leader moves on, one step at a time:

1. a new authority is trusted (RotateCa); every node gets it with the bundle that the leader's orders carry
2. when every node that is heard says it has the bundle, the new one becomes active: it signs from now on
3. nodes whose certificate is by another authority renew
4. when all of them have renewed, the old authority is dropped

A node that is away is waited for until its certificate, of which the old authority is the issuer, has expired: after that it has to join
again anyway.  So a rotation ends after NODE_LIFE at the latest.  Pure; the next step is found from the state and the reports alone, so a
new leader continues where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from awsomefsd.meta.api.commands import DropCa, PutCa
from awsomefsd.meta.api.messages.nodes import CaInfo, NodeInfo

HEARD_MS_MAX = 10_000


def next_step(cas: Sequence[CaInfo], nodes: Sequence[NodeInfo], bundle: str, now_ms: int, life_ms: int) -> PutCa | DropCa | None:
    """Returns the next step, or None.  `bundle`: hash of what all are to trust.  `life_ms`: of a node's certificate."""
    active = next((row for row in cas if row.state == "active"), None)
    if active is None or len(cas) == 1:
        return None
    members = [row for row in nodes if row.state != "removed"]
    newest = max(cas, key=lambda row: (row.created_ms, row.id))
    if newest is not active:
        ready = all(row.bundle == bundle for row in members)
        # A node that has been away for so long has no valid certificate any more: waiting for it gains nothing.
        return PutCa(newest.id, "", "", "active") if ready or now_ms - newest.created_ms > life_ms else None
    if all(row.issuer == active.id and _heard(row) for row in members) or now_ms - active.created_ms > 2 * life_ms:
        oldest = min(cas, key=lambda row: (row.created_ms, row.id))
        return DropCa(oldest.id)
    return None


def _heard(row: NodeInfo) -> bool:
    return 0 <= row.heard_ms_ago <= HEARD_MS_MAX
