"""Open files and their bytes: open, read, write, flush, fsync, release, and truncation, which must meet the dirty data in order."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from awsomefsd.errors import FsError
from awsomefsd.failpoints import hit
from awsomefsd.fuse.context import Context, Opened
from awsomefsd.fuse.mount_state import MountState
from awsomefsd.io.files import LAYOUT_ALIGN_BYTES, LAYOUT_WINDOW_BYTES, FileState
from awsomefsd.io.flusher import record_space
from awsomefsd.limits import DIRTY_FLUSH_BYTES, FILE_BYTES_MAX, FUSE_WRITE_BYTES_MAX, LAYOUT_EXTENTS_MAX
from awsomefsd.meta.commands import SET_KILL_SUIDGID, SET_SIZE, ReleaseOrphan, SetAttr
from awsomefsd.meta.messages import Found, GetAttr, GetLayout, GetStatFs, Layout, StatFsReply
from awsomefsd.types import Attr
from awsomefsd.wait import Op, Resume

WRITE_KILL_SUIDGID = 1 << 2
RELEASE_FLOCK_UNLOCK = 1 << 1
SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
LOOKS_MAX = 4  # at a layout that turned out to be old
LAYOUT_PARTS_MAX = 2 * (LAYOUT_ALIGN_BYTES + FUSE_WRITE_BYTES_MAX) // LAYOUT_EXTENTS_MAX  # even if every byte is an extent

_own = threading.local()


def read_buffer() -> memoryview:
    """This thread's page-aligned buffer for one read; a reply leaves for the kernel on the thread that filled it, so one is enough."""
    buffer = getattr(_own, "buffer", None)
    if buffer is None:
        _own.memory = mmap.mmap(-1, FUSE_WRITE_BYTES_MAX, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer = _own.buffer = memoryview(_own.memory)
    return buffer


class Pool(Protocol):
    """Threads that may block on devices, for operations that already left their reader thread."""

    def submit(self, work: Callable[[], None], /) -> Any: ...


class OnPool:
    """A Wait that continues its operation on a pool thread, so that the thread that receives answers never does I/O."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def start(self, resume: Resume) -> None:
        self._pool.submit(lambda: resume(None, None))


class DataOps:
    def __init__(self, mount: MountState, pool: Pool, on_release: Callable[[int, int, int | None, int], Op | None]) -> None:
        self._mount = mount
        self._pool = pool
        self._on_release = on_release  # (ino, fh, flock owner, unique) -> an Op if locks have to be given up

    # --- open and close ----------------------------------------------------------------------------------------------------

    def open(self, ctx: Context, ino: int, flags: int) -> Opened | Op:
        mount = self._mount
        if flags & os.O_ACCMODE != os.O_RDONLY and mount.read_only:
            raise FsError(errno.EROFS)
        attr = mount.names.attr(ino)
        if flags & os.O_TRUNC or ino in mount.removing or attr is None or not attr.nlink:
            return self._open(ctx, ino, flags)
        fh = mount.opens.open(ino, flags, ctx.unique)
        if mount.leases is not None and mount.names.attr(ino) is None:  # recalled in between: its last name may have gone
            mount.opens.close(fh)
            return self._open(ctx, ino, flags)
        return Opened(fh, mount.fopen_flags(mount.shown(attr), flags, fh))

    def _open(self, ctx: Context, ino: int, flags: int) -> Op:
        mount = self._mount
        removing = mount.removing.get(ino)
        if removing is not None:
            yield removing
        attr: Attr = yield from mount.attr_or_gone(ino)
        if attr.nlink == 0 and not mount.opens.count(ino):
            raise FsError(mount.modes.gone_errno())
        if flags & os.O_TRUNC and stat.S_ISREG(attr.mode):
            attr = yield from self.truncate_to_zero(ctx, attr, ctx.unique)
        fh = mount.opens.open(ino, flags, ctx.unique)
        if mount.leases is not None:
            yield from self._still_there(ino, fh)
        return Opened(fh, mount.fopen_flags(mount.shown(attr), flags, fh))

    def _still_there(self, ino: int, fh: int) -> Op:
        """The attributes may have been remembered, and their lease recalled before the handle was in the table."""
        mount = self._mount
        if mount.names.attr(ino) is not None:
            return
        try:
            yield mount.metadata.ask(GetAttr(mount.volume, ino))
        except FsError:
            mount.opens.close(fh)
            raise

    def flush(self, ctx: Context, ino: int, fh: int, lock_owner: int) -> Op | None:
        """close(2) of one descriptor.  Data stays dirty, except after a truncation to nothing: old or new content must survive a crash."""
        state = self._mount.files.get(ino)
        if state is not None and state.truncated_to_zero and state.dirty:
            state.truncated_to_zero = False
            return self._fsync(ino, fh)
        return None

    def fsync(self, ctx: Context, ino: int, fh: int, datasync: bool) -> Op | None:
        state = self._mount.files.get(ino)
        if fh not in self._mount.failed_handles and (state is None or (not state.dirty and state.error is None)):
            return None
        return self._fsync(ino, fh)

    def _fsync(self, ino: int, fh: int) -> Op:
        self._mount.check_handle(fh)
        hit("fsync.before")
        yield self._mount.flusher.flush(ino)
        self._mount.check_handle(fh)  # the records may have been put aside meanwhile
        hit("fsync.after")

    def release(self, ctx: Context, ino: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> Op | None:
        mount = self._mount
        mount.failed_handles.discard(fh)
        mount.handle_closed(ino, fh)
        unlock = self._on_release(ino, fh, lock_owner if release_flags & RELEASE_FLOCK_UNLOCK else None, ctx.unique)
        attr = mount.names.attr(ino)
        if unlock is not None or (attr is None and not mount.opens.count(ino)):
            return self._release(ino, unlock)
        self.closed(attr)
        return None

    def _release(self, ino: int, unlock: Op | None) -> Op:
        """The attributes are not remembered, or there are locks to give up.

        These first, before anything is waited for: the kernel's next file may have the same owner of locks, and lock meanwhile.
        """
        failed: FsError | None = None
        try:
            if unlock is not None:
                yield from unlock
        except FsError as err:
            failed = err
        try:
            self.closed((yield from self._mount.attr_op(ino)))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
        if failed is not None:
            raise failed

    def closed(self, attr: Attr | None) -> None:
        """Perhaps that was the last handle of an inode without names."""
        mount = self._mount
        if attr is not None and attr.nlink == 0 and not mount.opens.count(attr.ino) and attr.ino not in mount.linking:
            self.release_orphan(attr.ino)

    def release_orphan(self, ino: int) -> None:
        """Last close of an inode without names: its data is not needed any more.  Nobody waits for it."""
        mount = self._mount
        mount.release_space(mount.files.drop(ino))
        mount.opens.orphaned(ino)
        self.tell_orphan(ino)

    def tell_orphan(self, ino: int) -> None:
        mount = self._mount
        unique = mount.uniques.next_background_unique()

        def told(_value: Any, error: BaseException | None) -> None:
            mount.metadata.ack(unique)
            if error is None or isinstance(error, FsError):  # ESTALE: it ended with its session
                mount.opens.orphan_ended(ino)

        mount.metadata.propose(ReleaseOrphan(mount.volume, [ino]), unique).start(told)

    # --- read ----------------------------------------------------------------------------------------------------------------

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> list[Any] | Op:
        mount = self._mount
        mount.check_handle(fh)
        attr = mount.names.attr(ino)
        if attr is None:
            return self._read(ino, fh, offset, size)
        buffer = read_buffer()[:size]
        length = mount.files.read_into(mount.file(attr), offset, buffer)
        if length < 0:
            return self._read(ino, fh, offset, size)
        mount.atimes.accessed(mount.shown(attr), fh)
        return [buffer[:length]]

    def _read(self, ino: int, fh: int, offset: int, size: int) -> Op:
        """The layout is not known here: ask, then read on a pool thread."""
        mount = self._mount
        attr = yield from mount.attr_op(ino)
        state = mount.file(attr)
        for look in range(LOOKS_MAX):
            for _ in range(LAYOUT_PARTS_MAX):
                if not state.needs_layout(offset, offset + size):
                    break
                yield from self.fetch_layout(state, offset, size)
            yield OnPool(self._pool)
            buffer = read_buffer()[:size]
            length = mount.files.read_into(state, offset, buffer, last_look=look == LOOKS_MAX - 2)
            if length >= 0:
                mount.atimes.accessed(mount.shown(mount.names.attr(ino) or attr), fh)
                return [buffer[:length]]
        raise FsError(errno.EIO, f"layout of inode {ino} did not settle")

    def fetch_layout(self, state: FileState, offset: int, size: int) -> Op:
        mount = self._mount
        start = offset - offset % LAYOUT_ALIGN_BYTES
        if not state.is_inline and state.extents.knows(start, start) and start < state.extents.known_end:
            start = state.extents.known_end  # the rest of a layout that is told in parts
        end = max(start + LAYOUT_WINDOW_BYTES, offset + size)
        version = state.version
        reply: Layout = yield mount.metadata.ask(GetLayout(mount.volume, state.ino, start, end))
        mount.locations.learn(reply.segments)
        if state.version == version:  # else a commit came between question and answer; ask again
            state.learn_layout(start, reply.end, reply.extents, reply.inline)

    # --- write ---------------------------------------------------------------------------------------------------------------

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Op:
        mount = self._mount
        if offset + len(data) > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        attr = mount.names.attr(ino)
        if attr is None or fh in mount.failed_handles or mount.recovering or (write_flags & WRITE_KILL_SUIDGID and attr.mode & 0o6000):
            return self._write(ctx, ino, fh, offset, data, write_flags)
        if not self._store(ctx.unique, attr, offset, data):
            return self._write(ctx, ino, fh, offset, data, write_flags)
        return len(data)

    def _store(self, unique: int, attr: Attr, offset: int, data: memoryview, time_ns: int | None = None) -> bool:
        """One dirty record, if space is reserved and the dirty log has room; what the record stores survives this process."""
        mount = self._mount
        if attr.mode & 0o170000 != stat.S_IFREG:
            raise FsError(errno.EINVAL, "only regular files are written")
        need = record_space(len(data))
        if not mount.reservation.take(need):
            return False
        if not self._record(attr, offset, data, unique, time.time_ns() if time_ns is None else time_ns):
            mount.reservation.give_back(need)
            return False
        return True

    def _record(self, attr: Attr, offset: int, data: memoryview, unique: int, time_ns: int) -> bool:
        mount = self._mount
        hit("dirty.store.before")
        while not (state := mount.file(attr)).store(mount.dirty, offset, data, unique, time_ns):
            if not state.forgotten:
                return False
        hit("dirty.store.after")
        if mount.dirty.dirty_bytes >= DIRTY_FLUSH_BYTES:
            mount.flusher.kick()
        return True

    def _write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Op:
        mount = self._mount
        mount.check_handle(fh)
        if mount.recovering and mount.dirty.find_unique(ctx.unique) is not None:
            return len(data)  # the predecessor had stored it and died before it could say so
        attr: Attr = yield from mount.attr_op(ino)
        if write_flags & WRITE_KILL_SUIDGID and attr.mode & 0o6000:
            unique = mount.uniques.next_background_unique()
            reply: Found = yield mount.propose(SetAttr(mount.volume, ino, SET_KILL_SUIDGID), unique)
            mount.metadata.ack(unique)
            mount.names.put(reply.attr)
        yield from self._store_op(ctx.unique, attr, offset, data, fh=fh)
        return len(data)

    def _store_op(self, unique: int, attr: Attr, offset: int, data: memoryview, time_ns: int | None = None, fh: int | None = None) -> Op:
        """`_store`, waiting for room and space."""
        mount = self._mount
        flushed = False
        while True:
            room = mount.flusher.room()
            if self._store(unique, attr, offset, data, time_ns):
                return
            if mount.reservation.left_bytes >= record_space(len(data)):
                mount.flusher.kick()
                yield room
                continue
            try:
                yield from mount.reservation.refill(record_space(len(data)))
            except FsError as err:
                if err.errno == errno.ESTALE:  # the session was replaced
                    yield mount.lease.renewed()
                    mount.check_handle(fh)
                    continue
                if err.errno in SPACE_ERRORS and (yield from self._write_allocated(unique, attr, offset, data, fh)):
                    return
                if err.errno not in SPACE_ERRORS or flushed:
                    raise
                flushed = True  # what dirty records took and do not need comes back when they are flushed
                yield mount.flusher.flush_all()

    def _write_allocated(self, unique: int, attr: Attr, offset: int, data: memoryview, fh: int | None) -> Op:
        """Nothing can be reserved, but fallocate(2) may have kept space for this range: true if so, and the write is stored."""
        mount = self._mount
        if attr.inline or not len(data):
            return False
        while True:
            try:
                yield from mount.reservation.draw(attr.ino, offset, len(data), record_space(len(data)))
                break
            except FsError as err:
                if err.errno in SPACE_ERRORS:
                    return False
                if err.errno != errno.ESTALE:
                    raise
            yield mount.lease.renewed()  # the session was replaced
            mount.check_handle(fh)
        while True:
            room = mount.flusher.room()
            if self._record(attr, offset, data, unique, time.time_ns()):
                return True
            mount.flusher.kick()
            yield room

    def leave_inline(self, attr: Attr) -> Op:
        """Inline data becomes extents: an empty record, and a flush that takes the inline data along to a segment.

        The record carries no bytes, so it cannot lay old ones over what is written meanwhile; for a successor it is nothing to do.
        """
        mount = self._mount
        state = mount.file(attr)
        state.leave_inline = True
        try:
            if not state.dirty:
                yield from self._store_op(0, attr, 0, memoryview(b""), attr.mtime_ns)
            yield mount.flusher.flush(attr.ino)
        finally:
            state.leave_inline = False

    # --- truncate ------------------------------------------------------------------------------------------------------------

    def truncate_to_zero(self, ctx: Context, attr: Attr, unique: int) -> Op:
        mask = SET_SIZE | (SET_KILL_SUIDGID if ctx.kill_suidgid else 0)
        attr = yield from self.set_size(attr, SetAttr(self._mount.volume, attr.ino, mask), unique)
        return attr

    def set_size(self, attr: Attr, command: SetAttr, unique: int, fh: int | None = None) -> Op:
        """Truncate or extend.  Dirty records are flushed first; those of a truncation to nothing just end.

        The command names the newest record, so a successor that replays older ones cannot bring back what was cut off.
        """
        mount = self._mount
        state = mount.file(attr)
        if command.size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        state.held = command.size == 0
        try:
            if state.dirty:
                yield mount.flusher.flush(attr.ino, in_flight_only=state.held)
            command.log, command.sequence = mount.dirty.log_id, mount.dirty.last_sequence
            hit("truncate.entry.before")
            reply: Found = yield mount.propose(command, unique, fh=fh)
            hit("truncate.entry.after")
            mount.names.put(reply.attr)
            if state.held:
                mount.release_space(mount.files.discard(attr.ino))
            state.truncate_committed(command.size, command.sequence)
            current = mount.files.get(attr.ino)
            if current is not None and current is not state:  # ours was forgotten meanwhile
                current.truncate_committed(command.size, command.sequence)
        finally:
            state.held = False
        return reply.attr

    def statfs(self, ctx: Context, ino: int) -> Op:
        reply: StatFsReply = yield self._mount.metadata.ask(GetStatFs(self._mount.volume))
        return reply.stat
