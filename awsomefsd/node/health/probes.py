"""Probes of kubelet ask two things of this daemon: does it live (/healthz), can it do its work (/readyz).

Liveness is about this process only, never about the cluster: a daemon that is killed because there is no quorum makes things worse.  It is
the event loop that has to live: it serves the admin API and looks after mounts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

BEAT_S = 5.0
LATE_S = 60.0


class LoopBeat:
    """Says whether an event loop still turns.  One task beats; any thread may ask."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()

    def mark(self) -> None:
        self._last = self._monotonic()

    async def beat(self) -> None:
        """Beats until it is cancelled."""
        import trio  # not before the metadata serves (daemon/metadata_core.py)

        while True:
            self.mark()
            await trio.sleep(BEAT_S)

    def trouble(self) -> str:
        """Returns words if the loop has stood still for LATE_S; "" while it turns."""
        late = self._monotonic() - self._last
        return f"the event loop has stood still for {late:.0f} s" if late > LATE_S else ""


class Probes:
    """The answers to the probes.  `not_ready` returns why this node cannot do its work now, "" if it can; it may block and raise Error."""

    def __init__(self, heartbeat: LoopBeat, not_ready: Callable[[], str]) -> None:
        self.alive = heartbeat.trouble
        self.ready = not_ready


def not_ready(status: Any) -> str:
    """Returns the reason why the node of a status (admin API) cannot do its work; "" if it can."""
    if not status.node:
        return "; ".join(status.reasons) or "this node is in no cluster yet"
    if not status.metadata.leader:
        return "this node knows no leader of the metadata"
    own = next((one for one in status.metadata.members if one.node == status.node), None)
    if own is not None and not own.leader and not own.heard:
        return "the leader has not heard this voter yet"
    return "" if status.keeper else "the keeper does not answer"
