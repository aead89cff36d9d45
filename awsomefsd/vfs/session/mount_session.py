"""The session of a mount: opened once, kept by renewals, replaced when the leader has ended it.

A successor worker takes the session of its predecessor over (same epoch, locks and pins).  If the session has ended (the worker was stopped
for longer than the TTL), a new one is opened and nothing the old one held is assumed:
- nobody else had the volume since: names and data are as we know them; handles of files with locks, and of files without names, answer EIO
  until closed, because locks and pins ended with the old session; dirty records go on under the new epoch;
- another mount had it: dirty records go to the conflict area, every open handle answers EIO, and the kernel forgets what it knows;
- the cluster was recovered from a copy: the same, and what programs were waiting for ends with EIO.  It follows from what they had done
  before, and the copy may lack that: a rename over a file, of one whose bytes are not there, would take the older bytes away as well.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.limits import SESSION_RENEW_MS, SESSION_TTL_MS
from awsomefsd.base.types import is_behind_recovery
from awsomefsd.base.wait import Signal, block_on
from awsomefsd.io.file.dirty_log import DirtyRecord
from awsomefsd.io.file.flusher import record_space
from awsomefsd.meta.api.commands import OpenSession
from awsomefsd.meta.api.messages import SessionOpened
from awsomefsd.vfs.ops.lease_loss import timed_out
from awsomefsd.vfs.ops.locks import LockOps
from awsomefsd.vfs.session.conflicts import OVERTAKEN, RETRY_PAUSE_S, Conflicts
from awsomefsd.vfs.state.mount_state import MountState, recovered
from awsomefsd.vfs.state.open_files import OpenFile

BUSY_PAUSE_S = 0.5

log = logging.getLogger("awsomefsd.session")


class SessionClient(Protocol):
    @property
    def session(self) -> int: ...

    def lease_left_ns(self) -> int: ...
    def start_session(self, command: OpenSession) -> SessionOpened: ...


class SessionLease:
    """The time for which the mount may be served, and a Wait for the moment when it may be again.

    With `fails` (on-lease-loss=error) that Wait ends with ETIMEDOUT where there is no lease.
    """

    def __init__(self, left_ns: Callable[[], int], *, fails: bool = False) -> None:
        self._left_ns = left_ns
        self.fails = fails
        self._held = False
        self._holds = 0
        self._renewed = Signal()
        self.over: FsError | None = None  # why it will never be served again

    def left_ns(self) -> int:
        return 0 if self._held or self.over is not None else self._left_ns()

    def stamp(self) -> int:
        """Returns a number that is the same as long as nothing that is remembered was given up with a session; 0: not served now."""
        return self._holds + 1 if self.left_ns() > 0 else 0

    def end(self, error: FsError) -> None:
        """Ends with this error all that waits for the session, and all that asks for it from now on."""
        self.over = error
        self._renewed.fire(None, error)

    def renewed(self) -> Signal:
        renewed = self._renewed
        if self.over is not None:
            renewed = Signal()
            renewed.fire(None, self.over)
        elif self.fails and self.left_ns() <= 0:
            renewed = Signal()
            renewed.fire(None, timed_out())
        return renewed

    def lost(self) -> None:
        """It has run out.  Only Vfs.fenced calls this: what is under way is answered then, too."""
        if self.fails:
            signal, self._renewed = self._renewed, Signal()
            signal.fire(None, timed_out())

    def announce(self) -> None:
        """The lease is good again: those who waited look again."""
        if not self._held:
            signal, self._renewed = self._renewed, Signal()
            signal.fire()

    def hold(self) -> None:
        """From now on nothing is served, although there is a session: what we remember is of an older one.  Vfs.fenced follows."""
        self._held = True
        self._holds += 1

    def release(self, error: FsError | None = None) -> None:
        """What we remember is of this session: those who waited look again, or end with `error`."""
        signal, self._renewed = self._renewed, Signal()  # before it may be served: a renewal is announced without an error
        self._held = False
        signal.fire(None, error)
        self.announce()  # to those who came in between


def open_session(client: SessionClient, command: OpenSession) -> SessionOpened:
    """Open or take over; waits for a daemon that is not there, and (bounded) while a dead holder's session has not expired yet.

    Raises FsError(EBUSY) when somebody else still holds the volume after that.
    """
    deadline = time.monotonic() + (SESSION_TTL_MS + 2 * SESSION_RENEW_MS) / 1_000
    while True:
        try:
            return client.start_session(command)
        except FsError as err:
            if err.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_PAUSE_S)


class KernelInvalidation(Protocol):
    def invalidate_all(self, inos: list[int]) -> None: ...


class ServedMount(Protocol):
    """The Vfs of a mount, as far as the end of a session concerns it."""

    mount: MountState
    locks: LockOps

    def fenced(self) -> None:
        """Tells the lease that it has run out; with on-lease-loss=error everything under way is answered."""


class SessionKeeper:
    """Replaces a lost session, on a thread of its own."""

    def __init__(
        self,
        client: SessionClient,
        command: OpenSession,
        vfs: ServedMount,
        kernel: KernelInvalidation,
        lease: SessionLease,
        conflicts: Conflicts,
        abandon_segments: Callable[[], None],
        opened: Callable[[SessionOpened], None],
    ) -> None:
        self._client = client
        self._command = command
        self._mount = vfs.mount
        self._locks = vfs.locks
        self._fenced = vfs.fenced
        self._kernel = kernel
        self._lease = lease
        self._conflicts = conflicts
        self._abandon_segments = abandon_segments
        self._opened = opened
        self._busy = threading.Lock()
        self._lost_session = 0

    def lost(self) -> None:
        """Called by the client when the leader says that the session has ended; returns at once.  Told late, it is of one long replaced."""
        if self._client.lease_left_ns() > 0 or self._lease.over is not None:
            return
        self._lost_session = self._client.session
        if self._mount.caches.leases is not None:
            self._mount.caches.leases.lost()
        if self._busy.acquire(blocking=False):
            self._hold()
            threading.Thread(target=self._run, name="new-session", daemon=True).start()

    def _run(self) -> None:
        """The new session may be lost before it is taken up: a process may be stopped again and again."""
        while True:
            try:
                while self._is_lost():
                    self._hold()
                    self._replace()
            finally:
                self._busy.release()
            if not self._is_lost() or not self._busy.acquire(blocking=False):
                return  # told in between: that call has begun a thread of its own

    def retire(self) -> None:
        """Blocks, at the end of a mount, until nothing of a session is being replaced, or ever will be."""
        self._busy.acquire()

    def _is_lost(self) -> bool:
        """A loss may be told twice; a session that was opened since is not the one that was lost."""
        return self._lost_session == self._client.session and self._lease.over is None

    def _hold(self) -> None:
        self._lease.hold()
        self._fenced()

    def _replace(self) -> None:
        self._mount.buffered.flusher.pause(True)
        lost = self._lost_session
        opened = self._open()
        if opened is None:
            return
        self._abandon_segments()
        if not opened.resumed:
            self.after_session_loss(opened, changed_by_others=opened.changed_by_others)
        self._opened(opened)
        self._mount.buffered.flusher.pause(False)
        self._lease.release(recovered() if is_behind_recovery(opened.session, lost) else None)

    def _open(self) -> SessionOpened | None:
        while self._lease.over is None:
            try:
                return open_session(self._client, self._command)
            except Error as err:
                log.error("no new session could be opened yet; operations wait: %s", err)
                time.sleep(RETRY_PAUSE_S)
        return None

    def after_session_loss(self, opened: SessionOpened, *, changed_by_others: bool, locks_known: bool = True) -> None:
        """Decides what of the ended session may go on.  Without `locks_known` (the worker that knew them is dead) every handle is lost."""
        mount = self._mount
        mount.buffered.files.wait_for_stores()
        new = (opened.session, opened.epoch, changed_by_others)
        log.warning("the session had ended; new one opened session=%d epoch=%d changed_by_others=%s", *new)
        if changed_by_others:
            self._conflicts.save(mount.buffered.files.dirty_states(), OVERTAKEN)
            mount.buffered.files.forget_clean(with_errors=True)  # who would be told of them has lost the handle
        lost = set(self._locks.inodes())
        everything = changed_by_others or not locks_known
        failed = mount.session.failed_handles

        def goes_on(file: OpenFile) -> bool:
            return not (everything or file.fh in failed or file.ino in lost or self._nameless(file.ino))

        failed |= mount.session.opens.renew(opened.epoch, goes_on)
        self._locks.forget_all()
        self._reserve_again(opened.reserved_bytes)
        known = mount.caches.names.inode_numbers() if mount.caches.kernel is None else mount.caches.kernel.known()
        mount.caches.names.clear()
        if changed_by_others:
            mount.caches.pages.doubt()
        self._kernel.invalidate_all(known)

    def removed(self, records: list[DirtyRecord], *, by_others: bool) -> None:
        """Takes dirty records of a predecessor whose files are gone; nobody needs them, unless another mount may have removed these."""
        if by_others and any(record.length for record in records):
            self._conflicts.save_inherited(records, OVERTAKEN)
        else:
            self._mount.buffered.dirty.mark_clean(records)

    def _reserve_again(self, reserved_bytes: int) -> None:
        """Reserves space again for the dirty data: what was promised to it ended with the old session."""
        mount = self._mount
        dirty_space = sum(record_space(r.length) for state in mount.buffered.files.dirty_states() for r in list(state.dirty))
        mount.buffered.reservation.set_left(reserved_bytes - dirty_space)
        if mount.buffered.reservation.left_bytes < 0:
            try:
                block_on(mount.buffered.reservation.refill(0))
            except FsError as err:
                log.error("dirty data has no reserved space any more; its flush may fail: %s", err)

    def _nameless(self, ino: int) -> bool:
        attr = self._mount.caches.names.attr(ino)
        return attr is not None and attr.nlink == 0
