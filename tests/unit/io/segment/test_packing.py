"""Plans of packing: sound wherever a segment ends, and never larger than what space_needed says."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from awsomefsd.base.errors import Refused
from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, KIB, MIB
from awsomefsd.io.segment import frame as frames
from awsomefsd.io.segment import packing


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def some_length(rng: random.Random) -> int:
    return min(3 * MIB, max(1, int(2 ** rng.uniform(0, 21.6)) + rng.choice((-1, 0, 0, 1))))


def test_plans_are_sound_and_never_need_more_than_space_needed(rng: random.Random) -> None:
    for _ in range(150):
        segment_bytes = rng.choice((1, 1, 2, 4, 32, 64)) * MIB
        align = rng.choice((4, 4, 16, 64)) * KIB
        rooms = [packing.Room(segment_bytes, align=align)]
        for _ in range(rng.randrange(1, 8)):
            lengths = [some_length(rng) for _ in range(rng.randrange(1, 12))]
            offered = [rooms[-1]]

            def next_room(slot: int, offered: list[packing.Room] = offered, size: int = segment_bytes, align: int = align) -> packing.Room:
                if slot == len(offered):
                    offered.append(packing.Room(size, align=align))
                return offered[slot]

            before = [room.copy() for room in offered]
            offsets = [rng.choice((0, rng.randrange(8 * MIB))) for _ in lengths]
            planned = packing.plan(lengths, next_room, offsets)
            assert offered[: len(before)] == before, "a plan changes nothing"
            gaps = (align - BLOCK_BYTES) * len(planned.rooms)
            assert planned.consumed_bytes <= packing.space_needed(*lengths) + gaps
            check_plan(lengths, planned, offered)
            rooms = planned.rooms
            assert not rooms[-1].full


def check_plan(lengths: list[int], planned: packing.PackingPlan, before: list[packing.Room]) -> None:
    covered = dict.fromkeys(range(len(lengths)), 0)
    ends = [room.end for room in before]
    sequences = [room.sequence for room in before]
    for placed in planned.placements:
        assert placed.start == covered[placed.piece] and 0 < placed.length <= FRAME_BYTES_MAX
        covered[placed.piece] += placed.length
        assert placed.frame_offset >= ends[placed.slot] and placed.frame_offset % frames.alignment_of(placed.length) == 0
        ends[placed.slot] = placed.frame_offset + placed.header_bytes + placed.length
        assert placed.header_bytes == frames.header_bytes_of(placed.length)
        sequences[placed.slot] += 1
        assert placed.sequence == sequences[placed.slot], "no two frames of a segment share an identity"
    assert list(covered.values()) == lengths
    for slot, room in enumerate(planned.rooms):
        assert ends[slot] <= room.end and room.end % room.align == 0
        footer = frames.align_up(64 + room.entries_bytes, BLOCK_BYTES)
        assert room.end + footer <= room.segment_bytes
        if room.full:
            assert room.segment_bytes - room.end - footer <= 3 * BLOCK_BYTES + room.align, "little is left over"


@pytest.mark.parametrize("length", [1, 4096, 4097, 65_535, 65_536, 131_071, 131_073, MIB, 3 * MIB + 1])
def test_space_needed_holds_wherever_a_segment_ends(length: int) -> None:
    for left in range(0, 300 * KIB, BLOCK_BYTES):
        begun = packing.Room(MIB, end=MIB - left, sequence=1)
        planned = packing.plan([length], lambda slot, begun=begun: packing.Room(MIB) if slot else begun, [0])
        assert planned.consumed_bytes <= packing.space_needed(length), left


@pytest.mark.parametrize("length", [MIB, MIB + 1, MIB + 64 * KIB, 2 * MIB, 16 * MIB, 40 * MIB, 200 * MIB])
def test_space_needed_holds_where_frames_end_at_multiples_of_the_file(length: int, rng: random.Random) -> None:
    """In the smallest segments that have such frames, and wherever the piece begins and the first segment ends."""
    size = packing.ALIGNED_SEGMENT_BYTES_MIN
    for _ in range(400):
        end = size - rng.randrange(1, 600) * BLOCK_BYTES
        offset = rng.choice((0, 1, MIB - 1, 64 * KIB - 1, MIB - 64 * KIB, rng.randrange(MIB)))
        begun = packing.Room(size, end=end, sequence=1)
        planned = packing.plan([length], lambda slot, begun=begun: packing.Room(size) if slot else begun, [offset])
        assert planned.consumed_bytes <= packing.space_needed(length), (end, offset)
        check_plan([length], planned, [begun, *(packing.Room(size) for _ in planned.rooms[1:])])


def test_a_request_of_a_sequential_read_lies_in_one_frame_but_at_the_end_of_a_segment() -> None:
    pieces, size, rooms = 12, 64 * MIB, [packing.Room(64 * MIB, end=9 * MIB)]
    straddled = 0
    for number in range(pieces):  # batches of a stream, as the flusher makes them
        offered = [rooms[-1]]

        def next_room(slot: int, offered: list[packing.Room] = offered) -> packing.Room:
            if slot == len(offered):
                offered.append(packing.Room(size))
            return offered[slot]

        planned = packing.plan([16 * MIB], next_room, [number * 16 * MIB])
        rooms = planned.rooms
        requests = [(placed.start // MIB, (placed.start + placed.length - 1) // MIB) for placed in planned.placements]
        straddled += sum(first != last for first, last in requests)
        seen = Counter(first for first, _ in requests)
        straddled += sum(frames > 1 for frames in seen.values())
    assert straddled <= 3, "one for each end of a segment"


def test_space_needed_may_be_summed_before_writes_are_joined(rng: random.Random) -> None:
    for _ in range(20_000):
        a, b = some_length(rng), some_length(rng)
        joined = packing.space_needed(a + b)
        assert joined <= packing.space_needed(a) + packing.space_needed(b), (a, b)


def test_a_failed_lease_changes_nothing() -> None:
    room = packing.Room(MIB, end=MIB - 20 * KIB, sequence=5)

    def none_left(slot: int) -> packing.Room:
        if slot:
            raise Refused("no segment")
        return room

    with pytest.raises(Refused):
        packing.plan([MIB], none_left, [0])
    assert room == packing.Room(MIB, end=MIB - 20 * KIB, sequence=5)
