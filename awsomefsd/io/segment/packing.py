"""The packing of frames: pieces are cut into frames and laid into segments, before a byte is written.  Pure.

The writer plans a whole batch first, leasing segments as it goes, and writes only then: if no segment can be had, nothing has happened.

Rules.  A frame holds at most FRAME_BYTES_MAX.  The footer, as it stands with this frame in it, must still fit behind the frame.  A frame
that does not fit is split at a block, but not below SPLIT_BYTES_MIN, so at most 3 blocks of a segment stay unused.  A batch starts at a
block in each segment and ends at one: no block is ever written twice.

A piece of ALIGNED_PIECE_BYTES or more is also cut at the multiples of FRAME_BYTES_MAX of its file, so that each request of a sequential
read, which begins and ends there, takes one transfer of the device.  In small segments the cuts at their ends would make too many frames.

A device whose physical blocks are larger (`Room.align`) rewrites a whole one for any write into it, and a power cut then tears what an
earlier flush had made durable.  There the next batch begins at the next physical block; the gap is not written.  It is consumed like
padding, on top of `space_needed`: at most one physical block for each segment of a batch.  A reservation that is overdrawn by that is
filled up before the next write, and the spare segments (meta/machine/quota.py) cover it meanwhile.

A batch consumes the frames, their padding, and their entries in the footer.  `space_needed` is the worst case of one piece, whatever
the rooms of the segments it meets (with physical blocks of BLOCK_BYTES); it is subadditive, so writes that were reserved one by one may be
joined into one piece:
- frames <= 2 + length / 960 KiB (segments of 1 MiB and more take frames of 1,012 KiB and more, but for the first and the last; where
  frames end at multiples of the file, each segment of 4 MiB and more adds one, without padding);
- a frame costs its header, up to a block of padding, its footer entry; the header is a block only for frames of 64 KiB and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, MIB, SEGMENT_BYTES_MIN
from awsomefsd.io.segment.footer import entry_bytes, footer_bytes
from awsomefsd.io.segment.frame import FRAME_ALIGN, LARGE_FRAME_BYTES, align_up, alignment_of, header_bytes_of

SPLIT_BYTES_MIN = BLOCK_BYTES
ALIGNED_PIECE_BYTES = FRAME_BYTES_MAX  # a smaller one has no room for one frame more in what it has reserved
ALIGNED_SEGMENT_BYTES_MIN = 4 * MIB

_ENTRY_BYTES = entry_bytes(1)
_SMALL_FRAME_COST = header_bytes_of(LARGE_FRAME_BYTES - 1) + BLOCK_BYTES + _ENTRY_BYTES
_LARGE_FRAME_COST = BLOCK_BYTES + BLOCK_BYTES + _ENTRY_BYTES
_SHARE = 100  # one part in so many: frames beyond the first two, and checksums in the footer

assert _LARGE_FRAME_COST / (960 * 1024) + 4 / BLOCK_BYTES < 1 / _SHARE
assert FRAME_BYTES_MAX <= SEGMENT_BYTES_MIN


def space_needed(*lengths: int) -> int:
    """Returns the most bytes that pieces of these lengths can consume, however they meet the segments."""
    return sum(map(_piece_space, lengths))


def _piece_space(length: int) -> int:
    share = length + -(-length // _SHARE)
    if length <= SPLIT_BYTES_MIN:
        return share + _SMALL_FRAME_COST
    if length < LARGE_FRAME_BYTES:
        return share + 2 * _SMALL_FRAME_COST
    if length < 2 * LARGE_FRAME_BYTES:
        return share + _LARGE_FRAME_COST + _SMALL_FRAME_COST
    return share + 2 * _LARGE_FRAME_COST


class Room(Struct, gc=False):
    """The fill of a segment: `end` is the next free offset, `entries_bytes` what its frames take in the footer.

    `align`: where a batch may end, in bytes; a multiple of BLOCK_BYTES, at most PHYSICAL_BLOCK_BYTES_MAX.
    """

    segment_bytes: int
    end: int = 0
    sequence: int = 0  # of the last frame
    entries_bytes: int = 0
    full: bool = False  # to be sealed: it had no place for a frame
    align: int = BLOCK_BYTES

    def copy(self) -> Room:
        return Room(self.segment_bytes, self.end, self.sequence, self.entries_bytes, self.full, self.align)

    def start_of(self, length: int) -> int:
        return align_up(self.end, alignment_of(length))

    def takes(self, length: int) -> bool:
        after = align_up(self.start_of(length) + header_bytes_of(length) + length, self.align)
        return after + footer_bytes(self.entries_bytes + entry_bytes(length)) <= self.segment_bytes

    def most(self, wanted: int) -> int:
        """Returns how many of `wanted` bytes the next frame can hold; 0 if this segment is full for them."""
        wanted = min(wanted, FRAME_BYTES_MAX)
        if self.takes(wanted):
            return wanted
        low, high = 0, wanted // BLOCK_BYTES + 1  # in blocks: low fits, high does not (or is more than wanted)
        while high - low > 1:
            middle = (low + high) // 2
            if middle * BLOCK_BYTES < wanted and self.takes(middle * BLOCK_BYTES):
                low = middle
            else:
                high = middle
        return low * BLOCK_BYTES if wanted > SPLIT_BYTES_MIN else 0


def sequence_before(offset: int) -> int:
    """Returns a number that is no frame's below `offset`, and that frames from there on are numbered above.

    A frame takes at least two units of FRAME_ALIGN, header and data, so its sequence is at most its offset in units, and one.  So a writer
    that goes on behind another's frames needs to know no more than where it begins, and sequences grow with the offset.
    """
    return -(-offset // FRAME_ALIGN)


class FramePlace(Struct, gc=False):
    """One frame: bytes [start, start + length) of piece number `piece`, at `frame_offset` of the segment number `slot` of the plan."""

    piece: int
    start: int
    length: int
    slot: int
    frame_offset: int
    header_bytes: int
    sequence: int


class PackingPlan(Struct, gc=False):
    """The place of every frame of a batch.  `rooms[slot]` is the segment's state after the batch; all but the last are full."""

    placements: list[FramePlace]
    rooms: list[Room]
    consumed_bytes: int


