"""Superblock, frame header and footer: round trips, golden files, refusals, and random changes to the input of each decoder."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from crc32c import crc32c
from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, FormatTooNew, NotFound
from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, GIB, KIB, MIB
from awsomefsd.io.device import superblock
from awsomefsd.io.device.checksum import block_checksums, seed_of
from awsomefsd.io.segment import frame as frames
from awsomefsd.io.segment.footer import FrameChecks, checks_of, entry_bytes, pack_footer, unpack_footer

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CLUSTER = "11111111-2222-3333-4444-555555555555"
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


# --- superblock ---------------------------------------------------------------------------------------------------------------
def test_superblock_round_trip_and_golden() -> None:
    made = a_superblock(generation=9, compat=1)
    raw = superblock.pack(made)
    assert len(raw) == BLOCK_BYTES
    assert superblock.unpack(raw) == made
    check_golden("superblock.bin", raw)


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
