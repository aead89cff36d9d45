"""Snapshots in the state machine: what makes a version and what does not, what a build that does not know them does, and what they cost."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from unittest import mock

import pytest

from awsomefsd.base.errors import FormatTooNew, FsError
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import collection as cm
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import filemap, ledger, snapshots
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.state import history, keys, rows, rows_cache
from awsomefsd.meta.state.rows_cache import INCOMPAT_SNAPSHOTS, State
from tests.rigs.machine_driver import Drive

KNOWN = rows_cache.INCOMPAT_KNOWN


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """A build that knows snapshots."""
    with mock.patch.object(rows_cache, "INCOMPAT_KNOWN", INCOMPAT_SNAPSHOTS):
        yield


def state_of(drive: Drive) -> State:
    return drive.machine.state


def volume_of(drive: Drive) -> rows.VolumeRow:
    row = state_of(drive).volume(drive.volume)
    assert row is not None
    return row


def snapshot(drive: Drive) -> int:
    return snapshots.make(state_of(drive), drive.entry(c.NoOp()), volume_of(drive))


def kept(drive: Drive) -> list[int]:
    """The kinds of the values that are kept, ascending."""
    drive.machine.flush()
    return sorted(keys.kind_of(keys.kept_of(key)[2])[2] for key, _ in drive.txn.scan(*keys.kind_range(drive.volume, keys.KEPT)))


def sound(drive: Drive) -> None:
    drive.machine.flush()
    assert check(drive.txn) == []


def test_a_build_that_does_not_know_snapshots_refuses_the_store(drive: Drive) -> None:
    snapshot(drive)
    drive.machine.flush()
    with mock.patch.object(rows_cache, "INCOMPAT_KNOWN", 0), pytest.raises(FormatTooNew, match="upgrade this node"):
        Machine(drive.txn)
    assert Machine(drive.txn).state.chaptered


def test_this_build_does_not_say_that_it_knows_them() -> None:
    """fsck's repairs, dumps and mounts do not know the rows of history yet."""
    assert KNOWN == 0


def test_snapshots_are_numbered_from_1_and_never_again(drive: Drive) -> None:
    assert [snapshot(drive), snapshot(drive)] == [1, 2]
    snapshots.delete(state_of(drive), volume_of(drive), 2)
    assert volume_of(drive).newest == 1 and snapshot(drive) == 3
    for number in (1, 3):
        snapshots.delete(state_of(drive), volume_of(drive), number)
    assert volume_of(drive).newest == 0 and snapshot(drive) == 4
    with pytest.raises(FsError) as refused:
        snapshots.delete(state_of(drive), volume_of(drive), 3)
    assert refused.value.errno == errno.ENOENT


def test_a_snapshot_touches_no_row_of_the_volume(drive: Drive) -> None:
    drive.create(b"a")
    drive.machine.flush()
    before = dict(drive.txn.rows)
    snapshot(drive)
    drive.machine.flush()
    changed = {key for key in before.keys() | drive.txn.rows.keys() if before.get(key) != drive.txn.rows.get(key)}
    assert changed == {keys.cluster(), keys.volume(drive.volume), keys.snapshot(drive.volume, 1)}


def test_what_makes_no_version(drive: Drive) -> None:
    """A read, a move by collection, the mark `shared`, promised space, and what Reap frees of an older truncation."""
    info = drive.lease()[0]
    ino, other = drive.create(b"a"), drive.create(b"b")
    drive.write(info, ino, 0, 8_192)
    drive.ok(drive.commit(info, sealed=True))
    snapshot(drive)
    drive.ok(c.SetAtimes(drive.volume, [(ino, 77)]))
    piece = drive.ask(cm.GetPieces(info.segment, 0, 0, 0, 0, 10)).pieces[0]
    own = drive.session, drive.epoch, drive.mount
    opened = drive.ok(c.OpenCollector("n1", "b1"), session=0, epoch=0, mount=0)
    drive.session, drive.epoch, drive.mount = opened.session, opened.epoch, 0
    new = drive.lease()[0]
    copy = drive.frame(new, 0, 8_192)
    moved = drive.ok(c.Relocate([c.Relocation(piece.volume, piece.ino, piece.extent, [copy])], [drive.progress(new)]))
    assert moved.moved_bytes == 8_192
    drive.session, drive.epoch, drive.mount = own
    assert kept(drive) == []
    shown = history.inode(state_of(drive), drive.volume, ino, 1)
    assert shown is not None and shown.atime_ns == 77
    drive.ok(c.CopyRange(drive.volume, ino, 0, other, 0, 4_096))
    assert kept(drive) == [keys.INODE]  # of the target
    sound(drive)


