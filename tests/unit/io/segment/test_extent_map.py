"""ExtentMap against a model of single bytes."""

from __future__ import annotations

import random

import pytest

from awsomefsd.base.types import Extent
from awsomefsd.io.segment.block_stream import slice_views
from awsomefsd.io.segment.extent_map import EVERYWHERE, ExtentMap, cut
from tests.conftest import SEED

SPACE = 200


def extent(start: int, length: int, frame: int) -> Extent:
    return Extent(start, length, 1, 1, frame, frame * 4096, 4096, 0)


def as_bytes(map_: ExtentMap) -> dict[int, tuple[int, int]]:
    """file offset -> (frame sequence, offset inside the frame)"""
    found = {}
    for item in map_.overlapping(0, EVERYWHERE):
        for step in range(item.length):
            assert item.file_offset + step not in found, "extents overlap"
            found[item.file_offset + step] = (item.sequence, item.skip + step)
    return found


def test_cut_moves_the_skip_with_the_start() -> None:
    part = cut(extent(100, 50, 3), 110, 120)
    assert (part.file_offset, part.length, part.skip) == (110, 10, 10)


@pytest.mark.parametrize("round_", range(40))
def test_inserts_and_truncations_match_a_model_of_bytes(round_: int) -> None:
    seed = SEED + round_
    print(f"AWSOMEFSD_SEED={seed}")
    dice = random.Random(seed)
    map_, model = ExtentMap(known_empty=True), {}
    for frame in range(60):
        start, length = dice.randrange(SPACE), dice.randrange(1, 40)
        if dice.random() < 0.15:
            map_.truncate(start)
            model = {at: value for at, value in model.items() if at < start}
        else:
            map_.insert(extent(start, length, frame))
            model.update({start + step: (frame, step) for step in range(length)})
        assert as_bytes(map_) == model
    low, high = sorted(dice.sample(range(SPACE), 2))
    expected = {e for e in model if low <= e < high}
    assert {b for item in map_.overlapping(low, high) for b in range(item.file_offset, item.file_offset + item.length)} >= expected


def test_only_the_window_is_known() -> None:
    map_ = ExtentMap()
    assert not map_.knows(0, 1)
    map_.learn(100, 200, [extent(90, 30, 1), extent(150, 100, 2)])
    assert map_.knows(100, 200)
    assert not map_.knows(99, 200)
    assert not map_.knows(100, 201)
    assert [(e.file_offset, e.length, e.skip) for e in map_.overlapping(0, 1000)] == [(100, 20, 10), (150, 50, 0)]


def test_a_commit_away_from_the_window_is_not_taken_for_knowledge_of_what_lies_between() -> None:
    map_ = ExtentMap()
    map_.learn(0, 100, [])
    map_.insert(extent(500, 10, 1))
    assert not map_.knows(0, 510)
    assert map_.overlapping(0, 1000) == []


def test_touching_windows_grow_and_distant_ones_replace() -> None:
    map_ = ExtentMap()
    map_.learn(0, 100, [extent(0, 100, 1)])
    map_.learn(100, 200, [extent(100, 100, 2)])
    assert map_.knows(0, 200)
    map_.learn(1000, 1100, [extent(1000, 10, 3)])
    assert map_.knows(1000, 1100)
    assert not map_.knows(0, 1)
    assert len(map_) == 1


def test_learning_again_replaces_what_was_known() -> None:
    map_ = ExtentMap()
    map_.learn(0, 100, [extent(0, 100, 1)])
    map_.learn(0, 100, [extent(0, 50, 2)])
    assert [(e.sequence, e.length) for e in map_.overlapping(0, 100)] == [(2, 50)]


def test_truncation_knows_that_nothing_follows() -> None:
    map_ = ExtentMap()
    map_.learn(0, 100, [extent(0, 100, 1)])
    map_.truncate(40)
    assert map_.knows(0, EVERYWHERE)
    assert [(e.file_offset, e.length) for e in map_.overlapping(0, EVERYWHERE)] == [(0, 40)]


def test_slice_views_copies_nothing() -> None:
    source = bytearray(b"abcdef")
    parts = slice_views([memoryview(source)[:3], memoryview(source)[3:]], 2, 5)
    source[2:5] = b"XYZ"
    assert b"".join(parts) == b"XYZ"
