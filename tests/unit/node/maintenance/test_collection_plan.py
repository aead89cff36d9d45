"""A plan of collection: it is what the collector then does, it changes nothing, and it says why the rest stays."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Refused
from awsomefsd.base.limits import COLLECT_DEAD_PERCENT, COLLECT_DEAD_PERCENT_LOW, KIB
from awsomefsd.base.types import ROOT_INO
from awsomefsd.io.collect.candidates import Candidates
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.meta.api import messages as m
from awsomefsd.node.maintenance import collection_plan
from awsomefsd.node.maintenance.collection import Collection
from awsomefsd.node.maintenance.collection_plan import CollectionPlan, plan
from awsomefsd.node.maintenance.io_budget import IoBudget
from tests.rigs.metadata_service import MIB
from tests.rigs.mount_without_kernel import VOLUME, Rig, rig
from tests.unit.io.collect.test_collector import Asked, collect, collector, segments


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def dead(r: Rig, chance: random.Random, kept_of_five: int, name: str) -> None:
    """Makes files, five a segment, of which so many of five stay."""
    for number in range(40):
        r.file(f"{name}{number}".encode(), chance.randbytes(200 * KIB))
    r.flush()
    r.restart()  # seals what is open
    for number in range(40):
        if number % 5 >= kept_of_five:
            r.call("unlink", ROOT_INO, f"{name}{number}".encode())


def planned(r: Rig, percent: int = COLLECT_DEAD_PERCENT, like: Candidates | None = None, **only: int) -> CollectionPlan:
    """A plan, made by questions alone."""

    def changes_nothing(body: Any) -> None:
        assert not isinstance(body, m.Propose), body

    asked = Asked(r)
    asked.before = changes_nothing
    own = Candidates(asked, {1: r.device}, lambda info: True, None)
    return plan(asked, own.like(like) if like is not None else own, percent, COLLECT_DEAD_PERCENT_LOW, **only)


def numbers(made: CollectionPlan, how: str) -> set[int]:
    return {info.segment for one in made.sets if one.how == how for info in one.segments}


def test_the_plan_is_what_collection_then_does(r: Rig, seed: int) -> None:
    chance = random.Random(seed)
    dead(r, chance, 1, "mostly-dead")
    dead(r, chance, 4, "mostly-alive")
    made = planned(r)
    itself, ordered = numbers(made, "by itself"), numbers(made, "when ordered")
    assert itself and ordered and not itself & ordered
    collecting = collector(r)
    before = segments(collecting)
    collect(collecting, COLLECT_DEAD_PERCENT)
    gone = {one.segment for one in collecting.candidates.refresh()}
    assert not itself & gone, "each that the plan names is free"
    freed = sum(one.freed_bytes for one in made.sets if one.how == "by itself")
    assert (before - segments(collecting) + 1) * MIB > freed > 0, "as much as it says comes back, but for the last segment"
    copied = sum(one.copied_bytes for one in made.sets if one.how == "by itself")
    assert collecting.figures.copied_bytes <= copied
    collect(collecting, COLLECT_DEAD_PERCENT_LOW)
    again = planned(r, like=collecting.candidates)
    assert not again.sets, "nothing is left to do"
    assert {row.reason for row in again.left} <= {"threshold", "no gain", "open"}
    r.check()


def test_all_segments_with_live_bytes_are_moved_or_left_for_a_reason(r: Rig, seed: int) -> None:
    chance = random.Random(seed)
    dead(r, chance, 3, "half")
    r.file(b"open", chance.randbytes(300 * KIB))
    r.flush()
    made = planned(r)
    moved = sum(len(one.segments) for one in made.sets)
    left = {row.reason: row for row in made.left}
    assert left["open"].segments >= 1 and left["open"].dead_bytes == 0
    live = sum(row.live_bytes for row in made.left) + sum(one.live_bytes for one in made.sets)
    figures = Asked(r)(m.GetVolumes()).volumes[0]
    assert live <= figures.used_bytes and moved + sum(row.segments for row in made.left) <= made.segments_total - made.segments_free


def test_of_a_device_or_volume_alone(r: Rig, seed: int) -> None:
    dead(r, random.Random(seed), 1, "f")
    whole = planned(r)
    assert planned(r, device=1).sets == whole.sets == planned(r, volume=VOLUME).sets
    for other in (planned(r, device=2), planned(r, volume=VOLUME + 1)):
        assert not other.sets and not other.left


def test_a_plan_has_so_many_sets_and_says_that_more_comes_later(r: Rig, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is chosen among all that is left: without a bound a large device costs the square of its segments."""
    dead(r, random.Random(seed), 1, "f")
    whole = planned(r)
    assert len(whole.sets) > 1 and not [row for row in whole.left if row.reason == "later"]
    monkeypatch.setattr(collection_plan, "SETS_MAX", 1)
    first = planned(r)
    (later,) = [row for row in first.left if row.reason == "later"]
    assert first.sets == whole.sets[:1] and later.segments >= sum(len(one.segments) for one in whole.sets[1:])


def test_what_the_collector_has_found_unreadable_stays(r: Rig, seed: int) -> None:
    dead(r, random.Random(seed), 1, "f")
    knows = collector(r).candidates
    knows.left_alone = {(one.segment, one.incarnation) for one in knows.refresh()}
    made = planned(r, like=knows)
    assert not made.sets and {"unreadable"} <= {row.reason for row in made.left}
    assert planned(r).sets, "another one does not know it"


def test_what_other_nodes_collect_is_said(r: Rig, seed: int) -> None:
    dead(r, random.Random(seed), 1, "f")
    asked = Asked(r)
    made = plan(asked, Candidates(asked, {}, lambda info: True, None), COLLECT_DEAD_PERCENT, COLLECT_DEAD_PERCENT_LOW)
    assert not made.sets and "elsewhere" in {row.reason for row in made.left}


def test_damaged_segments_are_said_to_be_and_stay_the_collectors(r: Rig, seed: int) -> None:
    dead(r, random.Random(seed), 4, "f")
    knows = collector(r).candidates
    one = knows.refresh()[0]
    knows.damaged = frozenset({(one.segment, one.incarnation)})
    assert numbers(planned(r, like=knows), "damaged") == {one.segment}
    assert knows.damaged, "the plan takes nothing from the collector"


def test_when_it_looks_next() -> None:
    def collection(**settings: Any) -> Collection:
        return Collection(lambda body: None, list, OpenDevices(list, ""), "node", "boot", IoBudget(1 << 60), **settings)

    made = collection()
    made._look_s = time.monotonic() + 1_000.0
    word, seconds = made.next_look()
    assert word == "soon" and 0 < seconds <= 1_000.0
    made.order("start")
    assert made.next_look()[0] == "now"
    made.order("stop")
    assert made.next_look()[0] == "stopped"
    with pytest.raises(Refused, match="client"):
        collection(collects=False).plan(0, 0, lambda: None)
