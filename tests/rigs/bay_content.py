"""Segments as the production writer makes them, for bays: frames large and small, in several batches, with a footer or without."""

from __future__ import annotations

import random

from awsomefsd.base.types import SEGMENT_LEASED, SegmentInfo
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.pool.bay_walk import BayExtent
from awsomefsd.io.segment.footer import unpack_footer
from awsomefsd.io.segment.frame import header_bytes_of
from awsomefsd.io.segment.writer import Piece, SegmentWriter

SIZES = (1, 100, 4_096, 5_000, 60_000, 65_536, 70_001, 300_000, 1_048_576)


class Content:
    """The bytes of one segment up to its end; `frames`: (offset, header bytes, stored bytes) of each, as its footer says."""

    def __init__(self, raw: bytes, extent: BayExtent, frames: list[tuple[int, int, int]], data_bytes: int) -> None:
        self.raw, self.extent, self.frames, self.data_bytes = raw, extent, frames, data_bytes


def content(
    segment: int = 70, seed: int = 1, room: int = 4 << 20, batches: int = 6, footer: bool = True, incarnation: int = 1
) -> Content:
    rng = random.Random(seed)
    device = MemoryDevice(room)
    info = SegmentInfo(segment, incarnation, 1, 0, room, SEGMENT_LEASED, 0)
    leased = [info]
    writer = SegmentWriter({1: device}, lambda _count: [leased.pop()], None, lambda: 42)
    total = 0
    for _ in range(batches):
        sizes = rng.choices(SIZES, k=rng.randrange(1, 6))
        if total + sum(sizes) > room * 2 // 3:
            break
        total += sum(sizes)
        writer.write([Piece(3, number, 0, [memoryview(rng.randbytes(size))]) for number, size in enumerate(sizes)])
    (step,) = writer.seal_all()
    end = step.footer_offset + step.footer_bytes
    raw = bytearray(end)
    view = memoryview(raw)
    device.preadv([view], 0)
    table = unpack_footer(view[step.footer_offset :], segment, incarnation)
    frames = [(frame.frame_offset, header_bytes_of(frame.stored_bytes), frame.stored_bytes) for frame in table]
    if not footer:
        return Content(bytes(raw[: step.footer_offset]), BayExtent(segment, incarnation, step.footer_offset), frames, total)
    return Content(bytes(raw), BayExtent(segment, incarnation, end, step.footer_offset), frames, total)
