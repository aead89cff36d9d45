"""Superblock, frame header, footer and placement: round trips, golden files, refusals, and a fuzz smoke of each decoder."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from crc32c import crc32c
from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, FormatTooNew, NotFound, Refused
from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, GIB, KIB, MIB, SEGMENT_BYTES_MIN, SEGMENTS_MIN
from awsomefsd.io.device import superblock
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.checksum import block_checksums, first_mismatch, seed_of
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.segment import frame as frames
from awsomefsd.io.segment import packing
from awsomefsd.io.segment.footer import FrameChecks, checks_of, entry_bytes, pack_footer, unpack_footer

GOLDEN = Path(__file__).resolve().parents[3] / "golden"
CLUSTER = "11111111-2222-3333-4444-555555555555"
OTHER_CLUSTER = "99999999-2222-3333-4444-555555555555"
OURS = (Corrupt, FormatTooNew, NotFound)


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def check_golden(name: str, raw: bytes) -> None:
    path = GOLDEN / name
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
    assert path.read_bytes() == raw, f"the format of {name} has changed; old devices could not be read"


def a_superblock(size: int = 4 * GIB, **changes: object) -> superblock.Superblock:
    segment_bytes = 64 * MIB if size == 4 * GIB else MIB
    segments = (size - 2 * MIB) // segment_bytes
    made = superblock.Superblock(CLUSTER, "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", size, segment_bytes, segments, 1_700_000_000_123_456_789)
    return replace(made, **changes)


def a_frame(length: int = 10_000, sequence: int = 3, **changes: object) -> frames.Frame:
    data = bytes(range(256)) * (length // 256 + 1)
    seed = seed_of(17, 4, sequence)
    made = frames.Frame(
        2, 1234, 5 * MIB, 17, 4, sequence, length, length, frames.header_bytes_of(length), 1_700_000_000_000_000_001,
        block_checksums(data[:length], seed),
    )  # fmt: skip
    return replace(made, **changes)


def packed_header(frame: frames.Frame) -> bytes:
    buffer = bytearray(b"\xff" * BLOCK_BYTES)
    frames.pack_header(frame, memoryview(buffer))
    return bytes(buffer[: frame.header_bytes])


def some_checks() -> list[FrameChecks]:
    made, offset = [], 0
    for sequence, length in enumerate((100, 70_000, 4096, 5000), start=1):
        frame = a_frame(length, sequence)
        offset = frames.align_up(offset, frames.alignment_of(length))
        made.append(checks_of(frame, offset))
        offset += frame.header_bytes + length
    return made


def a_footer() -> bytes:
    return bytes(pack_footer(17, 4, 96 * KIB, some_checks()))


# --- checksums ----------------------------------------------------------------------------------------------------------------


def test_checksums_depend_on_identity_and_name_the_bad_block() -> None:
    data = bytearray(os.urandom(3 * BLOCK_BYTES + 7))
    seed = seed_of(1, 2, 3)
    table = block_checksums(data, seed)
    assert len(table) == 4
    assert first_mismatch(data, table, seed) == -1
    assert first_mismatch(data, table, seed_of(1, 3, 3)) == 0
    data[2 * BLOCK_BYTES] ^= 1
    assert first_mismatch(data, table, seed) == 2


# --- superblock ---------------------------------------------------------------------------------------------------------------


def test_superblock_round_trip_and_golden() -> None:
    made = a_superblock(generation=9, compat=1)
    raw = superblock.pack(made)
    assert len(raw) == BLOCK_BYTES
    assert superblock.unpack(raw) == made
    check_golden("superblock.bin", raw)


def test_geometry_keeps_enough_segments(rng: random.Random) -> None:
    assert superblock.geometry(1024 * GIB) == (64 * MIB, 1024 * 16 - 1)
    assert superblock.geometry(superblock.DEVICE_BYTES_MIN) == (SEGMENT_BYTES_MIN, SEGMENTS_MIN)
    with pytest.raises(Refused, match="at least"):
        superblock.geometry(superblock.DEVICE_BYTES_MIN - 1)
    for _ in range(2_000):
        size = superblock.DEVICE_BYTES_MIN + int(2 ** rng.uniform(0, 50))
        segment_bytes, segments = superblock.geometry(size)
        assert segment_bytes & (segment_bytes - 1) == 0 and SEGMENT_BYTES_MIN <= segment_bytes <= 64 * MIB
        assert segments >= SEGMENTS_MIN
        assert superblock.FIRST_SEGMENT_OFFSET + segments * segment_bytes <= superblock.second_copy_offset(size) <= size - MIB


def reseal(raw: bytearray) -> bytes:
    raw[4092:] = crc32c(raw[:4092]).to_bytes(4, "little")
    return bytes(raw)


def test_superblock_of_a_newer_build_is_refused() -> None:
    for at in (8, 20):  # version, incompat bits
        raw = bytearray(superblock.pack(a_superblock()))
        raw[at] = 0x40
        with pytest.raises(FormatTooNew, match="upgrade"):
            superblock.unpack(reseal(raw))
    assert not a_superblock(ro_compat=1).writable
    assert a_superblock(compat=1).writable


def test_either_copy_serves_and_repair_mends_the_other() -> None:
    size = 64 * MIB
    made = a_superblock(size)
    for damaged in (0, superblock.second_copy_offset(size)):
        device = MemoryDevice(size)
        superblock.write_superblock(device, made)
        device.allow_rewrites()
        device.content[damaged + 100] ^= 1
        assert superblock.read_superblock(device, CLUSTER) == made
        assert len(device.writes) == 2
        superblock.read_superblock(device, CLUSTER, repair=True)
        assert superblock.unpack(device.content[damaged : damaged + BLOCK_BYTES]) == made


def test_newest_copy_wins_and_refusals() -> None:
    size = 64 * MIB
    device = MemoryDevice(size)
    with pytest.raises(NotFound):
        superblock.read_superblock(device)
    made = a_superblock(size)
    superblock.write_superblock(device, made)
    newer = superblock.grown(made, made.device_bytes)
    device.content[:BLOCK_BYTES] = superblock.pack(newer)
    assert superblock.read_superblock(device) == newer
    with pytest.raises(Refused, match="another cluster"):
        superblock.read_superblock(device, OTHER_CLUSTER)
    device.content[50] ^= 1
    device.content[superblock.second_copy_offset(size) + 50] ^= 1
    with pytest.raises(Corrupt):
        superblock.read_superblock(device)
    device.content[:BLOCK_BYTES] = superblock.pack(a_superblock(80 * MIB))
    with pytest.raises(Refused, match="fewer"):
        superblock.read_superblock(device)


def test_second_copy_of_a_grown_device_is_found() -> None:
    made = a_superblock(64 * MIB)
    device = MemoryDevice(80 * MIB)
    superblock.write_superblock(device, made)
    device.allow_rewrites()
    assert superblock.read_superblock(device, repair=True) == made
    assert len(device.writes) == 2, "nothing had to be repaired"


# --- frame header ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4096, 4097, 40_960, 65_535, 65_536, FRAME_BYTES_MAX])
def test_frame_header_round_trip(length: int) -> None:
    frame = a_frame(length)
    raw = packed_header(frame)
    assert len(raw) == frame.header_bytes == frames.header_bytes_of(length)
    assert frames.unpack_header(raw + b"data") == replace(frame, checksums=frames.unpack_header(raw).checksums)
    assert list(frames.unpack_header(raw).checksums) == frame.checksums


def test_frame_header_golden() -> None:
    check_golden("frame_small.bin", packed_header(a_frame(10_000)))
    check_golden("frame_large.bin", packed_header(a_frame(200_000)))


def test_frame_header_of_a_newer_build_is_refused() -> None:
    raw = bytearray(packed_header(a_frame()))
    raw[4] = 2
    raw[84:88] = crc32c(raw[88:], crc32c(raw[:84])).to_bytes(4, "little")
    with pytest.raises(FormatTooNew, match="upgrade"):
        frames.unpack_header(bytes(raw))


def test_every_bit_of_a_frame_header_counts() -> None:
    raw = packed_header(a_frame(5_000))
    for bit in range(len(raw) * 8):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            frames.unpack_header(broken)


# --- footer -------------------------------------------------------------------------------------------------------------------


def test_footer_round_trip_and_golden() -> None:
    raw = a_footer()
    check_golden("footer.bin", raw)
    table = unpack_footer(raw, 17, 4)
    assert len(table) == 4 and table.data_end == 96 * KIB
    for found, made in zip(table, some_checks(), strict=True):
        assert replace(found, checksums=list(found.checksums)) == made
        assert table.find(made.frame_offset) == found
    assert table.find(1) is None and table.find(1 << 40) is None


def test_footer_of_another_segment_or_life_is_refused() -> None:
    for segment, incarnation in ((18, 4), (17, 5)):
        with pytest.raises(Corrupt, match="found the footer of"):
            unpack_footer(a_footer(), segment, incarnation)


def test_a_footer_that_names_impossible_frames_is_refused() -> None:
    good = some_checks()
    for frames_, data_end in ((good, 10 * KIB), (good[::-1], 96 * KIB), ([replace(good[0], header_bytes=1)], 96 * KIB)):
        with pytest.raises(Corrupt, match="footer of segment 17"):
            unpack_footer(pack_footer(17, 4, data_end, frames_), 17, 4)


def test_empty_footer() -> None:
    raw = pack_footer(1, 1, 0, [])
    assert len(raw) == BLOCK_BYTES and len(unpack_footer(raw, 1, 1)) == 0


# --- fuzz ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["superblock", "frame", "footer"])
def test_decoders_raise_only_our_errors(what: str, rng: random.Random) -> None:
    good, decode = {
        "superblock": (superblock.pack(a_superblock()), superblock.unpack),
        "frame": (packed_header(a_frame()), frames.unpack_header),
        "footer": (a_footer(), lambda raw: list(unpack_footer(raw, 17, 4))),
    }[what]
    for turn in range(3_000):
        raw = bytearray(good) if turn % 4 else bytearray(rng.randbytes(rng.randrange(200)))
        for _ in range(rng.randrange(1, 5)):
            if raw:
                raw[rng.randrange(min(len(raw), 400))] = rng.randrange(256)
        if turn % 5 == 0:
            del raw[rng.randrange(len(raw) + 1) :]
        if what == "superblock" and len(raw) == BLOCK_BYTES and turn % 2:
            raw = bytearray(reseal(raw))  # a valid checksum must not be needed to stay sane
        if what == "frame" and turn % 2 and len(raw) >= 128:
            raw[84:88] = crc32c(raw[88:], crc32c(raw[:84])).to_bytes(4, "little")
        if what == "footer" and turn % 2 and len(raw) == len(good):
            end = 64 + sum(entry_bytes(checks.stored_bytes) for checks in some_checks())
            raw[60:64] = crc32c(raw[64:end], crc32c(raw[:60])).to_bytes(4, "little")
        try:
            decode(bytes(raw))
        except OURS:
            pass


# --- placement ------------------------------------------------------------------------------------------------------------------


def some_length(rng: random.Random) -> int:
    return min(3 * MIB, max(1, int(2 ** rng.uniform(0, 21.6)) + rng.choice((-1, 0, 0, 1))))


def test_plans_are_sound_and_never_need_more_than_space_needed(rng: random.Random) -> None:
    for _ in range(150):
        segment_bytes = rng.choice((1, 1, 2, 4, 64)) * MIB
        rooms = [packing.Room(segment_bytes)]
        for _ in range(rng.randrange(1, 8)):
            lengths = [some_length(rng) for _ in range(rng.randrange(1, 12))]
            offered = [rooms[-1]]

            def next_room(slot: int, offered: list[packing.Room] = offered, segment_bytes: int = segment_bytes) -> packing.Room:
                if slot == len(offered):
                    offered.append(packing.Room(segment_bytes))
                return offered[slot]

            before = [room.copy() for room in offered]
            planned = packing.plan(lengths, next_room)
            assert offered[: len(before)] == before, "a plan changes nothing"
            assert planned.consumed_bytes <= packing.space_needed(*lengths)
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
        assert ends[slot] <= room.end and room.end % BLOCK_BYTES == 0
        footer = frames.align_up(64 + room.entries_bytes, BLOCK_BYTES)
        assert room.end + footer <= room.segment_bytes
        if room.full:
            assert room.segment_bytes - room.end - footer <= 4 * BLOCK_BYTES, "little is left over"


@pytest.mark.parametrize("length", [1, 4096, 4097, 65_535, 65_536, 131_071, 131_073, MIB, 3 * MIB + 1])
def test_space_needed_holds_wherever_a_segment_ends(length: int) -> None:
    for left in range(0, 300 * KIB, BLOCK_BYTES):
        begun = packing.Room(MIB, end=MIB - left, sequence=1)
        planned = packing.plan([length], lambda slot, begun=begun: packing.Room(MIB) if slot else begun)
        assert planned.consumed_bytes <= packing.space_needed(length), left


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
        packing.plan([MIB], none_left)
    assert room == packing.Room(MIB, end=MIB - 20 * KIB, sequence=5)


def test_aligned_buffer_is_what_it_says() -> None:
    from awsomefsd.io.device.buffers import address_of, is_aligned

    buffer = aligned_buffer(10_000)
    assert len(buffer) == 10_000 and is_aligned(buffer, 4096) and not is_aligned(buffer[1:], 2)
    assert address_of(memoryview(b"constant")) is None
