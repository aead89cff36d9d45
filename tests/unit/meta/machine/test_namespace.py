"""Names, attributes and extended attributes, one rule a test; Drive.errno also proves that a refusal changes no row."""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.limits import LINKS_MAX, XATTRS_BYTES_MAX
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.state import keys
from tests.rigs.machine_driver import START_NS, Drive


def attr(drive: Drive, ino: int):
    return drive.ask(m.GetAttr(drive.volume, ino)).attr


def test_create_shows_inode_and_parent(drive: Drive) -> None:
    before = attr(drive, 1)
    found = drive.ok(c.Create(drive.volume, 1, b"f", 0o100640, 5, 6))
    assert found.created and found.attr.inline and (found.attr.uid, found.attr.gid, found.attr.mode) == (5, 6, 0o100640)
    assert found.parent == attr(drive, 1) and found.parent.mtime_ns > before.mtime_ns and found.parent.ctime_ns == drive.now
    assert drive.ask(m.Lookup(drive.volume, 1, b"f")).attr == found.attr


def test_a_rename_within_a_directory_is_one_change_of_its_times(drive: Drive) -> None:
    """Found beside ext4: the second of its two changes moved the ctime by 1 ns from the mtime."""
    drive.create(b"a")
    drive.ok(c.Rename(drive.volume, 1, b"a", 1, b"b"))
    assert attr(drive, 1).mtime_ns == attr(drive, 1).ctime_ns == drive.now


def test_create_refusals(drive: Drive) -> None:
    file, volume = drive.create(b"f"), drive.volume
    assert drive.errno(c.Create(volume, 1, b"f", 0o100644, 0, 0)) == errno.EEXIST
    assert drive.errno(c.Create(volume, file, b"x", 0o100644, 0, 0)) == errno.ENOTDIR
    assert drive.errno(c.Create(volume, 99, b"x", 0o100644, 0, 0)) == errno.ENOENT
    assert drive.errno(c.Create(volume, 1, b"x", 0o644, 0, 0)) == errno.EINVAL
    assert drive.errno(c.Create(volume, 1, b"x" * 256, 0o100644, 0, 0)) == errno.ENAMETOOLONG
    assert drive.errno(c.Create(volume, 1, b"x", 0o120777, 0, 0, 0, b"t" * 4096)) == errno.ENAMETOOLONG
    for name in (b"", b".", b"..", b"a/b", b"a\0"):
        assert drive.errno(c.Create(volume, 1, name, 0o100644, 0, 0)) == errno.EINVAL
    assert drive.create(b"n" * 255)


def test_open_existing(drive: Drive) -> None:
    file = drive.create(b"f")
    drive.mkdir(b"d")
    found = drive.ok(c.Create(drive.volume, 1, b"f", 0o100644, 0, 0, open_existing=True))
    assert found.attr.ino == file and not found.created and found.parent is None
    assert drive.errno(c.Create(drive.volume, 1, b"d", 0o100644, 0, 0, open_existing=True)) == errno.EEXIST


def test_setgid_directory(drive: Drive) -> None:
    parent = drive.ok(c.Create(drive.volume, 1, b"d", 0o042755, 0, 77)).attr.ino
    file = drive.ok(c.Create(drive.volume, parent, b"f", 0o100644, 1, 1)).attr
    below = drive.ok(c.Create(drive.volume, parent, b"sub", 0o040755, 1, 1)).attr
    assert file.gid == below.gid == 77 and below.mode & stat.S_ISGID and not file.mode & stat.S_ISGID


def test_special_inodes(drive: Drive) -> None:
    device = drive.ok(c.Create(drive.volume, 1, b"null", 0o020666, 0, 0, 0x103)).attr
    link = drive.ok(c.Create(drive.volume, 1, b"l", 0o120777, 0, 0, 0, b"over there")).attr
    assert device.rdev == 0x103 and link.size == 10
    assert drive.ask(m.ReadLink(drive.volume, link.ino)).data == b"over there"
    assert drive.ask_errno(m.ReadLink(drive.volume, device.ino)) == errno.EINVAL


def test_link_and_unlink(drive: Drive) -> None:
    file, folder, volume = drive.create(b"f"), drive.mkdir(b"d"), drive.volume
    linked = drive.ok(c.Link(volume, file, folder, b"g"))
    assert linked.attr.nlink == 2 and linked.attr.ctime_ns == drive.now
    assert drive.errno(c.Link(volume, folder, 1, b"x")) == errno.EPERM
    assert drive.errno(c.Link(volume, file, 1, b"f")) == errno.EEXIST
    assert drive.errno(c.Link(volume, 99, 1, b"x")) == errno.ENOENT
    assert drive.errno(c.Unlink(volume, 1, b"d")) == errno.EISDIR
    assert drive.errno(c.Unlink(volume, 1, b"nothing")) == errno.ENOENT
    assert drive.ok(c.Unlink(volume, 1, b"f")).attr.nlink == 1
    removed = drive.ok(c.Unlink(volume, folder, b"g"))
    assert removed.attr.nlink == 0 and removed.parent.ino == folder
    assert drive.ask_errno(m.GetAttr(volume, file)) == errno.ENOENT


