"""Pools: devices join, are attached, go and come back; volumes say what they want; needs follow in walks; `df`."""

from __future__ import annotations

import errno
from random import Random

import pytest

from awsomefsd.base.types import Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine.pools import walks_of
from awsomefsd.meta.state import keys, pools, rows
from tests.rigs.machine_driver import MIB, SAFE, SEGMENT_BYTES, Drive, sound
from tests.rigs.pool_driver import HOST, PoolDrive


def sealed_segments(drive: PoolDrive, count: int, *ensemble: int) -> list[int]:
    drive.open(mount=count + 100)
    leased = drive.lease_bays(*[list(ensemble or (1, 2, 3))] * count)
    for info in leased:
        drive.ok(drive.put(info, drive.create(b"f%d" % info.segment), 0, 1000))
    drive.ok(c.EndSession(drive.session, drive.epoch, True), **HOST)
    drive.session = drive.epoch = drive.mount = 0
    return [info.segment for info in leased]


# --- devices ----------------------------------------------------------------------------------------------------------
def test_the_segments_of_a_pool_are_of_one_size():
    drive = PoolDrive()
    assert drive.errno(c.AddPoolDevice("x", 1 << 30, SEGMENT_BYTES * 2, 15, MIB, "n9"), **HOST) == errno.EINVAL
    assert drive.errno(c.AddPoolDevice("uuid-1", 1 << 30, SEGMENT_BYTES, 15, MIB, "n9"), **HOST) == errno.EEXIST
    assert drive.errno(c.AddPoolDevice("x", 1 << 20, SEGMENT_BYTES, 15, MIB, "n9"), **HOST) == errno.EINVAL
    assert drive.errno(c.AddPoolDevice("x", 1 << 30, SEGMENT_BYTES, 15, MIB, "n9", 1, "tape"), **HOST) == errno.EINVAL
    sound(drive)


def test_a_device_that_was_rolled_back_is_not_attached():
    drive = PoolDrive()
    for generation in (2, 1, 0, 1 << 63):
        assert drive.errno(c.AttachDevice(1, generation, "n1"), **HOST) == errno.ESTALE
    drive.ok(c.AttachDevice(1, 3, "n1"), **HOST)
    assert drive.errno(c.AttachDevice(9, 3, "n1"), **HOST) == errno.ENOENT


def test_a_device_of_a_pool_says_that_it_is_one():
    drive = PoolDrive(hosts=2)
    drive.ok(c.AddPoolDevice("uuid-3", 1 << 30, SEGMENT_BYTES, 15, MIB, "n9", 1, "hdd"), **HOST)
    drive.ok(c.SetDeviceState(2, 2), **HOST)
    told = drive.ask(m.GetDevices()).devices
    assert [(one.pool, one.device_class, one.server, one.absent, one.lost) for one in told] == [
        (1, "ssd", "n1", False, False), (1, "ssd", "n2", True, True), (1, "hdd", "", False, False),
    ]  # fmt: skip


def test_another_node_adopts_a_device_while_it_is_absent():
    drive = PoolDrive()
    assert drive.errno(c.AttachDevice(1, 5, "n4"), **HOST) == errno.EPERM
    assert drive.errno(c.AttachDevice(1, 5, "n4", True), **HOST) == errno.EBUSY
    drive.ok(c.SetDeviceState(1, 1), **HOST)
    assert drive.errno(c.AttachDevice(1, 5, "n4"), **HOST) == errno.EPERM
    drive.ok(c.AttachDevice(1, 5, "n4", True), **HOST)
    device = drive.machine.state.device(1)
    assert (device.home, device.server, device.host, device.absent) == ("n4", "n4", "n4", False)
    drive.walk()
    sound(drive)


def test_what_fails_together_is_the_label_host_of_a_node():
    drive = PoolDrive()
    for number, name in enumerate(("a", "b"), 7):
        key = bytes([number]) * 32
        drive.ok(c.AddNode(name, name, "node", key, "", "", "", {"host": "machine"}, "1", 5), **HOST)
    drive.add(4, "a")
    drive.add(5, "b")
    assert drive.machine.state.device(4).host == drive.machine.state.device(5).host == "machine"
    drive.ok(c.SetSegmentServer("a", "10.0.0.1:7442"), **HOST)
    assert rows.NODE.loads(drive.txn.get(keys.node("a"))).segments == "10.0.0.1:7442"
    told = {one.node: one.segments for one in drive.ask(m.ListNodes()).nodes}
    assert told == {"a": "10.0.0.1:7442", "b": ""}
    assert drive.errno(c.SetSegmentServer("c", "x:1"), **HOST) == errno.ENOENT
    assert drive.errno(c.SetSegmentServer("a", "x" * 300), **HOST) == errno.EINVAL


