"""Devices grow, are drained and leave; quarantine takes nothing from those who live; what nodes say they see."""

from __future__ import annotations

import errno
import random

from awsomefsd.base.limits import QUARANTINE_SHARE, SEGMENTS_FOR_COLLECTION
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.devices import GetQuarantine, ReportDevices, Sighting
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.check.check import check
from awsomefsd.meta.check.repair import plan
from awsomefsd.meta.check.repair_txn import Hints, no_frame
from awsomefsd.meta.machine.device_numbers import index_of, last_number, number_of
from awsomefsd.meta.machine.quota import allocatable
from awsomefsd.meta.server.device_reports import SILENT_MS, DeviceReports
from awsomefsd.meta.state import keys
from awsomefsd.meta.state.rows import DeviceRow
from tests.rigs.machine_driver import MIB, SEGMENT_BYTES, Drive

HOST = {"session": 0, "epoch": 0, "mount": 0}
SAFE = 1 << 40


def add(drive: Drive, uuid: str, segments: int, shared: bool = True) -> int:
    return drive.ok(c.AddDevice(uuid, (segments + 1) * SEGMENT_BYTES, SEGMENT_BYTES, segments, MIB, shared, "n1"), **HOST).number


def grow(drive: Drive, device: int, segments: int) -> m.Reply:
    return drive.apply(c.GrowDevice(device, (segments + 1) * SEGMENT_BYTES, segments), **HOST)


def opened(drive: Drive, node: str = "n1", mount: int = 11, volume: int = 1) -> dict[str, int]:
    made = drive.ok(c.OpenSession(mount, volume, node, "boot", 1), **{**HOST, "mount": mount})
    return {"mount": mount, "session": made.session, "epoch": made.epoch}


def lease(drive: Drive, who: dict[str, int], count: int) -> list[int]:
    return [one.segment for one in drive.ok(c.LeaseSegments(count, SAFE), **who).segments]


def clean(drive: Drive) -> None:
    drive.machine.flush()
    assert check(drive.txn) == []


def check_repair(drive: Drive, gone: bytes) -> None:
    """fsck knows the numbers of segments, and what was removed: it repairs one row, and nothing else."""
    drive.machine.flush()
    before = drive.txn.get(gone)
    assert before is not None
    drive.txn.delete(gone)
    planned = plan(drive.txn, Hints(time_ns=drive.now, devices=[], frame=no_frame))
    assert planned.found
    assert not planned.remaining
    assert {key for key, _ in planned.puts} == {gone}
    assert not planned.deletes
    drive.txn.put(gone, before)


def two_devices(first: int = 40, second: int = 40) -> Drive:
    drive = Drive(device=False)
    add(drive, "d1", first)
    add(drive, "d2", second)
    drive.ok(c.CreateVolume("one", "one"), **HOST)
    return drive


def test_numbers_of_segments_come_in_runs(seed: int) -> None:
    rng = random.Random(seed)
    device = DeviceRow(1, "d", 0, 1, 5, 0, True, 10, 5)
    number = 15
    for _ in range(6):
        number += rng.randrange(0, 9)
        more = rng.randrange(1, 7)
        device.grown = [*device.grown, (device.segments, number)]
        device.segments += more
        number += more
    numbers = [number_of(device, index) for index in range(device.segments)]
    assert numbers == sorted(set(numbers))
    assert [index_of(device, one) for one in numbers] == list(range(device.segments))
    assert last_number(device) == number
    assert all(index_of(device, one) == -1 for one in range(number + 5) if one not in numbers)


def test_a_device_grows_twice_beside_another_one() -> None:
    drive = two_devices(6, 6)
    assert isinstance(grow(drive, 1, 10), m.Done)
    assert isinstance(grow(drive, 1, 10), m.Done)  # once more after a crash
    assert isinstance(grow(drive, 2, 9), m.Done)
    assert isinstance(grow(drive, 1, 12), m.Done)
    assert drive.errno(c.GrowDevice(1, 100 * SEGMENT_BYTES, 11), **HOST) == errno.EINVAL
    assert drive.errno(c.GrowDevice(9, 100 * SEGMENT_BYTES, 11), **HOST) == errno.ENOENT
    who = opened(drive)
    leased = lease(drive, who, 11)
    infos = drive.ask(m.GetSegments(leased)).segments
    assert {one.device for one in infos} == {1}
    assert [one.byte_offset for one in infos] == [MIB + index * SEGMENT_BYTES for index in range(11)]
    assert len(set(leased)) == 11
    clean(drive)
    check_repair(drive, keys.held(who["session"], leased[8]))


def test_a_draining_device_takes_nothing_and_its_room_is_promised_to_nobody() -> None:
    drive = two_devices()
    who = opened(drive)
    held = lease(drive, who, 3)
    before = drive.ask(m.GetStatFs(1)).stat
    drive.ok(c.DrainDevice(1, True), **HOST)
    after = drive.ask(m.GetStatFs(1)).stat
    less = before.bytes_total - after.bytes_total
    assert 0 <= less - allocatable(40 * usable_bytes(SEGMENT_BYTES)) <= 1, "rounded down"
    assert after.bytes_free <= 40 * usable_bytes(SEGMENT_BYTES)
    assert {one.device for one in drive.ask(m.GetSegments(lease(drive, who, 5))).segments} == {2}
    assert drive.errno(c.KeepSegments(1, 1, SAFE), **HOST) == errno.EBUSY
    assert [device.draining for device in drive.ask(m.GetDevices()).devices] == [True, False]
    assert drive.errno(c.RemoveDevice(1, 100), **HOST) == errno.ENOTEMPTY
    assert set(held) == set(range(1, 4))
    drive.ok(c.DrainDevice(1, False), **HOST)
    assert drive.ask(m.GetStatFs(1)).stat.bytes_total == before.bytes_total
    clean(drive)


