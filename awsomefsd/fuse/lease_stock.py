"""What was held back under write leases when a worker or a session ends: which of it goes on, and under what.

A record names the session and the lease under which it was held back; the newest record of a file speaks for all of it.

* Of this very session (a successor found it): nobody else can have got the lease, because a recall of it is answered only when records are
  clean.  The lease is adopted before the first recall is listened to, and the records are committed under it.
* Of an ended session: another node may have written since.  The lease is asked for again, with the number of changes that was known when
  the data was accepted, and the leader says whether others have changed the file.  If not, an empty record names the new lease, and all
  goes on; a worker that dies behind it leaves records that the next one takes for this session's.  If so, or if the file can have no lease,
  the data is put aside and the file's handles are lost (put_aside.py); other files go on.
* A file that is gone, or a session that ends again while it is asked: its bytes are nobody's, or the next session asks anew.

Nothing is served, and no batch is begun, while this is decided.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable

from awsomefsd.errors import Error, FsError
from awsomefsd.fuse.mount_state import MountState
from awsomefsd.fuse.put_aside import PutAside
from awsomefsd.io.dirty import Record, Under
from awsomefsd.io.files import FileState
from awsomefsd.io.flusher import record_space
from awsomefsd.meta.messages import Contested, Leased
from awsomefsd.meta.mount_leases import MountLeases
from awsomefsd.types import LEASE_WRITE
from awsomefsd.wait import block_on

AGAIN_S = 0.05
ASKS_MAX = 600  # a contested file: by then others have written

log = logging.getLogger("awsomefsd.session")


def adopted(records: Iterable[Record], session_epoch: int) -> dict[int, int]:
    """ino → epoch of the write leases of this session under which a predecessor held data back; `records` by sequence."""
    newest = {record.ino: record.under for record in records}
    return {ino: under.lease for ino, under in newest.items() if under.lease and under.session == session_epoch}


class LeaseStock:
    def __init__(self, mount: MountState, leases: MountLeases, aside: PutAside) -> None:
        self._mount = mount
        self._leases = leases
        self._aside = aside

    def take(self) -> None:
        """Under the session that was just begun."""
        epoch = self._leases.holder.epoch
        for state in self._mount.files.every():
            state.let_go()
        for state in self._mount.files.dirty_states():
            newest = state.newest()
            if newest is not None and newest.under.session != epoch and not self._goes_on(state, newest):
                return

    def _goes_on(self, state: FileState, newest: Record) -> bool:
        """Decides about one file; False: the session has ended again."""
        mount, leases = self._mount, self._leases
        for _ in range(ASKS_MAX):
            try:
                reply = block_on(leases.want_knowing(state.ino, LEASE_WRITE, newest.under.known))
            except FsError as err:
                if err.errno == errno.ESTALE or mount.lease.over is not None:
                    return False
                if err.errno == errno.ENOENT:
                    mount.release_space(mount.files.drop(state.ino))
                    return True
                break
            except Error as err:
                log.error("no lease for what is held back of inode %d: %s", state.ino, err)
                break
            if isinstance(reply, Leased) and reply.epoch:
                if reply.foreign or not newest.under.lease:
                    break
                self._bind(state, newest, Under(leases.holder.epoch, reply.epoch, reply.changes))
                return True
            time.sleep(reply.pause_ms / 1_000 if isinstance(reply, Contested) else AGAIN_S)
        self._aside.files([state], f"inode {state.ino} was changed by others after the session had ended")
        return True

    def _bind(self, state: FileState, newest: Record, under: Under) -> None:
        """From now on the lease speaks for all that is dirty of the file, and nothing new is held back before it is committed."""
        with state.lock:
            state.under = under
        if state.store(self._mount.dirty, newest.offset, memoryview(b""), 0, newest.time_ns, recall=True):
            self._mount.reservation.give_back(-record_space(0))  # it is given back with the others when they are clean
        else:
            newest.under = under  # no room: a successor will have to ask
        state.let_go()
        log.warning("data held back under an ended session goes on: ino=%d lease=%d bytes=%d", state.ino, under.lease, state.dirty_bytes)
