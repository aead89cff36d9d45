"""The end of quarantine by proof: what this node's daemon can prove, checked again and again.

A session of this node that expired has its segments in quarantine, because its worker may still have writes under way.  The daemon asks for
its release as soon as one of these holds, and says which in the entry:

- the session is of an earlier boot of this node: nothing of then runs any more;
- the lock of its worker can be had (base/worker_locks.py): the process has exited, and its I/O with it;
- it was a collector's, and none that this daemon has opened: the daemon of then is gone, or two would hold the lock on the state directory;
- it was a collector's of this daemon, which has left it: it writes on one thread, and that one is past its last write
  (io/collect/collector.py).

No quarantine ends by time, and none of another node: only that node can prove it, or the operator state it (`awsomefsd quarantine
release`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awsomefsd.base import worker_locks
from awsomefsd.base.errors import FsError
from awsomefsd.base.types import SessionInfo
from awsomefsd.meta.api.commands import ClearQuarantine
from awsomefsd.meta.api.messages import GetSessions
from awsomefsd.meta.api.messages.devices import QuarantineInfo

log = logging.getLogger(__name__)


class QuarantineProofs:
    """The proofs for sessions of this node.

    `collected` returns the proof for one that collected, "" if there is none (Collection.proof); `applied` how far the log is, as far as
    this node knows, 0 if it does not.
    """

    def __init__(
        self, state_dir: Path, node: str, boot_id: str, ask: Callable[[Any], Any], propose: Callable[[Any], Any],
        collected: Callable[[int], str], applied: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self._state_dir = state_dir
        self._node = node
        self._boot_id = boot_id
        self._ask = ask
        self._propose = propose
        self._collected = collected
        self._applied = applied
        self._seen_index = 0  # `applied` before a look that found nothing to prove here

    def due(self) -> bool:
        """Returns whether there may be something to prove that was not there at the last `poll`, or was left by it.  Does not block."""
        return not self._seen_index or self._applied() != self._seen_index

    def poll(self) -> None:
        """Releases every quarantine of this node that can be proved now.  Blocks for the leader; raises Unavailable while no node leads."""
        index = self._applied()
        sessions = self._ask(GetSessions()).sessions
        mine = [one for one in sessions if one.ended and one.quarantined and one.node == self._node]
        for session in mine:
            proof = self.proof(session)
            if not proof:
                continue
            try:
                self._propose(ClearQuarantine(session.session, proof))
            except FsError as err:
                log.warning("a quarantine is not ended", extra={"ended_session": session.session, "reason": str(err)})
            else:
                log.info("a quarantine ended by proof", extra={"ended_session": session.session, "proof": proof})
        worker_locks.tidy(self._state_dir, {session.mount for session in sessions})
        self._seen_index = 0 if mine else index

    def proof(self, session: SessionInfo | QuarantineInfo) -> str:
        """Returns why no write of a session of this node can land any more; "" if that cannot be proved."""
        if session.boot_id != self._boot_id:
            return "the node has booted since"
        if not session.mount:
            return self._collected(session.session)
        if worker_locks.exited(self._state_dir, session.mount, session.worker):
            return f"worker {session.worker} of mount {session.mount:x} has exited, and no worker before it runs"
        return ""
