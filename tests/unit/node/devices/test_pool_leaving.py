"""What is in the way of a drain or a removal in a pool: by cases, and compared with what healing then does in random pools."""

from __future__ import annotations

from random import Random

import pytest

from awsomefsd.base.types import SPREAD_DEVICE, Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.pools import GetPool, GetPoolVolumes
from awsomefsd.meta.api.messages.scrub import GetLiveSegments
from awsomefsd.node.devices.pool_leaving import Leaving
from tests.rigs.pool_driver import HOST, PoolDrive
from tests.unit.meta.machine.test_pools import sealed_segments
from tests.unit.node.maintenance.healing_world import HealingWorld

POOLS = 60


def leaving(drive: PoolDrive, *devices: int) -> Leaving:
    rows = drive.ask(GetLiveSegments(1, 1_024)).segments
    named = {f"n{number}": f"host-{number}" for number in range(1, 9)}
    return Leaving(drive.ask(GetPool(1)), devices, drive.ask(GetPoolVolumes(1)).volumes, rows, named)


def refusal(drive: PoolDrive, device: int) -> tuple[str, bool]:
    pool = drive.ask(GetPool(1))
    return leaving(drive, device).removal_refusal(next(one for one in pool.devices if one.device == device))


# --- drain ------------------------------------------------------------------------------------------------------------------
def test_a_drain_needs_a_host_for_each_mirror() -> None:
    drive = PoolDrive(hosts=3, want=Redundancy(3, 1))
    assert leaving(drive, 3).drain_refusal() == ""
    sealed_segments(drive, 2)
    assert leaving(drive, 3).drain_refusal() == (
        "2 segments (8.0 MiB) cannot move: every other host that takes data has a mirror of each of them already; "
        "add a device on another host first"
    )
    drive.add(4, "n3")
    assert leaving(drive, 3).drain_refusal() == "", "the other device of its host takes them"


def test_a_drain_leaves_as_many_hosts_as_a_write_has_to_reach() -> None:
    drive = PoolDrive(hosts=2, want=Redundancy(2, 2))
    assert leaving(drive, 2).drain_refusal() == (
        "volume vol is written only where 2 hosts take its mirrors, and 1 would be left (host-1); add a device on another host first"
    )
    drive.ok(c.SetRedundancy(drive.volume, Redundancy(2, 2, spread=SPREAD_DEVICE)), **HOST)
    assert "2 devices take its mirrors, and 1 would be left (device 1); add a device on another disk" in leaving(drive, 2).drain_refusal()
    drive.add(3, "n1")
    assert leaving(drive, 2).drain_refusal() == ""


def test_mirrors_on_a_host_that_is_being_drained_need_a_place_too() -> None:
    """Both have to move, and one host is left: the second drain would never end, and nobody would say so."""
    drive = PoolDrive(hosts=3, want=Redundancy(2, 1))
    sealed_segments(drive, 1, 1, 2)
    drive.ok(c.DrainDevice(1, True), **HOST)
    assert leaving(drive, 2).drain_refusal() == (
        "1 segment (4.0 MiB) cannot move: every other host that takes data has a mirror of each of them already; "
        "add a device on another host first"
    )
    drive.add(4, "n4")
    assert leaving(drive, 2).drain_refusal() == ""


@pytest.mark.parametrize("away", [1, 2], ids=["absent", "lost"])
def test_devices_that_are_away_take_nothing(away: int) -> None:
    drive = PoolDrive(hosts=3, want=Redundancy(2, 2))
    sealed_segments(drive, 1, 1, 2)
    assert leaving(drive, 2).drain_refusal() == ""
    drive.ok(c.SetDeviceState(3, away), **HOST)
    assert "and 1 would be left (host-1)" in leaving(drive, 2).drain_refusal()


def test_a_drain_without_room_says_how_much_is_missing() -> None:
    drive = PoolDrive(hosts=3, bays=8, want=Redundancy(1, 1))
    sealed_segments(drive, 4, 1)
    assert leaving(drive, 1).drain_refusal() == ""
    sealed_segments(drive, 4, 2)
    sealed_segments(drive, 5, 3)
    assert leaving(drive, 1).drain_refusal() == (
        "16 MiB of mirrors have to move, and the other devices have no room for 4.0 MiB of them; add a device first"
    )


# --- removal ----------------------------------------------------------------------------------------------------------------
def test_a_device_in_use_is_to_be_drained_first() -> None:
    drive = PoolDrive()
    assert refusal(drive, 1) == ("device 1 is in use and takes new data: awsomefsd device drain 1", True)


