"""One table leads from opcode to handler; it is indexed by opcode and built once, when the mount's INIT is known.

A row is (call, encode, stored): `call(filesystem, context, nodeid, body)` decodes and returns the filesystem's result or Steps;
`encode(filesystem, context, result)` packs the reply, None for requests without one; `stored` says that an answer which may have reached
the application must not be computed a second time, so it is kept in shared memory until it is sent.

Opcodes without a row are answered ENOSYS: the kernel remembers that and falls back (access to its own check, statx
to getattr).  IOCTL is answered ENOTTY, the answer of a file without that ioctl, but for the one of
access_log.py.
"""

from __future__ import annotations

import errno
import logging
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import Error, FsError, ProtocolError, Unavailable
from awsomefsd.fuse import abi, encode, handlers_attrs, handlers_files, handlers_names
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.encode import Reply, left_ns
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.api.filesystem import Filesystem

log = logging.getLogger("awsomefsd.fuse")

Call = Callable[[Filesystem, Context, int, memoryview], Any]
Row = tuple[Call, "Callable[[Filesystem, Context, Any], Reply] | None", bool]

LOG_INTERVAL_S = 60.0  # between two tracebacks of one kind


def _refuse(number: int) -> Call:
    def refuse(fs: Filesystem, ctx: Context, nodeid: int, body: memoryview) -> Any:
        raise FsError(number)

    return refuse


def _accept(fs: Filesystem, ctx: Context, nodeid: int, body: memoryview) -> None:
    """Accepts a request that needs no work."""


UNSUPPORTED: Row = (_refuse(errno.ENOSYS), encode.nothing, False)
_RANGES: dict[Opcode, Row] = {
    Opcode.FALLOCATE: (handlers_files.fallocate, encode.nothing, True),
    Opcode.LSEEK: (handlers_files.lseek, encode.number, False),
    Opcode.COPY_FILE_RANGE: (handlers_files.copy_file_range, encode.written, True),
    Opcode.COPY_FILE_RANGE_64: (handlers_files.copy_file_range_64, encode.number, True),
}


def table(flags: int) -> list[Row]:
    """Returns the rows of all opcodes, indexed by opcode, for the negotiated INIT flags."""
    names, attrs, files = handlers_names, handlers_attrs, handlers_files
    setxattr = attrs.setxattr_ext if flags & abi.SETXATTR_EXT else attrs.setxattr
    rows: dict[Opcode, Row] = {
        Opcode.LOOKUP: (names.lookup, encode.looked_up, False),
        Opcode.FORGET: (names.forget, None, False),
        Opcode.BATCH_FORGET: (names.batch_forget, None, False),
        Opcode.NOTIFY_REPLY: (_accept, None, False),
        Opcode.GETATTR: (attrs.getattr_, encode.asked, False),
        Opcode.SETATTR: (attrs.setattr_, encode.attributes, True),
        Opcode.STATFS: (attrs.statfs, encode.statfs, False),
        Opcode.READLINK: (names.readlink, encode.plain, False),
        Opcode.MKNOD: (names.mknod, encode.entry, True),
        Opcode.MKDIR: (names.mkdir, encode.entry, True),
        Opcode.SYMLINK: (names.symlink, encode.entry, True),
        Opcode.LINK: (names.link, encode.entry, True),
        Opcode.UNLINK: (names.unlink, encode.nothing, True),
        Opcode.RMDIR: (names.rmdir, encode.nothing, True),
        Opcode.RENAME: (names.rename, encode.nothing, True),
        Opcode.RENAME2: (names.rename2, encode.nothing, True),
        Opcode.CREATE: (files.create, encode.created, True),
        Opcode.TMPFILE: (files.tmpfile, encode.created, True),
        Opcode.OPEN: (files.open_, encode.opened, True),
        Opcode.READ: (files.read, encode.data, False),
        Opcode.WRITE: (files.write, encode.written, True),
        Opcode.FLUSH: (files.flush, encode.nothing, True),
        Opcode.RELEASE: (files.release, encode.nothing, True),
        **_RANGES,
        Opcode.FSYNC: (files.fsync, encode.nothing, False),
        Opcode.OPENDIR: (files.opendir, encode.opened, True),
        Opcode.READDIR: (files.readdir, encode.directory, False),
        Opcode.READDIRPLUS: (files.readdirplus, encode.directory_plus, False),
        Opcode.RELEASEDIR: (files.releasedir, encode.nothing, True),
        Opcode.FSYNCDIR: (files.fsyncdir, encode.nothing, False),
        Opcode.SETXATTR: (setxattr, encode.nothing, True),
        Opcode.GETXATTR: (attrs.getxattr, encode.sized, False),
        Opcode.LISTXATTR: (attrs.listxattr, encode.names, False),
        Opcode.REMOVEXATTR: (attrs.removexattr, encode.nothing, True),
        Opcode.GETLK: (files.getlk, encode.lock, False),
        Opcode.SETLK: (files.setlk, encode.nothing, True),
        Opcode.SETLKW: (files.setlkw, encode.nothing, True),
        Opcode.IOCTL: (_refuse(errno.ENOTTY), encode.nothing, False),
        Opcode.DESTROY: (_accept, encode.nothing, False),
    }
    result = [UNSUPPORTED] * abi.OPCODES
    for opcode, row in rows.items():
        result[opcode] = row
    return result


