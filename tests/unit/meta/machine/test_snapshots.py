"""Snapshots in the state machine: how they are made, read and deleted, what makes a version, and what a build without them does."""

from __future__ import annotations

import errno
import uuid
from typing import Any
from unittest import mock

import pytest

from awsomefsd.base.errors import FormatTooNew
from awsomefsd.base.rule_levels import SNAPSHOTS
from awsomefsd.base.types import SNAPSHOT_FLUSHED, SNAPSHOT_SYNCED, SnapshotInfo
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages import collection as cm
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import csi_volumes, filemap, ledger, queries, snapshots
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.state import history, keys, rows, rows_cache
from awsomefsd.meta.state.rows_cache import State
from tests.rigs.machine_driver import Drive


def made_drive() -> Drive:
    drive = Drive(level=SNAPSHOTS)
    drive.make_volume()
    drive.open()
    return drive


@pytest.fixture
def drive() -> Drive:
    return made_drive()


def state_of(drive: Drive) -> State:
    return drive.machine.state


def volume_of(drive: Drive) -> rows.VolumeRow:
    row = state_of(drive).volume(drive.volume)
    assert row is not None
    return row


def creation(name: str, *volumes: int, **fields: Any) -> c.CreateSnapshots:
    return c.CreateSnapshots(name, [c.NewSnapshot(volume, str(uuid.uuid4())) for volume in volumes], **fields)


def taken(drive: Drive, name: str = "") -> SnapshotInfo:
    [info] = drive.ok(creation(name or f"of entry {drive.index}", drive.volume)).snapshots
    return info


def snapshot(drive: Drive) -> int:
    return taken(drive).snapshot


def delete(drive: Drive, number: int) -> None:
    drive.ok(c.DeleteSnapshot(drive.volume, number))


def read(drive: Drive, info: SnapshotInfo, mount: int = 8, worker: int = 1, **fields: Any) -> m.SessionOpened:
    given = {"node": "n1", "boot_id": "b1", "snapshot": info.snapshot, "uuid": info.uuid} | fields
    command = c.OpenSnapshot(mount, info.volume, given.pop("node"), given.pop("boot_id"), worker, **given)
    opened: m.SessionOpened = drive.ok(command, session=0, epoch=0, mount=mount)
    return opened


def reaped(drive: Drive) -> None:
    while drive.machine.reap_pending():
        drive.ok(c.Reap(3))


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
    assert Machine(drive.txn, SNAPSHOTS).state.chaptered


def test_snapshots_are_numbered_from_1_and_never_again(drive: Drive) -> None:
    assert [snapshot(drive), snapshot(drive)] == [1, 2]
    delete(drive, 2)
    assert volume_of(drive).newest == 1 and snapshot(drive) == 3
    for number in (1, 3):
        delete(drive, number)
    assert volume_of(drive).newest == 0 and snapshot(drive) == 4
    assert drive.errno(c.DeleteSnapshot(drive.volume, 3)) == errno.ENOENT


def test_a_snapshot_touches_no_row_of_the_volume(drive: Drive) -> None:
    drive.create(b"a")
    drive.machine.flush()
    before = dict(drive.txn.rows)
    name = taken(drive).name
    drive.machine.flush()
    changed = {key for key in before.keys() | drive.txn.rows.keys() if before.get(key) != drive.txn.rows.get(key)}
    assert changed == {keys.cluster(), keys.volume(drive.volume), keys.snapshot(drive.volume, 1), keys.snapname(drive.volume, name)}


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
    alone = Drive(level=SNAPSHOTS)
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
    delete(drive, 1)
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    drive.session = drive.epoch = 0
    drive.ok(c.DeleteVolume(drive.volume, True))
    reaped(drive)
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


