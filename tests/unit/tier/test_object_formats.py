"""Names and formats of objects: round trips, golden files, refusals; and a segment as an object, of segments that real writers made."""

from __future__ import annotations

import random
from itertools import pairwise
from uuid import UUID

import pytest
from crc32c import crc32c

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import FRAME_BYTES_MAX, KIB
from awsomefsd.tier import object_format as formats
from awsomefsd.tier.names import MARKER, BatchName, EraName, ObjectName, PieceName, SegmentName, parse
from awsomefsd.tier.sealing import LogSeal, SegmentSeal
from awsomefsd.tier.segment_object import (
    SealingKey,
    content_of,
    finish,
    finish_sealed,
    footer_of,
    judge_trailer,
    judge_whole,
    room_for,
)
from tests.rigs.segments_in_memory import CLUSTER, ERA, a_segment
from tests.unit.io.test_formats import check_golden

NAME = SegmentName(CLUSTER, ERA, 0x1234, 7)
SECRET = bytes(range(32))
GAP_BYTES_MAX = 60 * KIB
NAMES: list[ObjectName] = [
    EraName(CLUSTER, 1), NAME, PieceName(CLUSTER, ERA, 99, b"\xab" * 16, 0), BatchName(CLUSTER, ERA, 3, 0),
    SegmentName(CLUSTER, ERA, (1 << 64) - 1, 0),
]  # fmt: skip
TRAILER = formats.Trailer(
    CLUSTER, ERA, 0x1234, 7, 5_000, 8_192, 4_096, 1_700_000_000_000_000_001, b"\x11" * 16, formats.SEALED, formats.PIECE_BYTES, 2
)  # fmt: skip
MARKER_VALUE = formats.Marker(CLUSTER, 1_700_000_000_000_000_000)
ERA_VALUE = formats.Era(2, CLUSTER, ERA, UUID(int=9), 4, 1_000, 1_700_000_000_000_000_000)
LOG_HEADER = formats.LogHeader(CLUSTER, ERA, formats.BATCH, 3, bytes(range(12)))
FIXED = {
    "marker": (MARKER_VALUE, formats.pack_marker, formats.unpack_marker),
    "era": (ERA_VALUE, formats.pack_era, formats.unpack_era),
    "trailer": (TRAILER, formats.pack_trailer, formats.unpack_trailer),
    "log header": (LOG_HEADER, formats.pack_log_header, formats.unpack_log_header),
}


def resealed(raw: bytes | bytearray) -> bytes:
    return bytes(raw[:-4]) + crc32c(bytes(raw[:-4])).to_bytes(4, "little")


def an_object(data: bytes, name: SegmentName = NAME, key: SealingKey | None = None, time_ns: int = 5, gap_bytes_max: int = 0) -> bytes:
    content = content_of(memoryview(data), name.segment, name.incarnation, gap_bytes_max)
    buffer = bytearray(data) + bytearray(room_for(len(data), content) - len(data))
    if key is not None:
        return bytes(finish_sealed(memoryview(buffer), len(data), content, name, time_ns, key))
    return bytes(buffer[: finish(memoryview(buffer), len(data), content, name, time_ns)])


# --- names ----------------------------------------------------------------------------------------------------------------
def test_names_round_trip() -> None:
    assert [parse(str(name)) for name in NAMES] == NAMES
    check_golden("object_names.txt", "".join(f"{name}\n" for name in [MARKER, *NAMES]).encode())


def test_a_name_has_one_spelling() -> None:
    good = str(NAME)
    wrong = [
        MARKER, "", good.upper(), good + "/", "/" + good, good + "\n", good.replace("/34/", "/35/"), good.replace("4660-7", "04660-7"),
        str(EraName(CLUSTER, 0)), str(BatchName(CLUSTER, ERA, 0, 1)), str(EraName(CLUSTER, 1 << 64)), good.replace("-7", "-7/../8"),
        str(EraName(CLUSTER, 1)).replace("/1", "/\u0661"),
    ]  # fmt: skip
    for text in wrong:
        with pytest.raises(Corrupt, match="is no name"):
            parse(text)


# --- fixed parts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", FIXED)
def test_fixed_parts_round_trip_and_every_bit_counts(what: str) -> None:
    value, pack, unpack = FIXED[what]
    raw = pack(value)
    assert unpack(raw) == value
    check_golden(f"object_{what.replace(' ', '_')}.bin", raw)
    for bit in range(len(raw) * 8):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            unpack(broken)
    for length in (0, 3, len(raw) - 1):
        with pytest.raises(Corrupt):
            unpack(raw[:length])
    with pytest.raises(Corrupt):
        unpack(raw + b"\0")


