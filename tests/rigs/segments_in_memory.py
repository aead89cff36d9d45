"""Segments made by hand, byte for byte, without device and writer: what goes into objects, and into golden files."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from uuid import UUID

from awsomefsd.base.limits import BLOCK_BYTES
from awsomefsd.io.device.checksum import block_checksums, seed_of
from awsomefsd.io.segment.frame import LARGE_FRAME_BYTES, Frame, align_up, alignment_of, header_bytes_of, pack_header
from awsomefsd.tier.names import SegmentName

CLUSTER = UUID("11111111-2222-3333-4444-555555555555")
ERA = UUID("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
SIZES = (9, 5_000, 70_000, 4_096, 100, 66_000, 1)


def a_segment(
    rng: random.Random,
    name: SegmentName,
    sizes: Sequence[int] = SIZES,
    batch_align: int = BLOCK_BYTES,
    unwritten: Callable[[int], bytes] = bytes,
) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes of a segment up to the end of its data, and offset and sequence of its frames.

    Above BLOCK_BYTES each frame is a batch of its own: the next begins at a multiple of `batch_align`, after what `unwritten` gives.
    """
    raw, frames = bytearray(), []
    for sequence, size in enumerate(sizes, start=1):
        raw += bytes(align_up(len(raw), alignment_of(size)) - len(raw))
        frames.append((len(raw), sequence))
        raw += a_frame(rng, name, sequence, size)
        if size >= LARGE_FRAME_BYTES or batch_align > BLOCK_BYTES:
            raw += bytes(align_up(len(raw), BLOCK_BYTES) - len(raw))
        raw += unwritten(align_up(len(raw), batch_align) - len(raw)) if batch_align > BLOCK_BYTES else b""
    return bytes(raw) + bytes(align_up(len(raw), BLOCK_BYTES) - len(raw)), frames


def a_frame(rng: random.Random, name: SegmentName, sequence: int, size: int) -> bytes:
    data = rng.randbytes(size)
    checksums = block_checksums(data, seed_of(name.segment, name.incarnation, sequence))
    frame = Frame(1, 5, 0, name.segment, name.incarnation, sequence, size, size, header_bytes_of(size), 77, checksums)
    header = bytearray(frame.header_bytes)
    pack_header(frame, memoryview(header))
    return bytes(header) + data
