"""Sessions, segments, space, locks, exactly-once results, volumes and readers of the stream."""

from __future__ import annotations

import errno
import itertools
import random

import pytest

from awsomefsd.base.errors import FormatTooNew
from awsomefsd.base.limits import LOCKS_PER_INODE_MAX, SEGMENTS_PER_SESSION_MAX, SEGMENTS_RESERVED
from awsomefsd.base.types import LOCK_END_MAX, SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_QUARANTINED, SEGMENT_SEALED, Lock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import locks, segments
from awsomefsd.meta.machine.quota import GRANT_SHARE
from awsomefsd.meta.state import keys
from tests.rigs.machine_driver import MIB, SEGMENT_BYTES, Drive

USABLE = segments.usable_bytes(SEGMENT_BYTES)


@pytest.fixture
def drive() -> Drive:
    made = Drive()
    made.make_volume()
    made.open()
    return made


def states(drive: Drive, *numbers: int) -> list[int]:
    return [info.state for info in drive.ask(m.GetSegments(list(numbers))).segments]


def sound(drive: Drive) -> None:
    drive.machine.flush()
    assert check(drive.txn) == []


# --- sessions -----------------------------------------------------------------------------------------------------------
def test_a_volume_has_one_holder(drive: Drive) -> None:
    other = c.OpenSession(8, drive.volume, "n2", "b2", 1)
    assert drive.errno(other) == errno.EBUSY
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    opened = drive.open(8, node="n2", boot_id="b2")
    assert (opened.session, opened.epoch, opened.resumed, opened.changed_by_others) == (2, 2, False, False)
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert drive.open(7).changed_by_others, "mount 8 has held the volume since"
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert not drive.open(7).changed_by_others
    sound(drive)


def test_takeover_keeps_everything_but_segments(drive: Drive) -> None:
    file, held = drive.create(b"f"), drive.lease(2)
    drive.write(held[0], file, 0, 100)
    drive.ok(c.SetLock(drive.volume, file, 0, 1, 1, 1, 0, 10))
    drive.ok(c.Reserve(drive.volume, 1000, 1000))
    drive.ok(c.Unlink(drive.volume, 1, b"f", True))
    session = drive.session
    opened = drive.open(worker=2)
    assert (opened.session, opened.resumed, opened.reserved_bytes) == (session, True, 1000)
    assert states(drive, *(info.segment for info in held)) == [SEGMENT_SEALED, SEGMENT_FREE]
    assert len(drive.ask(m.GetLocks(session)).locks) == 1
    assert drive.ask(m.GetAttr(drive.volume, file)).attr.nlink == 0
    assert drive.errno(c.OpenSession(7, drive.volume, "n1", "b1", 2)) == errno.ESTALE
    assert drive.errno(drive.commit(held[0])) == errno.ESTALE, "the dead worker's segment"
    sound(drive)


def test_takeover_without_proof_quarantines(drive: Drive) -> None:
    held = drive.lease()[0].segment
    drive.open(worker=2, predecessor_exited=False)
    assert states(drive, held) == [SEGMENT_QUARANTINED]
    sound(drive)
    assert drive.errno(c.ClearQuarantine(drive.session, "")) == errno.EINVAL
    drive.ok(c.ClearQuarantine(drive.session, "the process has exited"))
    assert states(drive, held) == [SEGMENT_FREE]
    sound(drive)


def test_end_of_a_session_ends_all_it_held(drive: Drive) -> None:
    file, held = drive.create(b"f"), drive.lease()[0]
    drive.write(held, file, 0, 100)
    drive.ok(c.Reserve(drive.volume, 1000, 1000))
    drive.ok(c.SetLock(drive.volume, file, 1, 1, 1, 1, 0, 0))
    drive.machine.take_unlocked()
    drive.ok(c.Unlink(drive.volume, 1, b"f", True))
    assert drive.errno(c.EndSession(drive.session, drive.epoch + 1, True)) == errno.ESTALE
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert drive.machine.take_unlocked() == {(drive.volume, file)} and drive.machine.take_unlocked() == set()
    assert drive.ask_errno(m.GetAttr(drive.volume, file)) == errno.ENOENT
    volume = drive.ask(m.GetVolumes()).volumes[0]
    assert (volume.reserved_bytes, volume.holder, volume.used_bytes) == (0, 0, 0)
    assert states(drive, held.segment) == [SEGMENT_QUARANTINED], "nothing lives in it, but a late write may land"
    for command in (c.Create(drive.volume, 1, b"x", 0o100644, 0, 0), c.LeaseSegments(1, 0), c.Reserve(drive.volume, 1, 1)):
        assert drive.errno(command) == errno.ESTALE
    sound(drive)
    drive.ok(c.ClearQuarantine(drive.session, "new boot"))
    assert states(drive, held.segment) == [SEGMENT_FREE]
    sound(drive)


