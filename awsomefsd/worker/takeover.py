"""The takeover: a worker takes up what a dead predecessor has left in the shared memory of the mount, before it reads new requests.

Order, and why: the predecessor's dirty records are found and flushed first, so that caches begin with what the service says, not with what
a record might still change; then its unanswered requests are executed; then the last closes that it could not tell of are told.  Where the
session has ended meanwhile, it is decided before all that which of the records and handles go on (vfs/session/mount_session.py).  Where it
ends while this is decided, nobody replaces it before that is done: two would decide about the same records.

A worker that dies at any of these points leaves the same to its successor: records are clean only when they are committed, requests are
freed only when they are answered, and both carry ids by which the service knows what it has done already.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.types import is_behind_recovery
from awsomefsd.base.wait import block_on
from awsomefsd.io.file.dirty_log import DirtyRecord
from awsomefsd.io.file.flusher import FlushEvents, record_space
from awsomefsd.io.file.write_through import WriteThrough
from awsomefsd.meta.api.messages import Renew, SessionOpened
from awsomefsd.vfs.session.mount_session import SessionKeeper
from awsomefsd.vfs.state.mount_state import MountState
from awsomefsd.vfs.vfs import Vfs
from awsomefsd.worker.delegation import NamesStart
from awsomefsd.worker.memory import MountMemory
from awsomefsd.worker.session_change import SessionChange
from awsomefsd.worker.session_opening import SessionOpening

log = logging.getLogger("awsomefsd.worker")


class KernelRequests(Protocol):
    """The session with the kernel, as far as it repeats requests."""

    def recover(self) -> None: ...
    def wait_repeated(self) -> None: ...


class WorkerTakeover:
    """`run` once, by the thread that starts the worker."""

    def __init__(
        self, memory: MountMemory, mount: MountState, vfs: Vfs, requests: KernelRequests, sessions: SessionKeeper, change: SessionChange,
        opening: SessionOpening, begun: Callable[[], None], names: NamesStart | None = None,
    ) -> None:
        """`begun`: called once, when the session may be replaced: what a predecessor has left is known to whoever does that."""
        self._memory = memory
        self._mount = mount
        self._vfs = vfs
        self._requests = requests
        self._sessions = sessions
        self._change = change
        self._opening = opening
        self._begun = begun
        self._names = names

    def run(self, opened: SessionOpened, worker: int, events: FlushEvents, through: WriteThrough | None) -> None:
        """Takes everything up under the session that was `opened`, starts flushing, and repeats requests; blocks until that is done."""
        mount, control = self._mount, self._memory.control
        ended = control.state.session not in (0, opened.session)
        mount.session.is_behind_recovery = is_behind_recovery(opened.session, control.state.session)
        records = self._recover_records()
        hit("takeover.records.found")
        undecided = (opened.resumed or self._opening.is_unknown) and mount.caches.leases is None  # with leases each file is asked for
        by_others = ended and (opened.changed_by_others or undecided)
        if self._names is not None:
            self._names.ship_inherited(opened, records, changed_by_others=by_others or (ended and mount.shared))
            records = [record for record in records if record.is_dirty]
        gone = [record for record in records if not self._adopt(record)]
        self._sessions.removed(gone, by_others=by_others or (bool(gone) and not self._is_alive(opened)))
        records = [record for record in records if record.is_dirty]
        if ended:  # nobody kept the session alive: what the predecessor's callers had locked is unknown
            self._sessions.after_session_loss(opened, changed_by_others=by_others, locks_known=False)
        else:
            mount.buffered.reservation.set_left(opened.reserved_bytes - sum(record_space(record.length) for record in records))
        mount.session.take_over_handles(opened.epoch)  # before anything is opened or repeated
        self._change.begin(opened, records)
        self._begun()
        control.update(workers=worker)
        mount.buffered.flusher.start(events)
        if through is not None:
            through.start()
        if records and not ended:
            self._flush_recovered(records)
            hit("takeover.records.flushed")
        if opened.resumed:
            block_on(self._vfs.locks.load(opened.session))
        self._repeat_requests()
        hit("takeover.requests.repeated")
        if self._names is not None:
            self._names.begin(opened)
        self._vfs.tell_orphans()

    def _recover_records(self) -> list[DirtyRecord]:
        """Dirty records of a predecessor; of those that memory has damaged, all that is left is to say so, at fsync and in the log."""
        dirty = self._memory.dirty
        records = dirty.recover(self._memory.unanswered() or ())
        for damage in dirty.corrupt:
            log.error("dirty data is damaged and lost: ino=%d offset=%d length=%d %s", damage.ino, damage.offset, damage.length, damage)
            self._memory.control.counter("dirty_corrupt").add()
            if damage.ino:
                with contextlib.suppress(FsError):
                    self._mount.buffered.files.state(block_on(self._mount.attr_op(damage.ino))).error = damage
            if damage.record is not None:
                dirty.mark_clean([damage.record])
        return records

    def _adopt(self, record: DirtyRecord) -> bool:
        """The record belongs to its file again; returns False for that of a file that was removed since."""
        try:
            attr = block_on(self._mount.attr_op(record.ino))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return False
        self._mount.buffered.files.state(attr).adopt(record)
        return True

    def _is_alive(self, opened: SessionOpened) -> bool:
        """Asks whether the session is still there: if so, nobody else has had the volume when the questions before this were answered.

        A question names no session, and may have waited for long: for a leader, the network, or a recovery of the cluster from a copy.
        """
        try:
            block_on(self._mount.metadata.ask(Renew(opened.session, opened.epoch, 0)))
        except FsError as err:
            if err.errno != errno.ESTALE:
                raise
            return False
        return True

    def _flush_recovered(self, records: list[DirtyRecord]) -> None:
        """Commits what write(2) acknowledged and the predecessor had not committed."""
        log.info("flushing what the predecessor left records=%d bytes=%d", len(records), sum(r.length for r in records))
        self._forget_caches()

    def _repeat_requests(self) -> None:
        """Execute what the predecessor had read and not answered.

        A request that had been committed gets its first result back, with attributes asked for again (vfs/state/replayed_answers.py); names
        in it may be older, so nothing that these answers say is remembered: caches begin empty behind them.
        """
        with self._mount.session.repeating():
            self._requests.recover()
            self._requests.wait_repeated()
        self._memory.dirty.forget_uniques()
        self._forget_caches()

    def _forget_caches(self) -> None:
        """Flush what is dirty, then remember nothing.  A device error leaves it dirty, as with any flush."""
        try:
            block_on(self._mount.buffered.flusher.flush_all())
        except Error as err:
            log.error("the recovered data stays buffered: %s", err)
        self._mount.buffered.files.forget_clean()
        self._mount.caches.names.clear()
