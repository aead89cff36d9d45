"""Pieces of extents: what is left without a range, what lies over what, what is covered."""

from __future__ import annotations

from awsomefsd.base.types import Extent
from awsomefsd.meta.state import extents


def piece(offset: int, length: int, frame: int = 0, skip: int = 0) -> extents.Piece:
    return extents.piece_of(Extent(offset, length, 1, 1, frame, frame * 1000, 64, skip), 5)


def spans(pieces: list[extents.Piece]) -> list[tuple[int, int, int, int]]:
    return [(offset, row.length, row.sequence, row.skip) for offset, row in pieces]


def test_without() -> None:
    assert spans(extents.without(piece(10, 10), 0, 10)) == [(10, 10, 0, 0)]
    assert spans(extents.without(piece(10, 10), 20, 30)) == [(10, 10, 0, 0)]
    assert spans(extents.without(piece(10, 10), 12, 15)) == [(10, 2, 0, 0), (15, 5, 0, 5)]
    assert spans(extents.without(piece(10, 10), 0, 15)) == [(15, 5, 0, 5)]
    assert spans(extents.without(piece(10, 10), 15, 30)) == [(10, 5, 0, 0)]
    assert extents.without(piece(10, 10), 10, 20) == []


def test_overlay() -> None:
    laid = extents.overlay([piece(0, 10, 1), piece(10, 10, 1, 10), piece(5, 2, 2), piece(30, 10, 3)], 35)
    assert spans(laid) == [(0, 5, 1, 0), (5, 2, 2, 0), (7, 13, 1, 7), (30, 5, 3, 0)]
    assert spans(extents.overlay([piece(0, 10, 1), piece(10, 10, 1, 10)])) == [(0, 20, 1, 0)]
    assert extents.overlay([piece(50, 10)], 50) == []


def test_parts_keep_the_chapter_and_neighbours_of_two_are_not_joined() -> None:
    """Snapshots go by it: with another chapter, they would see bytes of after them, or miss those of before."""
    old, new = piece(0, 10, 1), piece(10, 10, 1, 10)
    old[1].chapter = 2
    assert [row.chapter for _, row in extents.without(old, 3, 6)] == [2, 2]
    assert not extents.joins(old, new) and spans(extents.overlay([old, new])) == [(0, 10, 1, 0), (10, 10, 1, 10)]
    new[1].chapter = 2
    assert extents.joins(old, new) and extents.join(old, new)[1].chapter == 2


def test_covers() -> None:
    made = [Extent(5, 5, 1, 1, 1, 0, 64, 0), Extent(0, 5, 1, 1, 1, 0, 64, 0)]
    assert extents.covers(made, 10) and not extents.covers(made, 11) and not extents.covers(made[:1], 3) and extents.covers([], 0)
