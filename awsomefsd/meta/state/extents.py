"""Extents are cut, joined and laid over each other by pure functions, without state and I/O.

An extent maps `length` bytes at a file offset to a place in a frame.  Cutting moves the start (`file_offset`, `skip`) or the end, and never
the frame's identity.  A *piece* is (file offset, ExtentRow): the key and the value of the extent map.
"""

from __future__ import annotations

from collections.abc import Iterable

from awsomefsd.base.limits import FILE_BYTES_MAX
from awsomefsd.base.types import Extent
from awsomefsd.meta.state.rows import ExtentRow

Piece = tuple[int, ExtentRow]


def is_valid(extent: Extent) -> bool:
    """Returns True if an extent that came from outside can be one: a positive length, inside the largest file, no negative offset."""
    return (
        extent.length > 0
        and 0 <= extent.file_offset <= FILE_BYTES_MAX - extent.length
        and extent.skip >= 0
        and extent.frame_offset >= 0
        and extent.header_bytes >= 0
    )


def piece_of(extent: Extent, index: int) -> Piece:
    """Returns an extent as the row that entry `index` commits."""
    return extent.file_offset, ExtentRow(
        extent.length,
        extent.segment,
        extent.incarnation,
        extent.sequence,
        extent.frame_offset,
        extent.header_bytes,
        extent.skip,
        index,
    )


def extent_of(offset: int, row: ExtentRow) -> Extent:
    return Extent(
        offset, row.length, row.segment, row.incarnation, row.sequence, row.frame_offset, row.header_bytes, row.skip
    )  # fmt: skip


def place_end(extent: Extent) -> int:
    """Returns the offset in its segment at which the last byte of an extent ends."""
    return extent.frame_offset + extent.header_bytes + extent.skip + extent.length


def sub(piece: Piece, start: int, end: int) -> Piece:
    """Returns the part of a piece inside [start, end).  The two must overlap."""
    offset, row = piece
    first, last = max(offset, start), min(offset + row.length, end)
    return first, ExtentRow(
        last - first,
        row.segment,
        row.incarnation,
        row.sequence,
        row.frame_offset,
        row.header_bytes,
        row.skip + first - offset if row.segment else 0,
        row.index,
        row.shared,
        row.lost,
        row.chapter,
    )


def without(piece: Piece, start: int, end: int) -> list[Piece]:
    """Returns the rest of a piece when [start, end) is taken out: none, one or two pieces."""
    offset, row = piece
    stop = offset + row.length
    if end <= offset or start >= stop:
        return [piece]
    left = [sub(piece, offset, start)] if offset < start else []
    right = [sub(piece, end, stop)] if end < stop else []
    return left + right


def joins(left: Piece, right: Piece) -> bool:
    """Returns True if the two are neighbours in the file and in the same frame."""
    (offset, a), (next_offset, b) = left, right
    return (
        offset + a.length == next_offset
        and a.skip + a.length == b.skip
        and a.segment == b.segment
        and a.frame_offset == b.frame_offset
        and a.sequence == b.sequence
        and a.incarnation == b.incarnation
        and a.header_bytes == b.header_bytes
        and a.shared == b.shared
        and a.chapter == b.chapter  # else old bytes would get a new chapter, or new bytes an old one
        and a.segment != 0
    )


def join(left: Piece, right: Piece) -> Piece:
    """Returns two pieces as one; `joins` has said that they are neighbours."""
    offset, a = left
    b = right[1]
    return offset, ExtentRow(
        a.length + b.length, a.segment, a.incarnation, a.sequence, a.frame_offset, a.header_bytes, a.skip, max(a.index, b.index),
        a.shared, chapter=a.chapter,
    )  # fmt: skip


def overlay(pieces: Iterable[Piece], limit: int = FILE_BYTES_MAX) -> list[Piece]:
    """Returns sorted, disjoint, joined pieces, cut at file offset `limit`.  `pieces` come in the order of writing: later ones win."""
    laid: list[Piece] = []
    for piece in pieces:
        offset, row = piece
        if offset >= limit:
            continue
        if offset + row.length > limit:
            piece = sub(piece, offset, limit)
        if not laid or laid[-1][0] + laid[-1][1].length <= offset:
            laid.append(piece)  # the usual case: ascending
        else:
            end = offset + piece[1].length
            laid = [rest for old in laid for rest in without(old, offset, end)]
            laid.append(piece)
            laid.sort(key=_start)
    joined: list[Piece] = []
    for piece in laid:
        if joined and joins(joined[-1], piece):
            joined[-1] = join(joined[-1], piece)
        else:
            joined.append(piece)
    return joined


def covers(extents: Iterable[Extent], end: int) -> bool:
    """Returns True if the extents cover [0, end) without a gap."""
    reached = 0
    for extent in sorted(extents, key=lambda extent: extent.file_offset):
        if reached >= end or extent.file_offset > reached:
            break
        reached = max(reached, extent.file_offset + extent.length)
    return reached >= end


def _start(piece: Piece) -> int:
    return piece[0]