def test_a_device_is_not_drained_where_promises_would_break() -> None:
    drive = two_devices(40, 10)
    who = opened(drive)
    want = 20 * SEGMENT_BYTES
    drive.ok(c.Reserve(1, want, want), **who)
    assert drive.errno(c.DrainDevice(1, True), **HOST) == errno.ENOSPC
    drive.ok(c.Reserve(1, -want, 0), **who)
    lease(drive, who, 1)
    drive.ok(c.DrainDevice(1, True), **HOST)
    drive.ok(c.DrainDevice(2, True), **HOST)  # empty: nothing has to be moved
    alone = Drive()
    alone.ok(c.CreateVolume("one", "one"), **HOST)
    lease(alone, opened(alone), 1)
    assert alone.errno(c.DrainDevice(1, True), **HOST) == errno.ENOSPC


def test_an_empty_device_leaves_a_few_rows_at_a_time() -> None:
    drive = two_devices(12, 12)
    grow(drive, 1, 20)
    who = opened(drive)
    lease(drive, who, 15)
    drive.ok(c.EndSession(who["session"], who["epoch"], True), **HOST)
    assert drive.errno(c.RemoveDevice(1, 100), **HOST) == errno.EBUSY
    drive.ok(c.DrainDevice(1, True), **HOST)
    assert drive.ok(c.RemoveDevice(1, 4), **HOST).number == 11
    clean(drive)
    assert [device.device for device in drive.ask(m.GetDevices()).devices] == [2]
    assert drive.errno(c.DrainDevice(1, False), **HOST) == errno.ENOENT
    assert drive.ok(c.RemoveDevice(1, 100), **HOST).number == 0
    clean(drive)
    assert add(drive, "d1", 12) == 3  # it may come again, as another one
    who = opened(drive, mount=12)
    assert min(lease(drive, who, 3)) == 13
    check_repair(drive, keys.held(who["session"], 14))


# --- quarantine -----------------------------------------------------------------------------------------------------------------
def die(drive: Drive, who: dict[str, int]) -> None:
    drive.ok(c.EndSession(who["session"], who["epoch"], False), **HOST)


def test_what_is_in_quarantine_is_told_and_ends_by_proof() -> None:
    drive = two_devices()
    who = opened(drive, "n7")
    lease(drive, who, 3)
    die(drive, who)
    (found,) = drive.ask(GetQuarantine()).sessions
    assert (found.session, found.node, found.segments, found.bytes) == (who["session"], "n7", 3, 3 * SEGMENT_BYTES)
    assert found.ended_ms == drive.now // 1_000_000
    drive.ok(c.ClearQuarantine(who["session"], "the operator says so"), **HOST)
    assert drive.ask(GetQuarantine()).sessions == []
    clean(drive)


def test_the_dead_take_nothing_that_was_promised_to_the_living() -> None:
    """Nodes die again and again while one keeps its promise for later: it can lease all that it was promised."""
    drive = Drive(40)
    for name in ("one", "two"):
        drive.ok(c.CreateVolume(name, name), **HOST)
    living = opened(drive, mount=11)
    promised = 12 * usable_bytes(SEGMENT_BYTES)
    drive.ok(c.Reserve(1, promised, promised), **living)
    deaths = 0
    for mount in range(20, 120):
        dying = opened(drive, "n2", mount, 2)
        if not isinstance(drive.apply(c.Reserve(2, MIB, MIB), **dying), m.Failed):
            lease(drive, dying, 2)
            deaths += 1
        die(drive, dying)
    assert deaths > 5
    listing = drive.ask(GetQuarantine())
    assert sum(one.segments for one in listing.sessions) > 40 // QUARANTINE_SHARE
    got = 0
    while got < 12:
        got += len(lease(drive, living, 2))
    assert drive.machine.state.device(1).segments_free >= SEGMENTS_FOR_COLLECTION
    clean(drive)


def test_with_much_in_quarantine_nobody_leases_ahead() -> None:
    drive = Drive(80)
    drive.ok(c.CreateVolume("one", "one"), **HOST)
    for mount in range(20, 20 + 80 // QUARANTINE_SHARE):
        who = opened(drive, mount=mount)
        assert lease(drive, who, 1)
        die(drive, who)
    assert len(lease(drive, opened(drive, mount=11), 2)) == 1


# --- who sees what -----------------------------------------------------------------------------------------------------------------
def test_a_shared_device_that_one_node_sees_alone_is_told_with_its_time() -> None:
    reports = DeviceReports()
    seen, path = Sighting("d1", "/dev/a", 5, "ok"), "/dev/a"
    reports.take_report(ReportDevices("n1", [seen]), ["d1"], 1_000)
    assert reports.listing({}, 1_500).alone_ms == {}  # nobody else reports: a cluster of one
    reports.take_report(ReportDevices("n2", [Sighting("d1", path, 5, "it belongs to another cluster")]), ["d1"], 2_000)
    reports.take_report(ReportDevices("n1", [seen]), ["d1"], 5_000)
    listing = reports.listing({"n1": "one"}, 9_000)
    assert listing.alone_ms == {"d1": 7_000}
    assert next((one.name, one.state, one.heard_ms_ago) for one in listing.seen) == ("one", "ok", 4_000)
    reports.take_report(ReportDevices("n2", [seen]), ["d1"], 9_500)
    assert reports.listing({}, 9_600).alone_ms == {}
    reports.take_report(ReportDevices("n2", [seen]), ["d1"], 9_500 + 2 * SILENT_MS)
    assert reports.listing({}, 9_500 + 2 * SILENT_MS).reporting == ["n2"]  # the other one may be down
    reports.forget()
    assert reports.listing({}, 0).seen == []
