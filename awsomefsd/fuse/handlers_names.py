"""Handlers of requests about names: each decodes the body and returns the result of the filesystem, or its Steps.

They run on the thread that has read the request, and block only as the filesystem does.  They raise ProtocolError or struct.error for a
body that is too short, and what the filesystem raises.
"""

from __future__ import annotations

from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.fuse import abi
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.api.filesystem import FilesystemNames, FilesystemSession


def text(body: memoryview, start: int) -> bytes:
    """Returns the one NUL-terminated string that a request ends with, without its NUL.  Raises ProtocolError if the NUL is missing."""
    raw = bytes(body[start:])
    if raw[-1:] != b"\0":
        raise ProtocolError("string without NUL in a request")
    return raw[:-1]


def two_texts(body: memoryview, start: int) -> tuple[bytes, bytes]:
    """Returns the two NUL-terminated strings that a request ends with.  Raises ProtocolError if one is missing."""
    first, separator, second = text(body, start).partition(b"\0")
    if not separator:
        raise ProtocolError("one string where two belong in a request")
    return first, second


def lookup(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    ctx.parent, ctx.name = parent, text(body, 0)
    return fs.lookup(ctx, parent, ctx.name)


def forget(fs: FilesystemSession, ctx: Context, ino: int, body: memoryview) -> None:
    fs.forget(ino, abi.FORGET_IN.unpack_from(body)[0])


def batch_forget(fs: FilesystemSession, ctx: Context, nodeid: int, body: memoryview) -> None:
    (count, _) = abi.BATCH_FORGET_IN.unpack_from(body)
    end = abi.BATCH_FORGET_IN.size + count * abi.FORGET_ONE.size
    if end > len(body):
        raise ProtocolError("BATCH_FORGET is cut short")
    for ino, nlookup in abi.FORGET_ONE.iter_unpack(body[abi.BATCH_FORGET_IN.size : end]):
        fs.forget(ino, nlookup)


def readlink(fs: FilesystemNames, ctx: Context, ino: int, body: memoryview) -> Any:
    return fs.readlink(ctx, ino)


def mknod(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    mode, rdev, ctx.umask, _ = abi.MKNOD_IN.unpack_from(body)
    return fs.mknod(ctx, parent, text(body, abi.MKNOD_IN.size), mode, rdev)


def mkdir(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    mode, ctx.umask = abi.MKDIR_IN.unpack_from(body)
    return fs.mkdir(ctx, parent, text(body, abi.MKDIR_IN.size), mode)


def symlink(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    name, target = two_texts(body, 0)
    return fs.symlink(ctx, parent, name, target)


def link(fs: FilesystemNames, ctx: Context, new_parent: int, body: memoryview) -> Any:
    (ino,) = abi.LINK_IN.unpack_from(body)
    return fs.link(ctx, ino, new_parent, text(body, abi.LINK_IN.size))


def unlink(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    return fs.unlink(ctx, parent, text(body, 0))


def rmdir(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    return fs.rmdir(ctx, parent, text(body, 0))


def rename(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    (new_parent,) = abi.RENAME_IN.unpack_from(body)
    name, new_name = two_texts(body, abi.RENAME_IN.size)
    return fs.rename(ctx, parent, name, new_parent, new_name, 0)


def rename2(fs: FilesystemNames, ctx: Context, parent: int, body: memoryview) -> Any:
    new_parent, flags, _ = abi.RENAME2_IN.unpack_from(body)
    name, new_name = two_texts(body, abi.RENAME2_IN.size)
    return fs.rename(ctx, parent, name, new_parent, new_name, flags)
