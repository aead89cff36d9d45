"""POSIX ACLs: mode and ACL stay in step through every command; fsck finds where they do not."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.meta.api import acl
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.state import keys, rows
from tests.rigs.machine_driver import Drive, sound
from tests.unit.meta.api.test_acl import MINIMAL, NAMED, NOBODY


def attr(drive: Drive, ino: int):
    return drive.ask(m.GetAttr(drive.volume, ino)).attr


def value_of(drive: Drive, ino: int, name: bytes = acl.ACCESS) -> acl.Acl | None:
    if name not in drive.ask(m.ListXattr(drive.volume, ino)).names:
        return None
    return acl.parse(drive.ask(m.GetXattr(drive.volume, ino, name)).data)


def set_acl(drive: Drive, ino: int, entries: acl.Acl, name: bytes = acl.ACCESS, *, kill_sgid: bool = False):
    return drive.ok(c.SetXattr(drive.volume, ino, name, acl.pack(entries), 0, kill_sgid)).attr


def test_setting_an_acl_sets_the_mode(drive: Drive) -> None:
    file = drive.create(b"f")
    assert set_acl(drive, file, NAMED).mode == 0o100771 and value_of(drive, file) == NAMED
    assert attr(drive, file).xattrs == 1
    minimal = set_acl(drive, file, MINIMAL)
    assert (minimal.mode, minimal.xattrs) == (0o100642, 0) and value_of(drive, file) is None
    sound(drive)


def test_chmod_changes_the_acl(drive: Drive) -> None:
    file = drive.create(b"f")
    set_acl(drive, file, NAMED)
    drive.ok(c.SetAttr(drive.volume, file, c.SET_MODE, 0o604))
    assert value_of(drive, file) == [(acl.USER_OBJ, 6, NOBODY), NAMED[1], NAMED[2], (acl.MASK, 0, NOBODY), (acl.OTHER, 4, NOBODY)]
    sound(drive)


def test_removal_keeps_the_mode_and_is_no_error_twice(drive: Drive) -> None:
    file = drive.create(b"f")
    set_acl(drive, file, NAMED)
    for _ in range(2):
        gone = drive.ok(c.RemoveXattr(drive.volume, file, acl.ACCESS)).attr
        assert (gone.mode, gone.xattrs) == (0o100771, 0)
    set_acl(drive, file, NAMED)
    assert drive.ok(c.SetXattr(drive.volume, file, acl.ACCESS, acl.pack([]))).attr.xattrs == 0, "a bare header removes it"
    assert drive.errno(c.RemoveXattr(drive.volume, file, b"user.a")) == errno.ENODATA


def test_refusals(drive: Drive) -> None:
    file = drive.create(b"f")
    link = drive.ok(c.Create(drive.volume, 1, b"l", 0o120777, 0, 0, 0, b"t")).attr.ino
    assert drive.errno(c.SetXattr(drive.volume, file, acl.DEFAULT, acl.pack(NAMED))) == errno.EACCES
    assert drive.errno(c.SetXattr(drive.volume, link, acl.ACCESS, acl.pack(NAMED))) == errno.EOPNOTSUPP
    assert drive.errno(c.SetXattr(drive.volume, file, acl.ACCESS, b"jun")) == errno.EINVAL


@pytest.mark.parametrize(("kill", "name", "left"), [(True, acl.ACCESS, 0), (False, acl.ACCESS, 0o2000), (True, acl.DEFAULT, 0o2000)])
def test_setgid_goes_with_an_access_acl_of_a_stranger(drive: Drive, kill: bool, name: bytes, left: int) -> None:
    folder = drive.ok(c.Create(drive.volume, 1, b"d", 0o042755, 0, 0)).attr.ino
    assert set_acl(drive, folder, NAMED, name, kill_sgid=kill).mode & 0o2000 == left


def test_inheritance(drive: Drive) -> None:
    folder = drive.mkdir(b"d")
    set_acl(drive, folder, NAMED, acl.DEFAULT)
    kinds = {b"f": 0o100666, b"d": 0o040777, b"p": 0o010644, b"c": 0o020600, b"l": 0o120777}
    made = {}
    for name, mode in kinds.items():
        target = b"t" if name == b"l" else b""
        made[name] = drive.ok(c.Create(drive.volume, folder, name, mode, 5, 5, 0, target, umask=0o777)).attr
    assert made[b"l"].mode == 0o120777 and made[b"l"].xattrs == 0
    assert made[b"f"].mode == 0o100660 and [entry[1] for entry in value_of(drive, made[b"f"].ino)] == [6, 5, 4, 6, 0]
    assert made[b"d"].mode == 0o040771 and value_of(drive, made[b"d"].ino) == NAMED == value_of(drive, made[b"d"].ino, acl.DEFAULT)
    assert made[b"p"].mode == 0o010640 and value_of(drive, made[b"p"].ino, acl.DEFAULT) is None
    tmp = drive.ok(c.Tmpfile(drive.volume, folder, 0o666, 5, 5, 0o777)).attr
    assert tmp.mode == 0o100660 and value_of(drive, tmp.ino) is not None
    set_acl(drive, folder, MINIMAL, acl.DEFAULT)
    plain = drive.ok(c.Create(drive.volume, folder, b"m", 0o100666, 5, 5, umask=0o777)).attr
    assert (plain.mode, plain.xattrs) == (0o100642, 0)
    sound(drive)


def test_umask_without_a_default_acl(drive: Drive) -> None:
    for name, mode, shown in ((b"f", 0o104777, 0o104750), (b"d", 0o040777, 0o040750), (b"l", 0o120777, 0o120777)):
        target = b"t" if name == b"l" else b""
        assert drive.ok(c.Create(drive.volume, 1, name, mode, 0, 0, 0, target, umask=0o027)).attr.mode == shown


def test_fsck_finds_acl_and_mode_out_of_step(drive: Drive) -> None:
    file = drive.create(b"f")
    set_acl(drive, file, NAMED)
    drive.machine.flush()
    drive.txn.put(keys.xattr(drive.volume, file, acl.ACCESS), rows.XATTR.dumps(rows.XattrRow(acl.pack(acl.with_mode(NAMED, 0)))))
    assert [fault.kind for fault in check(drive.txn)] == ["acl-mode"]


def test_capability_goes_with_owner_and_size_but_not_with_times(drive: Drive) -> None:
    file = drive.create(b"f")
    for mask, left in ((c.SET_MTIME, 1), (c.SET_MODE, 1), (c.SET_UID, 0), (c.SET_GID, 0), (c.SET_SIZE, 0)):
        drive.ok(c.SetXattr(drive.volume, file, b"security.capability", b"caps"))
        assert drive.ok(c.SetAttr(drive.volume, file, mask, 0o755)).attr.xattrs == left
    sound(drive)