@pytest.mark.parametrize(("what", "at"), [("marker", 8), ("marker", 12), ("era", 4), ("trailer", 4), ("trailer", 5), ("trailer", 6),
                                          ("log header", 4), ("log header", 5), ("log header", 6)])  # fmt: skip
def test_what_a_newer_build_wrote_is_refused(what: str, at: int) -> None:
    value, pack, unpack = FIXED[what]
    raw = bytearray(pack(value))
    raw[at] = 0x40
    with pytest.raises(FormatTooNew, match="upgrade"):
        unpack(resealed(raw))


@pytest.mark.parametrize("change", [{"data_end": 9_000}, {"footer_bytes": 0}, {"footer_bytes": 100}, {"piece_bytes": 0}, {"codec": 0}])
def test_a_trailer_of_impossible_lengths_is_refused(change: dict[str, int]) -> None:
    fields = {name: getattr(TRAILER, name) for name in TRAILER.__struct_fields__} | change
    with pytest.raises(Corrupt, match="impossible"):
        formats.unpack_trailer(formats.pack_trailer(formats.Trailer(**fields)))


# --- a segment as an object -----------------------------------------------------------------------------------------------
def test_an_object_is_judged_and_the_same_each_time(seed: int) -> None:
    data, frames = a_segment(random.Random(seed), NAME)
    raw = an_object(data)
    assert raw == an_object(data)
    trailer = judge_whole(memoryview(raw), NAME)
    assert judge_trailer(raw[-formats.TRAILER_BYTES :], len(raw), NAME) == trailer
    footer = raw[trailer.footer_offset : trailer.footer_offset + trailer.footer_bytes]
    assert [(one.frame_offset, one.sequence) for one in footer_of(footer, trailer)] == frames
    assert raw[: trailer.data_end] == data


def test_an_object_of_given_bytes_is_golden() -> None:
    data, _ = a_segment(random.Random(1), NAME, sizes=(9, 5_000))
    check_golden("object_segment.bin", an_object(data))
    check_golden("object_segment_sealed.bin", an_object(data, key=SealingKey(SECRET, 2)))


def test_a_sealed_object_opens_by_ranges_and_with_its_own_key_only(seed: int) -> None:
    rng = random.Random(seed)
    data, _ = a_segment(rng, NAME, sizes=(300_000, 70_000, 200_000, 9))
    key = SealingKey(SECRET, 2)
    raw = an_object(data, key=key)
    plain = an_object(data)[: -formats.TRAILER_BYTES]
    assert raw == an_object(data, key=key)
    assert data[200:264] not in raw and repr(SECRET)[3:20] not in repr(key)
    trailer = judge_whole(memoryview(raw), NAME, key)
    seal = SegmentSeal(SECRET, NAME, trailer.plain_bytes)
    for _ in range(50):
        start = rng.randrange(len(plain))
        length = rng.randrange(1, len(plain) - start + 1)
        at, size = seal.stored_range(start, length)
        assert seal.open(raw[at : at + size], start, length) == plain[start : start + length]
    last = len(plain) - 1
    at, size = seal.stored_range(last, 1)
    assert at + size == len(raw) - formats.TRAILER_BYTES
    for other in (
        SegmentSeal(bytes(32), NAME, trailer.plain_bytes), SegmentSeal(SECRET, SegmentName(CLUSTER, ERA, 0x1234, 8), trailer.plain_bytes),
        SegmentSeal(SECRET, SegmentName(CLUSTER, UUID(int=1), 0x1234, 7), trailer.plain_bytes),
        SegmentSeal(SECRET, NAME, trailer.plain_bytes - 4_096),
    ):  # fmt: skip
        with pytest.raises(Corrupt, match="does not open"):
            other.open(raw[at : at + size], last - 4_096, 1)
    with pytest.raises(Corrupt, match="recovery kit"):
        judge_whole(memoryview(raw), NAME)


def test_pieces_in_another_order_do_not_open(seed: int) -> None:
    plain = memoryview(random.Random(seed).randbytes(2 * formats.PIECE_BYTES))
    seal = SegmentSeal(SECRET, NAME, len(plain))
    sealed = bytearray(formats.stored_bytes(len(plain), formats.PIECE_BYTES))
    assert seal.seal(plain, memoryview(sealed)) == len(sealed)
    half = len(sealed) // 2
    assert seal.open(sealed, 0, len(plain)) == plain
    with pytest.raises(Corrupt, match="piece 0 does not open"):
        seal.open(sealed[half:] + sealed[:half], 0, len(plain))
    with pytest.raises(Corrupt, match="fewer bytes"):
        seal.open(sealed[:half], 0, len(plain))