def test_link_bound(drive: Drive) -> None:
    file = drive.create(b"f")
    drive.machine.state.inode(drive.volume, file).nlink = LINKS_MAX
    assert drive.errno(c.Link(drive.volume, file, 1, b"g")) == errno.EMLINK


def test_rmdir(drive: Drive) -> None:
    folder, volume = drive.mkdir(b"d"), drive.volume
    drive.create(b"f", folder)
    assert attr(drive, 1).nlink == 3
    assert drive.errno(c.Rmdir(volume, 1, b"d")) == errno.ENOTEMPTY
    assert drive.errno(c.Rmdir(volume, folder, b"f")) == errno.ENOTDIR
    drive.ok(c.Unlink(volume, folder, b"f"))
    assert drive.ok(c.Rmdir(volume, 1, b"d", True)).attr.nlink == 0
    assert attr(drive, 1).nlink == 2
    assert drive.errno(c.Create(volume, folder, b"x", 0o100644, 0, 0)) == errno.ENOENT, "nothing is made in a removed directory"
    drive.ok(c.ReleaseOrphan(volume, [folder]))
    assert drive.ask_errno(m.GetAttr(volume, folder)) == errno.ENOENT


def test_orphan_lives_until_the_last_close(drive: Drive) -> None:
    file = drive.create(b"f")
    assert drive.ok(c.Unlink(drive.volume, 1, b"f", True)).attr.nlink == 0
    assert attr(drive, file).nlink == 0
    assert drive.errno(c.Link(drive.volume, file, 1, b"back")) == errno.ENOENT
    drive.ok(c.ReleaseOrphan(drive.volume, [file]))
    drive.ok(c.ReleaseOrphan(drive.volume, [file]))  # idempotent
    assert drive.ask_errno(m.GetAttr(drive.volume, file)) == errno.ENOENT


# --- rename -------------------------------------------------------------------------------------------------------------
def rename(drive: Drive, name: bytes, new_name: bytes, flags: int = 0, parent: int = 1, new_parent: int = 1) -> c.Rename:
    return c.Rename(drive.volume, parent, name, new_parent, new_name, flags)


def test_rename_replaces(drive: Drive) -> None:
    a, b = drive.create(b"a"), drive.create(b"b")
    renamed = drive.ok(rename(drive, b"a", b"b"))
    assert renamed.attr.ino == a and renamed.replaced.ino == b and renamed.replaced.nlink == 0
    assert drive.ask(m.Lookup(drive.volume, 1, b"b")).attr.ino == a
    assert drive.ask_errno(m.GetAttr(drive.volume, b)) == errno.ENOENT


def test_rename_kinds(drive: Drive) -> None:
    drive.create(b"f")
    d, e = drive.mkdir(b"d"), drive.mkdir(b"e")
    drive.create(b"x", e)
    assert drive.errno(rename(drive, b"f", b"d")) == errno.EISDIR
    assert drive.errno(rename(drive, b"d", b"f")) == errno.ENOTDIR
    assert drive.errno(rename(drive, b"d", b"e")) == errno.ENOTEMPTY
    assert drive.errno(rename(drive, b"d", b"x", 0, 1, d)) == errno.EINVAL
    assert drive.errno(rename(drive, b"no", b"x")) == errno.ENOENT
    assert drive.errno(rename(drive, b"f", b"x", 6)) == errno.EINVAL
    assert drive.errno(rename(drive, b"f", b"x", 3)) == errno.EINVAL
    drive.ok(rename(drive, b"e", b"d2"))
    assert drive.ok(rename(drive, b"d2", b"d")).replaced.ino == d, "an empty directory is replaced"
    assert attr(drive, 1).nlink == 3


def test_rename_into_own_subtree(drive: Drive) -> None:
    a = drive.mkdir(b"a")
    b = drive.mkdir(b"b", a)
    assert drive.errno(rename(drive, b"a", b"x", 0, 1, b)) == errno.EINVAL
    assert drive.errno(rename(drive, b"b", b"a", 0, a, 1)) == errno.ENOTEMPTY
    assert drive.errno(rename(drive, b"b", b"a", 2, a, 1)) == errno.EINVAL


