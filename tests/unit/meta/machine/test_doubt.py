"""After a recovery the bays of pools are doubted until their servers have looked at them."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.commands.pools import DEVICE_LOST
from awsomefsd.meta.api.messages.devices import GetBays
from awsomefsd.meta.api.messages.pools import GetPool
from awsomefsd.meta.state.pools import LAST_MIRROR, NEED_SHORT
from tests.rigs.machine_driver import SAFE, sound
from tests.rigs.pool_driver import HOST, PoolDrive

NUMBERS = 3


def sealed(drive: PoolDrive, *devices: int) -> int:
    """A segment with a living file."""
    if not drive.session:
        drive.open()
    (segment,) = drive.lease_bays(list(devices))
    drive.ok(drive.put(segment, drive.create(b"f%d" % segment.segment), 0, 1000, sealed=True))
    return segment.segment


def recovered(drive: PoolDrive) -> None:
    drive.ok(c.Recover(0, "nobody"), **HOST)
    drive.session = drive.epoch = drive.mount = 0


def seen(device: int, drive: PoolDrive, *wrong: tuple[int, int], first: int = 0) -> c.BaysSeen:
    """What the server of a device, which has attached it anew, says of all its doubted bays from `first` on."""
    told = drive.ask(GetBays(device, 0, 1))
    return c.BaysSeen(f"n{device}", device, told.generation, told.doubted, first, list(wrong))


def index_of(drive: PoolDrive, segment: int, device: int) -> int:
    return next(bay.index for bay in drive.row(segment).bays if bay.device == device)


@pytest.fixture
def drive() -> PoolDrive:
    return PoolDrive(NUMBERS, want=Redundancy(2, 1))


def back(drive: PoolDrive) -> None:
    """A recovery, after which each device is attached."""
    recovered(drive)
    for device in range(1, NUMBERS + 1):
        drive.attach(device)


def test_a_recovery_doubts_the_bays_that_were_used_and_takes_devices_from_their_servers(drive: PoolDrive) -> None:
    sealed(drive, 1, 2), sealed(drive, 1, 3)
    recovered(drive)
    devices = drive.ask(GetPool(1)).devices
    assert [(one.doubted, one.server) for one in devices] == [(2, ""), (1, ""), (1, "")]
    assert drive.needs() == {}, "doubt is no loss"
    sound(drive)


def test_nothing_is_copied_given_up_or_put_where_bays_are_doubted(drive: PoolDrive) -> None:
    number = sealed(drive, 1, 2)
    back(drive)
    bays = [(number, bay.device, bay.index) for bay in drive.row(number).bays]
    assert drive.errno(c.DropBays(bays[:1]), **HOST) == errno.EPERM
    assert drive.errno(c.PlanMirror(number, 3, SAFE), **HOST) == errno.EBUSY
    drive.ok(seen(3, drive) if drive.ask(GetBays(3, 0, 1)).doubted else c.NoOp(), **HOST)
    assert drive.errno(c.PlanMirror(number, 3, SAFE), **HOST) == errno.EBUSY, "its mirrors are doubted"
    drive.open()
    assert drive.errno(c.LeaseBays(1, SAFE, [], [[1, 3]])) == errno.EBUSY
    drive.ok(seen(1, drive), **HOST)
    assert drive.errno(c.PlanMirror(number, 3, SAFE), **HOST) == errno.EBUSY, "one of its mirrors is doubted"
    assert drive.errno(c.DropBays(bays[:1]), **HOST) == errno.EPERM, "the other one is doubted"
    drive.ok(c.DropBays(bays[1:]), **HOST)
    drive.heal(number, 3)
    assert sorted(bay.device for bay in drive.row(number).bays) == [1, 3]
    drive.lease_bays([1, 3])
    sound(drive)


def test_a_mirror_that_holds_something_else_counts_no_more_and_the_other_is_copied(drive: PoolDrive) -> None:
    number = sealed(drive, 1, 2)
    back(drive)
    wrong = (index_of(drive, number, 1), number)
    assert drive.ok(seen(1, drive, wrong), **HOST).number == 1
    assert drive.needs() == {number: (LAST_MIRROR, NEED_SHORT)}
    assert drive.ok(seen(2, drive), **HOST).number == 0
    assert drive.errno(c.DropBays([(number, 2, index_of(drive, number, 2))]), **HOST) == errno.EPERM
    drive.heal(number, 3, (1, wrong[0]))
    assert drive.needs() == {} and [bay.device for bay in drive.row(number).bays] == [2, 3]
    sound(drive)


def test_the_last_one_that_counts_stays_whatever_it_holds(drive: PoolDrive) -> None:
    number = sealed(drive, 1, 2)
    back(drive)
    assert [drive.ok(seen(one, drive, (index_of(drive, number, one), number)), **HOST).number for one in (1, 2)] == [1, 0]
    sound(drive)


def test_of_what_is_lost_nobody_waits_and_it_is_doubted_when_it_is_back(drive: PoolDrive) -> None:
    number = sealed(drive, 1, 2)
    back(drive)
    drive.ok(seen(1, drive), **HOST)
    drive.ok(c.SetDeviceState(2, DEVICE_LOST), **HOST)
    drive.walk()
    drive.heal(number, 3)
    drive.attach(2)
    drive.walk()
    others = [(number, bay.device, bay.index) for bay in drive.row(number).bays if bay.device != 2]
    assert drive.errno(c.DropBays(others), **HOST) == errno.EPERM
    sound(drive)


def test_a_copy_of_before_is_no_mirror_and_goes(drive: PoolDrive) -> None:
    number = sealed(drive, 1, 2)
    index = drive.ok(c.PlanMirror(number, 3, SAFE), **HOST).number
    planned = drive.bay(3, index)
    assert planned is not None
    back(drive)
    made = c.MirrorMade(number, 3, index, planned.index, drive.row(number).end)
    assert drive.errno(made, **HOST) == errno.EBUSY
    for device in (1, 2, 3):
        drive.ok(seen(device, drive), **HOST)
    assert drive.errno(made, **HOST) == errno.ESTALE
    assert [bay.role for bay in drive.row(number).bays] == [BAY_MIRROR, BAY_MIRROR] and BAY_COPYING not in drive.row(number).bays
    sound(drive)


def test_bays_are_seen_in_parts_and_by_whoever_serves_the_device_now(drive: PoolDrive) -> None:
    for _ in range(3):
        sealed(drive, 1, 2)
    recovered(drive)
    early = seen(1, drive)
    assert drive.errno(early, **HOST) == errno.ESTALE, "nobody has attached it"
    drive.attach(1)
    assert drive.errno(early, **HOST) == errno.ESTALE, "it was attached again"
    drive.ok(seen(1, drive, first=2), **HOST)
    assert drive.ask(GetBays(1, 0, 1)).doubted == 2
    late = seen(1, drive)
    for told in ((3, 0), (2, -1), (2, 2), (1, 0)):
        assert drive.errno(c.BaysSeen("n1", 1, late.generation, *told, []), **HOST) in (errno.ESTALE, errno.EINVAL)
    drive.ok(late, **HOST)
    assert drive.errno(late, **HOST) == errno.ESTALE
    sound(drive)
