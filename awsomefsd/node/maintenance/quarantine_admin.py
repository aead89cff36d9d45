"""Quarantine as an operator sees it, and the operator's statement that ends one.

The statement is a proof like any other (meta/commands.ClearQuarantine), kept in the log with its reason, but it cannot be checked.  If it
is wrong, a late write lands in a place that may be another file's by then: its readers find a wrong identity or checksum, and get EIO, not
wrong bytes.  So the name of the node must be typed again, and the statement is refused for a node that lives: that node proves it itself
(quarantine_proofs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import ConfigError, NotFound, Refused, WouldLoseData
from awsomefsd.base.limits import NODE_HEALTHY_MS
from awsomefsd.meta.api.commands import ClearQuarantine
from awsomefsd.meta.api.messages import GetVolumes
from awsomefsd.meta.api.messages.devices import GetQuarantine, Quarantine
from awsomefsd.meta.api.messages.nodes import ListNodes

REASON_BYTES_MAX = 1_000


class QuarantineAdmin:
    """The operator's view of quarantine.  Thread-safe as far as `ask` and `propose` are."""

    def __init__(self, node: str, ask: Callable[[Any], Any], propose: Callable[[Any], Any]) -> None:
        self._node = node
        self._ask = ask
        self._propose = propose

    def report(self) -> tuple[Quarantine, dict[str, str]]:
        """Returns the sessions in quarantine, and names: of nodes by UUID, of volumes by number (as text).

        Blocks; raises Unavailable, FsError.
        """
        listing = self._ask(GetQuarantine())
        assert isinstance(listing, Quarantine)
        names = {row.node: row.name for row in self._ask(ListNodes(True)).nodes}
        names |= {str(volume.volume): volume.name for volume in self._ask(GetVolumes()).volumes}
        return listing, names

    def release(self, session: int, reason: str, confirm: str) -> int:
        """Releases the segments of a session; returns how many.  `confirm` must be the name or UUID of the session's node.  Blocks.

        Raises NotFound, ConfigError for the reason, WouldLoseData for a wrong `confirm`, and Refused for a node that lives.
        """
        listing, names = self.report()
        found = next((one for one in listing.sessions if one.session == session), None)
        if found is None:
            known = ", ".join(str(one.session) for one in listing.sessions) or "none"
            raise NotFound(f"session {session} has nothing in quarantine (sessions that have: {known})")
        reason = " ".join(reason.split())
        if not reason or len(reason.encode()) > REASON_BYTES_MAX:
            raise ConfigError(f"the reason has 1 to {REASON_BYTES_MAX} bytes; it is kept in the log")
        if confirm not in (found.node, names.get(found.node) or found.node):
            raise WouldLoseData(f"the confirmation {confirm!r} is not the node {names.get(found.node) or found.node}; nothing was done")
        heard = {row.node: row.heard_ms_ago for row in self._ask(ListNodes(True)).nodes if row.state != "removed"}
        if 0 <= heard.get(found.node, -1) <= NODE_HEALTHY_MS:
            raise Refused(
                f"node {confirm} runs and ends the quarantine itself as soon as no write of that session can be on its way "
                f"(if a write of mount {found.mount:x} hangs: unmount it, or end its worker)"
            )
        self._propose(ClearQuarantine(session, f"operator at node {self._node}: {reason}"))
        return found.segments