def test_a_removal_waits_until_all_is_moved_and_trimmed() -> None:
    drive = PoolDrive(hosts=4)
    [number] = sealed_segments(drive, 1)
    drive.ok(c.DrainDevice(3, True), **HOST)
    why, loses = refusal(drive, 3)
    assert loses and why == "1 segment of volume vol lies on device 3; to wait until it is moved: awsomefsd device drain 3 --wait"
    drive.walk()
    drive.heal(number, 4, (3, 0))
    assert refusal(drive, 3) == ("1 bay of device 3 is being trimmed, which takes seconds; try again", False)
    drive.ok(c.SetDeviceState(3, 1), **HOST)
    why, loses = refusal(drive, 3)
    assert not loses and why.endswith("which is away; start it, or wait until the device counts as lost (600 s after it went)")


def test_what_is_nowhere_else_keeps_a_lost_device() -> None:
    drive = PoolDrive(hosts=3, want=Redundancy(2, 1))
    sealed_segments(drive, 1, 3)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.ok(c.DrainDevice(3, True), **HOST)
    why, loses = refusal(drive, 3)
    assert loses and why.startswith("device 3 is lost, and 1 segment with ") and why.endswith(
        "of volume vol is nowhere else; bring the device back"
    )


def test_a_mirror_that_is_behind_is_no_other_place() -> None:
    """A mirror has failed under a writer: it counts until the segment is sealed, and lacks what was committed since."""
    drive = PoolDrive(hosts=3, want=Redundancy(2, 1))
    drive.open()
    [info] = drive.lease_bays([1, 3])
    drive.ok(drive.put(info, drive.create(b"f"), 0, 1000, 3))
    assert leaving(drive, 3).loss().startswith("1 segment with ") and leaving(drive, 1).loss() == ""


def test_what_only_another_lost_device_has_is_not_lost_with_this_one() -> None:
    drive = PoolDrive(hosts=3, want=Redundancy(2, 1))
    drive.open()
    [info] = drive.lease_bays([1, 3])
    drive.ok(drive.put(info, drive.create(b"f"), 0, 1000, 1))
    drive.ok(c.EndSession(drive.session, drive.epoch, True), **HOST)
    for device in (1, 3):
        drive.ok(c.SetDeviceState(device, 2), **HOST)
    drive.ok(c.DrainDevice(3, True), **HOST)
    assert leaving(drive, 3).loss() == ""
    why, loses = refusal(drive, 3)
    assert loses and why.endswith("only device 1, which is lost, has all of 1 segment of volume vol; bring that back")


def test_a_lost_device_waits_for_mirrors_elsewhere_and_says_what_they_lack() -> None:
    drive = PoolDrive(hosts=3)
    sealed_segments(drive, 1)
    drive.ok(c.SetDeviceState(3, 2), **HOST)
    drive.ok(c.DrainDevice(3, True), **HOST)
    why, loses = refusal(drive, 3)
    assert loses and "cannot move: every other host that takes data has a mirror" in why
    drive.add(4, "n4")
    assert "to wait until it is moved" in refusal(drive, 3)[0]


# --- compared with what healing does ----------------------------------------------------------------------------------------
def test_what_may_be_drained_is_emptied_and_what_has_no_host_is_not(seed: int) -> None:
    """At the end of random lives, with every device there: a drain that is not refused ends, one without a host for it does not.

    In some of them another drain is under way.
    """
    verdicts = set()
    for life in range(POOLS):
        world = HealingWorld(Random(f"{seed} {life}"))
        for _ in range(40):
            world.disturb()
            world.look()
            world.end_copies(0.5)
        world.end_session()
        for one in world.devices:
            world.drive.attach(one, world.home[one])
            world.drive.ok(c.DrainDevice(one, False), **HOST)
        world.drive.walk()
        world.heal()
        other, one = world.dice.sample(world.devices, 2)
        drained = [one]
        if world.dice.random() < 0.5 and not leaving(world.drive, other).drain_refusal():
            world.drive.apply(c.DrainDevice(other, True), **HOST)
            world.drive.walk()
            drained.append(other)
        why = leaving(world.drive, one).drain_refusal()
        verdicts.add(why.partition(";")[0][:9])
        state = world.drive.apply(c.DrainDevice(one, True), **HOST)
        world.drive.walk()
        world.heal()
        left = [row.segment for row in leaving(world.drive, one).segments]
        if not why:
            assert not left, f"life {life}: {left} stay on device {one}, and the drain was not refused ({state})"
        elif "cannot move" in why and type(state).__name__ == "Done":
            assert leaving(world.drive, *drained).segments, f"life {life}: the drain of device {one} was refused for nothing: {why}"
    assert "" in verdicts and len(verdicts) > 1, verdicts
