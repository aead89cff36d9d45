"""The plan of a collection: which segments are worth it, and how their pieces are laid together.  Pure.

A set of segments is collected only if copying gives at least one segment back: what lives in n of them, packed, fits n - 1.  So collection
ends: it never copies the same bytes round and round, and two segments that are not more than half full always become one.  Of the sparse
ones those with the most dead bytes for each byte to copy come first.  How small the live bytes can be packed depends on how many pieces
they are (headers, alignment), so a segment is measured before it is copied, and a figure that was measured replaces the guess.

Pieces of one file that follow each other become one frame of up to FRAME_BYTES_MAX, and so one extent.  Shared bytes are copied once a
frame: pieces that overlap or touch in it stay together, and each owner gets its part of the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX
from awsomefsd.base.types import Extent, SegmentInfo
from awsomefsd.io.segment.extent_map import cut
from awsomefsd.io.segment.footer import entry_bytes
from awsomefsd.io.segment.frame import FRAME_ALIGN, LARGE_FRAME_BYTES, align_up, header_bytes_of
from awsomefsd.meta.api.commands import Relocation
from awsomefsd.meta.api.messages.collection import LivePiece
from awsomefsd.meta.api.space import usable_bytes

GUESS_SHARE = 32  # of the live bytes, for headers, until it is measured
SET_SEGMENTS_MAX = 64

Key = tuple[int, int, int]  # segment, incarnation, live bytes: what a measurement holds for


class Copy(Struct):
    """Bytes to be copied together: `sources` one after another; `owners` are pieces with the place of their first byte in the copy."""

    volume: int
    ino: int
    file_offset: int
    sources: list[Extent]
    owners: list[tuple[LivePiece, int]]

    @property
    def length(self) -> int:
        return sum(source.length for source in self.sources)


def key_of(info: SegmentInfo) -> Key:
    return info.segment, info.incarnation, info.live_bytes


def dead_bytes(info: SegmentInfo) -> int:
    """Returns the bytes that freeing the segment would give beyond those that have to be copied; 0 for one that is filled to the last."""
    return max(0, usable_bytes(info.bytes) - info.live_bytes)  # data may use what is kept for a footer


def packed_or_guess(info: SegmentInfo, measured: dict[Key, int]) -> int:
    return measured.get(key_of(info), info.live_bytes + info.live_bytes // GUESS_SHARE)


def is_sparse(info: SegmentInfo, packed: int, dead_percent_min: int) -> bool:
    """Returns whether enough of a segment is dead, if what lives in it takes `packed` bytes."""
    return (usable_bytes(info.bytes) - packed) * 100 >= dead_percent_min * usable_bytes(info.bytes)


def choose(found: Iterable[SegmentInfo], measured: dict[Key, int], dead_percent_min: int) -> list[SegmentInfo]:
    """Returns the best few segments that give one back when they are packed; empty if there is no such set."""

    def packed(info: SegmentInfo) -> int:
        return packed_or_guess(info, measured)

    sparse = [one for one in found if is_sparse(one, packed(one), dead_percent_min)]
    sparse.sort(key=lambda one: (packed(one) / usable_bytes(one.bytes), one.segment))
    chosen: list[SegmentInfo] = []
    gain = 0
    for info in sparse[:SET_SEGMENTS_MAX]:
        chosen.append(info)
        gain += usable_bytes(info.bytes) - packed(info)
        if gain >= max(usable_bytes(one.bytes) for one in chosen):
            return chosen
    return []


def packed_bytes(copies: Iterable[Copy]) -> int:
    """Returns the bytes that the copies take in a segment, but for the ends of batches and segments."""
    total = 0
    for copy in copies:
        length = copy.length
        total += align_up(header_bytes_of(length) + length, BLOCK_BYTES if length >= LARGE_FRAME_BYTES else FRAME_ALIGN)
        total += entry_bytes(length)
    return total


# --- laying together ----------------------------------------------------------------------------------------------------------
def lay_together(pieces: Sequence[LivePiece]) -> list[Copy]:
    """Returns copies that have every piece exactly once; copies are in the order of files, shared ones last."""
    own = sorted((one for one in pieces if not one.shared), key=_place_in_file)
    copies = list(_runs(own))
    by_frame: dict[tuple[int, int], list[LivePiece]] = {}
    for one in pieces:
        if one.shared:
            by_frame.setdefault((one.extent.segment, one.extent.frame_offset), []).append(one)
    for owners in by_frame.values():
        copies.extend(_unions(sorted(owners, key=lambda one: (one.extent.skip, *_place_in_file(one)))))
    return copies


def alone(copy: Copy) -> list[Copy]:
    """Returns the same bytes as one copy for each source, for a copy of which one source cannot be read."""
    if len(copy.sources) == 1:
        return [copy]
    return [Copy(copy.volume, copy.ino, one.extent.file_offset, [one.extent], [(one, 0)]) for one, _ in copy.owners]


def _place_in_file(one: LivePiece) -> tuple[int, int, int]:
    return one.volume, one.ino, one.extent.file_offset


def _runs(pieces: Iterable[LivePiece]) -> Iterator[Copy]:
    run: Copy | None = None
    length = 0
    for one in pieces:
        extent = one.extent
        follows = run is not None and (run.volume, run.ino, run.file_offset + length) == _place_in_file(one)
        if run is None or not follows or length + extent.length > FRAME_BYTES_MAX:
            if run is not None:
                yield run
            run, length = Copy(one.volume, one.ino, extent.file_offset, [], []), 0
        run.sources.append(extent)
        run.owners.append((one, length))
        length += extent.length
    if run is not None:
        yield run


def _unions(owners: list[LivePiece]) -> Iterator[Copy]:
    """Yields the copies of one frame; `owners` are in the order of where their bytes begin in it."""
    group: list[LivePiece] = []
    end = 0
    for one in owners:
        if group and one.extent.skip > end:
            yield _union(group, end)
            group = []
        end = max(end, one.extent.skip + one.extent.length) if group else one.extent.skip + one.extent.length
        group.append(one)
    if group:
        yield _union(group, end)


def _union(group: list[LivePiece], end: int) -> Copy:
    first = group[0]
    start = first.extent.skip
    source = Extent(
        first.extent.file_offset, end - start, first.extent.segment, first.extent.incarnation, first.extent.sequence,
        first.extent.frame_offset, first.extent.header_bytes, start,
    )  # fmt: skip
    return Copy(first.volume, first.ino, first.extent.file_offset, [source], [(one, one.extent.skip - start) for one in group])


# --- afterwards -----------------------------------------------------------------------------------------------------------------
def relocations(copy: Copy, written: list[Extent]) -> list[Relocation]:
    """Returns what each owner names from now on.  `written` are the extents of the copy, as if all of it were the file's."""
    return [
        Relocation(one.volume, one.ino, one.extent, _part(written, copy.file_offset + start, one.extent), one.until)
        for one, start in copy.owners
    ]


def _part(written: list[Extent], start: int, owner: Extent) -> list[Extent]:
    end = start + owner.length
    shift = owner.file_offset - start
    parts = [cut(one, start, end) for one in written if one.file_offset < end and start < one.file_offset + one.length]
    for part in parts:
        part.file_offset += shift
    return parts


def in_parts(moves: Iterable[Relocation], count: int, weigh: Callable[[Relocation], int]) -> Iterator[list[Relocation]]:
    """Yields lists of moves with a weight of at most `count` each; a single move may have more."""
    part: list[Relocation] = []
    weight = 0
    for move in moves:
        if part and weight + weigh(move) > count:
            yield part
            part, weight = [], 0
        part.append(move)
        weight += weigh(move)
    if part:
        yield part
