"""The context of a request (its caller and id), and the small values that handlers and the filesystem hand each other."""

from __future__ import annotations

import time
from enum import IntEnum


class Context:
    """The caller of a request, and the id under which it asks.

    `unique` never has RESEND_BIT; `wire_unique` is what the kernel wants to see in the reply.
    What is answered was true at some time since `began_ns` (monotonic): a timeout that the kernel is told begins there."""

    __slots__ = (
        "began_ns", "fills_pages", "gid", "given_up", "kill_sgid", "kill_suidgid", "name", "nodeid", "open_flags", "parent", "pid",
        "repeated", "reply_bytes_max", "uid", "umask", "unique", "waits_only", "wire_unique",
    )  # fmt: skip

    def __init__(self, uid: int, gid: int, pid: int, unique: int, wire_unique: int = 0) -> None:
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.unique = unique
        self.wire_unique = wire_unique or unique
        self.began_ns = time.monotonic_ns()
        self.reply_bytes_max = 0  # room the caller has, for READDIR and the xattr queries
        self.fills_pages = False  # READ: the kernel keeps the bytes as pages of the file
        self.given_up = False  # its caller is being killed, and was answered; the request goes on
        self.repeated = False  # a predecessor was serving it when it died, and had no reply to it
        self.nodeid = 0  # the inode that the request names
        self.parent = 0  # LOOKUP, READDIRPLUS: the directory of the names in the answer
        self.name = b""  # LOOKUP
        self.umask = 0  # of the caller, for what it makes
        self.kill_sgid = False  # SETXATTR of an access ACL: the caller may not keep the setgid bit
        self.waits_only = False  # a predecessor has done the rest of it, and waited for the kernel (base/wait.py, KernelWait)
        self.open_flags = 0  # WRITE: of the descriptor, O_APPEND as it is now
        self.kill_suidgid = False  # OPEN, CREATE with O_TRUNC: the caller may not keep setuid and setgid bits

    def __repr__(self) -> str:
        return f"Context(uid={self.uid}, gid={self.gid}, pid={self.pid}, unique={self.unique})"


class CachePolicy(IntEnum):
    """The use that the kernel may make of pages of a file for one open."""

    DROP = 0  # drop the pages it has, keep those that it reads from now on
    KEEP = 1  # keep the pages it has
    DIRECT = 2  # keep none: every read and write comes to the filesystem


class Opened:
    """An open file or directory: the handle the kernel gives back with each use, and what the kernel may cache for it."""

    __slots__ = ("cache", "fh")

    def __init__(self, fh: int, cache: CachePolicy = CachePolicy.DROP) -> None:
        self.fh = fh
        self.cache = cache


class SetAttrIn:
    """A change of attributes; `mask` has the SET_* bits of meta.commands.  A time of None is now."""

    __slots__ = ("atime_ns", "ctime_ns", "gid", "mask", "mode", "mtime_ns", "size", "uid")

    def __init__(
        self,
        mask: int,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> None:
        self.mask = mask
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