# --- needs and walks --------------------------------------------------------------------------------------------------
def test_a_device_that_is_absent_makes_no_needs_and_one_that_is_lost_does():
    drive = PoolDrive()
    numbers = sealed_segments(drive, 3)
    drive.ok(c.SetDeviceState(2, 1), **HOST)
    assert walks_of(drive.machine.state) == [] and drive.needs() == {}
    drive.ok(c.SetDeviceState(2, 2), **HOST)
    sound(drive)  # the walk stands before what it has not reached
    assert drive.ok(c.NeedSegments(2), **HOST).number == 1
    assert len(drive.needs()) == 2
    sound(drive)
    drive.walk(2)
    assert drive.needs() == dict.fromkeys(numbers, (pools.FEWER, pools.NEED_SHORT))
    sound(drive)
    drive.attach(2)
    drive.walk()
    assert drive.needs() == {}, "what it holds counts again when it is back"
    sound(drive)


def test_what_was_copied_while_a_device_was_lost_is_surplus_when_it_is_back():
    drive = PoolDrive(hosts=4)
    [number] = sealed_segments(drive, 1)
    drive.ok(c.SetDeviceState(2, 2), **HOST)
    drive.walk()
    drive.heal(number, 4)
    assert drive.needs() == {number: (pools.POLICY, pools.NEED_POLICY)}
    drive.attach(2)
    drive.walk()
    assert drive.needs() == {number: (pools.POLICY, pools.NEED_POLICY)}
    drive.ok(c.DropBays([(number, 4, 0)]), **HOST)
    assert drive.needs() == {}
    sound(drive)


def test_a_drain_makes_needs_and_a_device_is_removed_when_all_its_bays_are_free():
    drive = PoolDrive(hosts=4)
    numbers = sealed_segments(drive, 2)
    drive.ok(c.DrainDevice(3, True), **HOST)
    drive.walk()
    assert drive.needs() == dict.fromkeys(numbers, (pools.DRAIN, pools.NEED_DRAIN))
    assert drive.errno(c.RemoveDevice(3, 100), **HOST) == errno.ENOTEMPTY
    for number in numbers:
        bay = next(bay for bay in drive.row(number).bays if bay.device == 3)
        drive.heal(number, 4, replaces=(3, bay.index))
    assert drive.errno(c.RemoveDevice(3, 100), **HOST) == errno.ENOTEMPTY, "stale bays are not free"
    assert drive.trim(3) == 2 and drive.needs() == {}
    assert drive.ok(c.RemoveDevice(3, 100), **HOST).number == 0
    sound(drive)


def draining(drive: PoolDrive) -> list[int]:
    return [one.device for one in drive.machine.state.devices() if one.draining]


def test_of_two_drains_that_begin_at_once_the_later_one_is_looked_at_again():
    """Each alone finds places for all mirrors; both together do not."""
    drive = PoolDrive(hosts=4)
    sealed_segments(drive, 2)
    drive.ok(c.DrainPoolDevices(1, [3], [], [1, 2, 4], []), **HOST)
    assert drive.errno(c.DrainPoolDevices(1, [4], [], [1, 2, 3], []), **HOST) == errno.ESTALE, "device 3 takes nothing any more"
    assert drive.errno(c.DrainPoolDevices(1, [4], [], [1, 2], []), **HOST) == errno.ESTALE, "what is on device 3 has to move too"
    assert draining(drive) == [3]
    drive.ok(c.DrainPoolDevices(1, [4], [], [1, 2], [3]), **HOST)
    drive.ok(c.DrainDevice(3, False), **HOST)
    drive.ok(c.DrainPoolDevices(1, [2], [], [1], [3, 4]), **HOST)
    assert draining(drive) == [2, 4], "a drain that has ended meanwhile leaves more room"
    drive.walk()
    sound(drive)


def test_devices_are_drained_together_and_a_walk_goes_over_each():
    drive = PoolDrive(hosts=5)
    numbers = [*sealed_segments(drive, 2), *sealed_segments(drive, 1, 1, 2, 4)]
    drive.ok(c.DrainPoolDevices(1, [3, 4], [], [1, 2, 5], []), **HOST)
    drive.ok(c.DrainPoolDevices(1, [5], [], [1, 2], [3, 4]), **HOST)
    assert sorted(walk.device for _, walk in walks_of(drive.machine.state)) == [3, 4, 5], "each entry's walks have keys of their own"
    drive.ok(c.DrainPoolDevices(1, [3, 4], [], [1, 2], []), **HOST)
    assert len(walks_of(drive.machine.state)) == 3, "they are drained already"
    drive.walk()
    assert drive.needs() == dict.fromkeys(numbers, (pools.DRAIN, pools.NEED_DRAIN))
    sound(drive)


