"""What the daemon of the leader asks about pools: devices, needs by urgency, stale bays; and what is set for a pool."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.limits import MAINTENANCE_MS_MAX
from awsomefsd.base.types import BAY_COPYING, Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.pools import CountNeeds, GetNeeds, GetPool, GetPoolVolumes, GetStaleBays, NeedsCounted, PoolVolume
from awsomefsd.meta.machine import pool_queries
from awsomefsd.meta.state import pools
from tests.rigs.machine_driver import SAFE, SEGMENT_BYTES, Drive, sound
from tests.rigs.pool_driver import HOST, PoolDrive
from tests.unit.meta.machine.test_pools import sealed_segments


def test_a_pool_is_told_with_its_devices() -> None:
    drive = PoolDrive()
    key = bytes(32)
    drive.ok(c.AddNode("n2", "two", "node", key, "", "", "", {"zone": "east"}, "1", 5), **HOST)
    drive.ok(c.SetSegmentServer("n2", "10.0.0.2:7442"), **HOST)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    sealed_segments(drive, 2, 1, 2)
    pool = drive.ask(GetPool(1))
    assert (pool.segment_bytes, pool.heal_bytes_per_s, pool.lost_after_ms, pool.reserve_percent) == (SEGMENT_BYTES, 64 << 20, 600_000, 4)
    assert pool.walks == 1
    assert [(one.device, one.bays, one.free) for one in pool.devices] == [(1, 16, 14), (2, 16, 14), (3, 16, 16)]
    two, three = pool.devices[1:]
    assert (two.home, two.host, two.zone, two.server, two.address) == ("n2", "n2", "east", "n2", "10.0.0.2:7442")
    assert not two.absent and not two.lost
    assert (three.absent, three.lost, three.address) == (True, True, "")
    assert drive.ask_errno(GetPool(2)) == drive.ask_errno(GetPool(-1)) == drive.ask_errno(GetPool(1 << 16)) == errno.ENOENT
    assert Drive().ask_errno(GetPool(1)) == errno.ENOENT


def test_needs_come_by_urgency_and_in_pages() -> None:
    drive = PoolDrive()
    numbers = sealed_segments(drive, 3)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.walk()
    last = sealed_segments(drive, 1, 1, 2)
    drive.ok(c.DropBays([(last[0], 1, drive.row(last[0]).bays[0].index)]), **HOST)
    first = drive.ask(GetNeeds(0, 0, 2))
    assert [need.segment for need in first.needs] == [last[0], numbers[0]] and first.next == (pools.FEWER, numbers[1])
    rest = drive.ask(GetNeeds(*first.next, 100))
    assert [need.segment for need in rest.needs] == numbers[1:] and rest.next == (-1, 0)
    need, row = first.needs[1], drive.row(numbers[0])
    assert (need.priority, need.reasons) == (pools.FEWER, pools.NEED_SHORT)
    assert (need.incarnation, need.end, need.bays) == (row.incarnation, row.end, row.bays)
    assert need.planned == 0 and drive.ask_errno(GetNeeds(0, 0, 0)) == drive.ask_errno(GetNeeds(-1, 0, 1)) == errno.EINVAL


def test_a_need_names_the_entry_that_began_its_copy() -> None:
    drive = PoolDrive(hosts=4)
    [number] = sealed_segments(drive, 1)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.walk()
    drive.ok(c.PlanMirror(number, 4, SAFE), **HOST)
    [need] = drive.ask(GetNeeds(0, 0, 9)).needs
    assert need.planned == drive.index and [bay.role for bay in need.bays if bay.device == 4] == [BAY_COPYING]


def test_a_copy_that_nobody_needs_any_more_is_found() -> None:
    drive = PoolDrive(hosts=4)
    [number] = sealed_segments(drive, 1)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.walk()
    index = drive.ok(c.PlanMirror(number, 4, SAFE), **HOST).number
    drive.attach(3)
    drive.walk()
    assert drive.needs() == {number: (pools.POLICY, pools.NEED_POLICY)}
    sound(drive)
    drive.ok(c.DropBays([(number, 4, index)]), **HOST)
    assert drive.needs() == {} and drive.trim(4) == 1
    sound(drive)


def test_stale_bays_come_in_pages_of_what_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    drive = PoolDrive()
    numbers = sealed_segments(drive, 4)
    dropped = [(number, 1, drive.row(number).bays[0].index) for number in numbers[1:3]]
    drive.ok(c.DropBays(dropped), **HOST)
    expected = [(index, number, drive.index) for number, _, index in dropped]
    assert drive.ask(GetStaleBays(1, 0, 10)).bays == expected and drive.ask(GetStaleBays(1, 0, 10)).next == -1
    assert (drive.ask(GetStaleBays(1, 0, 1)).bays, drive.ask(GetStaleBays(1, 0, 1)).next) == (expected[:1], 2)
    monkeypatch.setattr(pool_queries, "STALE_BAYS_LOOKED_AT_MAX", 1)
    assert (drive.ask(GetStaleBays(1, 0, 10)).bays, drive.ask(GetStaleBays(1, 0, 10)).next) == ([], 1)
    assert drive.ask_errno(GetStaleBays(9, 0, 1)) == errno.ENOENT and drive.ask_errno(GetStaleBays(1, 0, 0)) == errno.EINVAL


def test_a_pool_is_told_how_to_heal() -> None:
    drive = PoolDrive()
    drive.ok(c.SetPool(1, 1 << 20, 5_000, 10), **HOST)
    pool = drive.ask(GetPool(1))
    assert (pool.heal_bytes_per_s, pool.lost_after_ms, pool.reserve_percent) == (1 << 20, 5_000, 10)
    for wrong in ((1, 0, 5_000, 10), (1, 1, 0, 10), (1, 1, 1, -1), (1, 1, 1, 51)):
        assert drive.errno(c.SetPool(*wrong), **HOST) == errno.EINVAL
    assert drive.errno(c.SetPool(2, 1, 1, 1), **HOST) == errno.ENOENT
    sound(drive)


def test_two_that_set_different_things_at_once_do_not_undo_each_other() -> None:
    drive = PoolDrive()
    for command in (c.SetPool(1, heal_bytes_per_s=1 << 20), c.SetPool(1, lost_after_ms=5_000), c.SetPool(1, reserve_percent=0)):
        drive.ok(command, **HOST)
    drive.ok(c.SetPool(1), **HOST)
    pool = drive.ask(GetPool(1))
    assert (pool.heal_bytes_per_s, pool.lost_after_ms, pool.reserve_percent) == (1 << 20, 5_000, 0)
    for wrong in (c.SetPool(1, heal_bytes_per_s=0), c.SetPool(1, lost_after_ms=0), c.SetPool(1, reserve_percent=51)):
        assert drive.errno(wrong, **HOST) == errno.EINVAL


def test_the_volumes_of_a_pool_are_told_with_what_they_want_and_the_room_that_df_counts() -> None:
    drive = PoolDrive()
    drive.ok(c.CreateVolume("elsewhere", "uuid-2"), **HOST)
    found = drive.ask(GetPoolVolumes(1))
    assert found.volumes == [PoolVolume(drive.volume, "vol", drive.want)] and found.promised_bytes == 0
    assert found.total_bytes == found.free_bytes > 0
    drive.open()
    drive.ok(c.Reserve(drive.volume, 4096, 4096))
    after = drive.ask(GetPoolVolumes(1))
    assert (after.promised_bytes, after.free_bytes) == (4096, found.free_bytes)
    drive.ok(c.SetDeviceState(3, 1), **HOST)
    assert drive.ask(GetPoolVolumes(1)).total_bytes == found.total_bytes, "two mirrors are what a lease takes on two hosts"
    drive.ok(c.EndSession(drive.session, drive.epoch, True), **HOST)
    drive.ok(c.DeleteVolume(drive.volume, True), **HOST)
    assert drive.ask(GetPoolVolumes(1)).volumes == [] and drive.ask_errno(GetPoolVolumes(2)) == errno.ENOENT


def test_a_maintenance_is_of_a_host_of_the_pool_and_forgotten_when_it_has_ended() -> None:
    drive = PoolDrive()
    now_ms = drive.now // 1_000_000

    def under() -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = drive.ask(GetPool(1)).maintenance
        return found

    drive.ok(c.SetMaintenance(1, "n2", now_ms + 60_000), **HOST)
    drive.ok(c.SetMaintenance(1, "n1", now_ms + 90_000), **HOST)
    drive.ok(c.SetMaintenance(1, "n2", now_ms + 70_000), **HOST)
    assert under() == [("n1", now_ms + 90_000), ("n2", now_ms + 70_000)]
    drive.ok(c.SetPool(1, 1 << 20, 5_000, 10), **HOST)
    assert len(under()) == 2, "what is set for the pool says nothing of it"
    drive.ok(c.SetMaintenance(1, "n1", 0), **HOST)
    assert under() == [("n2", now_ms + 70_000)]
    drive.ok(c.SetMaintenance(1, "somebody", 0), **HOST)
    assert drive.errno(c.SetMaintenance(1, "somebody", now_ms + 60_000), **HOST) == errno.ENOENT
    assert drive.errno(c.SetMaintenance(2, "n1", now_ms + 60_000), **HOST) == errno.ENOENT
    for wrong in (1, now_ms - 10_000, now_ms + MAINTENANCE_MS_MAX + 3_600_000):
        assert drive.errno(c.SetMaintenance(1, "n1", wrong), **HOST) == errno.EINVAL
    sound(drive)


def test_needs_are_counted_in_pages_with_what_is_lost_and_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    drive = PoolDrive(want=Redundancy(3, 1))
    assert drive.ask(CountNeeds(0, 0)) == NeedsCounted([0] * 5, 0, 0, (-1, 0))
    whole = sealed_segments(drive, 2)
    [one] = sealed_segments(drive, 1, 3)
    drive.ok(c.SetDeviceState(2, 2), **HOST)
    drive.walk()
    counted = drive.ask(CountNeeds(0, 0))
    assert (counted.needs, counted.lost, counted.next) == ([1, 2, 0, 0, 0], 0, (-1, 0))
    assert counted.since_ms == min(need.since_ms for need in drive.ask(GetNeeds(0, 0, 9)).needs) > 0
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.walk()
    counted = drive.ask(CountNeeds(0, 0))
    assert (counted.needs, counted.lost) == ([3, 0, 0, 0, 0], 1), "nothing is left of the one that only device 3 had"
    drive.ok(c.SetDeviceState(3, 1), **HOST)
    assert drive.ask(CountNeeds(0, 0)).lost == 0, "absent is not lost"
    monkeypatch.setattr(pool_queries, "NEEDS_COUNTED_MAX", 2)
    first = drive.ask(CountNeeds(0, 0))
    assert sum(first.needs) == 2 and first.next[1] in (*whole, one)
    rest = drive.ask(CountNeeds(*first.next))
    assert sum(rest.needs) == 1 and rest.next == (-1, 0)
    assert drive.ask_errno(CountNeeds(-1, 0)) == drive.ask_errno(CountNeeds(256, 0)) == errno.EINVAL