# --- how they are made ------------------------------------------------------------------------------------------------------
def test_one_entry_makes_snapshots_of_several_volumes(drive: Drive) -> None:
    first = drive.volume
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    second = drive.make_volume("other", quota_bytes=1 << 30)
    made = drive.ok(creation("both", second, first, word=SNAPSHOT_SYNCED), session=0, epoch=0, mount=0).snapshots
    assert [(info.volume, info.snapshot, info.name, info.word) for info in made] == [(second, 1, "both", 1), (first, 1, "both", 1)]
    assert {info.time_ns for info in made} == {drive.now}
    row = rows.SNAPSHOT.loads(drive.txn.get(keys.snapshot(second, 1)))
    assert (row.index, row.used_inodes, row.next_ino, row.quota_bytes) == (drive.index, 1, 2, 1 << 30)
    assert drive.ask(m.ListSnapshots(first)).snapshots == made[1:] == drive.ask(m.ListSnapshots(first, "both")).snapshots
    assert drive.ask(m.ListSnapshots(first, "none")).snapshots == [] == drive.ask(m.ListSnapshots(first, "a/b")).snapshots
    assert drive.ask_errno(m.ListSnapshots(99)) == errno.ENOENT
    sound(drive)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a@b", "a\nb", "a\0b", "\x7f", "ä" * 128])
def test_a_name_that_cannot_be_given(drive: Drive, name: str) -> None:
    assert drive.errno(creation(name, drive.volume)) == errno.EINVAL
    assert taken(drive, "ä" * 127).name == "ä" * 127


def test_what_is_no_creation(drive: Drive) -> None:
    taken(drive, "a")
    one, two = str(uuid.uuid4()), drive.volume
    other = drive.make_volume("other")
    for command, expected in (
        (creation("a", other, two), errno.EEXIST),  # of none, then
        (creation("b", other, 99), errno.ENOENT),
        (creation("b"), errno.EINVAL),
        (creation("b", other, other), errno.EINVAL),
        (creation("b", other, word=SNAPSHOT_FLUSHED), errno.EINVAL),
        (c.CreateSnapshots("b", [c.NewSnapshot(other, one), c.NewSnapshot(two, one)]), errno.EINVAL),
        (c.CreateSnapshots("b", [c.NewSnapshot(other, one.upper())]), errno.EINVAL),
    ):
        assert drive.errno(command) == expected, command
    assert not state_of(drive).now(other)