def test_rename_moves_a_directory(drive: Drive) -> None:
    a, b = drive.mkdir(b"a"), drive.mkdir(b"b")
    drive.ok(rename(drive, b"b", b"c", 0, 1, a))
    assert (attr(drive, 1).nlink, attr(drive, a).nlink) == (3, 3)
    assert drive.ask(m.GetParent(drive.volume, b)).attr.ino == a
    assert drive.ask(m.GetParent(drive.volume, 1)).attr.ino == 1


def test_rename_links_of_one_inode_does_nothing(drive: Drive) -> None:
    file = drive.create(b"a")
    drive.ok(c.Link(drive.volume, file, 1, b"b"))
    cookies = [e.cookie for e in drive.ask(m.ReadDir(drive.volume, 1, 0, 10, False)).entries]
    assert drive.ok(rename(drive, b"a", b"b")).replaced is None
    assert drive.ok(rename(drive, b"a", b"a")).attr.nlink == 2
    assert [e.cookie for e in drive.ask(m.ReadDir(drive.volume, 1, 0, 10, False)).entries] == cookies


def test_rename_flags(drive: Drive) -> None:
    a, b, folder = drive.create(b"a"), drive.create(b"b"), drive.mkdir(b"d")
    assert drive.errno(rename(drive, b"a", b"b", c.RENAME_NOREPLACE)) == errno.EEXIST
    assert drive.errno(rename(drive, b"a", b"a", c.RENAME_NOREPLACE)) == errno.EEXIST
    assert drive.errno(rename(drive, b"a", b"x", c.RENAME_EXCHANGE)) == errno.ENOENT
    exchanged = drive.ok(rename(drive, b"a", b"b", c.RENAME_EXCHANGE))
    assert (exchanged.attr.ino, exchanged.replaced.ino, exchanged.replaced.nlink) == (a, b, 1)
    assert drive.ask(m.Lookup(drive.volume, 1, b"a")).attr.ino == b
    inner = drive.create(b"in", folder)
    sub = drive.mkdir(b"sub")
    drive.ok(rename(drive, b"sub", b"in", c.RENAME_EXCHANGE, 1, folder))
    assert drive.ask(m.Lookup(drive.volume, 1, b"sub")).attr.ino == inner
    assert drive.ask(m.GetParent(drive.volume, sub)).attr.ino == folder
    assert (attr(drive, 1).nlink, attr(drive, folder).nlink) == (3, 3)


# --- readdir ------------------------------------------------------------------------------------------------------------
def test_cookies_only_grow(drive: Drive) -> None:
    for name in (b"a", b"b", b"c", b"d"):
        drive.create(name)
    first = drive.ask(m.ReadDir(drive.volume, 1, 0, 2, True))
    assert [e.name for e in first.entries] == [b"a", b"b"] and not first.end and first.entries[0].cookie == 16
    assert first.entries[0].attr == attr(drive, first.entries[0].ino)
    drive.ok(c.Unlink(drive.volume, 1, b"c"))
    drive.ok(rename(drive, b"a", b"z"))
    rest = drive.ask(m.ReadDir(drive.volume, 1, first.entries[-1].cookie, 10, False))
    assert [e.name for e in rest.entries] == [b"d", b"z"] and rest.end and rest.entries[0].attr is None
    drive.reload()
    assert drive.ask(m.ReadDir(drive.volume, 1, first.entries[-1].cookie, 10, False)) == rest
    assert drive.create(b"e") and drive.ask(m.ReadDir(drive.volume, 1, 20, 10, False)).entries[0].name == b"e"


# --- attributes ---------------------------------------------------------------------------------------------------------
def test_set_mode_owner_and_kill(drive: Drive) -> None:
    file = drive.ok(c.Create(drive.volume, 1, b"f", 0o106775, 1, 1)).attr.ino
    reply = drive.ok(c.SetAttr(drive.volume, file, c.SET_UID | c.SET_GID | c.SET_KILL_SUIDGID, uid=5, gid=6)).attr
    assert (reply.uid, reply.gid, reply.mode) == (5, 6, 0o100775)
    assert drive.ok(c.SetAttr(drive.volume, file, c.SET_MODE, mode=0o2644)).attr.mode == 0o102644
    assert drive.ok(c.SetAttr(drive.volume, file, c.SET_KILL_SUIDGID)).attr.mode == 0o102644, "setgid without group execute is no setgid"
    assert drive.ok(c.SetAttr(drive.volume, file, c.SET_KILL_SETGID)).attr.mode == 0o100644, "the worker knows the groups"


