"""GetRows tells a session rows of its volume, and nothing else of the store."""

from __future__ import annotations

import errno
from unittest import mock

import pytest

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import row_queries
from awsomefsd.meta.state import governed, keys, rows
from tests.rigs.machine_driver import Drive


def asked(drive: Drive, *wanted: bytes, **fields: object) -> m.GetRows:
    given = {"session": drive.session, "epoch": drive.epoch, "volume": drive.volume, "keys": list(wanted)} | fields
    return m.GetRows(**given)  # type: ignore[arg-type]


def group_of(key: bytes) -> bytes:
    return key[: governed.GROUP_BYTES]


def test_rows_and_the_inodes_that_names_lead_to(drive: Drive) -> None:
    ino = drive.create(b"f")
    name, absent = keys.dentry(drive.volume, 1, b"f"), keys.xattr(drive.volume, ino, b"user.a")
    reply = drive.ask(asked(drive, name, absent))
    drive.machine.flush()
    child = keys.inode(drive.volume, ino)
    assert reply.rows == [(name, drive.txn.rows[name]), (child, drive.txn.rows[child]), (absent, None)] and not reply.more


def test_only_rows_of_names_and_attributes_of_its_own_volume(drive: Drive) -> None:
    ino, own = drive.create(b"f"), drive.volume
    other = drive.ok(c.CreateVolume("other", "u2"), session=0, epoch=0).number
    drive.ok(c.PutCa("ca", "certificate", "secret", "active"), session=0, epoch=0)
    good = keys.inode(own, ino)
    refused = [
        keys.inode(other, 1), keys.dentry(other, 1, b"f"), keys.ca("ca"), keys.token("t"), keys.cluster(), keys.volume(own),
        keys.session(drive.session), keys.extent(own, ino, 0), keys.inline(own, ino), keys.locks(own, ino), keys.lease(own, ino),
        keys.orphan(own, ino, 1), keys.reap(1, own, ino, 0), b"", b"\0", good[:-1], good + b"x", keys.dentry(own, 1, b""),
        keys.dentry(own, 1, b"x" * 256), keys.cookie(own, 1, 2) + b"x", b"\0\1" + good[2:],
    ]  # fmt: skip
    for key in refused:
        assert drive.ask_errno(asked(drive, good, key)) == errno.EINVAL, key
    for group in (good, *map(group_of, refused)):
        if group and group not in {group_of(keys.dentry(own, 1, b"")), group_of(keys.cookie(own, 1, 2)), good}:
            assert drive.ask_errno(asked(drive, good, group=group)) == errno.EINVAL, group
    name = group_of(keys.dentry(own, 1, b""))
    assert drive.ask_errno(asked(drive, group=name, after=keys.dentry(own, 2, b"a"))) == errno.EINVAL
    assert drive.ask_errno(asked(drive, *[good] * 4_097)) == errno.E2BIG


def test_only_a_session_that_lives_and_serves_the_volume(drive: Drive) -> None:
    key = keys.inode(drive.volume, 1)
    assert drive.ask_errno(asked(drive, key, session=0)) == errno.ESTALE
    assert drive.ask_errno(asked(drive, key, session=99)) == errno.ESTALE
    assert drive.ask_errno(asked(drive, key, epoch=drive.epoch + 1)) == errno.ESTALE
    first, session, epoch = drive.volume, drive.session, drive.epoch
    second = drive.make_volume("second")
    drive.open(8)
    for volume, serves in ((first, session), (second, drive.session)):
        wrong = first + second - volume
        given = {"session": serves, "epoch": epoch if serves == session else drive.epoch}
        assert drive.ask(asked(drive, keys.inode(volume, 1), volume=volume, **given)).rows
        assert drive.ask_errno(asked(drive, keys.inode(wrong, 1), volume=wrong, **given)) == errno.EINVAL
    drive.ok(c.EndSession(session, epoch, True), session=0, epoch=0, mount=0)
    assert drive.ask_errno(asked(drive, keys.inode(first, 1), volume=first, session=session, epoch=epoch)) == errno.ESTALE


def test_nothing_of_an_inode_that_another_session_writes() -> None:
    drive = Drive()
    drive.make_volume()
    drive.open(7, shared=True)
    ino = drive.create(b"f")
    drive.ok(c.AcquireLease(drive.volume, ino, 0))
    mine = asked(drive, keys.inode(drive.volume, ino))
    drive.open(8, shared=True)
    assert drive.ask_errno(asked(drive, keys.inode(drive.volume, ino))) == errno.EAGAIN
    assert drive.ask_errno(asked(drive, group=group_of(keys.xattr(drive.volume, ino, b"a")))) == errno.EAGAIN
    name = keys.dentry(drive.volume, 1, b"f")
    assert [key for key, _ in drive.ask(asked(drive, name)).rows] == [name]  # the name is told, the inode is not
    assert drive.ask(mine).rows


@pytest.mark.parametrize("bound", [1, 100, 1 << 20])
def test_answers_are_bounded_and_go_on(drive: Drive, bound: int) -> None:
    for number in range(40):
        drive.create(b"%02d" % number)
    names = [keys.dentry(drive.volume, 1, b"%02d" % number) for number in range(40)]
    group, after, found = group_of(names[0]), b"", []
    with mock.patch.object(row_queries, "ROWS_ANSWER_BYTES", bound):
        left = list(names)
        while left:
            told = {key for key, _ in drive.ask(asked(drive, *left)).rows}
            assert left[0] in told
            left = [key for key in left if key not in told]
        more = True
        while more:
            reply = drive.ask(asked(drive, group=group, after=after))
            page = [key for key, _ in reply.rows if keys.kind_of(key)[2] == keys.DENTRY]
            found, after, more = found + page, page[-1], reply.more
    assert found == names
    assert rows.DENTRY.loads(drive.txn.rows[names[0]]).ino


def test_an_answer_counts_its_keys() -> None:
    """Names are longer than what stands under them, and a frame has a bound."""
    drive = Drive()
    drive.make_volume()
    drive.open(7, shared=True)
    names = [b"%0255d" % number for number in range(100)]
    for name in names:
        drive.ok(c.AcquireLease(drive.volume, drive.create(name), 0))
    drive.open(8, shared=True)  # it is told the names only
    wanted = [keys.dentry(drive.volume, 1, name) for name in names]
    absent = [keys.dentry(drive.volume, 1, name[::-1]) for name in names]
    with mock.patch.object(row_queries, "ROWS_ANSWER_BYTES", 4_096):
        for reply in (
            drive.ask(asked(drive, group=group_of(wanted[0]))), drive.ask(asked(drive, *wanted)), drive.ask(asked(drive, *absent)),
        ):  # fmt: skip
            assert 4_096 <= sum(len(key) + len(value or b"") for key, value in reply.rows) < 4_096 + 300
