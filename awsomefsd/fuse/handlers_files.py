"""Handlers of requests about open files, directories and locks; see handlers_names.py for their contract."""

from __future__ import annotations

import os
from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import FUSE_WRITE_BYTES_MAX
from awsomefsd.base.types import LOCK_FLOCK, LOCK_POSIX, Lock
from awsomefsd.fuse import abi
from awsomefsd.fuse.handlers_names import text
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.api.filesystem import FilesystemDirectories, FilesystemFiles, FilesystemLocks

COPIED_BYTES_MAX = (1 << 32) - (1 << 20)


def create(fs: FilesystemFiles, ctx: Context, parent: int, body: memoryview) -> Any:
    flags, mode, ctx.umask, open_flags = abi.CREATE_IN.unpack_from(body)
    ctx.kill_suidgid = open_flags & abi.OPEN_KILL_SUIDGID != 0
    return fs.create(ctx, parent, text(body, abi.CREATE_IN.size), mode, flags)


def tmpfile(fs: FilesystemFiles, ctx: Context, parent: int, body: memoryview) -> Any:
    """Handles TMPFILE: its struct is that of CREATE, and its name means nothing."""
    flags, mode, ctx.umask, _ = abi.CREATE_IN.unpack_from(body)
    return fs.tmpfile(ctx, parent, mode, flags)


def open_(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    flags, open_flags = abi.OPEN_IN.unpack_from(body)
    ctx.kill_suidgid = open_flags & abi.OPEN_KILL_SUIDGID != 0
    return fs.open(ctx, ino, flags)


def read(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, offset, size, read_flags, _, _, _ = abi.READ_IN.unpack_from(body)
    if size > FUSE_WRITE_BYTES_MAX:
        raise ProtocolError(f"READ of {size} bytes")
    ctx.fills_pages = not read_flags & abi.READ_LOCKOWNER  # that names who reads directly
    return fs.read(ctx, ino, fh, offset, size)


def write(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, offset, size, write_flags, _, ctx.open_flags, _ = abi.WRITE_IN.unpack_from(body)
    start = abi.WRITE_IN.size
    if len(body) - start < size:
        raise ProtocolError("WRITE is cut short")
    return fs.write(ctx, ino, fh, offset, body[start : start + size], write_flags)


def fallocate(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
    return fs.fallocate(ctx, ino, fh, mode, offset, length)


def lseek(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, offset, whence, _ = abi.LSEEK_IN.unpack_from(body)
    return fs.lseek(ctx, ino, fh, offset, whence)


def copy_file_range_64(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    _, offset, new_ino, new_fh, new_offset, length, flags = abi.COPY_FILE_RANGE_IN.unpack_from(body)
    return fs.copy_file_range(ctx, ino, offset, new_ino, new_fh, new_offset, length, flags)


def copy_file_range(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    """Handles the older request, whose answer has 32 bits for the number of bytes."""
    _, offset, new_ino, new_fh, new_offset, length, flags = abi.COPY_FILE_RANGE_IN.unpack_from(body)
    return fs.copy_file_range(ctx, ino, offset, new_ino, new_fh, new_offset, min(length, COPIED_BYTES_MAX), flags)


def flush(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, _, _, lock_owner = abi.FLUSH_IN.unpack_from(body)
    return fs.flush(ctx, ino, fh, lock_owner)


def release(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, flags, release_flags, lock_owner = abi.RELEASE_IN.unpack_from(body)
    return fs.release(ctx, ino, fh, flags, release_flags, lock_owner)


def fsync(fs: FilesystemFiles, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, fsync_flags, _ = abi.FSYNC_IN.unpack_from(body)
    return fs.fsync(ctx, ino, fh, fsync_flags & abi.FSYNC_FDATASYNC != 0)


def opendir(fs: FilesystemDirectories, ctx: Context, ino: int, body: memoryview) -> Any:
    return fs.opendir(ctx, ino, abi.OPEN_IN.unpack_from(body)[0] | os.O_DIRECTORY)


def _readdir(fs: FilesystemDirectories, ctx: Context, ino: int, body: memoryview, plus: bool) -> Any:
    fh, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
    ctx.reply_bytes_max, ctx.parent = min(size, FUSE_WRITE_BYTES_MAX), ino
    return fs.readdir(ctx, ino, fh, offset, plus)


def readdir(fs: FilesystemDirectories, ctx: Context, ino: int, body: memoryview) -> Any:
    return _readdir(fs, ctx, ino, body, False)


def readdirplus(fs: FilesystemDirectories, ctx: Context, ino: int, body: memoryview) -> Any:
    return _readdir(fs, ctx, ino, body, True)


def releasedir(fs: FilesystemDirectories, ctx: Context, ino: int, body: memoryview) -> Any:
    return fs.releasedir(ctx, ino, abi.RELEASE_IN.unpack_from(body)[0])


def fsyncdir(fs: FilesystemDirectories, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, fsync_flags, _ = abi.FSYNC_IN.unpack_from(body)
    return fs.fsyncdir(ctx, ino, fh, fsync_flags & abi.FSYNC_FDATASYNC != 0)


def _lock(body: memoryview) -> tuple[int, Lock]:
    fh, owner, start, end, lock_type, pid, lk_flags, _ = abi.LK_IN.unpack_from(body)
    if lock_type > abi.LK_UNLCK:
        raise ProtocolError(f"lock type {lock_type}")
    kind = LOCK_FLOCK if lk_flags & abi.LK_FLOCK else LOCK_POSIX
    return fh, Lock(kind, owner, pid, lock_type, start, end)


def getlk(fs: FilesystemLocks, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, lock = _lock(body)
    return fs.getlk(ctx, ino, fh, lock)


def setlk(fs: FilesystemLocks, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, lock = _lock(body)
    return fs.setlk(ctx, ino, fh, lock, False)


def setlkw(fs: FilesystemLocks, ctx: Context, ino: int, body: memoryview) -> Any:
    fh, lock = _lock(body)
    return fs.setlk(ctx, ino, fh, lock, True)
