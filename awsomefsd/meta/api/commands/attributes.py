"""Commands about attributes and extended attributes."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME, SET_KILL_SUIDGID, SET_KILL_SETGID = (1 << bit for bit in range(9))


class SetAttr(Command, tag=25):
    """Change what `mask` names.  A time of None is the entry's time.  SET_KILL_SUIDGID clears setuid, and setgid where group may execute;
    SET_KILL_SETGID clears setgid of a file in any case (from level 3 on).

    `log`, `sequence`: the dirty log of the mount and its newest record at this moment; commits of records up to it change neither the
    size nor the times any more (a successor that replays cannot resurrect what was truncated).
    """

    volume: int
    ino: int
    mask: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    log: int = 0
    sequence: int = 0


class SetAtimes(Command, tag=61):
    """Reads of a while, gathered by the worker: (inode, time of access).  Inodes that are gone are passed over."""

    volume: int
    atimes: list[tuple[int, int]]


XATTR_CREATE, XATTR_REPLACE = 1, 2


class SetXattr(Command, tag=26):
    """A POSIX ACL changes the mode too, or is only that; `kill_sgid`: the caller may not keep the setgid bit over it."""

    volume: int
    ino: int
    name: bytes
    value: bytes
    flags: int = 0
    kill_sgid: bool = False


class RemoveXattr(Command, tag=27):
    volume: int
    ino: int
    name: bytes