@pytest.mark.parametrize("key", [None, SealingKey(SECRET, 2)])
def test_any_damage_of_an_object_is_found(key: SealingKey | None, seed: int) -> None:
    rng = random.Random(seed)
    data, _ = a_segment(rng, NAME, sizes=(9, 70_000, 5_000, 300))
    raw = an_object(data, key=key)
    for _ in range(300):
        broken = bytearray(raw)
        match rng.randrange(3):
            case 0:
                broken[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            case 1:
                del broken[rng.randrange(len(raw)) :]
            case _:
                at = rng.randrange(len(raw) // 512) * 512
                broken[at : at + 512] = rng.randbytes(512)
        with pytest.raises((Corrupt, FormatTooNew)):
            judge_whole(memoryview(broken), NAME, key)
    with pytest.raises(Corrupt, match="trailer is of"):
        judge_whole(memoryview(raw), SegmentName(CLUSTER, ERA, 0x1234, 8), key)


def test_a_rotten_or_lost_frame_is_found_before_it_is_sent(seed: int) -> None:
    """Dead frames too: nobody can say which one it was, and the object would have two contents."""
    rng = random.Random(seed)
    data, frames = a_segment(rng, NAME, sizes=(9, 70_000, 5_000, 300, 100_000, 64))
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises(Corrupt, match="segment 4660, offset"):
            content_of(memoryview(broken), NAME.segment, NAME.incarnation)
    places = [offset for offset, _ in frames] + [len(data)]
    for start, end in pairwise(places):
        lost = bytearray(data)
        lost[start:end] = bytes(end - start)
        with pytest.raises(Corrupt):
            content_of(memoryview(lost), NAME.segment, NAME.incarnation)
        if end < len(data):  # where there may be gaps, the last one's number nobody knows: its rows do
            with pytest.raises(Corrupt):
                content_of(memoryview(lost), NAME.segment, NAME.incarnation, GAP_BYTES_MAX)


def test_what_nobody_wrote_between_batches_does_not_change_the_object(seed: int) -> None:
    """A device with large physical blocks begins batches at one of them; what lies before it is of an earlier life."""
    rng = random.Random(seed)
    objects = set()
    for _ in range(3):
        data, _ = a_segment(random.Random(1), NAME, sizes=(9, 70_000, 5_000), batch_align=64 * KIB, unwritten=rng.randbytes)
        objects.add(an_object(data, gap_bytes_max=GAP_BYTES_MAX))
    assert len(objects) == 1
    with pytest.raises(Corrupt, match="no frame"):
        an_object(data)
    content = content_of(memoryview(data), NAME.segment, NAME.incarnation, GAP_BYTES_MAX)
    assert content.gaps and len(content.frames) == 3


def test_the_largest_frames_and_an_empty_segment() -> None:
    data, frames = a_segment(random.Random(1), NAME, sizes=(FRAME_BYTES_MAX, FRAME_BYTES_MAX))
    assert len(frames) == 2 and judge_whole(memoryview(an_object(data)), NAME).data_end == len(data)
    assert judge_whole(memoryview(an_object(b"")), NAME).data_end == 0


# --- the log --------------------------------------------------------------------------------------------------------------
def test_a_part_of_the_log_opens_in_its_own_place_only() -> None:
    seal = LogSeal(SECRET, CLUSTER, ERA)
    name = str(BatchName(CLUSTER, ERA, 3, 1))
    raw = seal.seal(name, formats.BATCH, b"entries")
    assert seal.open(name, raw) == (formats.BATCH, b"entries")
    assert [seal.open(name, seal.seal(name, kind, b""))[0] for kind in formats.LOG_KINDS] == [
        formats.PIECE, formats.TENURE, formats.BATCH, formats.COMPLETE,
    ]  # fmt: skip
    assert raw != seal.seal(name, formats.BATCH, b"entries") and b"entries" not in raw
    for other, place, bytes_ in (
        (LogSeal(bytes(32), CLUSTER, ERA), name, raw), (seal, str(BatchName(CLUSTER, ERA, 3, 2)), raw), (seal, name, raw[:-1]),
        (seal, name, raw[:70]), (LogSeal(SECRET, CLUSTER, UUID(int=1)), name, raw), (LogSeal(SECRET, CLUSTER, ERA, 1), name, raw),
    ):  # fmt: skip
        with pytest.raises(Corrupt):
            other.open(place, bytes_)
    for bit in range(len(raw) * 8):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            seal.open(name, broken)