@pytest.mark.parametrize("state", [1, 2])
def test_a_drain_that_counts_on_a_device_that_is_away_is_looked_at_again(state):
    drive = PoolDrive(hosts=4)
    drive.ok(c.SetDeviceState(4, state), **HOST)
    assert drive.errno(c.DrainPoolDevices(1, [3], [], [1, 4], []), **HOST) == errno.ESTALE
    assert drive.errno(c.DrainPoolDevices(1, [3], [], [1, 9], []), **HOST) == errno.ESTALE
    drive.ok(c.DrainPoolDevices(1, [3], [], [1], []), **HOST)
    drive.walk()
    sound(drive)


def test_what_was_lost_and_is_back_has_mirrors_that_need_places():
    drive = PoolDrive(hosts=4)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.ok(c.DrainDevice(4, True), **HOST)
    drive.attach(3)
    assert drive.errno(c.DrainPoolDevices(1, [], [3], [], []), **HOST) == errno.ESTALE
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.ok(c.DrainPoolDevices(1, [], [3], [], []), **HOST)
    assert draining(drive) == [3, 4], "what is lost needs no place, whatever else is drained"
    drive.walk()
    sound(drive)


def test_a_drain_without_room_for_promises_begins_on_no_device():
    drive = PoolDrive(hosts=2, want=Redundancy(1, 1))
    drive.add(3, "n1")
    drive.open()
    assert drive.ok(c.Reserve(drive.volume, 100 << 20, 100 << 20)).bytes == 100 << 20
    assert drive.errno(c.DrainPoolDevices(1, [1, 3], [], [2], []), **HOST) == errno.ENOSPC
    assert draining(drive) == [] and walks_of(drive.machine.state) == []
    sound(drive)


def test_a_drain_of_devices_that_are_not_there_is_refused():
    drive = PoolDrive()
    for devices, lost in (([], []), ([3, 3], []), ([3], [3])):
        assert drive.errno(c.DrainPoolDevices(1, devices, lost, [], []), **HOST) == errno.EINVAL
    assert drive.errno(c.DrainPoolDevices(2, [3], [], [1, 2], []), **HOST) == errno.EINVAL, "of another pool"
    assert drive.errno(c.DrainPoolDevices(1, [1 << 40], [], [], []), **HOST) == errno.ENOENT
    assert drive.errno(c.DrainPoolDevices(1, [3], [], [3, 1, 2], []), **HOST) == errno.ESTALE, "it would take its own"
    assert draining(drive) == []


def test_a_lost_device_is_removed_with_its_stale_bays_when_nothing_names_one_of_them():
    drive = PoolDrive(hosts=4)
    numbers = sealed_segments(drive, 3)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.ok(c.DrainDevice(3, True), **HOST)
    drive.walk()
    for number in numbers:
        drive.heal(number, 4)
    places = [(number, 3, next(bay.index for bay in drive.row(number).bays if bay.device == 3)) for number in numbers]
    drive.ok(c.DropBays(places[:2]), **HOST)
    assert drive.errno(c.RemoveDevice(3, 100), **HOST) == errno.ENOTEMPTY, "a segment names a bay there"
    drive.ok(c.DropBays(places[2:]), **HOST)
    drive.attach(3)
    assert drive.errno(c.RemoveDevice(3, 100), **HOST) == errno.ENOTEMPTY, "it is back, so its server trims"
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    assert drive.ok(c.RemoveDevice(3, 2), **HOST).number == 1, "a bounded number of rows in one entry"
    sound(drive)
    assert drive.errno(c.AttachDevice(3, 99, "n3", True), **HOST) == errno.ENOENT
    assert drive.ok(c.RemoveDevice(3, 2), **HOST).number == 0
    drive.walk()
    sound(drive)
    assert drive.needs() == {} and all(drive.bay(3, index) is None for _, _, index in places)


def test_a_device_that_is_away_may_be_drained_whatever_was_promised():
    drive = PoolDrive(hosts=2, bays=8, want=Redundancy(1, 1))
    drive.open()
    assert drive.ok(c.Reserve(drive.volume, 36 << 20, 36 << 20)).bytes == 36 << 20
    assert drive.errno(c.DrainDevice(1, True), **HOST) == errno.ENOSPC
    drive.ok(c.SetDeviceState(1, 2), **HOST)
    drive.ok(c.DrainDevice(1, True), **HOST)
    sound(drive)


