"""When a worker or a session ends, it is decided what of the buffered data goes on, and under which lease.

A record names the session and the lease under which it was buffered; the newest record of a file speaks for all of it.

* Of this very session (a successor found it): nobody else can have got the lease, because a recall of it is answered only when records are
  clean.  The lease is adopted before the first recall is listened to, and the records are committed under it.
* Of an ended session: another node may have written since.  The lease is asked for again, with the number of changes that was known when
  the data was accepted, and the leader says whether others have changed the file.  If not, an empty record names the new lease, and all
  goes on; a worker that dies behind it leaves records that the next one takes for this session's.  If so, or if the file can have no lease,
  the data is saved as a conflict and the file's handles are lost (conflicts.py); other files go on.  A record without a number of changes
  is of a mount that had its volume whole, or of a build that did not hand it on to successors: nobody can say what others did since, so it
  is a conflict, too.
* A file that is gone, or a session that ends again while it is asked: its bytes are nobody's, or the next session asks again.

Nothing is served, and no batch is begun, while this is decided.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.types import LEASE_WRITE
from awsomefsd.base.wait import block_on
from awsomefsd.io.file.dirty_log import DirtyRecord, LeaseToken
from awsomefsd.io.file.file_data import FileState
from awsomefsd.io.file.flusher import record_space
from awsomefsd.meta.api.messages import Contested, Leased
from awsomefsd.meta.client.leases import AdoptedLease, Leases
from awsomefsd.vfs.session.conflicts import Conflicts
from awsomefsd.vfs.state.mount_state import MountState

AGAIN_S = 0.05
ASKS_MAX = 600  # a contested file: by then others have written

log = logging.getLogger("awsomefsd.session")


def adopted(records: Iterable[DirtyRecord], session_epoch: int) -> dict[int, AdoptedLease]:
    """ino → the write lease of this session under which a predecessor buffered data; `records` by sequence."""
    newest = {record.ino: record.token for record in records}
    of_session = {ino: token for ino, token in newest.items() if token.lease and token.session == session_epoch}
    return {ino: AdoptedLease(token.lease, token.known) for ino, token in of_session.items()}


class LeaseRecovery:
    def __init__(self, mount: MountState, leases: Leases, conflicts: Conflicts) -> None:
        self._mount = mount
        self._leases = leases
        self._conflicts = conflicts

    def run(self) -> None:
        """Under the session that was just begun."""
        epoch = self._leases.epoch
        for state in self._mount.buffered.files.every():
            state.let_go()
        for state in self._mount.buffered.files.dirty_states():
            newest = state.newest()
            if newest is not None and newest.token.session != epoch and not self._goes_on(state, newest):
                return

    def _goes_on(self, state: FileState, newest: DirtyRecord) -> bool:
        """Decides about one file; False: the session has ended again."""
        mount, leases = self._mount, self._leases
        for _ in range(ASKS_MAX):
            try:
                reply = block_on(leases.want_knowing(state.ino, LEASE_WRITE, newest.token.known))
            except FsError as err:
                if err.errno == errno.ESTALE or mount.session.lease.over is not None:
                    return False
                if err.errno == errno.ENOENT:
                    mount.buffered.release_space(mount.buffered.files.drop(state.ino))
                    return True
                break
            except Error as err:
                log.error("no write lease for the buffered data of inode %d: %s", state.ino, err)
                break
            if isinstance(reply, Leased) and reply.epoch:
                if reply.changed_by_others or not newest.token.known:
                    break
                self._bind(state, newest, LeaseToken(leases.epoch, reply.epoch, reply.changes))
                return True
            time.sleep(reply.pause_ms / 1_000 if isinstance(reply, Contested) else AGAIN_S)
        self._conflicts.save([state], f"inode {state.ino} was changed by others after the session had ended")
        return True

    def _bind(self, state: FileState, newest: DirtyRecord, token: LeaseToken) -> None:
        """From now on the lease speaks for all that is dirty of the file, and nothing new is buffered before it is committed."""
        with state.lock:
            state.token = token
        if state.store(self._mount.buffered.dirty, newest.offset, memoryview(b""), 0, newest.time_ns, recall=True):
            self._mount.buffered.reservation.give_back(-record_space(0))  # it is given back with the others when they are clean
        else:
            newest.token = token  # no room: a successor will have to ask
        state.let_go()
        log.warning("data buffered under an ended session is kept: ino=%d lease=%d bytes=%d", state.ino, token.lease, state.dirty_bytes)