# ENOENT of one of these says that its inode is gone.  The kernel may have looked it up by a name that leads to another file by now, after a
# rename over it, here or on another node: on ESTALE it looks again, and its caller sees the old file or the new one.
OF_ITS_INODE = frozenset((
    Opcode.OPEN, Opcode.OPENDIR, Opcode.GETATTR, Opcode.SETATTR, Opcode.READLINK, Opcode.ACCESS,
    Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR,
))  # fmt: skip


class Failures:
    """Turns the exception of a request into its reply.  Thread-safe.

    Our own bugs are logged once per kind and interval, and answered EIO.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logged: dict[tuple[int, str, str], float] = {}

    def reply(self, fs: Filesystem, opcode: int, ctx: Context, err: BaseException) -> Reply:
        """Returns the error reply; for a LOOKUP without the name it may be one that the kernel remembers."""
        if isinstance(err, (ProtocolError, struct.error)):
            self._report(opcode, ctx, err)
            return abi.pack_error(ctx.wire_unique, errno.EINVAL)
        if not isinstance(err, Error):
            self._report(opcode, ctx, err)
            return abi.pack_error(ctx.wire_unique, errno.EIO)
        if isinstance(err, Unavailable):  # a device that cannot be opened, say: EAGAIN from a blocking descriptor means something else
            log.error("request %d (opcode %d): %s", ctx.unique, opcode, err)
            return abi.pack_error(ctx.wire_unique, errno.EIO)
        if opcode == Opcode.LOOKUP and err.errno == errno.ENOENT:
            ttl_ns = left_ns(ctx, fs.name_ttl_ns(ctx.parent, ctx.name, 0))
            if ttl_ns > 0:
                return abi.pack_negative_entry(ctx.wire_unique, ttl_ns)
        stale = err.errno == errno.ENOENT and opcode in OF_ITS_INODE
        return abi.pack_error(ctx.wire_unique, errno.ESTALE if stale else err.errno)

    def _report(self, opcode: int, ctx: Context, err: BaseException) -> None:
        kind = (opcode, type(err).__name__, _place(err))
        now = time.monotonic()
        with self._lock:
            if now - self._logged.get(kind, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
                return
            if len(self._logged) > 256:
                self._logged.clear()
            self._logged[kind] = now
        log.error("request failed: opcode %d, %r, unique %d", opcode, type(err).__name__, ctx.unique, exc_info=err)


def _place(err: BaseException) -> str:
    """Returns the place where it was raised: file and line of the innermost frame."""
    frame = err.__traceback__
    if frame is None:
        return ""
    while frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
