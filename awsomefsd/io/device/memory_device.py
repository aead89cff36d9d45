"""A device in memory that records, forgets, tears and fails: the second user of the `BlockDevice` seam.

It keeps what was written apart from what was flushed.  `crash` gives the device as it could be found after a power cut: everything flushed
is there, and of what was not, each block is there or not as `survives` decides (a torn write).  It asserts the writer's promise that no
block is written twice between two calls of `allow_rewrites`, and that no write touches a physical block which holds something flushed: such
a device rewrites the whole physical block, and a power cut tears it.  A write that fails leaves its first half.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from awsomefsd.base.limits import BLOCK_BYTES


class MemoryDevice:
    """A device in memory.

    `on_write(offset, length)`, `on_read(offset, length)` and `on_flush()` are called first and may raise OSError.
    """

    def __init__(self, size: int, path: str = "memory", physical_block_bytes: int = BLOCK_BYTES) -> None:
        self.path = path
        self.bytes = size
        self.logical_block_bytes = 512
        self.physical_block_bytes = physical_block_bytes
        self.direct = True
        self.failed = False  # stays so: it is never opened anew
        self.content = bytearray(size)
        self.durable: dict[int, bytes] = {}  # block number -> what a power cut would leave there, for blocks that were not flushed
        self.written_blocks: set[int] = set()
        self.flushed_blocks: set[int] = set()  # physical ones
        self.writes: list[tuple[int, int]] = []
        self.reads: list[tuple[int, int]] = []
        self.flushes = 0
        self.write_once = True
        self.on_write: Callable[[int, int], None] = lambda _offset, _length: None
        self.on_read: Callable[[int, int], None] = lambda _offset, _length: None
        self.on_flush: Callable[[], None] = lambda: None

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        return self.preadv([buffer], offset)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        total = sum(map(len, buffers))
        self._check_alignment(buffers, offset)
        self.reads.append((offset, total))
        self.on_read(offset, total)
        start = offset
        for buffer in buffers:
            part = self.content[offset : offset + len(buffer)]
            buffer[: len(part)] = part
            offset += len(part)
        return offset - start

    def pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        total = sum(map(len, buffers))
        self._check_alignment(buffers, offset)
        if offset + total > self.bytes:
            raise OSError(errno.ENOSPC, "beyond the end", self.path)
        blocks = range(offset // BLOCK_BYTES, -(-(offset + total) // BLOCK_BYTES))
        assert not (self.write_once and self.written_blocks.intersection(blocks)), "a block is written twice"
        physical = {block * BLOCK_BYTES // self.physical_block_bytes for block in blocks}
        assert not (self.write_once and self.flushed_blocks.intersection(physical)), "a physical block with flushed bytes is written again"
        self.written_blocks.update(blocks)  # also when it fails: the device may have taken it
        self.writes.append((offset, total))
        try:
            self.on_write(offset, total)
        except OSError:
            self._store(offset, b"".join(buffers)[: total // 2])
            raise
        self._store(offset, b"".join(buffers))

    def _store(self, offset: int, data: bytes) -> None:
        for block in range(offset // BLOCK_BYTES, -(-(offset + len(data)) // BLOCK_BYTES)):
            self.durable.setdefault(block, bytes(self.content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]))
        self.content[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushes += 1
        self.on_flush()
        self.durable.clear()
        written = tuple(self.written_blocks)  # at once: other nodes write meanwhile
        self.flushed_blocks.update(block * BLOCK_BYTES // self.physical_block_bytes for block in written)

    def allow_rewrites(self) -> None:
        self.written_blocks.clear()
        self.flushed_blocks.clear()

    def crash(self, survives: Callable[[int], bool] = lambda _block: False) -> MemoryDevice:
        """Returns the device after a power cut; `survives(block)` decides on each block that was written and not flushed."""
        after = MemoryDevice(self.bytes, self.path, self.physical_block_bytes)
        after.content[:] = self.content
        for block, old in self.durable.items():
            if not survives(block):
                after.content[block * BLOCK_BYTES : block * BLOCK_BYTES + len(old)] = old
        return after

    def _check_alignment(self, buffers: Sequence[memoryview], offset: int) -> None:
        lengths = [len(buffer) for buffer in buffers]
        if offset % self.logical_block_bytes or any(length % self.logical_block_bytes for length in lengths):
            raise OSError(errno.EINVAL, f"unaligned I/O at {offset}: {lengths}", self.path)
