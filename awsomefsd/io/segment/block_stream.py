"""A run of bytes on its way to one segment: as few pwritev as sensible, and no copy of what lies aligned in memory.

Bytes are queued in the order of their offsets, as views of the caller's memory or of a staging buffer.  What is emitted always ends at a
block; a block that is begun stays in the staging buffer (a block is never written twice).
"""

from __future__ import annotations

from collections.abc import Sequence

from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, MIB
from awsomefsd.io.device.buffers import aligned_buffer, is_aligned
from awsomefsd.io.device.checksum import block_checksums
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.segment.frame import LARGE_FRAME_BYTES, align_up

EMIT_BYTES = 4 * MIB  # queued bytes that are written without waiting for the end of the batch
EMIT_VIEWS_MAX = 512
STAGING_BYTES = 2 * FRAME_BYTES_MAX + 16 * BLOCK_BYTES


def slice_views(views: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """Returns bytes [start, end) of the concatenation of `views`, without a copy."""
    cut = []
    position = 0
    for view in views:
        low, high = max(start - position, 0), min(end - position, len(view))
        if low < high:
            cut.append(view[low:high])
        position += len(view)
        if position >= end:
            break
    return cut


def gather_checksums(views: Sequence[memoryview], seed: int) -> list[int]:
    """Returns the block checksums of the concatenation; every view but the last is a whole number of blocks."""
    checksums = block_checksums(views[0], seed)
    for view in views[1:]:
        checksums += block_checksums(view, seed)
    return checksums


class BlockStream:
    """The stream of one writer: `begin` → (`pad_to`, `staged`, `add`, `emit_if_large`)… → `finish`; `reset` after an error.

    One thread at a time.  Methods that may write (`staged`, `emit_if_large`, `finish`) block for the device and raise OSError.
    """

    def __init__(self) -> None:
        self._staging = aligned_buffer(STAGING_BYTES)
        self._device: BlockDevice | None = None
        self._origin = 0
        self.copied_bytes = 0
        self.reset()

    def reset(self) -> None:
        self._queue: list[memoryview] = []
        self._queued = 0  # bytes
        self._position = 0  # in the segment: where the next byte goes
        self._used = 0  # of the staging buffer
        self._run = 0  # where in the staging buffer the last, unqueued run starts; it ends at `_used`

    def begin(self, device: BlockDevice, origin: int, position: int) -> None:
        """Begins at `position` of the segment that starts at `origin` of the device (both in bytes)."""
        assert not self._queue and self._used == self._run and position % BLOCK_BYTES == 0
        self.reset()
        self._device, self._origin, self._position = device, origin, position

    def pad_to(self, position: int) -> None:
        """Adds zeros up to `position`, less than a block."""
        gap = position - self._position
        assert 0 <= gap < BLOCK_BYTES
        if gap:
            self._take(gap)[:] = bytes(gap)

    def staged(self, header_bytes: int, data_bytes: int) -> memoryview:
        """Returns memory for a header; data of so many bytes follows at once (so both are in the buffer if they are copied)."""
        if self._used + header_bytes + data_bytes + 2 * BLOCK_BYTES > STAGING_BYTES:
            self._emit()
        return self._take(header_bytes)

    def add(self, views: list[memoryview], length: int) -> list[memoryview]:
        """Queues the data of a frame; returns the memory it will be written from, every view but the last in whole blocks."""
        assert self._device is not None
        unit = self._device.logical_block_bytes
        aligned = length >= LARGE_FRAME_BYTES and all(len(view) % BLOCK_BYTES == 0 for view in views[:-1])
        if not aligned or not all(is_aligned(view, unit) for view in views):
            return [self._copy(views, length)]
        tail = len(views[-1]) % BLOCK_BYTES
        whole = [*views[:-1], views[-1][: len(views[-1]) - tail]] if tail else views
        self._enqueue_run()
        for view in whole:
            if len(view):
                self._queue.append(view)
                self._queued += len(view)
                self._position += len(view)
        written = [view for view in whole if len(view)]
        return [*written, self._copy([views[-1][len(views[-1]) - tail :]], tail)] if tail else written

    def emit_if_large(self) -> None:
        """Writes what is queued if it is enough for one call."""
        if self._queued + self._used - self._run >= EMIT_BYTES or len(self._queue) >= EMIT_VIEWS_MAX:
            self._emit()

    def finish(self) -> None:
        """Pads to the end of the block and writes all that is queued."""
        self.pad_to(align_up(self._position, BLOCK_BYTES))
        self._emit()
        assert self._used == self._run == 0

    def _copy(self, views: list[memoryview], length: int) -> memoryview:
        place = self._take(length)
        at = 0
        for view in views:
            place[at : at + len(view)] = view
            at += len(view)
        self.copied_bytes += length
        return place

    def _take(self, length: int) -> memoryview:
        """Returns the next `length` bytes of the stream, in the staging buffer."""
        assert self._used + length <= STAGING_BYTES
        place = self._staging[self._used : self._used + length]
        self._used += length
        self._position += length
        return place

    def _enqueue_run(self) -> None:
        """Queues the staged bytes before a view of the caller's memory; they end at a block, because large frames start at one."""
        assert self._position % BLOCK_BYTES == 0
        if self._used > self._run:
            self._queue.append(self._staging[self._run : self._used])
            self._queued += self._used - self._run
        self._used = self._run = align_up(self._used, BLOCK_BYTES)

    def _emit(self) -> None:
        """Writes what is queued, up to the last whole block; the rest moves to the start of the staging buffer."""
        assert self._device is not None
        rest = self._position % BLOCK_BYTES
        whole = self._used - rest
        if whole > self._run:
            self._queue.append(self._staging[self._run : whole])
            self._queued += whole - self._run
        if self._queue:
            self._device.pwritev(self._queue, self._origin + self._position - rest - self._queued)
        self._staging[:rest] = bytes(self._staging[whole : self._used])
        self._queue, self._queued, self._run, self._used = [], 0, 0, rest
