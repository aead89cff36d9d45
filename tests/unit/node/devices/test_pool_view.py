"""A pool as operators look at it: its room agrees with what the machine counts, and leases what it shows."""

from __future__ import annotations

from random import Random

from awsomefsd.base.types import SPREAD_DEVICE, Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.pools import GetPool, GetPoolVolumes, PoolCensus
from awsomefsd.node.devices.pool_view import PoolView, state_of
from tests.rigs.machine_driver import SEGMENT_BYTES
from tests.rigs.pool_driver import HOST, PoolDrive
from tests.unit.meta.machine.test_pools import sealed_segments


def view(drive: PoolDrive, census: PoolCensus | None = None, now_ms: int = 0) -> PoolView:
    pool = drive.ask(GetPool(1))
    pool.census = census
    return PoolView(pool, drive.ask(GetPoolVolumes(1)), {"n1": "one", "n2": "two"}, now_ms)


def test_a_policy_alone_has_the_room_that_df_shows(seed: int) -> None:
    """On hosts of any size, some away: what one policy makes of the devices is what the machine counts for its volumes."""
    dice = Random(seed)
    for _ in range(20):
        drive = PoolDrive(1, bays=dice.randint(3, 40))
        for number in range(2, dice.randint(2, 7)):
            drive.add(number, f"n{dice.randint(1, 4)}", dice.randint(3, 40))
        drive.want = Redundancy(dice.randint(1, 3), 1, spread=dice.choice((0, SPREAD_DEVICE)))
        drive.ok(c.SetRedundancy(drive.volume, drive.want), **HOST)
        for number in drive.generation:
            if dice.random() < 0.2:
                drive.ok(c.SetDeviceState(number, dice.randint(1, 2)), **HOST)
        found = view(drive)
        [policy] = found.policies()
        assert (policy.total_bytes, policy.free_bytes) == (found.volumes.total_bytes, found.volumes.free_bytes), (seed, drive.want)


def test_policies_are_told_with_their_volumes_and_whether_they_can_be_kept() -> None:
    drive = PoolDrive(3, want=Redundancy(3, 2))
    for name, want in (("b", Redundancy(3, 2)), ("c", Redundancy(2, 2, device_class="hdd"))):
        number = drive.ok(c.CreateVolume(name, f"uuid-{name}"), **HOST).number
        drive.ok(c.SetRedundancy(number, want), **HOST)
    first, second = view(drive).policies()
    assert (first.text, first.volumes, first.domains, first.is_blocked, first.is_short) == ("replicas=3", ("b", "vol"), 3, False, False)
    assert (second.volumes, second.domains, second.total_bytes, second.is_blocked) == (("c",), 0, 0, True)
    drive.ok(c.SetDeviceState(3, 1), **HOST)
    assert view(drive).policies()[0].is_short and not view(drive).policies()[0].is_blocked
    drive.ok(c.SetDeviceState(2, 1), **HOST)
    assert view(drive).policies()[0].is_blocked


def test_hosts_have_their_devices_names_fill_and_maintenance() -> None:
    drive = PoolDrive(2, bays=16, want=Redundancy(2, 1))
    drive.add(3, "n1", 8)
    sealed_segments(drive, 2, 1, 2)
    drive.ok(c.SetMaintenance(1, "n2", drive.now // 1_000_000 + 60_000), **HOST)
    one, two = view(drive, now_ms=drive.now // 1_000_000).hosts()
    assert (one.name, one.bays, one.free, [device.device for device in one.devices]) == ("one", 24, 22, [1, 3])
    assert (two.name, two.maintenance_until_ms > 0, one.maintenance_until_ms) == ("two", True, 0)
    assert view(drive, now_ms=drive.now // 1_000_000 + 60_001).hosts()[1].maintenance_until_ms == 0, "it has ended"
    assert view(drive).reserved_bays() == 2 + 2 and view(drive).bytes_of(lambda one: one.bays) == 40 * SEGMENT_BYTES


def test_what_is_lacking_and_how_long_that_takes() -> None:
    drive = PoolDrive(2)
    assert view(drive).lacks() == [] and view(drive).seconds_left() == -1, "not counted yet"
    assert view(drive, PoolCensus([0] * 5)).seconds_left() == 0
    found = view(drive, PoolCensus([1, 0, 2, 5, 0], bytes_per_s=SEGMENT_BYTES))
    assert [(priority, count) for priority, _, count in found.lacks()] == [(0, 1), (2, 2), (3, 5)]
    assert found.left_bytes() == 3 * SEGMENT_BYTES and found.seconds_left() == 3, "what is too much is not copied"
    assert view(drive, PoolCensus([1, 0, 0, 0, 0])).seconds_left() == -1, "at which rate?"


def test_states_in_words() -> None:
    drive = PoolDrive(3)
    drive.ok(c.DrainDevice(1, True), **HOST)
    drive.ok(c.SetDeviceState(2, 2), **HOST)
    drive.ok(c.DrainDevice(2, True), **HOST)
    drive.ok(c.AddPoolDevice("new", 64 << 20, SEGMENT_BYTES, 4, 1 << 20, "n3", 1, "ssd", 1), **HOST)
    assert [state_of(one) for one in view(drive).pool.devices] == ["draining", "lost, draining", "ok", "not attached"]
