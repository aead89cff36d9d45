"""The segment server of this node as its daemon sees it: whether one is to run, and what it says of itself and of its devices.

It is asked every few seconds over its status socket, not by those who want to know: one that hangs holds up nobody.  A server that does not
answer is gone only after GONE_AFTER_S: one that was killed is back within a second or two, and the first device of a node starts it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.identity import POOL_DEVICES
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.io.pool.server_state import ATTACHING, OK, DeviceState, ServerState, ask_state

GONE_AFTER_S = 15


class ServerReport(NamedTuple):
    """What is known of the segment server.  `state`: what it said when it was asked last, None if it does not answer, and then `why`."""

    state: ServerState | None
    why: str = ""
    silent_s: float = 0.0  # for how long it has not answered

    @property
    def gone(self) -> str:
        """Why other nodes do without its devices; "" where they need not, or where it may still be starting."""
        if self.state is None:
            return f"{self.why} (for {self.silent_s:.0f} s)" if self.silent_s >= GONE_AFTER_S else ""
        return self.state.unreachable


class ServedDevices:
    """One thread calls `mark`, one calls `poll`; any thread may call the others, which do not block."""

    def __init__(
        self, state_dir: Path, run_dir: Path, ask: Callable[[Path], ServerState] = ask_state, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._path, self._run_dir, self._ask, self._now_ns = state_dir / POOL_DEVICES, run_dir, ask, now_ns
        self._state: ServerState | None = None
        self._why = "it was not asked yet"
        self._silent_ns = 0  # since when it does not answer; 0: it does, or none is to run

    def mark(self, has: bool) -> None:
        """Makes or removes the file by which whoever starts this node's processes knows that its segment server is to run.

        It is in the state directory, so that a machine which starts again serves its devices before a leader is there.  Raises OSError.
        """
        if has == self.wanted():
            return
        if has:
            self._path.write_text("devices of pools are this node's; its daemon removes this file when there are none\n")
        else:
            self._path.unlink(missing_ok=True)

    def wanted(self) -> bool:
        """Returns whether a segment server is to run on this node."""
        return os.path.exists(self._path)  # False where nobody can say

    def due(self) -> bool:
        """Returns whether `poll` has something to do."""
        return self.wanted() or self.report() is not None

    def poll(self) -> None:
        """Asks the server, if one is to run.  Blocks for 2 s at most."""
        if not self.wanted():
            self._state, self._silent_ns = None, 0
            return
        try:
            self._state, self._silent_ns = self._ask(self._run_dir), 0
        except Unavailable as err:
            self._why, self._state, self._silent_ns = str(err), None, self._silent_ns or self._now_ns()

    def report(self) -> ServerReport | None:
        """Returns what is known of the server; None where none is to run, or it was not asked yet."""
        state, silent_ns = self._state, self._silent_ns
        if state is not None:
            return ServerReport(state)
        return ServerReport(None, self._why, (self._now_ns() - silent_ns) / NS_PER_MS / 1_000) if silent_ns else None

    def of(self, uuid: str) -> DeviceState | None:
        """Returns what the server says of a device; None if it does not know it, or does not answer."""
        state = self._state
        return next((one for one in state.devices if one.uuid == uuid), None) if state is not None else None

    def unserved(self, uuid: str) -> str:
        """Returns why the server does not serve a device; "" if it does, is about to, or does not answer."""
        found = self.of(uuid)
        return "" if found is None or found.state in (OK, ATTACHING) else found.state
