"""Healing by real segment servers and a real machine: what is missing is copied, whoever leads, and what fails is not tried for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, SEGMENT_SEALED, Redundancy, SegmentBay
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.devices import GetBays
from awsomefsd.meta.api.messages.pools import GetNeeds, NeedsFound, Pool, PoolCensus, PoolDeviceInfo, SegmentNeed
from awsomefsd.meta.state import pools
from awsomefsd.node.maintenance import healing as healing_module
from awsomefsd.node.maintenance.healing import Healing
from awsomefsd.node.maintenance.pool_trimming import PoolTrimming
from tests.rigs.machine_driver import sound
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.pool_driver import HOST
from tests.rigs.segment_servers import BAYS, until
from tests.rigs.upkept_pool import UpkeptPool

LOST = 2


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[UpkeptPool]:
    made = UpkeptPool(tmp_path, 3, Redundancy(2, 1))
    yield made
    made.close()


@pytest.fixture
def healing(pool: UpkeptPool) -> Iterator[Healing]:
    made = Healing(pool.ask, pool.propose, pool.server_of)
    yield made
    made.rest()
    made.join()


def segments_of(pool: UpkeptPool, device: int) -> list[int]:
    return [bay.segment for bay in pool.drive.ask(GetBays(device, 0, BAYS)).bays if bay.role == BAY_MIRROR]


def lose(pool: UpkeptPool, device: int) -> list[int]:
    """The server of a device has gone for good; returns the segments that lack a mirror for that."""
    lacking = segments_of(pool, device)
    pool.cluster.nodes[device - 1].server.stop()
    pool.drive.ok(c.SetDeviceState(device, LOST), **HOST)
    assert lacking
    return lacking


def busiest(pool: UpkeptPool) -> int:
    return max((1, 2, 3), key=lambda device: len(segments_of(pool, device)))


def heal(pool: UpkeptPool, *healings: Healing, so: Callable[[], bool] = lambda: True) -> None:
    """Looks again and again until nothing is under way or left to do."""

    def looked() -> bool:
        more = [healing.turn(pool.pool()) for healing in healings]
        return not any(more) and not any(healing.waits for healing in healings) and so()

    until(looked)


def check_mirrors(pool: UpkeptPool, segments: list[int], *, away: int = 0) -> None:
    for segment in segments:
        there = {device: raw for device, raw in pool.mirrors_of(segment).items() if device != away}
        assert len(there) == 2 and len(set(there.values())) == 1 and all(there.values()), f"segment {segment}: {sorted(there)}"
    sound(pool.drive)


def test_what_a_lost_device_had_is_copied_byte_for_byte(pool: UpkeptPool, healing: Healing) -> None:
    pool.written(300_000, 1_000_000, 2_000_000, 70_000)
    gone = busiest(pool)
    lacking = lose(pool, gone)
    heal(pool, healing)
    check_mirrors(pool, lacking, away=gone)
    assert healing.made == len(lacking) and not healing.failed


def test_an_absent_device_makes_no_copies(pool: UpkeptPool, healing: Healing) -> None:  # row 23
    pool.written(300_000, 1_000_000)
    pool.drive.ok(c.SetDeviceState(busiest(pool), 1), **HOST)
    healing.turn(pool.pool())
    assert not any(isinstance(command, c.PlanMirror) for command in pool.proposed)


def test_mirrors_of_a_device_that_returns_count_and_what_is_too_much_is_trimmed(pool: UpkeptPool, healing: Healing) -> None:  # 9 and 23
    pool.written(300_000, 1_000_000, 2_000_000)
    gone = busiest(pool)
    lacking = lose(pool, gone)
    heal(pool, healing)
    assert all(gone in {bay.device for bay in pool.drive.row(segment).bays} for segment in lacking), "it stays named"
    pool.cluster.nodes[gone - 1].start()
    pool._orders.clear()
    pool.drive.attach(gone)
    heal(pool, healing)
    check_mirrors(pool, lacking)
    assert pool.drive.needs() == {}
    trimmer = PoolTrimming(pool.ask, pool.propose, pool.server_of)
    until(lambda: not (trimmer.turn(pool.pool())[0], any(device.stale for device in pool.pool().devices))[1])
    segments = {segment for device in (1, 2, 3) for segment in segments_of(pool, device)}
    assert sum(device.bays - device.free for device in pool.pool().devices) == 2 * len(segments)
    sound(pool.drive)


def test_another_leader_goes_on_and_an_old_one_does_no_harm(pool: UpkeptPool, healing: Healing) -> None:  # row 13
    pool.written(1_000_000, 2_000_000, 3_000_000)
    gone = busiest(pool)
    lacking = lose(pool, gone)
    old = Healing(pool.ask, pool.propose, pool.server_of)
    while not old.made and not old._running:
        old.turn(pool.pool())
    heal(pool, healing, old)
    old.rest()
    old.join()
    check_mirrors(pool, lacking, away=gone)
    copies = [bay for device in (1, 2, 3) for bay in pool.drive.ask(GetBays(device, 0, BAYS)).bays if bay.role == BAY_COPYING]
    assert copies == [] and healing.failed == old.failed == 0


def test_a_lost_answer_to_what_was_proposed_costs_nothing(pool: UpkeptPool) -> None:
    pool.written(1_000_000, 500_000)
    lost: set[type] = set()

    def propose(command: Any) -> Any:
        reply = pool.propose(command)
        if type(command) not in lost:
            lost.add(type(command))
            raise Unavailable("nobody said whether that was done")
        return reply

    gone = busiest(pool)
    lacking = lose(pool, gone)
    healing = Healing(pool.ask, propose, pool.server_of)

    def looked() -> bool:
        try:
            return not healing.turn(pool.pool()) and not healing.waits
        except Unavailable:
            return False

    until(looked)
    healing.join()
    assert {c.PlanMirror, c.MirrorMade} <= lost
    check_mirrors(pool, lacking, away=gone)


def test_what_is_wrong_in_one_mirror_is_taken_from_another(tmp_path: Path) -> None:  # row 14
    pool = UpkeptPool(tmp_path, 4, Redundancy(3, 1))
    healing = Healing(pool.ask, pool.propose, pool.server_of)
    try:
        pool.written(1_000_000, 500_000)
        gone = busiest(pool)
        lacking = lose(pool, gone)
        for segment in lacking:
            kept = next(bay for bay in pool.drive.row(segment).bays if bay.device != gone)
            pool.cluster.nodes[kept.device - 1].put(kept.index, b"rotted", 10_000)
        heal(pool, healing)
        for segment in lacking:
            bad = next(bay for bay in pool.drive.row(segment).bays if bay.device != gone)
            good = {raw for device, raw in pool.mirrors_of(segment).items() if device not in (gone, bad.device)}
            assert len(good) == 1 and b"rotted" not in good.pop()
    finally:
        healing.rest()
        healing.join()
        pool.close()


def test_what_only_a_mirror_that_is_away_has_right_is_not_given_up(pool: UpkeptPool, healing: Healing) -> None:
    """Two mirrors, each with a bad frame of its own: the one that scrub gave up is replaced when it has given what it has."""
    pool.written(2_000_000)
    good, (number,) = pool.mirrors_of(segments_of(pool, busiest(pool))[0]), {*segments_of(pool, busiest(pool))}
    kept, given_up = pool.drive.row(number).bays
    for bay, offset in ((kept, 300_000), (given_up, 1_500_000)):
        pool.cluster.nodes[bay.device - 1].put(bay.index, b"rotted", offset)
    pool.drive.ok(c.SetDeviceState(given_up.device, 1), **HOST)
    server = pool.drive.machine.state.device(given_up.device).server
    assert pool.drive.ok(c.BaysWrong(server, given_up.device, [(given_up.index, number)]), **HOST).number == 1
    until(lambda: bool((healing.turn(pool.pool()), healing.failed or healing.made)[1]))
    assert given_up.device in {bay.device for bay in pool.drive.row(number).bays}, "nobody has seen whether it has more than the others"
    pool.drive.ok(c.SetDeviceState(given_up.device, 0), **HOST)
    heal(pool, healing)
    healed = pool.mirrors_of(number)
    assert len(healed) == 2 and sum(raw == good[kept.device] for raw in healed.values()) == 1, "each frame from where it is right"
    sound(pool.drive)


def test_a_segment_that_dies_while_it_is_copied_leaves_bays_that_are_trimmed(pool: UpkeptPool, healing: Healing) -> None:  # row 12
    names = pool.written(1_000_000, 500_000)
    gone = busiest(pool)
    lose(pool, gone)
    assert healing.turn(pool.pool()), "bays are kept for copies"
    for name in names:
        pool.drive.ok(c.Unlink(pool.drive.volume, 1, name))
    while pool.drive.machine.reap_pending():
        pool.drive.ok(c.Reap(1_000), **HOST)
    heal(pool, healing)
    trimmer = PoolTrimming(pool.ask, pool.propose, pool.server_of)
    there = [device for device in (1, 2, 3) if device != gone]
    until(lambda: (trimmer.turn(pool.pool()), not any(pool.pool().devices[device - 1].stale for device in there))[1])
    assert all(pool.pool().devices[device - 1].free == BAYS for device in there)
    sound(pool.drive)


def test_a_destination_that_is_away_is_not_tried_for_ever(pool: UpkeptPool, healing: Healing) -> None:  # row 25
    pool.written(300_000, 1_000_000, 2_000_000)
    gone = busiest(pool)
    lacking = lose(pool, gone)
    for node in pool.cluster.nodes:
        node.file.fail_writes = True
    heal(pool, healing)
    failed = healing.failed
    assert failed and not healing.made
    for _ in range(5):
        heal(pool, healing)
    assert healing.failed == failed
    assert all(len(pool.mirrors_of(segment)) >= 1 for segment in lacking)
    sound(pool.drive)


def test_segments_that_nobody_can_copy_do_not_hide_those_that_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look reads so many needs at most, the most urgent first; those sleep here, since all their mirrors are lost."""
    monkeypatch.setattr(healing_module, "NEEDS_PAGES_MAX", 2)
    monkeypatch.setattr(healing_module, "NEEDS_PER_ANSWER_MAX", 3)
    devices = [PoolDeviceInfo(number, 9, 9, 0, f"n{number}", f"n{number}", server=f"n{number}", address="host:1") for number in (1, 2, 3)]
    pool = Pool(1 << 22, 64 << 20, 600_000, 4, [], 0, [replace(devices[0], lost=True), *devices[1:]])
    needs = [need(pools.LAST_MIRROR, segment, 1) for segment in range(1, 21)] + [need(pools.FEWER, 21, 2)]
    proposed: list[Any] = []

    def ask(body: GetNeeds) -> NeedsFound:
        left = [one for one in needs if (one.priority, one.segment) >= (body.priority, body.segment)]
        behind = left[body.count : body.count + 1]
        return NeedsFound(left[: body.count], (behind[0].priority, behind[0].segment) if behind else (-1, 0))

    healing = Healing(ask, proposed.append, lambda _device: None)
    monkeypatch.setattr(healing_module, "LOOK_SHARE", 0)
    assert [healing.turn(pool) for _ in range(5)][:3] == [True] * 3
    assert proposed and {(one.segment, one.device) for one in proposed} <= {(21, 1), (21, 3)}


