"""Encoders turn results of the filesystem into reply bytes.

An encoder gets (filesystem, context, result), and returns bytes, or a list of buffers that one writev sends.  It runs on the thread that
has the result, and never blocks.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from typing import Any, Union

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import Attr, Dirent, Lock, StatFs
from awsomefsd.fuse import abi
from awsomefsd.vfs.api.context import CachePolicy, Context, Opened
from awsomefsd.vfs.api.filesystem import Filesystem

Reply = Union[bytes, list[Any]]
_FOPEN = {CachePolicy.DROP: 0, CachePolicy.KEEP: abi.FOPEN_KEEP_CACHE, CachePolicy.DIRECT: abi.FOPEN_DIRECT_IO}
PIECES_MAX = 1000  # below IOV_MAX (1024)


def nothing(fs: Filesystem, ctx: Context, value: Any) -> bytes:
    return abi.OUT_HEADER.pack(abi.OUT_HEADER_BYTES, 0, ctx.wire_unique)


def entry(fs: Filesystem, ctx: Context, value: Attr) -> bytes:
    ttl_ns = fs.ttl_ns()
    return abi.pack_entry(ctx.wire_unique, value, ttl_ns, ttl_ns)


def left_ns(ctx: Context, ttl_ns: int) -> int:
    """Returns the rest (ns) of a time that began when the request arrived; 0 once it is over."""
    return max(0, ttl_ns - (time.monotonic_ns() - ctx.began_ns)) if ttl_ns else 0


def looked_up(fs: Filesystem, ctx: Context, value: Attr) -> bytes:
    return abi.pack_entry(ctx.wire_unique, value, left_ns(ctx, fs.name_ttl_ns(ctx.parent, ctx.name, value.ino)), fs.ttl_ns())


def asked(fs: Filesystem, ctx: Context, value: Attr) -> bytes:
    """Encodes the reply to GETATTR, and to no other request."""
    return abi.pack_attr(ctx.wire_unique, value, left_ns(ctx, fs.attr_ttl_ns(value)))


def attributes(fs: Filesystem, ctx: Context, value: Attr) -> bytes:
    return abi.pack_attr(ctx.wire_unique, value, fs.ttl_ns())


def opened(fs: Filesystem, ctx: Context, value: Opened) -> bytes:
    return abi.pack_open(ctx.wire_unique, value.fh, _FOPEN[value.cache])


def created(fs: Filesystem, ctx: Context, value: tuple[Attr, Opened]) -> bytes:
    attr, handle = value
    return abi.pack_create(ctx.wire_unique, attr, fs.ttl_ns(), handle.fh, _FOPEN[handle.cache])


def plain(fs: Filesystem, ctx: Context, value: bytes) -> bytes:
    return abi.pack_bytes(ctx.wire_unique, value)


def data(fs: Filesystem, ctx: Context, value: list[Any]) -> Reply:
    if len(value) > PIECES_MAX:
        value = [b"".join(value)]
    return [abi.OUT_HEADER.pack(abi.OUT_HEADER_BYTES + sum(map(len, value)), 0, ctx.wire_unique), *value]


def written(fs: Filesystem, ctx: Context, value: int) -> bytes:
    return abi.pack_write(ctx.wire_unique, value)


def number(fs: Filesystem, ctx: Context, value: int) -> bytes:
    return abi.pack_u64(ctx.wire_unique, value)


def statfs(fs: Filesystem, ctx: Context, value: StatFs) -> bytes:
    return abi.pack_statfs(ctx.wire_unique, value)


def sized(fs: Filesystem, ctx: Context, value: bytes) -> bytes:
    """Encodes the value of getxattr(2) or listxattr(2): room 0 asks for its length.  Raises FsError(ERANGE) for too little room."""
    room = ctx.reply_bytes_max
    if room == 0:
        return abi.pack_size(ctx.wire_unique, len(value))
    if len(value) > room:
        raise FsError(errno.ERANGE)
    return abi.pack_bytes(ctx.wire_unique, value)


def names(fs: Filesystem, ctx: Context, value: list[bytes]) -> bytes:
    return sized(fs, ctx, b"".join(name + b"\0" for name in value))


def lock(fs: Filesystem, ctx: Context, value: Lock | None) -> bytes:
    if value is None:
        return abi.pack_lock(ctx.wire_unique, 0, 0, abi.LK_UNLCK, 0)
    return abi.pack_lock(ctx.wire_unique, value.start, value.end, value.lock_type, value.pid)


def directory(fs: Filesystem, ctx: Context, value: Iterable[Dirent]) -> bytes:
    room = ctx.reply_bytes_max
    packed: list[bytes] = []
    for item in value:
        record = abi.pack_dirent(item)
        room -= len(record)
        if room < 0:
            break
        packed.append(record)
    return abi.pack_bytes(ctx.wire_unique, b"".join(packed))


def directory_plus(fs: Filesystem, ctx: Context, value: Iterable[Dirent]) -> bytes:
    """Encodes as many entries as fit.  The kernel counts a lookup for each with attributes; the first that does not fit is forgotten."""
    room, ttl_ns = ctx.reply_bytes_max, fs.ttl_ns()
    packed: list[bytes] = []
    for item in value:
        name_ns = 0 if item.attr is None else left_ns(ctx, fs.name_ttl_ns(ctx.parent, item.name, item.ino))
        record = abi.pack_direntplus(item, name_ns, ttl_ns)
        room -= len(record)
        if room < 0:
            if item.attr is not None and item.name not in (b".", b".."):
                fs.forget(item.ino, 1)
            break
        packed.append(record)
    return abi.pack_bytes(ctx.wire_unique, b"".join(packed))
