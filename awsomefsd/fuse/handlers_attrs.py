"""Handlers of requests about attributes, extended attributes and the volume's figures; see handlers_names.py for their contract."""

from __future__ import annotations

from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.fuse import abi
from awsomefsd.fuse.handlers_names import text
from awsomefsd.meta.api.commands import SET_ATIME, SET_CTIME, SET_GID, SET_KILL_SUIDGID, SET_MODE, SET_MTIME, SET_SIZE, SET_UID
from awsomefsd.vfs.api.context import Context, SetAttrIn
from awsomefsd.vfs.api.filesystem import FilesystemAttributes

_MASK = (
    (abi.FATTR_MODE, SET_MODE),
    (abi.FATTR_UID, SET_UID),
    (abi.FATTR_GID, SET_GID),
    (abi.FATTR_SIZE, SET_SIZE),
    (abi.FATTR_ATIME, SET_ATIME),
    (abi.FATTR_ATIME_NOW, SET_ATIME),
    (abi.FATTR_MTIME, SET_MTIME),
    (abi.FATTR_MTIME_NOW, SET_MTIME),
    (abi.FATTR_CTIME, SET_CTIME),
    (abi.FATTR_KILL_SUIDGID, SET_KILL_SUIDGID),
)


def getattr_(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    flags, _, fh = abi.GETATTR_IN.unpack_from(body)
    return fs.getattr(ctx, ino, fh if flags & abi.GETATTR_FH else None)


def setattr_(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    (
        valid, _, fh, size, _, atime, mtime, ctime, atime_nsec, mtime_nsec, ctime_nsec, mode, _, uid, gid, _,
    ) = abi.SETATTR_IN.unpack_from(body)  # fmt: skip
    mask = 0
    for flag, bit in _MASK:
        if valid & flag:
            mask |= bit
    change = SetAttrIn(mask, mode, uid, gid, size)
    if valid & abi.FATTR_ATIME and not valid & abi.FATTR_ATIME_NOW:
        change.atime_ns = atime * abi.NSEC + atime_nsec
    if valid & abi.FATTR_MTIME and not valid & abi.FATTR_MTIME_NOW:
        change.mtime_ns = mtime * abi.NSEC + mtime_nsec
    if valid & abi.FATTR_CTIME:
        change.ctime_ns = ctime * abi.NSEC + ctime_nsec
    return fs.setattr(ctx, ino, fh if valid & abi.FATTR_FH else None, change)


def statfs(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    return fs.statfs(ctx, ino)


def _setxattr(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview, start: int) -> Any:
    size, flags = abi.SETXATTR_IN.unpack_from(body)
    name, separator, value = bytes(body[start:]).partition(b"\0")
    if not separator or len(value) != size:
        raise ProtocolError("SETXATTR: name and value do not fit the request")
    return fs.setxattr(ctx, ino, name, value, flags)


def setxattr(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    return _setxattr(fs, ctx, ino, body, abi.SETXATTR_IN.size)


def setxattr_ext(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    """Handles SETXATTR with SETXATTR_EXT negotiated: the struct is twice as long; its one flag is about ACLs."""
    ctx.kill_sgid = abi.SETXATTR_EXT_IN.unpack_from(body)[2] & abi.SETXATTR_ACL_KILL_SGID != 0
    return _setxattr(fs, ctx, ino, body, abi.SETXATTR_EXT_IN.size)


def getxattr(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    ctx.reply_bytes_max, _ = abi.GETXATTR_IN.unpack_from(body)
    return fs.getxattr(ctx, ino, text(body, abi.GETXATTR_IN.size))


def listxattr(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    ctx.reply_bytes_max, _ = abi.GETXATTR_IN.unpack_from(body)
    return fs.listxattr(ctx, ino)


def removexattr(fs: FilesystemAttributes, ctx: Context, ino: int, body: memoryview) -> Any:
    return fs.removexattr(ctx, ino, text(body, 0))
