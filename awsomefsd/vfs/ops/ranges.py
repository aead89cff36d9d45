"""fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range: what is done to ranges of a file and is no write.

fallocate and copy_file_range are entries of the log, under the id of the kernel's request, and durable when they return (decision 10).  In
what order they meet dirty records of the same file:

- What was acknowledged before the call is committed first: the flush is awaited before the entry is proposed.  A record that is
  committed is not committed again, by a successor either: the machine ignores a Commit of a log and sequence that it has seen.  So
  nothing older comes back.
- What is acknowledged while the call runs has no order with it.  It is committed before the entry or after it, and is seen or not as if
  it had been written before or after.
- What is written after the call is committed after it.

A worker that dies before the entry is applied leaves nothing behind, and its successor begins again, after it has flushed what it
inherited; one that dies after it gets the stored result.  A flush in flight at the same time is a Commit before or after the entry, in
the one order of the log; caches of the layout are forgotten when the answer comes, and what was asked before that is not believed
(FileState.version).  Keeping space takes more entries where a file has thousands of extents.  They change nothing that can be read, so
beginning again is harmless.
"""

from __future__ import annotations

import errno
import os

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import FILE_BYTES_MAX
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Steps
from awsomefsd.io.file.file_data import FileState
from awsomefsd.meta.api.commands import FALLOC_KEEP_SIZE, FALLOC_MODES, CopyRange, Fallocate
from awsomefsd.meta.api.messages import Ranged
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.caller_credentials import loses_set_ids
from awsomefsd.vfs.ops.data import DataOps
from awsomefsd.vfs.ops.reading import KnownLayouts
from awsomefsd.vfs.ops.writing import SPACE_ERRORS, kill_setgid, let_room_come_back
from awsomefsd.vfs.state.mount_state import MountState


class RangeOps:
    def __init__(self, mount: MountState, data: DataOps, layouts: KnownLayouts) -> None:
        self._mount = mount
        self._data = data
        self._layouts = layouts

    # --- fallocate -----------------------------------------------------------------------------------------------------------

    def fallocate(self, ctx: Context, ino: int, fh: int, mode: int, offset: int, length: int) -> Steps:
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        if offset < 0 or length <= 0:
            raise FsError(errno.EINVAL)
        if mode not in FALLOC_MODES:
            raise FsError(errno.EOPNOTSUPP)
        if offset + length > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        return self._fallocate(ctx, fh, Fallocate(self._mount.volume, ino, mode, offset, length, loses_set_ids(ctx.uid, ctx.pid)))

    def _fallocate(self, ctx: Context, fh: int, command: Fallocate) -> Steps:
        mount = self._mount
        mount.session.check_handle(fh)
        reply: Ranged = yield from self._entry(command, ctx.unique, fh)
        if command.kill_suidgid:
            yield from kill_setgid(mount, reply.attr, ctx)
        end = command.offset + command.length
        while reply.reached < end:
            rest = Fallocate(mount.volume, command.ino, FALLOC_KEEP_SIZE, reply.reached, end - reply.reached, goes_on=True)
            with mount.background_unique() as unique:
                reply = yield from self._entry(rest, unique, fh)

    def _entry(self, command: Fallocate, unique: int, fh: int) -> Steps:
        """One entry.  EAGAIN and the errors of space change nothing and are not kept, so the same request id may go out again."""
        mount = self._mount
        gave_back = False
        while True:
            attr: Attr = yield from mount.attr_op(command.ino)
            state = mount.file(attr)
            if state.dirty:
                yield mount.buffered.flusher.flush(command.ino)
            try:
                reply: Ranged = yield mount.propose(command, unique, fh=fh)
            except FsError as err:
                if err.errno == errno.EAGAIN:
                    yield from self._data.leave_inline(attr)
                    continue
                if err.errno not in SPACE_ERRORS or gave_back:
                    raise
                gave_back = True
                yield from let_room_come_back(mount)
                yield from mount.buffered.reservation.return_all()
                continue
            self._learn(reply.attr)
            return reply

    def _learn(self, attr: Attr) -> None:
        mount = self._mount
        mount.caches.bytes_changed(None if mount.session.recovering else mount.caches.names.attr(attr.ino), attr)
        mount.caches.names.put(attr)
        state = mount.buffered.files.get(attr.ino)
        if state is not None:
            state.forget_layout(attr)

    # --- lseek ---------------------------------------------------------------------------------------------------------------

    def lseek(self, ctx: Context, ino: int, fh: int, offset: int, whence: int) -> Steps:
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL)
        return self._lseek(ino, fh, offset, whence)

    def _lseek(self, ino: int, fh: int, offset: int, whence: int) -> Steps:
        """From part to part of the layout, as far as they say the same.  All that is left is asked for at once: a window at a time would
        take a million requests for the hole of a file of terabytes."""
        mount = self._mount
        mount.session.check_handle(fh)
        attr: Attr = yield from mount.attr_op(ino)
        at = offset
        state = mount.file(attr)
        while True:
            if state.forgotten:
                state = mount.file(attr)
            if at >= state.size:
                if at > offset and whence == os.SEEK_HOLE:
                    return state.size
                raise FsError(errno.ENXIO)
            known = state.spans(at)
            if known is None:
                state = yield from self._layouts.of_one_moment(state, at)
                continue
            spans, end = known
            if whence == os.SEEK_DATA and spans:
                return spans[0][0]
            if whence == os.SEEK_HOLE and (not spans or spans[0][0] > at):
                return at
            at = spans[0][1] if whence == os.SEEK_HOLE and spans else end

    # --- copy_file_range -----------------------------------------------------------------------------------------------------

    def copy_file_range(
        self, ctx: Context, ino: int, offset: int, new_ino: int, new_fh: int, new_offset: int, length: int, flags: int
    ) -> Steps:
        """Copies by reference; where that cannot be, EOPNOTSUPP makes the kernel copy the bytes by reading and writing."""
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        if flags:
            raise FsError(errno.EINVAL)
        kill = loses_set_ids(ctx.uid, ctx.pid)
        command = CopyRange(self._mount.volume, ino, offset, new_ino, new_offset, min(length, FILE_BYTES_MAX), kill)
        return self._copy(ctx, new_fh, command)

    def _copy(self, ctx: Context, fh: int, command: CopyRange) -> Steps:
        mount = self._mount
        mount.session.check_handle(fh)
        for ino in (command.ino, command.new_ino):
            state: FileState | None = mount.buffered.files.get(ino)
            if state is not None and state.dirty:
                yield mount.buffered.flusher.flush(ino)
        for gave_back in (False, True):
            try:
                reply: Ranged = yield mount.propose(command, ctx.unique, fh=fh)
                break
            except FsError as err:
                if err.errno not in SPACE_ERRORS or gave_back:
                    raise
                yield from let_room_come_back(mount)
                yield from mount.buffered.reservation.return_all()
        self._learn(reply.attr)
        if command.kill_suidgid and reply.reached:
            yield from kill_setgid(mount, reply.attr, ctx)
        return reply.reached
