"""The footer of a sealed segment: a table of its frames and their checksums, so one I/O makes all of them readable.  Pure.

It is written once, at a block after the last frame, when the segment is sealed; a segment whose writer died or failed has none, and its
frames are read by their headers.  The footer repeats what the headers say, never more: losing it loses nothing but speed.

    header  0  magic "awFt"   4  version u8   5  flags u8   6  reserved u16   8  segment u64   16  incarnation u64
           24  data end u64   32 frames u32   36 checksums u32   40 reserved 20 bytes   60  crc32c u32 of all but these four bytes
    each frame, 64 bytes: frame offset, sequence, volume, inode, file offset (u64 each), logical, stored, header bytes, index of the first
    checksum (u32 each), codec u16, reserved u16, key id u32;  then the checksums of all frames (u32 each), then zeros up to a block.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from crc32c import crc32c
from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX
from awsomefsd.io.device.checksum import Bytes, block_count
from awsomefsd.io.segment.frame import CODEC_NONE, Frame, align_up, checksums_from, header_bytes_of

MAGIC = b"awFt"
VERSION = 1

_HEADER = struct.Struct("<4sBBHQQQII20sI")
_ENTRY = struct.Struct("<QQQQQIIIIHHI")
_CRC = struct.Struct("<I")
_CRC_AT = 60
assert _HEADER.size == 64 and _ENTRY.size == 64


class FrameChecks(Struct, frozen=True, gc=False):
    """The facts that a reader needs of a frame, from its header or from a footer."""

    segment: int
    incarnation: int
    sequence: int
    frame_offset: int
    header_bytes: int
    logical_bytes: int
    stored_bytes: int
    codec: int
    key_id: int
    checksums: Sequence[int]
    volume: int
    ino: int
    file_offset: int


def checks_of(frame: Frame, frame_offset: int) -> FrameChecks:
    return FrameChecks(
        frame.segment, frame.incarnation, frame.sequence, frame_offset, frame.header_bytes, frame.logical_bytes, frame.stored_bytes,
        frame.codec, frame.key_id, frame.checksums, frame.volume, frame.ino, frame.file_offset,
    )  # fmt: skip


def entry_bytes(stored_bytes: int) -> int:
    """Returns the bytes that one frame adds to the footer."""
    return _ENTRY.size + 4 * block_count(stored_bytes)


def footer_bytes(entries_bytes: int) -> int:
    """Returns the length of a footer whose frames add up to `entries_bytes`, padded to a block."""
    return align_up(_HEADER.size + entries_bytes, BLOCK_BYTES)


def pack_footer(segment: int, incarnation: int, data_end: int, frames: Sequence[FrameChecks]) -> bytearray:
    """Returns the footer, a whole number of blocks.  `frames` are in order of their offsets."""
    total = sum(entry_bytes(frame.stored_bytes) for frame in frames)
    raw = bytearray(footer_bytes(total))
    at, checksum_index = _HEADER.size, 0
    checksums_at = at + _ENTRY.size * len(frames)
    for frame in frames:
        count = len(frame.checksums)
        _ENTRY.pack_into(
            raw, at, frame.frame_offset, frame.sequence, frame.volume, frame.ino, frame.file_offset,
            frame.logical_bytes, frame.stored_bytes, frame.header_bytes, checksum_index, frame.codec, 0, frame.key_id,
        )  # fmt: skip
        struct.pack_into(f"<{count}I", raw, checksums_at + 4 * checksum_index, *frame.checksums)
        at += _ENTRY.size
        checksum_index += count
    _HEADER.pack_into(raw, 0, MAGIC, VERSION, 0, 0, segment, incarnation, data_end, len(frames), checksum_index, b"", 0)
    view = memoryview(raw)
    _CRC.pack_into(raw, _CRC_AT, _checksum(view, len(frames), checksum_index))
    return raw


class ChecksumTable:
    """A footer that was read and found good.  It keeps the raw bytes and unpacks a frame when it is asked for.  Immutable."""

    __slots__ = ("_frames", "_offsets", "_raw", "data_end", "incarnation", "segment")

    def __init__(self, raw: bytes, segment: int, incarnation: int, data_end: int, frames: int) -> None:
        self._raw = raw
        self._frames = frames
        self._offsets = [entry[0] for entry in _ENTRY.iter_unpack(memoryview(raw)[_HEADER.size : _HEADER.size + _ENTRY.size * frames])]
        self.segment = segment
        self.incarnation = incarnation
        self.data_end = data_end

    def __len__(self) -> int:
        return self._frames

    def __iter__(self) -> Iterator[FrameChecks]:
        return map(self._frame, range(self._frames))

    @property
    def memory_bytes(self) -> int:
        return len(self._raw) + 40 * self._frames

    def find(self, frame_offset: int) -> FrameChecks | None:
        """Returns the frame at this offset of the segment, or None."""
        index = bisect_left(self._offsets, frame_offset)
        if index == self._frames or self._offsets[index] != frame_offset:
            return None
        return self._frame(index)

    def next_offset(self, offset: int) -> int:
        """Returns where the first frame at `offset` or behind it begins; -1 if there is none."""
        index = bisect_left(self._offsets, offset)
        return self._offsets[index] if index < self._frames else -1

    def check(self) -> None:
        """Raises Corrupt unless every frame is possible and inside the data."""
        expected, position = 0, 0
        for index in range(self._frames):
            entry = _ENTRY.unpack_from(self._raw, _HEADER.size + _ENTRY.size * index)
            offset, logical, stored, header, first, codec = entry[0], entry[5], entry[6], entry[7], entry[8], entry[9]
            possible = 0 < stored <= FRAME_BYTES_MAX and 0 < logical <= FRAME_BYTES_MAX and header == header_bytes_of(stored)
            if not possible or first != expected or offset < position or (codec == CODEC_NONE and logical != stored):
                raise Corrupt(f"footer of segment {self.segment}: impossible frame {index}")
            expected += block_count(stored)
            position = offset + header + stored
        if position > self.data_end:
            raise Corrupt(f"footer of segment {self.segment}: frames beyond the data")

    def _frame(self, index: int) -> FrameChecks:
        (offset, sequence, volume, ino, file_offset, logical, stored, header, first, codec, _, key_id) = _ENTRY.unpack_from(
            self._raw, _HEADER.size + _ENTRY.size * index
        )
        at = _HEADER.size + _ENTRY.size * self._frames + 4 * first
        checksums = checksums_from(memoryview(self._raw)[at : at + 4 * block_count(stored)])
        return FrameChecks(
            self.segment, self.incarnation, sequence, offset, header, logical, stored, codec, key_id, checksums, volume, ino, file_offset
        )


def unpack_footer(raw: Bytes, segment: int, incarnation: int) -> ChecksumTable:
    """Returns the table of a footer.

    Raises Corrupt if this is not the footer of that incarnation of that segment, FormatTooNew for a later version.
    """
    view = memoryview(raw)
    if len(view) < _HEADER.size or bytes(view[:4]) != MAGIC:
        raise Corrupt(f"segment {segment}: no footer where it should be")
    _, version, _, _, found, found_incarnation, data_end, frames, checksums, _, checksum = _HEADER.unpack_from(view)
    end = _HEADER.size + _ENTRY.size * frames + 4 * checksums
    if end > len(view) or _checksum(view, frames, checksums) != checksum:
        raise Corrupt(f"segment {segment}: footer checksum mismatch")
    if version > VERSION:
        raise FormatTooNew(f"footer version {version} is newer than this build knows ({VERSION}); upgrade this node")
    if (found, found_incarnation) != (segment, incarnation):
        raise Corrupt(f"segment {segment} incarnation {incarnation}: found the footer of {found} incarnation {found_incarnation}")
    table = ChecksumTable(bytes(view[:end]), segment, incarnation, data_end, frames)
    table.check()
    if checksums != sum(block_count(entry[6]) for entry in _ENTRY.iter_unpack(view[_HEADER.size : _HEADER.size + _ENTRY.size * frames])):
        raise Corrupt(f"footer of segment {segment}: number of checksums does not fit its frames")
    return table


def check_sum(segment: int, incarnation: int, data_end: int, size: int, read: Callable[[int, int], Bytes], part_bytes: int) -> None:
    """Checks identity and checksum of a footer of at most `size` bytes without holding it; `read(at, length)` returns bytes of it.

    Raises Corrupt, and what `read` raises.
    """
    head = bytes(read(0, _HEADER.size))
    magic, _, _, _, found, found_incarnation, found_end, frames, checksums, _, expected = _HEADER.unpack(head)
    end = _HEADER.size + _ENTRY.size * frames + 4 * checksums
    if (magic, found, found_incarnation, found_end) != (MAGIC, segment, incarnation, data_end) or end > size:
        raise Corrupt(f"segment {segment} incarnation {incarnation}: no footer of it where it should be")
    checksum = crc32c(head[:_CRC_AT])
    for at in range(_HEADER.size, end, part_bytes):
        checksum = crc32c(read(at, min(part_bytes, end - at)), checksum)
    if checksum != expected:
        raise Corrupt(f"segment {segment}: footer checksum mismatch")


def _checksum(view: memoryview, frames: int, checksums: int) -> int:
    end = _HEADER.size + _ENTRY.size * frames + 4 * checksums
    return crc32c(view[_CRC_AT + 4 : end], crc32c(view[:_CRC_AT]))
