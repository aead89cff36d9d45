"""The bytes of files on a volume that several nodes share, buffered under write leases (docs/CONSISTENCY.md).

write(2) asks for the write lease of its file, parked and without a thread, and from then on goes to the dirty log as on a volume that is
held whole, until another node wants the file.  Where no lease is to be had (the file is contested, or is being recalled while the kernel
waits for this very write) it goes through: an entry before it is answered (data_through.py).

Who may rely on what:

* `FileState.token` is the lease under which data may be buffered.  It is set under the state's lock only while the lease is held and not
  being recalled, and taken out under the same lock by a recall, which then waits until nothing is dirty, and only then is answered.  So no
  record is made after the flush that a recall waits for.
* A state in the table is believed while the grant is held under which it was learnt (`MountState.known_file`).  What this mount changes
  beside it (write-through, truncation, fallocate) it is told of with the answer.
* A write that goes through is proposed after what was dirty of its file is committed.

A recall waits for the flusher and the device, and for nothing that a recall or a reservation could hold up: space was reserved when the
data was accepted, and a commit under a lease is never parked.  While there is progress the leader is told so.

Crash windows.  Session and lease outlive a worker, so its successor adopts the leases that the dirty records name before it listens for
recalls; they are flushed before it serves:

* killed before the commit: the records are committed by the successor, under the lease that nobody else can have got meanwhile;
* killed between commit and clean: the same (log, sequence) comes again.  Nobody else has written: a recall is answered when records are
  clean, and the machine ignores what it has seen;
* killed between clean and the answer to a recall: there is no record, the successor buffers nothing and answers at once;
* the session has ended meanwhile, and with it the lease: vfs/session/lease_recovery.py.

A write that a dead worker had not answered is found in the dirty log, clean or not (decision 151), or goes through under its own id: the
machine has the result if it had been an entry before.  Buffering it instead could lay it a second time, over what another node has written
since.

A write that was stored while the session's fence passed is answered when the session is good again, or with EIO if its data was
saved as a conflict.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Any

from awsomefsd.base.consistency import CLOSE_TO_OPEN
from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import DIRTY_FLUSH_BYTES, FILE_BYTES_MAX
from awsomefsd.base.types import LEASE_WRITE, Attr
from awsomefsd.base.wait import Payload, Steps, keeping
from awsomefsd.io.file.dirty_log import LeaseToken
from awsomefsd.io.file.file_data import FileState
from awsomefsd.io.file.flusher import record_space
from awsomefsd.io.file.write_through import OnDecided, Write
from awsomefsd.meta.api.commands import SetAttr
from awsomefsd.meta.api.messages import Contested
from awsomefsd.meta.client.leases import WriteLeases
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.reading import CurrentLayouts, Reading
from awsomefsd.vfs.ops.writing import (
    WRITE_CACHE,
    WRITE_KILL_SUIDGID,
    DirtyWrites,
    ThroughWrites,
    drop_capability,
    kill_suidgid,
    store_when_room,
    stored,
    sync,
)
from awsomefsd.vfs.state.mount_state import MountState

CONTESTED_MAX = 4_096  # inodes of which is remembered that no lease was to be had


class LeasedData:
    """The policy of a shared volume whose mounts hold leases (vfs/ops/data.py)."""

    def __init__(
        self, mount: MountState, leases: WriteLeases, known: Reading, current: Reading, layouts: CurrentLayouts, dirty: DirtyWrites,
        through: ThroughWrites,
    ) -> None:  # fmt: skip
        """`known` reads what is remembered under a lease (KnownLayouts), `current` all else, through `layouts`."""
        self._mount = mount
        self._leases = leases
        self._known = known
        self._current = current
        self._layouts = layouts
        self._dirty = dirty
        self._through = through
        self._contested: dict[int, float] = {}  # inode → until when (monotonic) no lease is asked for

    # --- read ------------------------------------------------------------------------------------------------------------------
    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> list[Any] | Steps:
        mount = self._mount
        known = mount.known_file(ino)
        if known is not None:
            mount.session.check_handle(fh)
        if mount.caches.kernel is not None:
            mount.caches.kernel.loose.used(ino, fh)
        if known is not None:
            pieces = self._known.at_once(known, offset, size)
            return self._read_known(known, fh, offset, size) if pieces is None else pieces
        mount.session.check_handle(fh)
        kept = self._layouts.kept(ino)
        pieces = None if kept is None else self._current.at_once(kept, offset, size)
        return self._current.steps(ino, None, offset, size) if pieces is None else pieces

    def _read_known(self, known: FileState, fh: int, offset: int, size: int) -> Steps:
        """Reads what is remembered, and asks for the layout that is missing.  Size and layout are of one moment only if the lease was held
        all along; else both are asked for at once.  What was dirty was committed before the lease went, so that has it.
        """
        mount, ino, grant = self._mount, known.ino, known.grant
        failed: Error | None = None
        try:
            pieces = yield from self._known.steps(ino, known, offset, size)
        except Error as err:  # perhaps of a layout that is old
            failed = err
        if mount.known_file(ino) is known and known.grant == grant:
            if failed is not None:
                raise failed
            return pieces
        mount.session.check_handle(fh)
        return (yield from self._current.steps(ino, None, offset, size))

    # --- close -----------------------------------------------------------------------------------------------------------------
    def closing(self, ino: int, fh: int) -> Steps | None:
        """A file that is coherent from close to open is committed then: who opens it later sees all of it, whoever dies."""
        state, opened = self._mount.buffered.files.get(ino), self._mount.session.opens.get(fh)
        if state is None or opened is None or opened.flags & os.O_ACCMODE == os.O_RDONLY:
            return None
        return self._flush_closed(ino, fh) if state.dirty or state.error is not None else None

    def _flush_closed(self, ino: int, fh: int) -> Steps:
        attr: Attr = yield from self._mount.attr_op(ino)
        if self._mount.caches.modes.of(attr) == CLOSE_TO_OPEN and attr.nlink:
            yield from sync(self._mount, ino, fh)

    # --- write -----------------------------------------------------------------------------------------------------------------
    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Steps:
        mount = self._mount
        stamp = mount.session.lease.stamp()
        mount.session.check_handle(fh)
        append = ctx.open_flags & os.O_APPEND != 0 and not write_flags & WRITE_CACHE
        if not append and offset + len(data) > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        state = mount.buffered.files.get(ino)
        if state is not None and not mount.session.recovering:
            token = state.token
            held = token is not None and self._leases.may_buffer(ino) == token.lease
            if held and write_flags & WRITE_KILL_SUIDGID:
                attr = mount.caches.names.attr(ino)
                held = attr is not None and not attr.mode & 0o6000
            if held and self._buffer(ctx.unique, state, offset, data, append):
                return len(data) if stamp and mount.session.lease.stamp() == stamp else keeping(data, stored(mount, fh, len(data)))
        return self._write(ctx, ino, fh, offset, data, write_flags)

    def _write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Steps:
        mount = self._mount
        append = ctx.open_flags & os.O_APPEND != 0 and not write_flags & WRITE_CACHE
        kill = write_flags & WRITE_KILL_SUIDGID != 0
        if mount.session.recovering:
            mount.session.check_handle(fh)
            if mount.buffered.dirty.find_unique(ctx.unique) is not None:
                return len(data)  # the predecessor had stored it and died before it could say so
        data = yield Payload(data)
        killed = False
        while not mount.session.recovering:
            mount.session.check_handle(fh)
            state = yield from self._held(ino, write_flags)
            if state is None:
                break
            if kill and not killed:
                yield from kill_suidgid(mount, (yield from mount.attr_op(ino)), ctx)
                killed = True
                continue
            if (yield from self._store_under(ctx.unique, state, offset, data, append)):
                return (yield from stored(mount, fh, len(data)))

        def make(token: tuple[int, int], on_decided: OnDecided | None) -> Write:
            return Write(ctx.unique, ino, offset, data, token, on_decided, append=append, kill_suidgid=kill)

        return (yield from self._through.write(fh, ino, make, ctx if kill else None))

    def _buffer(self, unique: int, state: FileState, offset: int, data: memoryview, append: bool) -> bool:
        """One dirty record, if space is reserved, the dirty log has room and the lease is held."""
        mount = self._mount

        def store() -> bool:
            hit("held.store.before")
            if append and state.size + len(data) > FILE_BYTES_MAX:
                return False
            return state.store(mount.buffered.dirty, offset, data, unique, state.next_mtime_ns(), append=append)

        if not mount.buffered.reservation.spend(record_space(len(data)), store):
            return False
        mount.caches.note_buffered(state.ino)
        hit("held.store.after")
        if mount.buffered.dirty.dirty_bytes >= DIRTY_FLUSH_BYTES:
            mount.buffered.flusher.kick()
        return True

    def _store_under(self, unique: int, state: FileState, offset: int, data: memoryview, append: bool) -> Steps:
        """`_buffer`, waiting for room and space; False if the lease went meanwhile."""

        def store() -> bool:
            if append and state.size + len(data) > FILE_BYTES_MAX:
                raise FsError(errno.EFBIG)
            return self._buffer(unique, state, offset, data, append)

        return store_when_room(
            self._mount,
            len(data),
            store,
            may=lambda: state.token is not None and not state.forgotten,
            session_replaced=lambda: False,
        )

    # --- the lease -------------------------------------------------------------------------------------------------------------
    def _held(self, ino: int, write_flags: int) -> Steps:
        """The file's state with its write lease; None: the write goes through."""
        mount, leases = self._mount, self._leases
        epoch = leases.may_buffer(ino)
        if not epoch:
            if not (yield from self._ask(ino, write_flags)):
                return None
            epoch = leases.may_buffer(ino)
        state = mount.buffered.files.get(ino)
        if state is not None and state.token is not None and epoch and state.token.lease == epoch:
            return state
        grant, token = leases.grant(ino), LeaseToken(leases.epoch, epoch, leases.changes_known(ino))
        if not epoch or not grant:
            return None
        try:
            attr: Attr = yield from mount.attr_op(ino)
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return None  # gone with the session that had it open: the entry will say so
        if not stat.S_ISREG(attr.mode):
            raise FsError(errno.EINVAL, "only regular files are written")
        if attr.xattrs:  # the kernel removes it before cached writes only; one that is given under the lease takes the token out
            yield from drop_capability(mount, attr)
            attr = yield from mount.attr_op(ino)
        state = mount.buffered.files.hold(attr, grant, token, lambda: leases.may_buffer(ino) == epoch and leases.grant(ino) == grant)
        if state is not None:
            self._leases.touch(ino)  # layouts that were told before lack what is buffered from now on
        return state

    def _ask(self, ino: int, write_flags: int) -> Steps:
        """Asks for the write lease; true if it came.  A write that a recall of this file may be waiting for does not ask."""
        now = time.monotonic()
        until = self._contested.get(ino, 0)
        if until > now or (write_flags & WRITE_CACHE and self._leases.leaving(ino)):
            return False
        try:
            reply = yield self._leases.want(ino, LEASE_WRITE)
        except FsError:  # the session has ended, or may not: the entry will say what there is to say
            return False
        if isinstance(reply, Contested):
            self._contested[ino] = time.monotonic() + reply.pause_ms / 1_000
            if len(self._contested) > CONTESTED_MAX:
                self._contested.clear()  # other threads add to it: no step of its own to find the oldest
            return False
        if until:
            self._contested.pop(ino, None)
        return reply is not None

    # --- beside buffered data --------------------------------------------------------------------------------------------------
    def leave_inline(self, attr: Attr) -> Steps:
        """Where no lease is held any more there is nothing to store; the caller looks again."""
        if self._is_leased(attr.ino):
            return self._dirty.leave_inline(attr, may=lambda: self._is_leased(attr.ino))
        return self._through.leave_inline(attr.ino)

    def _is_leased(self, ino: int) -> bool:
        state = self._mount.known_file(ino)
        return state is not None and state.token is not None

    def set_size(self, attr: Attr, command: SetAttr, unique: int, fh: int | None = None) -> Steps:
        shown: Attr = yield from self._dirty.set_size(attr, command, unique, fh)
        state = self._mount.buffered.files.get(attr.ino)
        if state is not None:  # the time is the leader's, whose clock may be ahead of ours
            with state.lock:
                state.mtime_min_ns = max(state.mtime_min_ns, shown.mtime_ns)
        return shown
