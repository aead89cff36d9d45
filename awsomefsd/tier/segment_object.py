"""A segment as one object: its bytes up to the end of its data, a footer of all its frames, and a trailer.  Pure.

The same segment must give the same object whoever sends it and however often: its name has one content for ever, and with a seal the same
key and nonces are used again.  So all depends on the committed bytes alone, and every one of them is judged: each frame, also those in
which nothing lives any more, has a good header, good checksums and the number that follows the one before it; padding is zero; blocks that
nobody wrote, which devices with large physical blocks have between batches, become zero; and the footer is made here, of all frames.
That of the last writer, which lies behind the data on the device, is not taken: another sender may find it damaged.  Time, codec and key
id come from the segment's row for the same reason.

Where writers followed each other in one incarnation, the footers of earlier ones lie between the frames.  They are checked, and stay.
"""

from __future__ import annotations

from collections.abc import Container

from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import BLOCK_BYTES, PHYSICAL_BLOCK_BYTES_MAX
from awsomefsd.io.device.checksum import Bytes, first_mismatch, seed_of
from awsomefsd.io.segment.footer import MAGIC as FOOTER_MAGIC
from awsomefsd.io.segment.footer import (
    ChecksumTable,
    FrameChecks,
    checks_of,
    entry_bytes,
    footer_bytes,
    pack_footer,
    unpack_footer,
)
from awsomefsd.io.segment.frame import FRAME_ALIGN, LARGE_FRAME_BYTES, Frame, align_up, unpack_header
from awsomefsd.io.segment.frame import MAGIC as FRAME_MAGIC
from awsomefsd.io.segment.packing import sequence_before
from awsomefsd.tier.names import SegmentName
from awsomefsd.tier.object_format import (
    PIECE_BYTES,
    PLAIN,
    SEALED,
    TRAILER_BYTES,
    Trailer,
    digest_of,
    pack_trailer,
    stored_bytes,
    unpack_trailer,
)
from awsomefsd.tier.sealing import SegmentSeal


class SealingKey(Struct, frozen=True):
    """The segments' secret of a store and its number; `repr` hides it."""

    secret: bytes
    key_id: int

    def __repr__(self) -> str:
        return f"SealingKey(…, {self.key_id})"


# --- what a segment holds -------------------------------------------------------------------------------------------------
class SegmentContent(Struct, frozen=True):
    """All frames of a segment in the order of their places, and the ranges [start, end) that were never written and hold anything."""

    frames: list[FrameChecks]
    gaps: list[tuple[int, int]]


def content_of(data: memoryview, segment: int, incarnation: int, gap_bytes_max: int = 0) -> SegmentContent:
    """Judges what a segment holds up to the end of its committed data.

    `gap_bytes_max`: how much may lie unwritten before a batch; the largest physical block of the devices that the segment was written to,
    less BLOCK_BYTES, so nothing with blocks of that size.  Where there may be gaps, the last frame may be lost without a trace: the caller
    compares what lives with the rows.

    Raises Corrupt where a byte is not as its writer wrote it, and says where; FormatTooNew for frames of a later version.
    """
    frames: list[FrameChecks] = []
    gaps: list[tuple[int, int]] = []
    at, expected = 0, {1}
    while at < len(data):
        start = at
        if data[at : at + 4] == FOOTER_MAGIC:
            at += _earlier_footer(data, at, segment, incarnation)
            expected = set(range(sequence_before(at) + 1, sequence_before(at + PHYSICAL_BLOCK_BYTES_MAX) + 2))
        elif frame := _frame_at(data, at, segment, incarnation, expected):
            frames.append(checks_of(frame, at))
            end = at + frame.header_bytes + frame.stored_bytes
            at = align_up(end, BLOCK_BYTES if frame.stored_bytes >= LARGE_FRAME_BYTES else FRAME_ALIGN)
            _check_zero(data, end, min(at, len(data)), segment)
            expected = {frame.sequence + 1}
        elif at % BLOCK_BYTES:
            at = min(align_up(at, BLOCK_BYTES), len(data))
            _check_zero(data, start, at, segment)
        else:
            at = _after_gap(data, at, segment, incarnation, expected, gap_bytes_max)
            gaps.append((start, at))
    return SegmentContent(frames, gaps)


