"""What modes and access ACLs allow a caller, where the kernel cannot decide it: callers that a mount squashes, mounts without
default_permissions.  Pure.

The rules are those of Linux' generic_permission, may_delete and setattr_prepare.  `access` is the inode's access ACL, empty without one.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import Attr
from awsomefsd.meta.api import acl
from awsomefsd.meta.api.commands import SET_ATIME, SET_GID, SET_MODE, SET_MTIME, SET_SIZE, SET_UID

READ, WRITE, EXEC = 4, 2, 1
FMODE_EXEC = 0x20  # in the flags of an open for execve(2)


@dataclass(frozen=True, slots=True)
class Caller:
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def is_in(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


def check(caller: Caller, attr: Attr, wanted: int, access: acl.Acl) -> None:
    """Raises FsError(EACCES)."""
    if caller.is_root:
        if wanted & EXEC and not stat.S_ISDIR(attr.mode) and not attr.mode & 0o111:
            raise FsError(errno.EACCES)
        return
    if access and needs_acl(caller, attr):
        granted = acl.grants(access, (attr.uid, attr.gid), caller.uid, caller.is_in, wanted)
    else:
        shift = 6 if caller.uid == attr.uid else 3 if caller.is_in(attr.gid) else 0
        granted = not wanted & ~(attr.mode >> shift)
    if not granted:
        raise FsError(errno.EACCES)


def needs_acl(caller: Caller, attr: Attr) -> bool:
    """Says whether an access ACL decides: not for the owner, nor where its mask lets nobody do anything (then Linux goes by the mode)."""
    return not caller.is_root and caller.uid != attr.uid and attr.mode & stat.S_IRWXG != 0


def check_sticky(caller: Caller, parent: Attr, victim: Attr) -> None:
    """Raises FsError(EPERM) where only the owner may remove or rename `victim`."""
    if parent.mode & stat.S_ISVTX and not caller.is_root and caller.uid not in (victim.uid, parent.uid):
        raise FsError(errno.EPERM)


def open_wants(flags: int) -> int:
    """Of open(2)."""
    if flags & FMODE_EXEC:
        return EXEC
    wanted = {os.O_RDONLY: READ, os.O_WRONLY: WRITE}.get(flags & os.O_ACCMODE, READ | WRITE)
    return wanted | (WRITE if flags & os.O_TRUNC else 0)


def check_change(caller: Caller, attr: Attr, mask: int, uid: int, gid: int, by_handle: bool, now: bool, access: acl.Acl) -> None:
    """setattr: raises FsError(EPERM) or FsError(EACCES).  `now`: times are set to the present, which a writer may."""
    if caller.is_root:
        return
    owns = caller.uid == attr.uid
    if mask & SET_UID and not (owns and uid == attr.uid):
        raise FsError(errno.EPERM)
    if mask & SET_GID and not (owns and (gid == attr.gid or caller.is_in(gid))):
        raise FsError(errno.EPERM)
    if mask & SET_MODE and not owns:
        raise FsError(errno.EPERM)
    if mask & SET_SIZE and not by_handle:
        check(caller, attr, WRITE, access)
    if mask & (SET_ATIME | SET_MTIME) and not owns and not mask & SET_SIZE:
        if not now:
            raise FsError(errno.EPERM)
        check(caller, attr, WRITE, access)


def mode_kept(caller: Caller, attr: Attr, mode: int) -> int:
    """The mode that chmod leaves: setgid goes where the caller is not in the file's group."""
    return mode if caller.is_root or caller.is_in(attr.gid) else mode & ~stat.S_ISGID