def test_a_volume_has_so_many_snapshots_at_most(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOTS_PER_VOLUME_MAX", 3)
    numbers = [snapshot(drive) for _ in range(3)]
    assert drive.errno(creation("more", drive.volume)) == errno.ENOSPC
    delete(drive, numbers[1])
    assert snapshot(drive) == 4


def test_a_listing_says_what_deletion_frees(drive: Drive) -> None:
    info = drive.lease()[0]
    ino = drive.create(b"a")
    for at in range(4):
        drive.write(info, ino, at * 4_096, 4_096)
    first = snapshot(drive)
    drive.write(info, ino, 0, 4_096)
    second = snapshot(drive)
    drive.write(info, ino, 4_096, 4_096)

    def freed() -> dict[int, int]:
        return {one.snapshot: one.freed_bytes for one in drive.ask(m.ListSnapshots(drive.volume)).snapshots}

    assert freed() == {first: 4_096, second: 0}  # the second range is seen by both
    delete(drive, first)
    assert freed() == {second: 4_096}
    live = state_of(drive).segment(info.segment)
    assert live is not None and live.live_bytes == 6 * 4_096
    sound(drive)  # Reap was not there
    reaped(drive)
    assert live.live_bytes == 5 * 4_096
    sound(drive)


# --- how they are read ------------------------------------------------------------------------------------------------------
def test_a_session_reads_a_snapshot_beside_all_others(drive: Drive) -> None:
    info, own = taken(drive), (drive.session, drive.epoch)
    for mount, node in ((8, "n1"), (9, "n2")):
        opened = read(drive, info, mount, node=node)
        assert (opened.resumed, opened.changed_by_others, opened.volume.holder) == (False, False, own[0])
    assert drive.machine.serving() == [(own[0], drive.volume, "n1")]  # who may hold something back
    sound(drive)
    assert drive.errno(c.DeleteSnapshot(drive.volume, info.snapshot)) == errno.EBUSY
    drive.ok(c.EndSession(*own, True))
    drive.ok(c.OpenSession(7, drive.volume, "n1", "b1", 2, shared=True), session=0, epoch=0)  # and with sharers
    read(drive, info, 10, node="n2")
    sound(drive)
    drive.ok(c.OpenSession(11, drive.volume, "n3", "b3", 1, shared=True), session=0, epoch=0, mount=11)
    sound(drive)


def test_what_a_session_of_a_snapshot_is_refused(drive: Drive) -> None:
    info, ino = taken(drive), drive.create(b"a")
    own = drive.session, drive.epoch, drive.mount
    opened = read(drive, info)
    drive.session, drive.epoch, drive.mount = opened.session, opened.epoch, 8
    volume = drive.volume
    for command in (
        c.LeaseSegments(1, 1 << 60), c.Reserve(volume, 4_096, 0), c.Create(volume, 1, b"b", 0o100644, 0, 0), c.Unlink(volume, 1, b"a"),
        c.SetAttr(volume, ino, c.SET_MODE, 0o600), c.SetXattr(volume, ino, b"user.a", b""), c.SetAtimes(volume, [(ino, 1)]),
        c.Commit(volume, [], 0, []), c.SetLock(volume, ino, 0, 1, 2, 1, 0, 9), c.Tmpfile(volume, 1, 0o600, 0, 0),
        c.AcquireLease(volume, ino, 1), c.GrantInodes(volume, 10, 1), c.Draw(volume, ino, 1, 2, 3),
    ):  # fmt: skip
        assert drive.errno(command) == errno.EROFS, command
    assert drive.errno(c.OpenSnapshot(8, volume, "n1", "b1", 2), session=0, epoch=0) == errno.EINVAL  # it is of another snapshot
    assert drive.errno(c.OpenSession(8, volume, "n1", "b1", 2), session=0, epoch=0) == errno.EINVAL
    assert read(drive, info, worker=2).resumed
    drive.ok(c.EndSession(opened.session, opened.epoch, True))
    drive.session, drive.epoch, drive.mount = own
    delete(drive, info.snapshot)
    sound(drive)


def test_a_reader_that_falls_silent_fences_no_node(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """An orchestrator's volume is kept from a node that may still write; a reader of a snapshot does not."""
    fenced: list[int] = []
    monkeypatch.setattr(csi_volumes, "set_fence", lambda state, row: fenced.append(row.session))
    opened = read(drive, taken(drive))
    drive.ok(c.EndSession(opened.session, opened.epoch, False, expired=True), session=0, epoch=0)
    assert fenced == []
    drive.ok(c.EndSession(drive.session, drive.epoch, False, expired=True), session=0, epoch=0)
    assert fenced == [drive.session]


def test_a_snapshot_that_is_not_there_is_not_opened(drive: Drive) -> None:
    info = taken(drive)
    for number, name in ((2, info.uuid), (1, str(uuid.uuid4())), (0, "")):
        command = c.OpenSnapshot(8, drive.volume, "n1", "b1", 1, snapshot=number, uuid=name)
        assert drive.errno(command, session=0, epoch=0, mount=8) == errno.ENOENT


def test_questions_as_of_a_snapshot_that_is_gone(drive: Drive) -> None:
    ino = drive.create(b"a")
    at = snapshot(drive)
    new = drive.create(b"b")
    volume = drive.volume
    assert drive.ask_errno(m.GetAttr(volume, new, at=at)) == errno.ENOENT
    delete(drive, at)
    for number in (at, 7, (1 << 32) - 1):
        for question in (
            m.GetAttr(volume, ino, at=number), m.Lookup(volume, 1, b"a", at=number), m.ReadDir(volume, 1, 0, 9, False, number),
            m.GetLayout(volume, ino, 0, 9, number), m.GetParent(volume, 1, number), m.ListXattr(volume, ino, number),
            m.GetXattr(volume, ino, b"user.a", number), m.ReadLink(volume, ino, number),
        ):  # fmt: skip
            assert drive.ask_errno(question) == errno.ESTALE


def test_a_layout_as_of_a_snapshot_comes_in_parts(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "LAYOUT_EXTENTS_MAX", 2)
    info = drive.lease()[0]
    ino = drive.create(b"a")
    for at in range(5):
        drive.write(info, ino, at * 8_192, 4_096)
    at = snapshot(drive)
    drive.ok(c.SetAttr(drive.volume, ino, c.SET_SIZE, size=0, log=1, sequence=drive.sequence))
    found, start = [], 0
    while start < 1 << 40:
        layout = drive.ask(m.GetLayout(drive.volume, ino, start, 1 << 40, at))
        assert len(layout.extents) <= 2 and layout.size == 4 * 8_192 + 4_096
        found += [extent.file_offset for extent in layout.extents]
        start = layout.end
    assert found == [at * 8_192 for at in range(5)]
