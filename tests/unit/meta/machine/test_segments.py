"""Segments that sessions lease, and the space and quotas they are counted against."""

from __future__ import annotations

import errno

from awsomefsd.base.limits import SEGMENTS_PER_SESSION_MAX, SEGMENTS_RESERVED
from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_QUARANTINED
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import segments
from awsomefsd.meta.machine.quota import GRANT_SHARE, allocatable
from tests.rigs.machine_driver import MIB, SEGMENT_BYTES, Drive, sound

USABLE = segments.usable_bytes(SEGMENT_BYTES)


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
    assert drive.ask(m.GetStatFs(drive.volume)).stat.bytes_free == allocatable(free)
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
    assert drive.ok(c.Reserve(drive.volume, 20_000, 6000)).bytes == 6000
    assert drive.errno(c.Reserve(drive.volume, 1, 1)) == errno.EDQUOT
    stat = drive.ask(m.GetStatFs(drive.volume)).stat
    assert (stat.bytes_total, stat.bytes_free) == (10_000, 0)


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
