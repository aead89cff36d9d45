"""Open files and their bytes on a volume that several nodes share, held back under write leases (DESIGN sections 4 and 5).

write(2) asks for the write lease of its file, parked and without a thread, and from then on goes to the dirty log as on a volume that is
held whole, until another node wants the file.  Where no lease is to be had (the file is contested, or is being recalled while the kernel
waits for this very write) it goes through: an entry before it is answered (vfs_shared.py).

Who may rely on what:

* `FileState.under` is the lease under which data may be held back.  It is set under the state's lock only while the lease is held and not
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
* killed between clean and the answer to a recall: there is no record, the successor holds nothing back and answers at once;
* the session has ended meanwhile, and with it the lease: lease_stock.py.

A write that a dead worker had not answered is found in the dirty log, or goes through under its own id: the machine has the result if it
had been an entry before.  Holding it back instead could lay it a second time, over what another node has written since.

A write that was stored while the session's fence passed is answered when the session is good again, or with EIO if its data went aside.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from itertools import islice
from typing import Any

from awsomefsd.consistency import CLOSE_TO_OPEN
from awsomefsd.errors import FsError
from awsomefsd.failpoints import hit
from awsomefsd.fuse.context import Context
from awsomefsd.fuse.kernel_cache import UNKNOWN
from awsomefsd.fuse.mount_state import MountState
from awsomefsd.fuse.vfs_data import SPACE_ERRORS, WRITE_KILL_SUIDGID, DataOps, Pool, read_buffer
from awsomefsd.fuse.vfs_shared import WRITE_CACHE, SharedDataOps
from awsomefsd.io.dirty import Under
from awsomefsd.io.files import FileState
from awsomefsd.io.flusher import record_space
from awsomefsd.io.write_through import Write, WriteThrough
from awsomefsd.limits import DIRTY_FLUSH_BYTES, FILE_BYTES_MAX, ORPHANS_PER_LOOK_MAX
from awsomefsd.meta.commands import SET_KILL_SUIDGID, SetAttr
from awsomefsd.meta.messages import Contested, Found, GetAttr
from awsomefsd.meta.mount_leases import Done, MountLeases
from awsomefsd.types import LEASE_NONE, LEASE_WRITE, Attr
from awsomefsd.wait import Op

CONTESTED_MAX = 4_096  # inodes of which is remembered that no lease was to be had


class LeasedDataOps(SharedDataOps):
    def __init__(self, mount: MountState, pool: Pool, on_release: Any, through: WriteThrough, leases: MountLeases) -> None:
        super().__init__(mount, pool, on_release, through)
        self._leases = leases
        self._contested: dict[int, float] = {}  # inode → until when (monotonic) no lease is asked for
        self._emptied: set[int] = set()  # open files that were truncated to nothing while no lease was held
        self._left_behind: dict[int, None] = {}  # nameless files, closed here, of which data is held back
        leases.launderers.insert(0, self._launder)

    # --- recalls ---------------------------------------------------------------------------------------------------------------
    def _launder(self, ino: int, mode: int, done: Done) -> None:
        """Nothing more is held back; when what is has been committed and is clean, `done`."""
        state = self._mount.files.get(ino)
        if state is None:
            done()
            return
        state.let_go()
        Laundering(self._mount, self._leases, state, mode, done).start()

    # --- read ------------------------------------------------------------------------------------------------------------------
    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> list[Any] | Op:
        mount = self._mount
        state = mount.known_file(ino)
        if state is None:
            self._used(ino, fh)
            return super().read(ctx, ino, fh, offset, size)
        mount.check_handle(fh)
        self._used(ino, fh)
        stamp = self._stamp(ino)
        buffer = read_buffer()[:size]
        length = mount.files.read_into(state, offset, buffer)
        if length >= 0:
            self._was_read(ino, stamp)
            return [buffer[:length]]
        self._was_read(ino, UNKNOWN)
        return DataOps._read(self, ino, fh, offset, size)

    def _used(self, ino: int, fh: int) -> None:
        if self._mount.kernel is not None:
            self._mount.kernel.loose.used(ino, fh)

    # --- close -----------------------------------------------------------------------------------------------------------------
    def flush(self, ctx: Context, ino: int, fh: int, lock_owner: int) -> Op | None:
        """close(2).  Of a file that is coherent from close to open all is committed then: who opens it later sees it whoever dies."""
        op = super().flush(ctx, ino, fh, lock_owner)
        state, opened = self._mount.files.get(ino), self._mount.opens.get(fh)
        if op is not None or state is None or opened is None or opened.flags & os.O_ACCMODE == os.O_RDONLY:
            return op
        return self._flush_closed(ino, fh) if state.dirty or state.error is not None else None

    def _flush_closed(self, ino: int, fh: int) -> Op:
        attr: Attr = yield from self._mount.attr_op(ino)
        if self._mount.modes.of(attr) == CLOSE_TO_OPEN and attr.nlink:
            yield from self._fsync(ino, fh)

    # --- write -----------------------------------------------------------------------------------------------------------------
    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Op:
        mount = self._mount
        mount.check_handle(fh)
        append = ctx.open_flags & os.O_APPEND != 0 and not write_flags & WRITE_CACHE
        if not append and offset + len(data) > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        state = mount.files.get(ino)
        if state is not None and not write_flags & WRITE_KILL_SUIDGID and not mount.recovering:
            under = state.under
            held = under is not None and self._leases.holder.may_hold_back(ino) == under.lease
            if held and self._hold_back(ctx.unique, state, offset, data, append):
                return len(data) if mount.lease.left_ns() > 0 else self._stored(fh, len(data))
        return self._write(ctx, ino, fh, offset, data, write_flags)

    def _write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Op:
        mount = self._mount
        append = ctx.open_flags & os.O_APPEND != 0 and not write_flags & WRITE_CACHE
        kill = write_flags & WRITE_KILL_SUIDGID != 0
        if mount.recovering:
            mount.check_handle(fh)
            if mount.dirty.find_unique(ctx.unique) is not None:
                return len(data)  # the predecessor had stored it and died before it could say so
        killed = False
        while not mount.recovering:
            mount.check_handle(fh)
            state = yield from self._held(ino, write_flags)
            if state is None:
                break
            if kill and not killed:
                yield from self._kill_suidgid(ino)
                killed = True
                continue
            if (yield from self._store_under(ctx.unique, state, offset, data, append, fh)):
                return (yield from self._stored(fh, len(data)))
        return (yield from self._write_through(fh, lambda: Write(ctx.unique, ino, offset, data, append=append, kill_suidgid=kill)))

    def _stored(self, fh: int, length: int) -> Op:
        """It is in the dirty log: say so while the lease under which it was accepted is good."""
        mount = self._mount
        while (renewed := mount.lease.renewed()) and mount.lease.left_ns() <= 0:
            yield renewed
        mount.check_handle(fh)
        return length

    def _kill_suidgid(self, ino: int) -> Op:
        mount = self._mount
        attr: Attr = yield from mount.attr_op(ino)
        if attr.mode & 0o6000:
            unique = mount.uniques.next_background_unique()
            reply: Found = yield mount.propose(SetAttr(mount.volume, ino, SET_KILL_SUIDGID), unique)
            mount.metadata.ack(unique)
            mount.names.put(reply.attr)

    def _hold_back(self, unique: int, state: FileState, offset: int, data: memoryview, append: bool) -> bool:
        """One dirty record, if space is reserved, the dirty log has room and the lease is held."""
        mount = self._mount
        need = record_space(len(data))
        if not mount.reservation.take(need):
            return False
        hit("held.store.before")
        now_ns = state.mtime_min_ns = max(time.time_ns(), state.mtime_min_ns + 1)  # whatever the clocks of other writers say
        fits = not append or state.size + len(data) <= FILE_BYTES_MAX
        if not fits or not state.store(mount.dirty, offset, data, unique, now_ns, append=append):
            mount.reservation.give_back(need)
            return False
        mount.held_back(state.ino)
        hit("held.store.after")
        if mount.dirty.dirty_bytes >= DIRTY_FLUSH_BYTES:
            mount.flusher.kick()
        return True

    def _store_under(self, unique: int, state: FileState, offset: int, data: memoryview, append: bool, fh: int) -> Op:
        """`_hold_back`, waiting for room and space; False if the lease went meanwhile."""
        mount, flushed = self._mount, False
        while state.under is not None and not state.forgotten:
            room = mount.flusher.room()
            if append and state.size + len(data) > FILE_BYTES_MAX:
                raise FsError(errno.EFBIG)
            if self._hold_back(unique, state, offset, data, append):
                return True
            if mount.reservation.left_bytes >= record_space(len(data)):
                mount.flusher.kick()
                if state.under is not None:
                    yield room
                continue
            try:
                yield from mount.reservation.refill(record_space(len(data)))
            except FsError as err:
                if err.errno == errno.ESTALE:
                    yield mount.lease.renewed()
                    return False
                if err.errno not in SPACE_ERRORS or flushed:
                    raise
                flushed = True  # what dirty records took and do not need comes back when they are flushed
                yield mount.flusher.flush_all()
        return False

    # --- the lease -------------------------------------------------------------------------------------------------------------
    def _held(self, ino: int, write_flags: int) -> Op:
        """The file's state with its write lease; None: the write goes through."""
        mount, holder = self._mount, self._leases.holder
        epoch = holder.may_hold_back(ino)
        if not epoch:
            if not (yield from self._ask(ino, write_flags)):
                return None
            epoch = holder.may_hold_back(ino)
        state = mount.files.get(ino)
        if state is not None and state.under is not None and epoch and state.under.lease == epoch:
            return state
        grant, under = holder.grant(ino), Under(holder.epoch, epoch, holder.known(ino))
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
        state = mount.files.hold(attr, grant, under, lambda: holder.may_hold_back(ino) == epoch and holder.grant(ino) == grant)
        if state is not None:
            self._leases.touch(ino)  # layouts that were told before lack what is held back from now on
        if state is not None and ino in self._emptied:
            self._emptied.discard(ino)
            state.truncated_to_zero = True
        return state

    def _ask(self, ino: int, write_flags: int) -> Op:
        """Whether the write lease came.  Not asked for by a write that a recall of this file may be waiting for."""
        now = time.monotonic()
        until = self._contested.get(ino, 0)
        if until > now or (write_flags & WRITE_CACHE and self._leases.holder.leaving(ino)):
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

    # --- beside held data ------------------------------------------------------------------------------------------------------
    def _write_through(self, fh: int | None, make: Any) -> Op:
        ino = make().ino
        state = self._mount.files.get(ino)
        if state is not None and state.dirty:
            yield self._mount.flusher.drained(ino)
        return (yield from super()._write_through(fh, make))

    def _learn_write(self, one: Write, value: Any) -> None:
        super()._learn_write(one, value)
        state = self._mount.files.get(one.ino)
        if state is not None and isinstance(value, Found):
            state.forget_layout(value.attr)

    def leave_inline(self, attr: Attr) -> Op:
        state = self._mount.known_file(attr.ino)
        if state is not None and state.under is not None:
            yield from DataOps.leave_inline(self, attr)
        else:
            yield from super().leave_inline(attr)

    def _store(self, unique: int, attr: Attr, offset: int, data: memoryview, time_ns: int | None = None) -> bool:
        """Of DataOps.leave_inline: where no lease is held any more there is nothing to store; the caller looks again."""
        state = self._mount.known_file(attr.ino)
        if state is None or state.under is None:
            return True
        return super()._store(unique, attr, offset, data, time_ns)

    def set_size(self, attr: Attr, command: SetAttr, unique: int, fh: int | None = None) -> Op:
        shown: Attr = yield from DataOps.set_size(self, attr, command, unique, fh)
        state = self._mount.files.get(attr.ino)
        if state is not None:  # the time is the leader's, whose clock may be ahead of ours
            with state.lock:
                state.mtime_min_ns = max(state.mtime_min_ns, shown.mtime_ns)
        if command.size == 0 and self._mount.known_file(attr.ino) is None:
            self._emptied.add(attr.ino)
        return shown

    def release(self, ctx: Context, ino: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> Op | None:
        op = super().release(ctx, ino, fh, flags, release_flags, lock_owner)
        if not self._mount.opens.count(ino):
            self._emptied.discard(ino)
        return op


    # --- files without a name --------------------------------------------------------------------------------------------------
    def release_orphan(self, ino: int) -> None:
        """Another node may have it open, and has to see what was written here: that stays held back until the inode is gone."""
        state = self._mount.files.get(ino)
        if state is None or not state.dirty:
            super().release_orphan(ino)
            return
        self._left_behind[ino] = None
        self._mount.opens.orphaned(ino)
        self.tell_orphan(ino)

    def release_unopened(self, session: int) -> Op:
        yield from super().release_unopened(session)
        for ino in list(islice(self._left_behind, ORPHANS_PER_LOOK_MAX)):
            self._left_behind.pop(ino, None)
            state = self._mount.files.get(ino)
            if state is None or not state.dirty:
                continue
            try:
                yield self._mount.metadata.ask(GetAttr(self._mount.volume, ino))
                self._left_behind[ino] = None
            except FsError as err:
                if err.errno == errno.ENOENT:
                    self._mount.release_space(self._mount.files.drop(ino))


class Laundering:
    """One recall: wait until nothing of the file is dirty; meanwhile tell the leader of the progress of the whole flush."""

    def __init__(self, mount: MountState, leases: MountLeases, state: FileState, mode: int, done: Done) -> None:
        self._mount = mount
        self._leases = leases
        self._state = state
        self._mode = mode
        self._done = done
        self._ended = False

    def start(self) -> None:
        hit("recall.flush.before")
        if self._state.dirty:
            self._watch()
        self._mount.flusher.drained(self._state.ino).start(self._drained)

    def _watch(self) -> None:
        self._mount.flusher.room().start(self._progress)

    def _progress(self, _value: Any, _error: BaseException | None) -> None:
        if not self._ended:
            self._leases.progress(self._state.ino, self._mount.flusher.batches)
            self._watch()

    def _drained(self, _value: Any, _error: BaseException | None) -> None:
        self._ended = True
        hit("recall.flush.after")
        if self._mode == LEASE_NONE:
            self._mount.files.forget(self._state)
        self._done()