def _frame_at(data: memoryview, at: int, segment: int, incarnation: int, expected: Container[int]) -> Frame | None:
    """Returns the frame at an offset; None where no header is that could be one of this segment.  Raises Corrupt for a damaged one."""
    if data[at : at + 4] != FRAME_MAGIC:
        return None
    try:
        frame = unpack_header(data[at : at + BLOCK_BYTES])
    except Corrupt as err:
        raise Corrupt(f"segment {segment}, offset {at}: {err}") from None
    end = at + frame.header_bytes + frame.stored_bytes
    if (frame.segment, frame.incarnation) != (segment, incarnation):
        return None
    if frame.sequence not in expected or end > len(data) or (frame.stored_bytes >= LARGE_FRAME_BYTES and at % BLOCK_BYTES):
        raise Corrupt(f"segment {segment}, offset {at}: frame {frame.sequence} does not belong here; one before it is lost")
    bad = first_mismatch(data[at + frame.header_bytes : end], frame.checksums, seed_of(segment, incarnation, frame.sequence))
    if bad >= 0:
        raise Corrupt(f"segment {segment}, offset {at}: frame {frame.sequence} has a checksum mismatch in block {bad}")
    return frame


def _after_gap(data: memoryview, at: int, segment: int, incarnation: int, expected: Container[int], gap_bytes_max: int) -> int:
    """Returns where the next batch begins, or the data ends, behind blocks that nobody wrote.

    Only devices with large physical blocks have such, shorter than one of those.  A frame that was lost is no gap: numbers have no holes.
    """
    for place in range(at + BLOCK_BYTES, at + gap_bytes_max + 1, BLOCK_BYTES):
        if place >= len(data):
            return len(data)
        if data[place : place + 4] == FOOTER_MAGIC or _frame_at(data, place, segment, incarnation, expected):
            return place
    raise Corrupt(f"segment {segment}, offset {at}: no frame where one should be")


def _earlier_footer(data: memoryview, at: int, segment: int, incarnation: int) -> int:
    """Returns the length of the footer of an earlier writer, all of whose bytes are as that one wrote them."""
    table = unpack_footer(data[at:], segment, incarnation)
    if table.data_end != at:
        raise Corrupt(f"segment {segment}, offset {at}: a footer of data that ends at {table.data_end}")
    made = pack_footer(segment, incarnation, at, list(table))
    if data[at : at + len(made)] != made:
        raise Corrupt(f"segment {segment}, offset {at}: the footer of an earlier writer is damaged")
    return len(made)


def _check_zero(data: memoryview, start: int, end: int, segment: int) -> None:
    if any(data[start:end]):
        raise Corrupt(f"segment {segment}, offset {start}: padding is not zero")


# --- making one -----------------------------------------------------------------------------------------------------------
def room_for(data_end: int, content: SegmentContent) -> int:
    """Returns how many bytes `finish` needs for a segment without a seal."""
    return align_up(data_end, BLOCK_BYTES) + footer_bytes(sum(entry_bytes(frame.stored_bytes) for frame in content.frames)) + TRAILER_BYTES


def finish(buffer: memoryview, data_end: int, content: SegmentContent, name: SegmentName, time_ns: int) -> int:
    """Writes padding, footer and trailer behind the data in `buffer`; returns the length of the object.  `content`: from
    `content_of`, which `buffer` is changed by: what nobody wrote becomes zero.

    `buffer` has `room_for` bytes at least.
    """
    footer_offset, footer = _with_footer(buffer, data_end, content, name)
    plain_bytes = footer_offset + len(footer)
    trailer = Trailer(
        name.cluster, name.era, name.segment, name.incarnation, data_end, footer_offset, len(footer), time_ns,
        digest_of(buffer[:plain_bytes]),
    )  # fmt: skip
    buffer[plain_bytes : plain_bytes + TRAILER_BYTES] = pack_trailer(trailer)
    return plain_bytes + TRAILER_BYTES