def test_a_policy_reaches_what_is_there_in_a_walk_both_ways():
    drive = PoolDrive()
    numbers = sealed_segments(drive, 3)
    drive.ok(c.SetRedundancy(drive.volume, Redundancy(2, 1)), **HOST)
    sound(drive)
    assert drive.ok(c.NeedSegments(2), **HOST).number == 1
    sound(drive)
    drive.walk()
    assert drive.needs() == dict.fromkeys(numbers, (pools.POLICY, pools.NEED_POLICY))
    drive.ok(c.SetRedundancy(drive.volume, Redundancy(3, 2)), **HOST)
    drive.walk()
    assert drive.needs() == {}
    sound(drive)


def test_a_second_change_begins_the_walk_again():
    drive = PoolDrive()
    sealed_segments(drive, 3)
    drive.ok(c.SetDeviceState(2, 2), **HOST)
    drive.ok(c.NeedSegments(1), **HOST)
    drive.ok(c.SetDeviceState(2, 0), **HOST)
    [(_, walk)] = walks_of(drive.machine.state)
    assert (walk.device, walk.position) == (2, 0)
    drive.walk()
    assert drive.needs() == {}
    assert drive.errno(c.NeedSegments(513), **HOST) == errno.EINVAL


@pytest.mark.parametrize(
    "want",
    [Redundancy(0, 0), Redundancy(9, 1), Redundancy(3, 4), Redundancy(3, 0), Redundancy(3, 2, 4, 2), Redundancy(1, 1, spread=2)],
)
def test_an_impossible_policy_is_refused(want):
    drive = PoolDrive()
    assert drive.errno(c.SetRedundancy(drive.volume, want), **HOST) == errno.EINVAL
    assert drive.errno(c.SetRedundancy(99, Redundancy(1, 1)), **HOST) == errno.ENOENT
    assert drive.errno(c.SetRedundancy(drive.volume, Redundancy(1, 1), 2), **HOST) == errno.ENOENT


def test_data_outside_of_a_pool_does_not_move_into_one():
    drive = PoolDrive()
    drive.ok(c.AddDevice("slots", 1 << 30, 1 << 22, 64, 1 << 20, False, "n1"), **HOST)
    number = drive.make_volume("other")
    drive.open(mount=8)
    assert drive.errno(c.SetRedundancy(number, Redundancy(1, 1)), **HOST) == errno.EXDEV


def test_below_the_level_of_pools_no_command_of_theirs_is_in_the_log():
    assert Drive().machine.level < c.LeaseBays.since
    assert all(command.since == c.LeaseBays.since for command in (c.AddPoolDevice, c.SetRedundancy, c.BaysTrimmed))


# --- the leader's choice ----------------------------------------------------------------------------------------------
def chosen(drive: PoolDrive, count: int = 1, *avoid: int) -> list[list[int]]:
    return drive.machine.choose_bays(drive.session, c.LeaseBays(count, SAFE, list(avoid)), lambda most: most - 1)


def test_what_the_leader_chooses_is_leased():
    drive = PoolDrive(hosts=4, bays=8)
    drive.open()
    leased = 0
    while ensembles := chosen(drive, 2):
        leased += len(drive.lease_bays(*ensembles))
    assert leased == 8, "24 bays, without the reserve of each host, in threes"
    assert drive.needs() == {}
    sound(drive)


def test_nothing_is_leased_or_copied_to_a_device_that_no_server_has_attached_yet():
    drive = PoolDrive(hosts=3, want=Redundancy(2, 1))
    (sealed,) = sealed_segments(drive, 1, 1, 2)
    drive.ok(c.AddPoolDevice("uuid-4", 1 << 30, SEGMENT_BYTES, 15, MIB, "n4"), **HOST)
    drive.open()
    assert drive.errno(c.LeaseBays(1, SAFE, [], [[1, 4]])) == errno.EBUSY
    assert drive.errno(c.PlanMirror(sealed, 4, SAFE), **HOST) == errno.EBUSY
    chosen = drive.machine.choose_bays(drive.session, c.LeaseBays(12, SAFE), lambda count: count - 1)
    assert len(chosen) == 12 and not any(4 in ensemble for ensemble in chosen)
    drive.generation[4] = 0
    drive.attach(4)
    drive.lease_bays([1, 4])