def test_a_new_boot_is_proof(drive: Drive) -> None:
    old = drive.lease()[0].segment
    drive.ok(c.Reserve(drive.volume, 1, 1), unique=5)
    drive.open(9, boot_id="b2")
    assert states(drive, old) == [SEGMENT_FREE]
    assert drive.machine.live_sessions() == {2: 2}
    assert drive.machine.stored_result(7, 5) is None, "that mount never asks again"
    sound(drive)


def test_nodes_that_share_a_boot_are_told_apart(drive: Drive) -> None:
    """As in namespaces of one machine: a node that comes back, or is booted again, says nothing of the others."""
    held: dict[str, int] = {}
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    for number, node in enumerate(("n1", "n2", "n3"), 11):
        volume = drive.ok(c.CreateVolume(f"of-{node}", f"u-{node}")).number
        drive.open(number, node=node, volume=volume)
        held[node] = drive.lease()[0].segment
        if node != "n3":
            drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert states(drive, *held.values()) == [SEGMENT_QUARANTINED, SEGMENT_QUARANTINED, SEGMENT_LEASED]
    drive.open(21, node="n2", volume=drive.ok(c.CreateVolume("another", "u-another")).number)
    assert states(drive, *held.values()) == [SEGMENT_QUARANTINED, SEGMENT_QUARANTINED, SEGMENT_LEASED], "the same boot proves nothing"
    drive.open(22, node="n2", boot_id="b2", volume=drive.ok(c.CreateVolume("third", "u-third")).number)
    assert states(drive, *held.values()) == [SEGMENT_QUARANTINED, SEGMENT_FREE, SEGMENT_LEASED], "only what ran on that node has ended"
    drive.open(11, node="n1", boot_id="b2", volume=drive.ok(c.CreateVolume("fourth", "u-fourth")).number)
    assert states(drive, *held.values()) == [SEGMENT_FREE, SEGMENT_FREE, SEGMENT_LEASED]
    sound(drive)


def test_wrong_epoch_and_wrong_volume(drive: Drive) -> None:
    command = c.Create(drive.volume, 1, b"x", 0o100644, 0, 0)
    assert drive.errno(command, epoch=drive.epoch + 1) == errno.ESTALE
    assert drive.errno(c.LeaseSegments(1, 0), session=0) == errno.ESTALE
    drive.ok(command, session=0, epoch=0)
    other = drive.ok(c.CreateVolume("other", "u2")).number
    assert drive.errno(c.Create(other, 1, b"x", 0o100644, 0, 0)) == errno.EINVAL