def finish_sealed(
    buffer: memoryview, data_end: int, content: SegmentContent, name: SegmentName, time_ns: int, key: SealingKey
) -> bytearray:
    """Returns the sealed object of a segment; the rest as `finish`, whose padding and footer are written into `buffer` too."""
    footer_offset, footer = _with_footer(buffer, data_end, content, name)
    plain_bytes = footer_offset + len(footer)
    sealed_bytes = stored_bytes(plain_bytes, PIECE_BYTES)
    made = bytearray(sealed_bytes + TRAILER_BYTES)
    view = memoryview(made)
    SegmentSeal(key.secret, name, plain_bytes).seal(buffer[:plain_bytes], view[:sealed_bytes])
    trailer = Trailer(
        name.cluster, name.era, name.segment, name.incarnation, data_end, footer_offset, len(footer), time_ns,
        digest_of(view[:sealed_bytes]), SEALED, PIECE_BYTES, key.key_id,
    )  # fmt: skip
    view[sealed_bytes:] = pack_trailer(trailer)
    return made


def _with_footer(buffer: memoryview, data_end: int, content: SegmentContent, name: SegmentName) -> tuple[int, bytearray]:
    footer_offset = align_up(data_end, BLOCK_BYTES)
    buffer[data_end:footer_offset] = bytes(footer_offset - data_end)
    for start, end in content.gaps:
        buffer[start:end] = bytes(end - start)
    footer = pack_footer(name.segment, name.incarnation, footer_offset, content.frames)
    buffer[footer_offset : footer_offset + len(footer)] = footer
    return footer_offset, footer


# --- judging one ----------------------------------------------------------------------------------------------------------
def judge_trailer(raw: Bytes, object_bytes: int, name: SegmentName) -> Trailer:
    """Returns the trailer of an object that a store says has `object_bytes`.

    Raises Corrupt if that is not the whole object `name`, FormatTooNew.
    """
    trailer = unpack_trailer(raw)
    found = SegmentName(trailer.cluster, trailer.era, trailer.segment, trailer.incarnation)
    if found != name:
        raise Corrupt(f"object {name}: its trailer is of {found}")
    if trailer.object_bytes != object_bytes:
        raise Corrupt(f"object {name}: has {object_bytes} bytes instead of {trailer.object_bytes}")
    return trailer


def footer_of(plain: Bytes, trailer: Trailer) -> ChecksumTable:
    """Returns the table of all frames of an object; `plain`: its footer, without seal.  Raises Corrupt, FormatTooNew."""
    table = unpack_footer(plain, trailer.segment, trailer.incarnation)
    if len(plain) != trailer.footer_bytes or table.data_end != trailer.footer_offset:
        raise Corrupt(f"object of segment {trailer.segment}: its footer is of other data")
    return table


def judge_whole(raw: memoryview, name: SegmentName, key: SealingKey | None = None) -> Trailer:
    """Judges every byte of an object, as a scrub does; a sealed one needs its key.  Returns its trailer.  Raises Corrupt, FormatTooNew."""
    if len(raw) < TRAILER_BYTES:
        raise Corrupt(f"object {name}: has {len(raw)} bytes only")
    trailer = judge_trailer(raw[-TRAILER_BYTES:], len(raw), name)
    if digest_of(raw[:-TRAILER_BYTES]) != trailer.digest:
        raise Corrupt(f"object {name}: its bytes do not have the hash in its trailer")
    plain = memoryview(_opened(raw[:-TRAILER_BYTES], trailer, name, key))
    try:
        content = content_of(plain[: trailer.data_end], name.segment, name.incarnation, PHYSICAL_BLOCK_BYTES_MAX - BLOCK_BYTES)
    except (Corrupt, FormatTooNew) as err:
        raise type(err)(f"object {name}: {err}") from None
    gaps = [*content.gaps, (trailer.data_end, trailer.footer_offset)]
    if any(any(plain[start:end]) for start, end in gaps):
        raise Corrupt(f"object {name}: padding is not zero")
    if plain[trailer.footer_offset :] != pack_footer(name.segment, name.incarnation, trailer.footer_offset, content.frames):
        raise Corrupt(f"object {name}: its footer does not list its frames")
    return trailer


def _opened(stored: memoryview, trailer: Trailer, name: SegmentName, key: SealingKey | None) -> Bytes:
    if trailer.codec == PLAIN:
        return stored
    if key is None or key.key_id != trailer.key_id:
        raise Corrupt(f"object {name}: sealed with key {trailer.key_id}, which is not here; give the store's recovery kit")
    return SegmentSeal(key.secret, name, trailer.plain_bytes).open(stored, 0, trailer.plain_bytes)
