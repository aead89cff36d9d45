"""The bytes of files on a volume that this mount has for itself: names, layouts and dirty records are believed until they change here."""

from __future__ import annotations

import errno
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import FILE_BYTES_MAX
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Payload, Steps, keeping
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.reading import Reading
from awsomefsd.vfs.ops.writing import WRITE_KILL_SUIDGID, DirtyWrites, Serving, kill_suidgid, stored
from awsomefsd.vfs.state.mount_state import MountState


class WholeData:
    """The policy of a volume held whole (vfs/ops/data.py)."""

    def __init__(self, mount: MountState, reading: Reading, dirty: DirtyWrites) -> None:
        """`reading`: through KnownLayouts."""
        self._mount = mount
        self._reading = reading
        self._dirty = dirty
        self.leave_inline = dirty.leave_inline
        self.set_size = dirty.set_size

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> list[Any] | Steps:
        mount = self._mount
        mount.session.check_handle(fh)
        mount.caches.pages.used(fh)
        attr = mount.caches.names.attr(ino)
        if attr is None:
            return self._read(ino, fh, offset, size)
        pieces = self._reading.at_once(mount.file(attr), offset, size)
        if pieces is None:
            return self._read(ino, fh, offset, size)
        mount.caches.atimes.accessed(mount.shown(attr), fh)
        return pieces

    def _read(self, ino: int, fh: int, offset: int, size: int) -> Steps:
        mount = self._mount
        attr: Attr = yield from mount.attr_op(ino)
        pieces: list[Any] = yield from self._reading.steps(ino, mount.file(attr), offset, size)
        mount.caches.atimes.accessed(mount.shown(mount.caches.names.attr(ino) or attr), fh)
        return pieces

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Steps:
        mount = self._mount
        if offset + len(data) > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        attr = mount.caches.names.attr(ino)
        session = mount.session
        stamp = session.lease.stamp()
        if attr is None or fh in session.failed_handles or session.recovering or (write_flags & WRITE_KILL_SUIDGID and attr.mode & 0o6000):
            return self._write(ctx, ino, fh, offset, data, write_flags)
        if not self._dirty.store(ctx.unique, attr, offset, data, may=Serving(mount, fh)):
            return self._write(ctx, ino, fh, offset, data, write_flags)
        return len(data) if stamp and session.lease.stamp() == stamp else keeping(data, stored(mount, fh, len(data)))

    def _write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Steps:
        mount = self._mount
        mount.session.check_handle(fh)
        if mount.session.recovering and mount.buffered.dirty.find_unique(ctx.unique) is not None:
            return len(data)  # the predecessor had stored it and died before it could say so
        data = yield Payload(data)
        attr: Attr = yield from mount.attr_op(ino)
        if write_flags & WRITE_KILL_SUIDGID:
            yield from kill_suidgid(mount, attr, ctx)
        yield from self._dirty.write(ctx.unique, attr, offset, data, fh)
        return (yield from stored(mount, fh, len(data)))

    def closing(self, ino: int, fh: int) -> Steps | None:
        return None
