"""Proof by a living worker that nothing of a session it lost can land any more: its own I/O has drained.

A session that expired has its segments in quarantine, because writes may be on their way to them.  All of them are this process' (and its
predecessors'), and a transfer that has returned to it has landed or failed: when the writer has abandoned the segments of the session and
none of its calls is under way, nothing can land there.  A write that hangs in the device keeps the quarantine for as long as it hangs.
Without this a mount that was paused again and again would take 64 segments of the living each time, until it is unmounted.

Nothing is said where a predecessor may still have writes on their way: then worker_locks.exited (the daemon's proof) is all there is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from awsomefsd.base import worker_locks
from awsomefsd.base.errors import Error
from awsomefsd.meta.api.commands import ClearQuarantine

RETRY_S = 5.0

log = logging.getLogger("awsomefsd.session")


class QuarantineProof:
    """Ends the quarantine of sessions that this worker has lost."""

    def __init__(
        self,
        state_dir: str,
        mount: int,
        worker: int,
        await_drained: Callable[[], None],
        propose: Callable[[Any], Any],
        ending: threading.Event,
    ) -> None:
        self._state_dir, self._mount, self._worker = state_dir, mount, worker
        self._await_drained = await_drained
        self._propose = propose
        self._ending = ending

    def begin(self, session: int) -> None:
        """Starts the proof of one ended session, after the writer has abandoned its segments.  Any thread; returns at once."""
        threading.Thread(target=self._prove, args=(session,), name="quarantine", daemon=True).start()

    def _prove(self, session: int) -> None:
        self._await_drained()
        while self._worker > 1 and not worker_locks.exited(self._state_dir, self._mount, self._worker - 1):
            if self._ending.wait(RETRY_S):
                return
        proof = f"worker {self._worker} of mount {self._mount:x} has no write of that session on its way, and no worker before it runs"
        while not self._ending.is_set():
            try:
                self._propose(ClearQuarantine(session, proof))
                log.info("a quarantine ended by proof ended_session=%d", session)
                return
            except Error as err:
                log.info("a quarantine is not ended yet ended_session=%d: %s", session, err)
                self._ending.wait(RETRY_S)
