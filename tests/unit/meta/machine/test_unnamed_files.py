"""O_TMPFILE, whiteouts, times of reads, and times outside what 63 bits of nanoseconds hold: rules of the machine."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.meta.api import bounds
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.rigs.machine_driver import Drive, sound

YEAR_2446_NS = 15_032_385_535_999_999_999
YEAR_1901_NS = -2_147_483_648_000_000_000


def attr(drive: Drive, ino: int):
    return drive.ask(m.GetAttr(drive.volume, ino)).attr


def tmpfile(drive: Drive, **fields: bool) -> int:
    return drive.ok(c.Tmpfile(drive.volume, 1, 0o640, 5, 6, **fields)).attr.ino


def test_tmpfile_is_an_orphan_of_the_session(drive: Drive) -> None:
    before = attr(drive, 1)
    ino = tmpfile(drive)
    made = attr(drive, ino)
    assert (made.nlink, made.mode, made.uid, made.gid, made.inline) == (0, 0o100640, 5, 6, True)
    assert attr(drive, 1) == before, "the directory does not change"
    sound(drive)
    drive.ok(c.ReleaseOrphan(drive.volume, [ino]))
    assert drive.ask_errno(m.GetAttr(drive.volume, ino)) == errno.ENOENT
    sound(drive)


def test_tmpfile_needs_a_session_and_a_directory(drive: Drive) -> None:
    file = drive.create(b"f")
    assert drive.errno(c.Tmpfile(drive.volume, 1, 0o600, 0, 0), session=0, epoch=0) == errno.EINVAL
    assert drive.errno(c.Tmpfile(drive.volume, file, 0o600, 0, 0)) == errno.ENOTDIR


def test_tmpfile_gets_its_first_name(drive: Drive) -> None:
    ino = tmpfile(drive)
    linked = drive.ok(c.Link(drive.volume, ino, 1, b"name"))
    assert linked.attr.nlink == 1 and drive.ask(m.Lookup(drive.volume, 1, b"name")).attr.ino == ino
    drive.ok(c.ReleaseOrphan(drive.volume, [ino]))  # a last close that was on its way
    assert attr(drive, ino).nlink == 1
    drive.ok(c.Unlink(drive.volume, 1, b"name", True))
    assert drive.errno(c.Link(drive.volume, ino, 1, b"again")) == errno.ENOENT, "it had a name once"
    sound(drive)


def test_tmpfile_with_o_excl_never_gets_a_name(drive: Drive) -> None:
    assert drive.errno(c.Link(drive.volume, tmpfile(drive, linkable=False), 1, b"name")) == errno.ENOENT


def test_tmpfile_ends_with_the_session(drive: Drive) -> None:
    ino = tmpfile(drive)
    drive.ok(c.EndSession(drive.session, drive.epoch, False), session=0, epoch=0)
    while drive.machine.reap_pending():
        drive.ok(c.Reap(100), session=0, epoch=0)
    assert drive.ask_errno(m.GetAttr(drive.volume, ino)) == errno.ENOENT
    sound(drive)


def rename(drive: Drive, name: bytes, new_name: bytes, flags: int, parent: int = 1, new_parent: int = 1) -> c.Rename:
    return c.Rename(drive.volume, parent, name, new_parent, new_name, flags, False, 5, 6)


@pytest.mark.parametrize("flags", [c.RENAME_WHITEOUT, c.RENAME_WHITEOUT | c.RENAME_NOREPLACE])
@pytest.mark.parametrize("kind", ["create", "mkdir"])
def test_whiteout(drive: Drive, flags: int, kind: str) -> None:
    moved, folder = getattr(drive, kind)(b"a"), drive.mkdir(b"d")
    reply = drive.ok(rename(drive, b"a", b"b", flags, 1, folder))
    white = reply.whiteout
    assert (white.mode, white.rdev, white.nlink, white.uid, white.gid) == (0o020000, 0, 1, 5, 6)
    assert drive.ask(m.Lookup(drive.volume, 1, b"a")).attr == white
    assert drive.ask(m.Lookup(drive.volume, folder, b"b")).attr.ino == moved
    sound(drive)
    drive.ok(c.Unlink(drive.volume, 1, b"a"))
    sound(drive)


def test_whiteout_refusals(drive: Drive) -> None:
    drive.create(b"a")
    drive.create(b"b")
    assert drive.errno(rename(drive, b"a", b"b", c.RENAME_WHITEOUT | c.RENAME_NOREPLACE)) == errno.EEXIST
    assert drive.errno(rename(drive, b"a", b"b", c.RENAME_WHITEOUT | c.RENAME_EXCHANGE)) == errno.EINVAL
    drive.ok(c.Link(drive.volume, drive.ask(m.Lookup(drive.volume, 1, b"a")).attr.ino, 1, b"c"))
    assert drive.ok(rename(drive, b"a", b"c", c.RENAME_WHITEOUT)).whiteout is None, "two names of one inode: nothing happens"
    quota = drive.ask(m.GetVolumes()).volumes[0].used_inodes
    drive.ok(c.SetVolume(drive.volume, quota_inodes=quota), session=0, epoch=0)
    assert drive.errno(rename(drive, b"a", b"x", c.RENAME_WHITEOUT)) == errno.EDQUOT
    assert drive.errno(c.Tmpfile(drive.volume, 1, 0o600, 0, 0)) == errno.EDQUOT


def test_atimes_change_nothing_else(drive: Drive) -> None:
    file = drive.create(b"f")
    before = attr(drive, file)
    reply = drive.ok(c.SetAtimes(drive.volume, [(file, 77), (999, 78)]))
    assert reply.errnos == [0, errno.ENOENT] and reply.attrs[0].atime_ns == 77
    after = attr(drive, file)
    assert after.atime_ns == 77 and (after.mtime_ns, after.ctime_ns) == (before.mtime_ns, before.ctime_ns)


@pytest.mark.parametrize("time_ns", [YEAR_1901_NS, -1, 1, YEAR_2446_NS, (1 << 64) - 1, -(1 << 63)])
def test_times_of_five_centuries(drive: Drive, time_ns: int) -> None:
    file = drive.create(b"f")
    command = c.SetAttr(drive.volume, file, c.SET_ATIME | c.SET_MTIME, atime_ns=time_ns, mtime_ns=time_ns)
    bounds.check(command)
    entry = drive.entry(command)
    drive.machine.apply(c.entry_decode(c.entry_encode(entry)))
    drive.machine.flush()
    drive.machine = type(drive.machine)(drive.txn)
    found = attr(drive, file)
    assert found.atime_ns == time_ns == found.mtime_ns
    drive.ok(c.SetAtimes(drive.volume, [(file, time_ns)]))
    sound(drive)


@pytest.mark.parametrize(
    "command",
    [
        c.SetAttr(1, 2, c.SET_MTIME, mtime_ns=1 << 64), c.SetAttr(1, 2, c.SET_ATIME, atime_ns=-(1 << 63) - 1),
        c.SetAtimes(1, [(-1, 0)]), c.SetAtimes(1, [(1, 1 << 64)]), c.SetAtimes(1, [(1, 1)] * 1025),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit(command: c.Command) -> None:
    with pytest.raises(ProtocolError):
        bounds.check(command)