def test_a_drain_that_stands_still_says_why() -> None:
    """Its mirrors are all there, so nothing else tells of it."""
    devices = [PoolDeviceInfo(number, 9, 9, 0, f"n{number}", f"n{number}", server=f"n{number}", address="host:1") for number in (1, 2)]
    pool = Pool(1 << 22, 64 << 20, 600_000, 4, [], 0, [replace(devices[0], draining=True), devices[1]])
    mirrors = [SegmentBay(device, 1, 4096, BAY_MIRROR) for device in (1, 2)]
    moving = SegmentNeed(pools.DRAIN, pools.NEED_DRAIN, 0, 1, 1, SEGMENT_SEALED, 1 << 22, 4096, 0, 1, Redundancy(2, 1), mirrors, 0)
    healing = Healing(lambda _body: NeedsFound([moving], (-1, 0)), lambda _command: None, lambda _device: None)
    healing.turn(pool)
    census = healing.census()
    assert (census.asleep, census.why) == (1, "no device has room for it that fails apart from the others")
    assert census.idle_ms == 0, "no mirror is missing"


def test_what_was_needed_when_this_node_led_before_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first look of a new leader says that no copy was made for hours."""
    device = PoolDeviceInfo(1, 9, 9, 0, "n1", "n1", lost=True)
    pool, now_ms = Pool(1 << 22, 64 << 20, 600_000, 4, [], 0, [device]), [1_000]
    monkeypatch.setattr(healing_module.time, "monotonic_ns", lambda: now_ms[0] * 1_000_000)
    monkeypatch.setattr(healing_module, "LOOK_SHARE", 0)
    healing = Healing(lambda _body: NeedsFound([need(pools.LAST_MIRROR, 1, 1)], (-1, 0)), lambda _command: None, lambda _device: None)
    healing.turn(pool)
    now_ms[0] += 5_000
    assert (healing.census().idle_ms, healing.census().asleep) == (5_000, 1)
    healing.rest()
    assert healing.census() == PoolCensus([]), "nobody has looked yet"
    now_ms[0] += 3_600_000
    healing.turn(pool)
    assert (healing.census().idle_ms, healing.census().asleep) == (0, 1)


def test_a_drain_that_finds_no_room_is_told_until_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healing_module, "LOOK_SHARE", 0)
    drained = PoolDeviceInfo(1, 9, 5, 0, "n1", "n1", server="n1", address="10.0.0.1:7442", draining=True)
    full = PoolDeviceInfo(2, 9, 0, 0, "n2", "n2", server="n2", address="10.0.0.2:7442")
    moving = SegmentNeed(
        pools.DRAIN, pools.NEED_DRAIN, 0, 1, 1, SEGMENT_SEALED, 1 << 22, 4096, 0, 1, Redundancy(1, 1), [SegmentBay(1, 0, 4096, BAY_MIRROR)]
    )  # fmt: skip
    pool, proposed = Pool(1 << 22, 64 << 20, 600_000, 4, [], 0, [drained, full]), list[Any]()
    healing = Healing(lambda _body: NeedsFound([moving], (-1, 0)), proposed.append, lambda _device: None)
    healing.turn(pool)
    [one] = healing.census().standing
    assert (one.device, one.segments, one.why) == (1, 1, "no device has room for it that fails apart from the others")
    healing.turn(replace(pool, devices=[drained, replace(full, free=9)]))
    assert healing.census().standing == [] and [type(command) for command in proposed] == [c.PlanMirror]


def need(priority: int, segment: int, device: int) -> SegmentNeed:
    bays = [SegmentBay(device, segment, 4096, BAY_MIRROR)]
    return SegmentNeed(priority, pools.NEED_SHORT, 0, segment, 1, SEGMENT_SEALED, 1 << 22, 4096, 0, 1, Redundancy(2, 1), bays, 0)


def test_a_drained_device_is_emptied_and_can_be_removed(pool: UpkeptPool, healing: Healing) -> None:
    pool.written(300_000, 1_000_000, 2_000_000)
    full = busiest(pool)
    moved = segments_of(pool, full)
    assert moved
    pool.drive.ok(c.DrainDevice(full, True), **HOST)
    heal(pool, healing)
    check_mirrors(pool, moved)
    assert segments_of(pool, full) == [] and pool.drive.needs() == {}
    trimmer = PoolTrimming(pool.ask, pool.propose, pool.server_of)
    until(lambda: (trimmer.turn(pool.pool()), pool.pool().devices[full - 1].free == BAYS)[1])
    pool.drive.ok(c.RemoveDevice(full, 1_000), **HOST)
    sound(pool.drive)
