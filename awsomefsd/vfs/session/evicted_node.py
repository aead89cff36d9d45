"""The end of a mount whose node was removed from the cluster: every request is answered EIO, and it can be unmounted like any other.

A removal is final: whoever says so has the entry of the log, and a node of that name never comes back.  So waiting would never end.  What
waits for the lease or an answer ends with EIO, and so does what comes (but for what the kernel itself remembers, 10 s at most).  What
write(2) took and nobody may commit any more is saved as a conflict, as with a session that others have followed (conflicts.py).  So are
changes of names that the mount has decided by itself and not shipped: their batch may wait for a session that never comes.

Order: nothing is served, then nothing is asked and no session is opened, then nothing is accepted, then no batch is begun, then the bytes
are saved as conflicts, then the names.  So no write is told success after its bytes were looked for.  A batch that is under way finds
its commit refused and its records gone.  What it writes to the device lies in segments that are in quarantine.

A worker that dies afterwards is not succeeded: no successor gets a session.  `awsomefsd umount --force` ends such a mount.
"""

from __future__ import annotations

import errno
import logging
import threading
from typing import Protocol

from awsomefsd.base.errors import Error, FsError
from awsomefsd.vfs.session.conflicts import Conflicts
from awsomefsd.vfs.session.mount_session import SessionKeeper, SessionLease
from awsomefsd.vfs.state.delegated_names import DelegatedNames
from awsomefsd.vfs.state.mount_state import MountState

NO_SPACE = -(1 << 60)  # of a reservation: more than is ever given back

log = logging.getLogger("awsomefsd.session")


class EndingClient(Protocol):
    def fail(self, error: Error) -> None: ...


class Removal:
    """`names`: of a mount that may decide names."""

    def __init__(
        self, client: EndingClient, sessions: SessionKeeper, mount: MountState, lease: SessionLease, conflicts: Conflicts,
        names: DelegatedNames | None,
    ) -> None:  # fmt: skip
        self._names = names
        self._client = client
        self._sessions = sessions
        self._mount = mount
        self._lease = lease
        self._conflicts = conflicts

    def begin(self, why: str) -> None:
        """Told by the thread that receives answers, which waits for nothing."""
        if self._lease.over is None:
            self._lease.end(FsError(errno.EIO, why))
            threading.Thread(target=self.run, args=(why,), name="removal", daemon=True).start()

    def run(self, why: str) -> None:
        mount = self._mount
        log.error("%s: this mount answers EIO to all requests; unmount it", why)
        if self._names is not None:
            self._names.shipper.note_removal()
        self._client.fail(FsError(errno.EIO, why))
        self._sessions.retire()  # a new one may have been on its way; it ends with an error now
        mount.buffered.reservation.set_left(NO_SPACE)
        mount.buffered.flusher.pause(True)
        if mount.caches.leases is not None:
            mount.caches.leases.lost()
        self._conflicts.save(mount.buffered.files.dirty_states(), why)
        if self._names is not None:
            self._names.give_up(why)
