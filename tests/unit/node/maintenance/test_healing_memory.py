"""Copies that fail are not tried for ever, and a device is lost when it has been absent for long."""

from __future__ import annotations

from msgspec.structs import replace

from awsomefsd.meta.api.messages.pools import Pool, PoolDeviceInfo
from awsomefsd.node.maintenance.healing_memory import LEFT_ALONE_MS, LEFT_ALONE_MS_MAX, LOST_AFTER_TOGETHER_MS, Absences, CopyFailures
from awsomefsd.node.maintenance.healing_plan import NOWHERE, MirrorCopy

AFTER_MS = 600_000


def pool(*devices: PoolDeviceInfo, maintenance: tuple[tuple[str, int], ...] = ()) -> Pool:
    found = list(devices) or [device(number) for number in (1, 2, 3)]
    return Pool(1 << 22, 64 << 20, AFTER_MS, 4, list(maintenance), 0, found)


def device(number: int, **fields: bool) -> PoolDeviceInfo:
    name = f"n{number}"
    return replace(PoolDeviceInfo(number, 10, 10, 0, name, name, server=name, address="host:1"), **fields)


def copy(segment: int, destination: int) -> MirrorCopy:
    return MirrorCopy(segment, 1, destination, 0, 5, 4096, 0, 1, (), NOWHERE)


# --- failures (row 25) --------------------------------------------------------------------------------------------------------
def test_a_destination_that_fails_three_segments_in_a_row_is_left_alone_and_longer_each_time() -> None:
    failures, now = CopyFailures(), 1_000
    for times in range(6):
        assert [failures.note(copy(segment, 2), False, now) for segment in (1, 2, 3)] == [False, False, True]
        pause = min(LEFT_ALONE_MS << times, LEFT_ALONE_MS_MAX)
        assert failures.left_alone(now + pause - 1) == {2} and failures.left_alone(now + pause) == set()
        now += pause
    failures.note(copy(9, 2), True, now)
    for segment in (1, 2, 3):
        failures.note(copy(segment, 2), False, now)
    assert failures.left_alone(now + LEFT_ALONE_MS) == set(), "a copy that was made begins the pauses anew"


def test_one_segment_that_cannot_be_copied_keeps_no_device_from_others() -> None:
    failures = CopyFailures()
    for _ in range(20):
        failures.note(copy(1, 2), False, 0)
    assert failures.left_alone(0) == set()


def test_a_segment_goes_elsewhere_and_is_given_up_until_the_devices_have_changed() -> None:
    failures, now = CopyFailures(), pool()
    failures.take_devices(now, 0)
    for _ in range(2):
        failures.note(copy(1, 2), False, 0)
    assert failures.failed(now) == set()
    failures.note(copy(1, 2), False, 0)
    assert failures.failed(now) == {(1, 2)}
    for _ in range(3):
        failures.note(copy(1, 3), False, 0)
    assert failures.failed(now) == {(1, 1), (1, 2), (1, 3)}
    failures.take_devices(now, 0)
    assert failures.failed(now), "the same devices"
    failures.take_devices(pool(device(1), device(2), device(3, absent=True)), 0)
    assert failures.failed(now) == set()


def test_a_segment_that_was_given_up_is_tried_again_after_a_while_and_then_more_rarely() -> None:
    """A segment server that was away fails what is copied from it, and no row says that it is back."""
    failures, devices, now = CopyFailures(), pool(), 1_000
    for times in range(6):
        failures.take_devices(devices, now)
        for _ in range(3):
            failures.note(copy(1, 2), False, now)
        pause = min(LEFT_ALONE_MS << times, LEFT_ALONE_MS_MAX)
        failures.take_devices(devices, now + pause - 1)
        assert failures.failed(devices) == {(1, 2)}
        now += pause
        failures.take_devices(devices, now)
        assert failures.failed(devices) == set()


def test_a_copy_that_was_made_is_forgiven() -> None:
    failures, now = CopyFailures(), pool()
    for segment in (1, 1, 1, 2):
        failures.note(copy(segment, 2), False, 0)
    failures.note(copy(1, 2), True, 0)
    assert failures.failed(now) == set()
    assert [failures.note(copy(segment, 2), False, 0) for segment in (5, 6)] == [False, False], "in a row means in a row"


# --- absences (row 23) --------------------------------------------------------------------------------------------------------
def lost(
    absences: Absences, now_ms: int, *devices: PoolDeviceInfo, maintenance: tuple[tuple[str, int], ...] = (), wall: int = 0
) -> list[int]:
    return [one.device for one in absences.lost(pool(*devices, maintenance=maintenance), now_ms, wall)]


def test_an_absent_device_is_lost_after_the_time_of_the_pool() -> None:
    absences, away = Absences(), device(2, absent=True)
    assert lost(absences, 0, device(1), away) == [] and absences.any
    assert lost(absences, AFTER_MS - 1, device(1), away) == []
    assert lost(absences, AFTER_MS, device(1), away) == [2]
    assert lost(absences, AFTER_MS, device(1), device(2, absent=True, lost=True)) == [] and not absences.any


def test_a_device_that_came_back_begins_anew() -> None:
    absences, away = Absences(), device(2, absent=True)
    lost(absences, 0, away, device(1))
    lost(absences, AFTER_MS - 1, device(2), device(1))
    assert lost(absences, AFTER_MS, away, device(1)) == []
    assert lost(absences, 2 * AFTER_MS, away, device(1)) == [2]


def test_two_absent_hosts_are_lost_sooner() -> None:
    absences, away = Absences(), [device(1, absent=True), device(2, absent=True), device(3)]
    lost(absences, 0, *away)
    assert lost(absences, LOST_AFTER_TOGETHER_MS - 1, *away) == []
    assert lost(absences, LOST_AFTER_TOGETHER_MS, *away) == [1, 2]
    together = Absences()
    two_of_one = [device(1, absent=True), replace(device(2, absent=True), host="n1"), device(3)]
    lost(together, 0, *two_of_one)
    assert lost(together, LOST_AFTER_TOGETHER_MS, *two_of_one) == [], "two devices of one host"


def test_a_host_under_maintenance_is_not_lost() -> None:
    absences, away = Absences(), device(2, absent=True)
    lost(absences, 0, away, device(1))
    assert lost(absences, 2 * AFTER_MS, away, device(1), maintenance=(("n2", 1_000),), wall=999) == []
    ended = (("n2", 1_000),)
    assert lost(absences, 3 * AFTER_MS - 1, away, device(1), maintenance=ended, wall=1_000) == [], "who is late has as long as without one"
    assert lost(absences, 3 * AFTER_MS, away, device(1), maintenance=ended, wall=1_001) == [2]
