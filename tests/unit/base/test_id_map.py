"""Mapped ids, and what modes allow whom."""

from __future__ import annotations

import errno
import os
import random
import struct

import pytest

from awsomefsd.base.errors import ConfigError, FsError
from awsomefsd.base.id_map import OVERFLOW_ID, IdMap, map_acl, parse
from awsomefsd.base.types import Attr
from awsomefsd.config.mount_options import parse as parse_options
from awsomefsd.meta.api import acl
from awsomefsd.meta.api.commands import SET_ATIME, SET_GID, SET_MODE, SET_SIZE, SET_UID
from awsomefsd.vfs.ops import permissions
from awsomefsd.vfs.ops.permissions import EXEC, READ, WRITE, Caller


def test_both_directions(seed):
    ids = parse("map_uid", "0:100000:1000+5000:5000:1")
    assert (ids.inside(0), ids.inside(999), ids.inside(1000), ids.inside(5000)) == (100_000, 100_999, None, 5000)
    assert (ids.outside(100_999), ids.outside(5000), ids.outside(0), ids.has_outside(0)) == (999, 5000, OVERFLOW_ID, False)
    dice = random.Random(seed)
    for _ in range(500):
        number = dice.randrange(200_000)
        inside = ids.inside(number)
        assert inside is None or (ids.outside(inside) == number and ids.has_outside(inside))
    assert IdMap().inside(7) == IdMap().outside(7) == 7


BAD = ["", "0:1", "a:0:1", "0:0:0", "0:-1:5", "4294967295:0:1", "0:0:10+5:100:1", "0:0:10+20:9:1", "0:0:1:1", "0:0:1+"]


@pytest.mark.parametrize("text", BAD)
def test_bad_maps_are_named(text):
    with pytest.raises(ConfigError, match="map_gid="):
        parse_options([f"map_gid={text}"])


def test_options():
    options = parse_options(["root_squash", "map_uid=0:1000:1", "nodefault_permissions"])
    assert options.root_squash and options.map_uid.inside(0) == 1000 and not options.map_gid.ranges
    assert options.fuse_options == "allow_other"
    options = parse_options(["root_squash", "no_root_squash", "nodefault_permissions", "default_permissions"])
    assert not options.root_squash and options.fuse_options == "default_permissions,allow_other"


def test_acl_values():
    entries = [(1, 6, 0xFFFF_FFFF), (2, 7, 10), (4, 5, 0xFFFF_FFFF), (8, 4, 20), (0x10, 7, 0xFFFF_FFFF), (0x20, 0, 0xFFFF_FFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    mapped = map_acl(value, lambda uid: uid + 1000, lambda gid: gid + 2000)
    found = list(struct.iter_unpack("<HHI", mapped[4:]))
    assert found == [(tag, perm, {2: 1010, 8: 2020}.get(tag, number)) for tag, perm, number in entries]
    for other in (b"", b"\x02\0\0\0abc", struct.pack("<I", 3) + bytes(8)):
        assert map_acl(other, lambda _: 0, lambda _: 0) == other


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
