"""Leaving devices that are being drained, by one thread while another one writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.types import SEGMENT_LEASED, SegmentInfo
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.file.draining import Draining
from awsomefsd.io.segment.writer import Piece, SegmentWriter

DEVICE, MIB = 1, 1 << 20


class Moving:
    """What is known of a segment; when its device is asked for, another thread has just leased one more."""

    def __init__(self, info: SegmentInfo, then: Callable[[], None]) -> None:
        self._info = info
        self._then = then

    def __getattr__(self, name: str) -> Any:
        if name == "device":
            self._then()
        return getattr(self._info, name)


def test_a_segment_that_is_leased_while_the_devices_are_looked_through() -> None:
    """The thread that flushes looks, the one that writes through leases: the look must not end with an error, and the thread with it."""
    free = [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(4)]
    writer = SegmentWriter({DEVICE: MemoryDevice(8 * MIB)}, lambda count: [free.pop(0)])
    writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
    first = writer._leased[0]
    first.info = Moving(first.info, lambda: writer._leased.append(first))  # type: ignore[assignment]
    asked: list[int] = []

    def draining() -> set[int]:
        asked.append(1)
        return set()

    Draining(writer, draining, lambda progress: None).poll()
    assert asked, "it looked for what is drained"
