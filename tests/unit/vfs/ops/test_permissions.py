"""What modes, sticky directories and access ACLs allow whom."""

from __future__ import annotations

import errno
import os

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import Attr
from awsomefsd.meta.api import acl
from awsomefsd.meta.api.commands import SET_ATIME, SET_GID, SET_MODE, SET_SIZE, SET_UID
from awsomefsd.vfs.ops import permissions
from awsomefsd.vfs.ops.permissions import EXEC, READ, WRITE, Caller


def attr(mode: int, uid: int = 1, gid: int = 2) -> Attr:
    return Attr(5, mode, 1, uid, gid, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def allowed(function, *args) -> int:
    try:
        function(*args)
    except FsError as err:
        return err.errno
    return 0


def test_modes():
    owner, member, other, root = Caller(1, 9), Caller(8, 9, frozenset({2})), Caller(8, 9), Caller(0, 0)
    for mode in range(0o1000):
        for who, bits in ((owner, mode >> 6), (member, mode >> 3), (other, mode)):
            for wanted in range(1, 8):
                assert (allowed(permissions.check, who, attr(0o100000 | mode), wanted, []) == 0) == (bits & wanted == wanted)
    assert allowed(permissions.check, root, attr(0o100000), READ | WRITE, []) == 0
    assert allowed(permissions.check, root, attr(0o100666), EXEC, []) == errno.EACCES
    assert [permissions.open_wants(f) for f in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_TRUNC, 0x20)] == [4, 2, 6, 6, 1]


def test_sticky_and_changes():
    me, owner = Caller(8, 9), Caller(1, 9)
    assert allowed(permissions.check_sticky, me, attr(0o41777), attr(0o100666)) == errno.EPERM
    assert allowed(permissions.check_sticky, me, attr(0o40777), attr(0o100666)) == 0
    assert allowed(permissions.check_sticky, me, attr(0o41777), attr(0o100666, 8)) == 0

    def change(who, mask, uid=0, gid=0, by_handle=False, now=False, mode=0o100644):
        return allowed(permissions.check_change, who, attr(mode), mask, uid, gid, by_handle, now, [])

    assert change(me, SET_MODE) == change(me, SET_UID, 8) == change(owner, SET_UID, 8) == change(owner, SET_GID, gid=7) == errno.EPERM
    assert change(owner, SET_MODE) == change(owner, SET_UID, 1) == change(owner, SET_GID, gid=9) == change(Caller(0, 0), SET_UID, 8) == 0
    assert change(me, SET_SIZE) == change(me, SET_ATIME, now=True) == errno.EACCES and change(me, SET_SIZE, by_handle=True) == 0
    assert change(me, SET_ATIME) == errno.EPERM and change(me, SET_ATIME, now=True, mode=0o100666) == 0
    assert permissions.mode_kept(me, attr(0o100755), 0o2755) == 0o755 and permissions.mode_kept(Caller(8, 2), attr(0), 0o2755) == 0o2755


def test_access_acls_decide_as_in_linux():
    access = [
        (acl.USER_OBJ, 7, 0),
        (acl.USER, 6, 8),
        (acl.USER, 0, 9),
        (acl.GROUP_OBJ, 4, 0),
        (acl.GROUP, 2, 50),
        (acl.MASK, 6, 0),
        (acl.OTHER, 1, 0),
    ]
    file = attr(0o100000 | acl.mode_bits(access))

    def may(uid: int, *groups: int, entries: acl.Acl = access, of: Attr = file) -> int:
        caller = Caller(uid, 99, frozenset(groups))
        return sum(wanted for wanted in (READ, WRITE, EXEC) if allowed(permissions.check, caller, of, wanted, entries) == 0)

    assert may(1) == 7 and may(8) == 6 and may(9) == 0 and may(9, 2, 50) == 0, "owner and named users, whatever groups they are in"
    assert may(10, 2) == READ and may(10, 50) == WRITE and may(10) == EXEC
    assert may(10, 2, 50) == READ | WRITE and allowed(permissions.check, Caller(10, 2, frozenset({50})), file, 6, access) == errno.EACCES
    narrow = [(tag, 4 if tag == acl.MASK else permissions, who) for tag, permissions, who in access]
    assert may(8, entries=narrow) == READ and may(10, 50, entries=narrow) == 0
    closed = attr(0o100701)  # a mask without any bit: the mode decides, and 8 is one of the others
    assert may(8, entries=access, of=closed) == EXEC and may(10, 2, entries=access, of=closed) == 0
    assert allowed(permissions.check, Caller(0, 0), file, READ | WRITE | EXEC, access) == 0
