"""Memory that O_DIRECT accepts: page-aligned buffers, a bounded pool of them, and the test whether other memory is aligned.

A buffer is an anonymous mmap; its pages cost nothing until they are touched, and a pool keeps the touched ones, because a fresh mapping
of 1 MiB costs 256 page faults a read.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX

MEMORY_ALIGN = 512  # what O_DIRECT asks of addresses on devices with blocks of 512 bytes; devices with larger ones ask for theirs
BOUNCE_BYTES = FRAME_BYTES_MAX + 4 * BLOCK_BYTES  # a whole frame with its header, started and ended in the middle of blocks


def aligned_buffer(length: int) -> memoryview:
    """Returns a zeroed, page-aligned, writable buffer of `length` bytes."""
    return memoryview(mmap.mmap(-1, length))[:length]


def address_of(view: memoryview) -> int | None:
    """Returns the address of a writable, contiguous buffer; None for others (they have to be copied)."""
    if view.readonly or not view.c_contiguous or not view.nbytes:
        return None
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def is_aligned(view: memoryview, unit: int = MEMORY_ALIGN) -> bool:
    address = address_of(view)
    return address is not None and address % unit == 0


class BufferPool:
    """A pool of at most `count` buffers of `buffer_bytes`, lent to threads.  Thread-safe; `take` and `borrow` block while all are lent.

    A borrower waits for nothing but the device while it holds a buffer, so the wait ends.
    """

    def __init__(self, count: int, buffer_bytes: int = BOUNCE_BYTES) -> None:
        assert count > 0
        self.buffer_bytes = buffer_bytes
        self.count = count
        self._made = 0
        self._free: list[memoryview] = []
        self._cond = threading.Condition()

    @contextmanager
    def borrow(self) -> Iterator[memoryview]:
        buffer = self.take()
        try:
            yield buffer
        finally:
            self.give_back(buffer)

    def take(self) -> memoryview:
        with self._cond:
            while not self._free and self._made == self.count:
                self._cond.wait()
            if self._free:
                return self._free.pop()
            self._made += 1
        return aligned_buffer(self.buffer_bytes)

    def tidy(self) -> None:
        """Gives back the memory of the buffers that are not lent."""
        with self._cond:
            self._made -= len(self._free)
            self._free.clear()

    def give_back(self, buffer: memoryview) -> None:
        with self._cond:
            self._free.append(buffer)
            self._cond.notify()


class BufferShare:
    """One of those who share a pool: it is lent `most` buffers at a time, and waits for its own before it waits for those of others."""

    def __init__(self, pool: BufferPool, most: int) -> None:
        self._pool = pool
        self._left = threading.BoundedSemaphore(most)

    @contextmanager
    def borrow(self) -> Iterator[memoryview]:
        with self._left, self._pool.borrow() as buffer:
            yield buffer
