"""Segments in bays: leased, written, sealed, copied, dropped, trimmed; and what a segment server asks before it lets anybody do that."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.types import (
    BAY_MIRROR,
    BAY_STALE,
    SEGMENT_LEASED,
    SEGMENT_SEALED,
    SPREAD_DEVICE,
    Redundancy,
    SegmentInfo,
    SegmentProgress,
)
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.api.messages.devices import BayInfo, GetBays
from awsomefsd.meta.state import pools
from tests.rigs.machine_driver import SAFE, Drive, sound
from tests.rigs.pool_driver import HOST, PoolDrive


def written(drive: PoolDrive, *devices: int, ensemble: tuple[int, ...] = (1, 2, 3)) -> int:
    """A segment with one committed write, durable on these devices (all), still leased."""
    drive.open()
    [info] = drive.lease_bays(list(ensemble))
    ino = drive.create(b"f")
    drive.ok(drive.put(info, ino, 0, 1000, *devices))
    return info.segment


def end(drive: PoolDrive, *, clean: bool = False) -> None:
    drive.ok(c.EndSession(drive.session, drive.epoch, clean), **HOST)
    drive.session = drive.epoch = 0


# --- questions --------------------------------------------------------------------------------------------------------
def test_a_bay_is_told_with_its_lessee():
    drive = PoolDrive()
    number = written(drive, 1, 2)
    row = drive.row(number)
    [told] = drive.ask(GetBays(2, 0, 1)).bays
    held = drive.bay(2, 0)
    assert held is not None
    session = (drive.session, drive.epoch, "n1")
    assert told == BayInfo(0, BAY_MIRROR, held.index, number, row.incarnation, SEGMENT_LEASED, *session, row.committed_bytes, 0)
    assert drive.ask(GetBays(3, 0, 1)).bays[0].durable == 0, "a bay that no report has named counts for nothing"
    assert drive.ask(GetBays(2, 1, 1)).bays == [] and drive.ask(GetBays(2, 0, 1)).generation == 2


def test_pages_end_and_a_stale_bay_is_nobodys():
    drive = PoolDrive(want=Redundancy(1, 1), hosts=1)
    drive.open()
    leased = drive.lease_bays([1], [1], [1])
    drive.ok(c.Commit(drive.volume, [], 0, [SegmentProgress(leased[1].segment, leased[1].incarnation, 0, True)]))
    first = drive.ask(GetBays(1, 0, 1))
    assert ([bay.index for bay in first.bays], first.next) == ([0], 1)
    [stale] = drive.ask(GetBays(1, 1, 1)).bays
    assert stale == BayInfo(1, BAY_STALE, drive.index, leased[1].segment)
    assert drive.ask(GetBays(1, 2, 100)).next == -1


def test_a_device_outside_of_pools_has_no_bays():
    drive = Drive()
    assert drive.ask_errno(GetBays(1, 0, 1)) == drive.ask_errno(GetBays(2, 0, 1)) == errno.ENOENT
    assert PoolDrive().ask_errno(GetBays(1, -1, 1)) == PoolDrive().ask_errno(GetBays(1, 0, 0)) == errno.EINVAL


# --- leases -----------------------------------------------------------------------------------------------------------
def test_a_lease_takes_a_bay_on_each_host():
    drive = PoolDrive()
    drive.open()
    one, other = drive.lease_bays([1, 2, 3], [3, 1, 2])
    assert other.segment == one.segment + 1 and one.device == one.byte_offset == 0
    assert [(bay.device, bay.index) for bay in one.bays] == [(1, 0), (2, 0), (3, 0)]
    assert [(bay.device, bay.index) for bay in other.bays] == [(3, 1), (1, 1), (2, 1)]
    assert drive.needs() == {}
    sound(drive)


@pytest.mark.parametrize(
    ("ensembles", "expected"),
    [
        ([], errno.EAGAIN),  # there is room: another choice may do
        ([[1]], errno.EINVAL),  # fewer than have to be reached
        ([[1, 2, 3, 4]], errno.EINVAL),  # more than wanted
        ([[1, 1]], errno.EINVAL),
        ([[1, 4]], errno.EINVAL),  # 4 is on the host of 1
        ([[1, 5]], errno.ENOENT),
        ([[1, 2]] * 65, errno.EINVAL),
    ],
)
def test_a_lease_is_refused_where_mirrors_would_fail_together(ensembles, expected):
    drive = PoolDrive()
    drive.add(4, "n1")
    drive.open()
    assert drive.errno(c.LeaseBays(64, SAFE, [], ensembles)) == expected


def test_two_devices_of_one_host_are_one():
    drive = PoolDrive()
    drive.add(4, "n1")
    number = written(drive, 1, 2, ensemble=(1, 2))
    assert drive.errno(c.LeaseBays(1, SAFE, [], [[1, 4]])) == errno.EINVAL
    end(drive)
    assert drive.errno(c.PlanMirror(number, 4, SAFE), **HOST) == errno.EEXIST
    drive.heal(number, 4, replaces=(1, 0))


def test_two_devices_of_one_host_are_two_where_mirrors_are_spread_by_device():
    drive = PoolDrive(hosts=1, want=Redundancy(2, 2, spread=SPREAD_DEVICE))
    drive.add(2, "n1")
    number = written(drive, ensemble=(1, 2))
    end(drive)
    assert drive.needs() == {} and drive.row(number).end == 1064
    sound(drive)


def test_nothing_is_leased_on_a_device_that_takes_no_data():
    drive = PoolDrive()
    drive.open()
    for command, back in (
        (c.SetDeviceState(3, 1), c.SetDeviceState(3, 0)),
        (c.SetDeviceState(3, 2), c.SetDeviceState(3, 0)),
        (c.DrainDevice(3, True), c.DrainDevice(3, False)),
    ):
        drive.ok(command, **HOST)
        assert drive.errno(c.LeaseBays(1, SAFE, [], [[1, 2, 3]])) == errno.EBUSY
        drive.ok(back, **HOST)
    drive.lease_bays([1, 2, 3])


def test_a_segment_with_fewer_mirrors_than_wanted_is_born_with_a_need():
    drive = PoolDrive()
    drive.open()
    [info] = drive.lease_bays([1, 2])
    assert drive.needs() == {info.segment: (pools.FEWER, pools.NEED_SHORT)}
    sound(drive)


def test_a_host_keeps_its_reserve_for_repair_from_writers():
    drive = PoolDrive(bays=4)
    drive.open()
    drive.lease_bays([1, 2, 3], [1, 2, 3])
    assert drive.errno(c.LeaseBays(1, SAFE, [], [[1, 2, 3]])) == errno.EAGAIN, "a choice that does not fit any more"
    assert drive.errno(c.LeaseBays(1, SAFE)) == errno.ENOSPC, "the leader finds none, and nor would it with devices that are away"


def test_a_freed_bay_waits_until_its_freeing_is_safe():
    drive = PoolDrive(bays=4, want=Redundancy(1, 1), hosts=1)
    drive.open()
    leased = drive.lease_bays([1], [1])
    drive.ok(c.Commit(drive.volume, [], 0, [SegmentProgress(one.segment, one.incarnation, 0, True) for one in leased]))
    assert drive.machine.state.device(1).stale == 2 and drive.errno(c.LeaseBays(1, SAFE, [], [[1]])) == errno.EAGAIN
    assert drive.trim(1) == 2
    drive.lease_bays([1], safe_index=0)  # one that was never used
    refused = drive.apply(c.LeaseBays(1, 0, [], [[1], [1]]))
    assert isinstance(refused, Failed)
    sound(drive)


def test_other_volumes_and_segments_of_slots_are_leased_as_before():
    drive = PoolDrive()
    drive.ok(c.AddDevice("slots", 1 << 30, 1 << 22, 64, 1 << 20, False, "n1"), **HOST)
    drive.open()
    assert drive.errno(c.LeaseSegments(1, SAFE)) == errno.EINVAL
    drive.make_volume("other")
    drive.open(mount=8)
    [info] = drive.lease(1)
    assert info.device == 4 and type(info) is SegmentInfo
    assert drive.errno(c.LeaseBays(1, SAFE, [], [[1, 2, 3]])) == errno.EINVAL
    drive.write(info, drive.create(b"x"), 0, 100)
    sound(drive)


# --- writing ----------------------------------------------------------------------------------------------------------
def test_a_commit_that_fewer_bays_reached_than_have_to_is_refused():
    drive = PoolDrive()
    drive.open()
    [info] = drive.lease_bays([1, 2, 3])
    ino = drive.create(b"f")
    assert drive.errno(drive.put(info, ino, 0, 1000, 2)) == errno.EINVAL
    drive.frames[info.segment] = 0
    assert drive.errno(c.Commit(drive.volume, [], 0, [SegmentProgress(info.segment, info.incarnation, 10)])) == errno.EINVAL
    assert drive.ok(drive.put(info, ino, 0, 1000, 2, 3)).errnos == [0]
    assert [bay.durable for bay in drive.row(info.segment).bays] == [0, 1064, 1064]
    drive.ok(drive.put(info, ino, 1000, 1000, 1, 2))
    assert [bay.durable for bay in drive.row(info.segment).bays] == [2128, 2128, 1064]
    sound(drive)


def test_a_report_names_the_segments_own_bays_once():
    drive = PoolDrive()
    drive.open()
    [info] = drive.lease_bays([1, 2, 3])
    for durable in ([(1, 0, 9), (1, 0, 9)], [(1, 1, 9)], [(4, 0, 9)], [(1, 0, -1)], [(1, 0, info.bytes + 1)]):
        step = SegmentProgress(info.segment, info.incarnation, 0, False, 0, 0, durable)
        assert drive.errno(c.Commit(drive.volume, [], 0, [step])) == errno.EINVAL


def test_a_footer_counts_only_where_enough_bays_reached_it():
    drive = PoolDrive()
    drive.open()
    [info] = drive.lease_bays([1, 2, 3])
    short = SegmentProgress(info.segment, info.incarnation, 4096, True, 4096, 512, [(1, 0, 4608), (2, 0, 4096)])
    assert drive.errno(c.Commit(drive.volume, [], 0, [short])) == errno.EINVAL


@pytest.mark.parametrize("clean", [True, False])
def test_a_session_that_ends_leaves_its_segments_sealed_and_the_short_ones_with_needs(clean):
    drive = PoolDrive()
    number = written(drive, 1, 2)
    end(drive, clean=clean)
    row = drive.row(number)
    assert (row.state, row.end, row.session) == (SEGMENT_SEALED, row.committed_bytes, 0)
    assert drive.needs() == {number: (pools.FEWER, pools.NEED_SHORT)}
    sound(drive)


def test_one_mirror_left_is_the_most_urgent_need():
    drive = PoolDrive(want=Redundancy(2, 1), hosts=2)
    number = written(drive, 2, ensemble=(1, 2))
    end(drive)
    assert drive.needs() == {number: (pools.LAST_MIRROR, pools.NEED_SHORT)}


# --- healing ----------------------------------------------------------------------------------------------------------
def short_one(hosts: int = 4) -> tuple[PoolDrive, int]:
    """A sealed segment whose bay on device 3 is short."""
    drive = PoolDrive(hosts=hosts)
    number = written(drive, 1, 2)
    end(drive)
    return drive, number


def test_a_copy_replaces_the_bay_that_is_short():
    drive, number = short_one()
    drive.heal(number, 4, replaces=(3, 0))
    assert {bay.device for bay in drive.row(number).bays} == {1, 2, 4} and drive.needs() == {}
    assert len(drive.stale(3)) == 1 and drive.trim(3) == 1
    sound(drive)


def test_a_copy_may_go_to_the_host_whose_bay_it_replaces():
    drive, number = short_one(hosts=3)
    assert drive.errno(c.PlanMirror(number, 3, SAFE), **HOST) == errno.EEXIST, "a second bay on one device is no mirror"
    drive.heal(number, 3, replaces=(3, 0))
    assert drive.needs() == {}
    sound(drive)


def test_a_copy_on_a_host_that_has_a_mirror_is_refused():
    drive, number = short_one()
    assert drive.errno(c.PlanMirror(number, 1, SAFE), **HOST) == errno.EEXIST
    assert drive.errno(c.PlanMirror(number, 2, SAFE, (3, 0)), **HOST) == errno.EEXIST
    assert drive.errno(c.PlanMirror(number, 4, SAFE, (3, 1)), **HOST) == errno.ESTALE
    assert drive.errno(c.PlanMirror(99, 4, SAFE), **HOST) == errno.ESTALE
    assert drive.errno(c.PlanMirror(number, 9, SAFE), **HOST) == errno.ENOENT


def test_the_bays_of_a_segment_that_is_written_do_not_change():
    drive = PoolDrive(hosts=4)
    number = written(drive, 1, 2)
    assert drive.errno(c.PlanMirror(number, 4, SAFE), **HOST) == errno.EBUSY
    assert drive.errno(c.DropBays([(number, 3, 0)]), **HOST) == errno.EBUSY


def test_a_copy_counts_by_compare_and_swap():
    drive, number = short_one()
    index = drive.ok(c.PlanMirror(number, 4, SAFE), **HOST).number
    planned, whole = drive.index, drive.row(number).end
    assert drive.errno(c.PlanMirror(number, 4, SAFE), **HOST) == errno.EEXIST
    for wrong in ((planned + 1, whole), (planned, whole - 1)):
        assert drive.errno(c.MirrorMade(number, 4, index, *wrong), **HOST) == errno.ESTALE
    assert drive.errno(c.MirrorMade(number, 4, index + 1, planned, whole), **HOST) == errno.ESTALE
    drive.ok(c.DropBays([(number, 4, index)]), **HOST)
    assert drive.errno(c.MirrorMade(number, 4, index, planned, whole), **HOST) == errno.ESTALE, "given up meanwhile"
    sound(drive)


def test_a_copy_of_a_segment_that_died_is_stale_until_it_is_trimmed():
    drive, number = short_one()
    index = drive.ok(c.PlanMirror(number, 4, SAFE), **HOST).number
    planned, whole = drive.index, drive.row(number).end
    drive.ok(c.Unlink(drive.volume, 1, b"f"), **HOST)
    assert drive.machine.state.segment(number) is None and drive.needs() == {}
    assert drive.errno(c.MirrorMade(number, 4, index, planned, whole), **HOST) == errno.ESTALE
    assert [len(drive.stale(device)) for device in (1, 2, 3, 4)] == [1, 1, 1, 1]
    sound(drive)
    assert [drive.trim(device) for device in (1, 2, 3, 4)] == [1, 1, 1, 1]
    sound(drive)


def test_the_last_mirror_that_is_complete_and_there_is_never_dropped():
    drive, number = short_one()
    assert drive.errno(c.DropBays([(number, 1, 0), (number, 2, 0)]), **HOST) == errno.EPERM
    drive.ok(c.SetDeviceState(2, 1), **HOST)
    assert drive.errno(c.DropBays([(number, 1, 0)]), **HOST) == errno.EPERM
    drive.ok(c.SetDeviceState(2, 0), **HOST)
    drive.ok(c.DropBays([(number, 1, 0), (number, 3, 0)]), **HOST)
    assert drive.needs() == {number: (pools.LAST_MIRROR, pools.NEED_SHORT)}
    assert drive.errno(c.DropBays([(number, 2, 0)]), **HOST) == errno.EPERM
    assert drive.errno(c.DropBays([(number, 1, 0)]), **HOST) == errno.ESTALE
    sound(drive)


def test_a_bay_is_freed_by_its_server_and_by_compare_and_swap():
    drive, number = short_one()
    drive.ok(c.DropBays([(number, 3, 0)]), **HOST)
    dropped = drive.index
    assert drive.errno(c.BaysTrimmed("n1", 3, [(0, number, dropped)]), **HOST) == errno.ESTALE
    for wrong in ((0, number, dropped - 1), (0, number + 1, dropped), (1, number, dropped), (99, number, dropped), (-1, number, dropped)):
        assert drive.ok(c.BaysTrimmed("n3", 3, [wrong]), **HOST).number == 0
    assert drive.ok(c.BaysTrimmed("n3", 3, [(0, number, dropped)] * 2), **HOST).number == 1
    assert drive.ok(c.BaysTrimmed("n3", 3, [(0, number, dropped)]), **HOST).number == 0, "harmless when repeated"
    assert drive.errno(c.BaysTrimmed("n3", 3, []), **HOST) == errno.EINVAL
    sound(drive)


def test_a_mirror_with_wrong_bytes_counts_no_more_and_the_last_one_goes_on_to() -> None:
    drive = PoolDrive(3, want=Redundancy(2, 1))
    number = written(drive, ensemble=(1, 2))
    drive.ok(c.EndSession(drive.session, drive.epoch, True), session=0, epoch=0, mount=0)
    one, other = drive.row(number).bays
    assert drive.errno(c.BaysWrong("n2", 1, [(one.index, number)]), **HOST) == errno.ESTALE
    for passed_over in ((one.index + 1, number), (one.index, number + 1), (-1, number)):
        assert drive.ok(c.BaysWrong("n1", 1, [passed_over]), **HOST).number == 0
    assert drive.ok(c.BaysWrong("n1", 1, [(one.index, number)] * 2), **HOST).number == 1
    assert drive.needs()[number] == (pools.LAST_MIRROR, pools.NEED_SHORT)
    assert drive.ok(c.BaysWrong("n2", 2, [(other.index, number)]), **HOST).number == 0, "the last that counts"
    drive.heal(number, 1, (1, one.index))
    assert not drive.needs() and len(drive.row(number).bays) == 2
    sound(drive)
