"""The frame: a self-describing run of one file's bytes inside a segment.  Pure.

    offset  0  magic "awFr"      4  version u8      5  flags u8      6  codec u8      7  reserved
            8  header_bytes u32  12 logical u32     16 stored u32    20 key id u32
           24  volume u64        32 inode u64       40 file offset u64
           48  segment u64       56 incarnation u64 64 sequence u64  72 time ns i64
           80  reserved u32      84 crc32c u32 of the header without these four bytes
           88  crc32c u32 of each 4 KiB of the stored bytes, then zeros up to header_bytes (little-endian throughout)

Identity is (segment, incarnation, sequence).  Volume, inode and file offset are hints for recovery: once files share frames, others than
the one named here may refer to it.  Magic, version, header_bytes and the place and range of the checksum stay in every later version, so
a newer header is told from a broken one.

Two layouts.  A large frame (stored bytes >= LARGE_FRAME_BYTES) starts at a block and has a header of a whole block, so its data can go by
O_DIRECT straight from and to page-aligned memory.  Small frames follow each other at multiples of FRAME_ALIGN, header and data packed, so
a thousand small files cost one write.  One layout for both was rejected: 4 KiB of header for each 5 KiB file, or a copy of all data.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence

from crc32c import crc32c
from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, KIB
from awsomefsd.io.device.checksum import Bytes, block_count

MAGIC = b"awFr"
VERSION = 1
FRAME_ALIGN = 64
LARGE_FRAME_BYTES = 64 * KIB
CODEC_NONE = 0

_FIXED = struct.Struct("<4sBBBBIIIIQQQQQQqII")
_CRC = struct.Struct("<I")
_CRC_AT = 84
assert _FIXED.size == 88


class Frame(Struct, frozen=True, gc=False):
    """The content of a frame's header."""

    volume: int
    ino: int
    file_offset: int
    segment: int
    incarnation: int
    sequence: int
    logical_bytes: int
    stored_bytes: int
    header_bytes: int
    time_ns: int
    checksums: Sequence[int]
    codec: int = CODEC_NONE
    key_id: int = 0
    flags: int = 0


def align_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def header_bytes_of(stored_bytes: int) -> int:
    """Returns the length of the header of a frame with so many stored bytes."""
    if stored_bytes >= LARGE_FRAME_BYTES:
        return BLOCK_BYTES
    return align_up(_FIXED.size + 4 * block_count(stored_bytes), FRAME_ALIGN)


def alignment_of(stored_bytes: int) -> int:
    """Returns the number of bytes of which a frame's offset in its segment is a multiple."""
    return BLOCK_BYTES if stored_bytes >= LARGE_FRAME_BYTES else FRAME_ALIGN


def checksums_from(raw: Bytes) -> array[int]:
    """Returns little-endian u32s as numbers."""
    values = array("I")
    assert values.itemsize == 4
    values.frombytes(bytes(raw))
    if sys.byteorder != "little":
        values.byteswap()
    return values


def pack_header(frame: Frame, into: memoryview) -> None:
    """Writes the header over the first `header_bytes` of `into`."""
    count = len(frame.checksums)
    assert count == block_count(frame.stored_bytes) and _FIXED.size + 4 * count <= frame.header_bytes <= len(into)
    _FIXED.pack_into(
        into, 0, MAGIC, VERSION, frame.flags, frame.codec, 0,
        frame.header_bytes, frame.logical_bytes, frame.stored_bytes, frame.key_id,
        frame.volume, frame.ino, frame.file_offset,
        frame.segment, frame.incarnation, frame.sequence, frame.time_ns, 0, 0,
    )  # fmt: skip
    table_end = _FIXED.size + 4 * count
    struct.pack_into(f"<{count}I", into, _FIXED.size, *frame.checksums)
    into[table_end : frame.header_bytes] = bytes(frame.header_bytes - table_end)
    _CRC.pack_into(into, _CRC_AT, _header_checksum(into[: frame.header_bytes]))


def unpack_header(raw: Bytes) -> Frame:
    """Returns the frame whose header `raw` starts with.  Raises Corrupt where there is none, FormatTooNew for a later version."""
    view = memoryview(raw)
    if len(view) < _FIXED.size or bytes(view[:4]) != MAGIC:
        raise Corrupt("no frame header here")
    (_, version, flags, codec, _, header_bytes, logical, stored, key_id, volume, ino, file_offset, segment, incarnation, sequence, time_ns,
     _, checksum) = _FIXED.unpack_from(view)  # fmt: skip
    if not _FIXED.size <= header_bytes <= min(len(view), BLOCK_BYTES):
        raise Corrupt(f"frame header: impossible length {header_bytes}")
    if _header_checksum(view[:header_bytes]) != checksum:
        raise Corrupt("frame header: checksum mismatch")
    if version > VERSION:
        raise FormatTooNew(f"frame version {version} is newer than this build knows ({VERSION}); upgrade this node")
    count = block_count(stored)
    plausible = 0 < stored <= FRAME_BYTES_MAX and 0 < logical <= FRAME_BYTES_MAX and header_bytes == header_bytes_of(stored)
    if not plausible or (codec == CODEC_NONE and logical != stored):
        raise Corrupt(f"frame header: impossible lengths ({logical} logical, {stored} stored, header {header_bytes})")
    return Frame(
        volume, ino, file_offset, segment, incarnation, sequence, logical, stored, header_bytes, time_ns,
        checksums_from(view[_FIXED.size : _FIXED.size + 4 * count]), codec, key_id, flags,
    )  # fmt: skip


def _header_checksum(header: memoryview) -> int:
    return crc32c(header[_CRC_AT + 4 :], crc32c(header[:_CRC_AT]))