def test_the_leader_leaves_out_what_takes_no_data_and_if_it_can_what_the_worker_cannot_reach():
    drive = PoolDrive(hosts=4)
    drive.open()
    assert [sorted(one) for one in chosen(drive, 1, 3)] == [[1, 2, 4]]
    drive.ok(c.SetDeviceState(2, 1), **HOST)
    assert [sorted(one) for one in chosen(drive)] == [[1, 3, 4]]
    assert [sorted(one) for one in chosen(drive, 1, 3)] == [[1, 4]], "fewer than wanted, and as many as have to be reached"
    assert [sorted(one) for one in chosen(drive, 1, 3, 4)] == [[1, 4]], "as few of those as will do, where nothing can be had without"
    draws = iter([0, 0, 0, 0, 0])
    found = drive.machine.choose_bays(drive.session, c.LeaseBays(1, SAFE, [3, 4]), lambda _most: next(draws, 0))
    assert [sorted(one) for one in found] == [[1, 3]], "drawn"


def test_nothing_is_chosen_for_a_session_whose_data_is_in_no_pool():
    drive = PoolDrive()
    assert drive.machine.choose_bays(99, c.LeaseBays(1, SAFE), lambda most: 0) == []
    drive.ok(c.AddDevice("slots", 1 << 30, 1 << 22, 64, 1 << 20, False, "n1"), **HOST)
    drive.make_volume("other")
    drive.open(mount=8)
    assert chosen(drive) == []


def test_a_pool_whose_devices_are_away_is_not_full():
    drive = PoolDrive(hosts=3)
    drive.open()
    for device in (2, 3):
        drive.ok(c.SetDeviceState(device, 1), **HOST)
    assert chosen(drive) == [] and drive.errno(c.LeaseBays(1, SAFE)) == errno.EAGAIN
    for device in (2, 3):
        drive.ok(c.SetDeviceState(device, 2), **HOST)
    assert drive.errno(c.LeaseBays(1, SAFE)) == errno.ENOSPC, "what is lost is not waited for"


def test_free_bays_that_are_not_safe_yet_hold_up_no_lease():
    """Device 1, on the writer's own host, has only free bays that somebody may still write to; the three others have room."""
    drive = PoolDrive(4, 16, Redundancy(2, 1))
    drive.open(node=drive.machine.state.device(1).home)
    while drive.machine.state.device(1).unused_from < 16:
        reply = drive.apply(c.LeaseBays(1, 0, [], [[1, 2 + drive.index % 3]]))
        if not isinstance(reply, m.Failed):
            drive.frames.update((info.segment, 0) for info in reply.segments)
            drive.ok(c.Commit(drive.volume, [], 0, [drive.report(one, sealed=True) for one in reply.segments]))
        elif not drive.trim(1):
            break
    drive.trim(1)
    for number in range(20):
        ensembles = drive.machine.choose_bays(drive.session, c.LeaseBays(1, 0), Random(number).randrange)
        assert ensembles and 1 not in ensembles[0]
    drive.ok(c.LeaseBays(1, 0, [], ensembles))


# --- df ---------------------------------------------------------------------------------------------------------------
def df(drive: PoolDrive) -> tuple[int, int]:
    """(total, available) in segments."""
    found = drive.ask(m.GetStatFs(drive.volume)).stat
    segment = usable_bytes(SEGMENT_BYTES) * 16 / 17
    return round(found.bytes_total / segment), round(found.bytes_writable / segment)


def test_df_shows_what_can_be_written_on_equal_and_on_unequal_hosts():
    drive = PoolDrive()
    assert df(drive) == (14, 14)  # two bays of each host are kept for repair
    sealed_segments(drive, 4)
    assert df(drive) == (14, 10)
    drive.add(4, "n4", bays=64)
    assert df(drive)[0] == 21, "a host has one mirror of a segment at most, however large it is: 3 x 14 for two others"
    drive.ok(c.SetRedundancy(drive.volume, Redundancy(2, 1)), **HOST)
    assert df(drive)[0] == 42
    drive.ok(c.SetDeviceState(1, 1), **HOST)
    assert df(drive)[0] == 28, "an absent device takes nothing"
    drive.walk()
    sound(drive)


def test_a_promise_is_kept_from_others():
    drive = PoolDrive()
    drive.open()
    granted = drive.ok(c.Reserve(drive.volume, 1 << 40, 4 * usable_bytes(SEGMENT_BYTES))).bytes
    assert granted >= 4 * usable_bytes(SEGMENT_BYTES)
    assert df(drive) == (14, 10)
    assert drive.errno(c.Reserve(drive.volume, 1 << 40, 11 * usable_bytes(SEGMENT_BYTES))) == errno.ENOSPC
    assert len(drive.lease_bays(*[[1, 2, 3]] * 4, safe_index=SAFE)) == 4