def test_the_first_change_keeps_and_later_ones_do_not(drive: Drive) -> None:
    ino = drive.create(b"a")
    snapshot(drive)
    for mode in (0o600, 0o640, 0o644):
        drive.ok(c.SetAttr(drive.volume, ino, c.SET_MODE, mode))
    assert kept(drive) == [keys.INODE]
    drive.create(b"b")
    drive.create(b"c")
    assert kept(drive) == [keys.INODE] * 2  # the directory
    snapshot(drive)
    drive.ok(c.Unlink(drive.volume, 1, b"a"))
    assert kept(drive) == [keys.INODE] * 4 + [keys.DENTRY, keys.COOKIE]
    sound(drive)


def test_a_volume_beside_it_is_as_before(drive: Drive) -> None:
    """Rows of a volume that never had a snapshot keep their bytes, also where another volume has some."""
    snapshot(drive)
    alone = Drive()
    for one in (drive, alone):
        if one is alone:
            one.make_volume()
        one.make_volume("other")
        one.open(mount=9)
        ino = one.create(b"a")
        one.ok(c.SetXattr(one.volume, ino, b"user.a", b"1"))
        one.ok(c.Unlink(one.volume, 1, b"a"))
        one.create(b"b")
        one.machine.flush()
    for kind in (*keys.VERSIONED, *keys.HISTORY_KINDS):
        span = keys.kind_range(alone.volume, kind)
        assert [key for key, _ in drive.txn.scan(*span)] == [key for key, _ in alone.txn.scan(*span)]
    assert [len(raw) for _, raw in drive.txn.scan(*keys.kind_range(2, keys.DENTRY))] == [
        len(raw) for _, raw in alone.txn.scan(*keys.kind_range(2, keys.DENTRY))
    ]


def test_a_volume_with_snapshots_is_not_deleted(drive: Drive) -> None:
    snapshot(drive)
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    drive.session = drive.epoch = 0
    assert drive.errno(c.DeleteVolume(drive.volume, True)) == errno.EBUSY


def test_a_deleted_volume_lets_kept_bytes_go(drive: Drive) -> None:
    """The last snapshot is gone, and what it saw is not freed yet."""
    info = drive.lease()[0]
    ino = drive.create(b"a")
    for at in range(4):
        drive.write(info, ino, at * 4_096, 4_096)
    snapshot(drive)
    drive.write(info, ino, 4_096, 4_096)
    drive.ok(c.Unlink(drive.volume, 1, b"a"))
    snapshots.delete(state_of(drive), volume_of(drive), 1)
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    drive.session = drive.epoch = 0
    drive.ok(c.DeleteVolume(drive.volume, True))
    while drive.machine.reap_pending():
        drive.ok(c.Reap(3))
    sound(drive)
    assert all(key[2:6] == bytes(4) for key in drive.txn.rows), "rows of the volume are left"
    device = state_of(drive).devices()[0]
    assert device.segments_free == device.segments


def test_a_file_that_was_cut_and_removed_shows_what_it_had(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots before, between and behind a truncation that Reap has not come to when the file ends (rules 8, 9 and 29)."""
    monkeypatch.setattr(filemap, "REAP_EXTENTS_PER_ENTRY", 2)
    monkeypatch.setattr(ledger, "SMALL_FILE_EXTENTS", 1)
    info = drive.lease()[0]
    ino = drive.create(b"a")
    for at in range(6):
        drive.write(info, ino, at * 4_096, 4_096)
    first = snapshot(drive)
    drive.ok(c.SetAttr(drive.volume, ino, c.SET_SIZE, size=4_096, log=1, sequence=drive.sequence))
    between = snapshot(drive)
    drive.write(info, ino, 8_192, 4_096)
    last = snapshot(drive)
    drive.ok(c.Unlink(drive.volume, 1, b"a"))

    def offsets(at: int) -> list[int]:
        return [offset for offset, _ in filemap.visible_as_of(state_of(drive), drive.volume, ino, 0, 1 << 20, at)]

    while True:
        assert (offsets(first), offsets(between), offsets(last)) == ([at * 4_096 for at in range(6)], [0], [0, 8_192])
        sound(drive)
        if not drive.machine.reap_pending():
            break
        drive.ok(c.Reap(2))
    assert history.inode(state_of(drive), drive.volume, ino, last) is not None and state_of(drive).inode(drive.volume, ino) is None


def test_extents_of_a_range_begin_before_it(drive: Drive) -> None:
    info = drive.lease()[0]
    ino = drive.create(b"a")
    drive.write(info, ino, 0, 10_000)
    drive.write(info, ino, 20_000, 10_000)
    at = snapshot(drive)
    drive.write(info, ino, 0, 30_000)

    def found(start: int, end: int) -> list[int]:
        return [offset for offset, _ in filemap.visible_as_of(state_of(drive), drive.volume, ino, start, end, at)]

    assert found(9_999, 20_000) == [0] and found(10_000, 20_000) == [] and found(10_000, 20_001) == [20_000]
    assert found(0, 30_000) == [0, 20_000]