def test_below_the_level_setgid_without_group_execute_stays() -> None:
    drive = Drive(level=MENDED_RULES - 1)
    drive.make_volume()
    drive.open()
    file = drive.ok(c.Create(drive.volume, 1, b"f", 0o102644, 1, 1)).attr.ino
    assert drive.ok(c.SetAttr(drive.volume, file, c.SET_KILL_SETGID)).attr.mode == 0o102644


def test_times(drive: Drive) -> None:
    file = drive.create(b"f")
    reply = drive.ok(c.SetAttr(drive.volume, file, c.SET_ATIME | c.SET_MTIME, atime_ns=-5, mtime_ns=7)).attr
    assert (reply.atime_ns, reply.mtime_ns, reply.ctime_ns) == (-5, 7, drive.now)
    reply = drive.ok(c.SetAttr(drive.volume, file, c.SET_MTIME)).attr
    assert reply.mtime_ns == drive.now
    reply = drive.ok(c.SetAttr(drive.volume, file, c.SET_MODE, mode=0o600), time_ns=START_NS - 1).attr
    assert reply.ctime_ns > START_NS, "ctime never moves back"
    future = drive.now + 10**12
    drive.ok(c.SetAttr(drive.volume, 1, c.SET_MTIME, mtime_ns=future))
    drive.create(b"g")
    assert attr(drive, 1).mtime_ns == drive.now, "a change after utimensat(2) has the present's time"


def test_size_of_what_is_no_file(drive: Drive) -> None:
    folder, fifo = drive.mkdir(b"d"), drive.create(b"p", mode=0o010644)
    assert drive.errno(c.SetAttr(drive.volume, folder, c.SET_SIZE, size=0)) == errno.EISDIR
    assert drive.errno(c.SetAttr(drive.volume, fifo, c.SET_SIZE, size=0)) == errno.EINVAL
    file = drive.create(b"f")
    assert drive.errno(c.SetAttr(drive.volume, file, c.SET_SIZE, size=1 << 60)) == errno.EFBIG
    assert drive.errno(c.SetAttr(drive.volume, file, c.SET_SIZE, size=-1)) == errno.EINVAL
    assert drive.errno(c.SetAttr(drive.volume, 99, c.SET_MODE)) == errno.ENOENT


def test_xattrs(drive: Drive) -> None:
    file, volume = drive.create(b"f"), drive.volume
    assert drive.errno(c.SetXattr(volume, file, b"user.a", b"1", c.XATTR_REPLACE)) == errno.ENODATA
    assert drive.ok(c.SetXattr(volume, file, b"user.a", b"1")).attr.xattrs == 1
    assert drive.errno(c.SetXattr(volume, file, b"user.a", b"2", c.XATTR_CREATE)) == errno.EEXIST
    drive.ok(c.SetXattr(volume, file, b"user.a", b"22"))
    assert drive.ask(m.GetXattr(volume, file, b"user.a")).data == b"22"
    assert drive.ask(m.ListXattr(volume, file)).names == [b"user.a"]
    assert drive.errno(c.SetXattr(volume, file, b"n" * 256, b"")) == errno.ERANGE
    assert drive.errno(c.SetXattr(volume, file, b"n", b"v" * 65_537)) == errno.E2BIG
    for at in range(XATTRS_BYTES_MAX // 65_536 - 1):
        drive.ok(c.SetXattr(volume, file, b"big%d" % at, bytes(65_536)))
    assert drive.errno(c.SetXattr(volume, file, b"more", bytes(65_536))) == errno.ENOSPC
    assert drive.errno(c.RemoveXattr(volume, file, b"user.b")) == errno.ENODATA
    drive.ok(c.RemoveXattr(volume, file, b"user.a"))
    assert drive.ask_errno(m.GetXattr(volume, file, b"user.a")) == errno.ENODATA
    drive.ok(c.Unlink(volume, 1, b"f"))
    assert not drive.machine.state.any_in(keys.kind_range(volume, keys.XATTR))
    drive.machine.flush()
    assert check(drive.txn) == []


def test_inode_quota(drive: Drive) -> None:
    drive.ok(c.SetVolume(drive.volume, quota_inodes=2))
    drive.create(b"a")
    assert drive.errno(c.Create(drive.volume, 1, b"b", 0o100644, 0, 0)) == errno.EDQUOT
    stat_fs = drive.ask(m.GetStatFs(drive.volume)).stat
    assert (stat_fs.inodes_total, stat_fs.inodes_free) == (2, 0)


def test_version_of_the_last_change(drive: Drive) -> None:
    file = drive.create(b"f")
    entry = drive.entry(c.SetAttr(drive.volume, file, c.SET_MODE, mode=0o600))
    drive.machine.apply(entry)
    row = drive.machine.state.inode(drive.volume, file)
    assert (row.stamp, row.site) == (entry.stamp, entry.site)