def test_many_pins_end_in_steps(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.meta.machine.sessions.REAP_EXTENTS_PER_ENTRY", 3)
    for at in range(10):
        drive.create(b"%d" % at)
        drive.ok(c.Unlink(drive.volume, 1, b"%d" % at, True))
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    sound(drive)
    assert drive.machine.reap_pending()
    drive.ok(c.Reap(100))
    assert not drive.machine.reap_pending() and drive.ask(m.GetVolumes()).volumes[0].used_inodes == 1
    sound(drive)


# --- segments and space -------------------------------------------------------------------------------------------------
def test_leases_are_lowest_first_and_bounded(drive: Drive) -> None:
    drive.ok(c.AddDevice("second", SEGMENT_BYTES * 90, SEGMENT_BYTES, 80, 0))
    first = drive.lease(60)
    assert [info.segment for info in first] == list(range(1, 61))
    assert first[1].byte_offset == MIB + SEGMENT_BYTES and first[0].state == SEGMENT_LEASED and first[0].incarnation == 1
    rest = drive.lease(60)
    assert [info.segment for info in rest] == [61, 62, 63, 64] and len(first + rest) == SEGMENTS_PER_SESSION_MAX
    assert drive.errno(c.LeaseSegments(1, 0)) == errno.EDQUOT
    assert drive.errno(c.LeaseSegments(0, 0)) == errno.EINVAL
    drive.open(worker=2)
    assert {info.device for info in drive.lease(1, 0)} == {2}, "those of device 1 are free, but not yet safe"
    assert drive.ask_errno(m.GetSegments([1000])) == errno.ENOENT
    sound(drive)


def test_nothing_to_lease() -> None:
    drive = Drive(segments=3)
    drive.make_volume()
    drive.open()
    assert [len(drive.lease(2)) for _ in range(2)] == [1, 1], "nothing ahead where it is scarce"
    assert drive.errno(c.LeaseSegments(1, 1 << 40)) == errno.ENOSPC, "the last one is collection's"
    drive.open(worker=2)
    drive.lease(1, 0)
    reply = drive.apply(c.LeaseSegments(1, 0), unique=9)
    assert isinstance(reply, m.Failed) and reply.retry and drive.machine.stored_result(7, 9) is None


def test_devices(drive: Drive) -> None:
    assert drive.errno(c.AddDevice("d-uuid", 1 << 30, MIB, 1, 0)) == errno.EEXIST
    assert drive.errno(c.AddDevice("d2", MIB, MIB, 1, 1)) == errno.EINVAL
    drive.lease(3)
    device = drive.ask(m.GetDevices()).devices[0]
    assert (device.segments, device.segments_free, device.uuid) == (64, 61, "d-uuid")


def test_device_space() -> None:
    drive = Drive(segments=6)
    drive.make_volume()
    drive.open()
    free = USABLE * (6 - SEGMENTS_RESERVED)
    assert drive.ask(m.GetStatFs(drive.volume)).stat.bytes_free == free
    assert drive.ok(c.Reserve(drive.volume, 1 << 40, 1)).bytes == free // GRANT_SHARE, "others find something too"
    rest = free - free // GRANT_SHARE
    assert drive.ok(c.Reserve(drive.volume, rest, rest)).bytes == rest
    assert drive.errno(c.Reserve(drive.volume, 10, 1)) == errno.ENOSPC
    assert drive.ok(c.Reserve(drive.volume, 10, 0)).bytes == 0
    assert drive.ok(c.Reserve(drive.volume, -500, 0)).bytes == -500
    assert drive.ok(c.Reserve(drive.volume, 1000, 500)).bytes == 500
    segment, file = drive.lease()[0], drive.create(b"f")
    assert drive.errno(c.Reserve(drive.volume, 10, 1)) == errno.ENOSPC, "leasing does not make space"
    drive.write(segment, file, 0, 1000, consumed=1064)
    assert drive.ask(m.GetVolumes()).volumes[0].reserved_bytes == free - 1064
    assert drive.errno(c.Reserve(drive.volume, 10, 1)) == errno.ENOSPC
    drive.ok(c.Unlink(drive.volume, 1, b"f"))
    drive.mkdir(b"metadata goes on")
    drive.ok(drive.commit(segment, consumed=1 << 50))
    assert drive.ask(m.GetVolumes()).volumes[0].reserved_bytes == 0
    sound(drive)


def test_byte_quota(drive: Drive) -> None:
    drive.ok(c.SetVolume(drive.volume, quota_bytes=10_000))
    segment, file = drive.lease()[0], drive.create(b"f")
    assert drive.ok(c.Reserve(drive.volume, 4000, 4000)).bytes == 4000
    drive.write(segment, file, 0, 4000, consumed=4000)
    assert drive.ok(c.Reserve(drive.volume, 20_000, 1)).bytes == 6000
    assert drive.errno(c.Reserve(drive.volume, 1, 1)) == errno.EDQUOT
    stat = drive.ask(m.GetStatFs(drive.volume)).stat
    assert (stat.bytes_total, stat.bytes_free) == (10_000, 0)


# --- locks --------------------------------------------------------------------------------------------------------------
def test_lock_placement_against_a_model(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        held: list[Lock] = []
        model: dict[tuple[int, int], int] = {}  # (owner, byte) -> type
        for _ in range(40):
            start = chance.randrange(20)
            want = Lock(0, chance.randrange(3), 1, chance.randrange(3), start, start + chance.randrange(8), 1)
            taken = {at for (owner, at), kind in model.items() if owner != want.owner and 1 in (kind, want.lock_type)}
            blocked = want.lock_type != 2 and bool(taken & set(range(want.start, want.end + 1)))
            assert (locks.conflict(held, want) is not None) == blocked
            if blocked:
                continue
            held = locks.with_lock(held, want)
            for at in range(want.start, want.end + 1):
                model.pop((want.owner, at), None)
                if want.lock_type != 2:
                    model[(want.owner, at)] = want.lock_type
            assert {(k.owner, at): k.lock_type for k in held for at in range(k.start, k.end + 1)} == model
            for a, b in itertools.combinations(held, 2):
                joined = a.owner == b.owner and a.lock_type == b.lock_type
                assert not (joined and a.start <= b.end + 1 and b.start <= a.end + 1)


def test_locks_of_a_session(drive: Drive) -> None:
    file, volume = drive.create(b"f"), drive.volume
    drive.ok(c.SetLock(volume, file, 0, 1, 10, 1, 5, 9))
    assert drive.errno(c.SetLock(volume, file, 0, 2, 11, 0, 0, 5)) == errno.EAGAIN
    drive.ok(c.SetLock(volume, file, 1, 2, 11, 1, 3, 4))  # flock is another space, and always the whole file
    way = drive.ask(m.TestLock(volume, file, Lock(0, 2, 0, 1, 0, 100, drive.session))).lock
    assert (way.pid, way.start, way.end) == (10, 5, 9)
    assert drive.ask(m.TestLock(volume, file, Lock(0, 1, 0, 1, 0, 100, drive.session))).lock is None
    kept = drive.ask(m.GetLocks(drive.session)).locks
    assert [(ino, lock.kind, lock.end) for ino, lock in kept] == [(file, 1, LOCK_END_MAX), (file, 0, 9)]
    assert drive.errno(c.SetLock(volume, 99, 0, 1, 1, 1, 0, 1)) == errno.ENOENT
    assert drive.errno(c.SetLock(volume, file, 0, 1, 1, 1, 5, 1)) == errno.EINVAL
    assert drive.errno(c.SetLock(volume, file, 0, 1, 1, 7, 0, 1)) == errno.EINVAL
    drive.machine.take_unlocked()
    drive.ok(c.SetLock(volume, file, 0, 1, 10, 2, 0, LOCK_END_MAX))
    drive.ok(c.SetLock(volume, file, 1, 2, 10, 2, 0, LOCK_END_MAX))
    assert drive.machine.take_unlocked() == {(volume, file)}
    assert drive.ask(m.GetLocks(drive.session)).locks == []
    sound(drive)


def test_lock_bound(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCKS_PER_INODE_MAX", 3)
    assert LOCKS_PER_INODE_MAX > 3
    file = drive.create(b"f")
    for at in range(3):
        drive.ok(c.SetLock(drive.volume, file, 0, 1, 1, 0, at * 10, at * 10 + 1))
    assert drive.errno(c.SetLock(drive.volume, file, 0, 1, 1, 0, 90, 91)) == errno.ENOLCK


# --- exactly once -------------------------------------------------------------------------------------------------------
def test_a_request_happens_once(drive: Drive) -> None:
    command = c.Create(drive.volume, 1, b"f", 0o100644, 0, 0)
    first = drive.ok(command, unique=3)
    drive.reload()
    assert drive.apply(command, unique=3) == first and drive.machine.stored_result(7, 3) == first
    failed = drive.apply(command, unique=4)
    assert failed.errno == errno.EEXIST
    drive.ok(c.Unlink(drive.volume, 1, b"f"))
    drive.reload()
    assert drive.apply(command, unique=4) == failed, "a refusal is a result too"
    assert drive.machine.results_held(7) == 2
    drive.ok(c.Reap(1), unique=5, acks=[3, 4])
    assert drive.machine.results_held(7) == 1 and drive.machine.stored_result(7, 3) is None
    drive.machine.flush()
    assert [keys.last_u64(key) for key in drive.txn.rows if keys.kind_of(key)[1:] == (0, keys.RESULT)] == [5]
    assert drive.apply(command, unique=4).created, "acknowledged ids are forgotten"


def test_a_fenced_request_may_come_again(drive: Drive) -> None:
    command = c.Create(drive.volume, 1, b"f", 0o100644, 0, 0)
    drive.ok(c.EndSession(drive.session, drive.epoch, False), session=0, epoch=0)
    assert drive.errno(command, unique=3) == errno.ESTALE
    drive.open(worker=2)
    assert drive.ok(command, unique=3).created


def test_replayed_entries_change_nothing(drive: Drive) -> None:
    entry = drive.entry(c.Create(drive.volume, 1, b"f", 0o100644, 0, 0), unique=3)
    reply = drive.machine.apply(entry)
    drive.machine.flush()
    before = dict(drive.txn.rows)
    assert drive.machine.apply(entry) == reply and drive.machine.apply(drive.entries[0]) == m.Done()
    drive.machine.flush()
    assert drive.txn.rows == before and drive.machine.applied_index == entry.index


def test_newer_entries_stop_the_machine(drive: Drive) -> None:
    entry = drive.entry(c.Reap(1))
    entry.version = c.COMMAND_VERSION + 1
    with pytest.raises(FormatTooNew):
        drive.machine.apply(entry)


# --- volumes, cluster, stream ---------------------------------------------------------------------------------------------
def test_volumes(drive: Drive) -> None:
    assert drive.errno(c.CreateVolume("vol", "x")) == errno.EEXIST
    assert drive.errno(c.CreateVolume("new", "uuid-vol")) == errno.EEXIST
    for name in ("", "..", "a/b", "x" * 64, "tab\t"):
        assert drive.errno(c.CreateVolume(name, "x")) == errno.EINVAL
    number = drive.ok(c.CreateVolume("two", "u2", 5, 6, 0o1777, 3, 4)).number
    root = drive.ask(m.GetAttr(number, 1)).attr
    assert (root.mode, root.uid, root.gid, root.nlink) == (0o041777, 3, 4, 2)
    drive.ok(c.SetVolume(number, 100, -1, "three"))
    shown = drive.ask(m.GetVolumes("three")).volumes[0]
    assert (shown.volume, shown.quota_bytes, shown.quota_inodes) == (number, 100, 6)
    assert drive.ask_errno(m.GetVolumes("two")) == errno.ENOENT
    assert drive.errno(c.SetVolume(number, name="vol")) == errno.EEXIST
    assert drive.errno(c.DeleteVolume(drive.volume, True)) == errno.EBUSY
    drive.ok(c.DeleteVolume(number))
    assert drive.errno(c.SetVolume(number, 1)) == errno.ENOENT and len(drive.ask(m.GetVolumes()).volumes) == 1
    drive.create(b"f")
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    assert drive.errno(c.DeleteVolume(drive.volume)) == errno.ENOTEMPTY
    sound(drive)


def test_init(drive: Drive) -> None:
    assert (drive.machine.cluster_uuid, drive.machine.site, drive.machine.last_stamp) == ("c-uuid", 1, drive.index << 16)
    drive.ok(c.Init("c-uuid", 1))
    assert drive.errno(c.Init("another", 1)) == errno.EEXIST


def test_tombstones_while_somebody_reads(drive: Drive) -> None:
    span = keys.kind_range(0, keys.TOMBSTONE)

    def remove_one() -> None:
        drive.create(b"f")
        drive.ok(c.Unlink(drive.volume, 1, b"f"))

    remove_one()
    assert not drive.machine.state.any_in(span)
    drive.ok(c.RegisterReader("site-b", drive.index))
    drive.ok(c.RegisterReader("site-b", 0))
    assert drive.machine.reader_cursors() == {"site-b": drive.index - 2}
    remove_one()
    passed = drive.index
    remove_one()
    assert len(drive.machine.state.keys_in(span)) == 4
    drive.ok(c.AdvanceReader("site-b", passed))
    assert len(drive.machine.state.keys_in(span)) == 2
    drive.ok(c.AdvanceReader("site-b", 1))
    assert drive.machine.reader_cursors() == {"site-b": passed}
    drive.ok(c.RemoveReader("site-b"))
    assert not drive.machine.state.any_in(span)
    assert drive.errno(c.RemoveReader("site-b")) == drive.errno(c.AdvanceReader("x", 1)) == errno.ENOENT
    sound(drive)


def test_segments_of_an_expired_session_are_free_when_its_worker_is_proven_dead(drive: Drive) -> None:
    """A worker was stopped, lost its session and opened another: its old segments wait for the end of that process, not for a reboot."""
    first = drive.open(worker=3)
    (late,) = drive.lease()
    drive.ok(c.EndSession(first.session, first.epoch, False), session=0, epoch=0, mount=0)
    drive.open(worker=3)

    def state() -> int:
        return int(drive.ask(m.GetSegments([late.segment])).segments[0].state)

    assert state() == SEGMENT_QUARANTINED, "the same process goes on: a write of it may still land"
    drive.open(worker=4, predecessor_exited=False)
    assert state() == SEGMENT_QUARANTINED
    sound(drive)
    second = drive.open(worker=5)
    assert state() == SEGMENT_QUARANTINED, "worker 4 has ended; of worker 3 nobody has said so"
    drive.ok(c.ClearQuarantine(first.session, "an operator"))
    (late,) = drive.lease()
    drive.ok(c.EndSession(second.session, second.epoch, False), session=0, epoch=0, mount=0)
    drive.open(worker=6)
    assert state() == SEGMENT_FREE
    (late,) = drive.lease()
    drive.ok(c.EndSession(drive.session, drive.epoch, False), session=0, epoch=0, mount=0)
    opened = drive.open(worker=6)
    drive.ok(c.EndSession(opened.session, opened.epoch, True))
    assert state() == SEGMENT_FREE, "unmounted: whoever writes ends first"
    sound(drive)
