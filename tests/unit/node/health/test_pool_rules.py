"""What an operator is told of a pool: a pool for each code, and one in order of which nothing is said."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from awsomefsd.base.types import Redundancy
from awsomefsd.io.pool.server_state import OK, DeviceState, WorkState
from awsomefsd.meta.api.messages.pools import Pool, PoolCensus, PoolDeviceInfo, PoolVolume, PoolVolumes, StandingDrain
from awsomefsd.node.devices.pool_view import PoolView
from awsomefsd.node.health.pool_rules import STALLED_MS, STANDING_MS, of_pool, of_served

MIB = 1 << 20
NOW_MS = 1_700_000_000_000


def device(number: int, free: int = 90, **fields: object) -> PoolDeviceInfo:
    made = PoolDeviceInfo(number, 100, free, 0, f"u{number}", f"h{number}", server=f"u{number}", address="10.0.0.1:7442")
    return replace(made, **fields)


FOUR = [device(number) for number in range(1, 5)]
IN_ORDER = PoolCensus([0] * 5)


def view(
    *devices: PoolDeviceInfo, census: PoolCensus | None = IN_ORDER, want: Redundancy = Redundancy(3, 2), free: int = 5_000,
    maintenance: tuple[tuple[str, int], ...] = (),
) -> PoolView:  # fmt: skip
    pool = Pool(4 * MIB, 64 * MIB, 600_000, 4, list(maintenance), 0, list(devices or FOUR), census=census)
    volumes = PoolVolumes([PoolVolume(1, "home", want), PoolVolume(2, "work", want)], 10_000, free, 0)
    return PoolView(pool, volumes, {f"u{number}": f"node-{number}" for number in range(1, 5)}, NOW_MS)


LOST = device(4, absent=True, lost=True)
AWAY = device(4, absent=True)
DRAINED = (*FOUR[:3], device(4, draining=True))


def standing(since_ms: int = STANDING_MS, copies: int = 0) -> PoolCensus:
    return PoolCensus([0, 0, 3, 0, 0], copies=copies, standing=[StandingDrain(4, 3, NOW_MS - since_ms, "no room")])


CASES = [
    ("DEVICE_LOST", view(*FOUR[:3], LOST), "device 4 of node node-4 counts as lost, with 40 MiB"),
    ("DEVICE_ABSENT", view(*FOUR[:3], AWAY), "device 4 of node node-4 is away, with 40 MiB"),
    ("NODE_MAINTENANCE", view(*FOUR[:3], AWAY, maintenance=(("h4", NOW_MS + 60_000),)), "host h4 is under maintenance for 60 s more"),
    ("POOL_BLOCKED", view(FOUR[0], device(2, absent=True)), "volumes home, work (replicas=3): 1 hosts take data, 2 have to"),
    ("WRITES_AT_RISK", view(*FOUR[:2]), "gets 2 of 3 mirrors"),
    ("POOL_LOST_DATA", view(census=PoolCensus([3, 0, 0, 0, 0], lost=2)), "nothing is left of 2 segments"),
    ("POOL_AT_RISK", view(census=PoolCensus([3, 0, 0, 0, 0], lost=2)), "1 segment has one good mirror left"),
    ("POOL_DEGRADED", view(census=PoolCensus([0, 7, 0, 0, 0])), "7 segments have fewer mirrors"),
    ("HEAL_STALLED", view(census=PoolCensus([0, 7, 0, 0, 0], why="no device", idle_ms=STALLED_MS)), "none was made for 10 min: no device"),
    ("DRAIN_STALLED", view(*DRAINED, census=standing()), "node-4 is drained, and 3 segments there (12 MiB of bays) cannot move: no"),
    ("POOL_CANNOT_HEAL", view(*(device(number, 10) for number in range(1, 5))), "if host h1 is lost, the others lack 252 MiB"),
    ("POOL_NEARLY_FULL", view(free=1_000), "1000 B left of 9.8 KiB"),
]
OF_POOLS = {*(case[0] for case in CASES), "METADATA_ONE_COPY", "DEVICE_SLOW"}


@pytest.mark.parametrize(("code", "seen", "words"), CASES, ids=[case[0] for case in CASES])
def test_of_a_pool(code: str, seen: PoolView, words: str) -> None:
    found = {one.code: one for one in of_pool(seen, 3, 4)}
    assert words in found[code].what, found
    assert found[code].remedy()


def test_a_pool_in_order_has_nothing_to_say() -> None:
    assert list(of_pool(view(), 3, 4)) == []
    moving = PoolCensus([0, 0, 5, 5, 5], idle_ms=10 * STALLED_MS)
    assert list(of_pool(view(census=moving), 3, 4)) == [], "what moves is in no danger"
    assert list(of_pool(view(census=None), 3, 4)) == [], "nobody has counted yet"
    working = PoolCensus([0, 7, 0, 0, 0], copies=1, idle_ms=STALLED_MS)
    assert [one.code for one in of_pool(view(census=working), 3, 4)] == ["POOL_DEGRADED"]


def test_a_drain_stands_when_it_has_stood_for_some_time_and_was_not_taken_back() -> None:
    def codes(*devices: PoolDeviceInfo, census: PoolCensus) -> set[str]:
        return {one.code for one in of_pool(view(*devices, census=census), 3, 4)}

    assert codes(*DRAINED, census=standing()) == {"DRAIN_STALLED"}
    assert not codes(*DRAINED, census=standing(STANDING_MS - 1)), "bays that were freed are trimmed first"
    assert not codes(*DRAINED, census=standing(copies=1)), "something is moving"
    assert not codes(*FOUR, census=standing()), "it was taken back"
    assert codes(*FOUR[:3], device(4, draining=True, lost=True), census=standing()) == {"DEVICE_LOST"}
    [one] = [one for one in of_pool(view(*DRAINED, census=standing()), 3, 4) if one.code == "DRAIN_STALLED"]
    assert one.remedy().endswith("awsomefsd device drain 4 --undo")


def test_hosts_as_many_as_mirrors_are_not_told_that_one_more_would_be_better() -> None:
    full = [device(number, 0) for number in range(1, 4)]
    assert "POOL_CANNOT_HEAL" not in {one.code for one in of_pool(view(*full), 3, 4)}


def test_a_host_under_maintenance_is_not_absent() -> None:
    maintained = view(*FOUR[:3], AWAY, maintenance=(("h4", NOW_MS + 60_000),))
    assert {one.code for one in of_pool(maintained, 3, 4)} == {"NODE_MAINTENANCE"}
    ended = view(*FOUR[:3], AWAY, maintenance=(("h4", NOW_MS),))
    assert {one.code for one in of_pool(ended, 3, 4)} == {"DEVICE_ABSENT"}


def test_metadata_on_one_node() -> None:
    [one] = [one for one in of_pool(view(), 1, 2) if one.code == "METADATA_ONE_COPY"]
    assert "4 hosts" in one.what and "third node" in one.what
    assert not [one for one in of_pool(view(FOUR[0], want=Redundancy(1, 1)), 1, 2) if one.code == "METADATA_ONE_COPY"]


def test_a_slow_disk() -> None:
    def served(usual_ms: int) -> DeviceState:
        work = {kind: WorkState(9, 1, 1, 0, usual_ms * 1_000) for kind in ("read", "write", "flush")}
        return DeviceState(3, "u", "/dev/b", OK, work=work)

    assert list(of_served([served(500)])) == []
    assert [one.what.rpartition(" ")[2] for one in of_served([served(900)])] == ["read", "write"]
    found = list(of_served([served(1_500)]))
    assert [one.code for one in found] == ["DEVICE_SLOW"] * 3 and "device 3 (/dev/b) usually takes 1500 ms for a flush" in found[2].what