def _wanted(room: Room, offset: int, start: int, length: int) -> int:
    """Returns how many bytes the next frame of a piece should hold."""
    left = length - start
    if length < ALIGNED_PIECE_BYTES or room.segment_bytes < ALIGNED_SEGMENT_BYTES_MIN:
        return left
    return min(left, FRAME_BYTES_MAX - (offset + start) % FRAME_BYTES_MAX)


def plan(lengths: Sequence[int], next_room: Callable[[int], Room], offsets: Sequence[int]) -> PackingPlan:
    """Returns places for pieces of these lengths, which begin at these `offsets` of their files.

    `next_room(slot)` gives the segment for a slot (slot 0 is the one begun), unchanged.  Raises what `next_room` raises.
    """
    assert all(length > 0 for length in lengths)
    result = PackingPlan([], [], 0)
    room: Room | None = None
    begun = 0
    for piece, length in enumerate(lengths):
        start = 0
        while start < length:
            if room is None:
                room = next_room(len(result.rooms)).copy()
                begun = room.end
                assert begun % room.align == 0 and not room.full
                result.rooms.append(room)
            size = room.most(_wanted(room, offsets[piece], start, length))
            if not size:
                assert room.sequence or room.segment_bytes < SEGMENT_BYTES_MIN, "an empty segment takes a frame"
                room.full = True
                result.consumed_bytes += _close(room) - begun
                room = None
                continue
            result.placements.append(_place(room, piece, start, size, len(result.rooms) - 1))
            result.consumed_bytes += entry_bytes(size)
            start += size
    if room is not None:
        result.consumed_bytes += _close(room) - begun
    return result


def _place(room: Room, piece: int, start: int, size: int, slot: int) -> FramePlace:
    offset, header = room.start_of(size), header_bytes_of(size)
    room.sequence += 1
    room.end = align_up(offset + header + size, BLOCK_BYTES if size >= LARGE_FRAME_BYTES else FRAME_ALIGN)
    room.entries_bytes += entry_bytes(size)
    return FramePlace(piece, start, size, slot, offset, header, room.sequence)


def _close(room: Room) -> int:
    room.end = align_up(room.end, room.align)
    return room.end
