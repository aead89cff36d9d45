"""Read-ahead: a file that is read from front to back finds its next frames in memory.

`observe` sees every read of a handle and says which range is worth having; the file layer maps that range to extents and hands them to
`prefetch`; a thread of its own reads them whole; `read` (the reader's own signature) takes from memory what is there, waits for what is
under way, and reads the rest itself.  What is kept can never be stale, because its key is the identity of a frame, written once.

Memory is a fixed number of frame-sized buffers.  A frame that was read to its end gives its buffer back at once (the kernel caches the
pages); otherwise the least recently used one goes.  Bytes are copied out under the lock: the copy holds the interpreter's lock anyway, so
nothing is lost, and no buffer can be recycled under a reader.  Extents below PREFETCH_BYTES_MIN are left alone: they would waste a buffer
each.  An error while prefetching is forgotten; whoever needs the bytes meets it, and reports it, himself.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from awsomefsd.errors import Error
from awsomefsd.io.buffers import aligned_buffer
from awsomefsd.limits import FRAME_BYTES_MAX, KIB, OPEN_FILES_MAX, READ_AHEAD_BYTES_MAX, READ_CACHE_BYTES_MAX
from awsomefsd.types import Extent

PREFETCH_BYTES_MIN = 64 * KIB
WINDOW_BYTES_MIN = 1024 * KIB  # of read-ahead when a sequence is recognised; doubles up to READ_AHEAD_BYTES_MAX
DISORDER_BYTES_MAX = 1024 * KIB  # reads of one handle come by several threads, so "next" is not exact
SEQUENCE_READS_MIN = 2  # so many reads in a row are a sequence

log = logging.getLogger("awsomefsd.readahead")

_Key = tuple[int, int, int, int]


class ExtentReader(Protocol):
    def read(self, extent: Extent, volume: int, ino: int, skip: int, length: int, into: memoryview) -> None: ...


class ReadAheadStatistics(Struct, frozen=True):
    """`hits` were served from memory (`waited` of them were still under way), `wasted` frames left memory without being read."""

    bytes_used: int
    bytes_max: int
    prefetched: int
    hits: int
    waited: int
    misses: int
    wasted: int
    skipped: int  # for want of a buffer


class _Sequence:
    """What one handle does: where it should go on, how far was asked for already."""

    __slots__ = ("ahead", "expected", "reads", "window")

    def __init__(self, offset: int) -> None:
        self.expected = offset
        self.ahead = 0
        self.reads = 0
        self.window = WINDOW_BYTES_MIN


class _Frame:
    """Part of a frame in memory, or on its way there."""

    __slots__ = ("buffer", "extent", "failed", "ino", "ready", "used", "volume")

    def __init__(self, extent: Extent, volume: int, ino: int, buffer: memoryview) -> None:
        self.extent = extent
        self.volume = volume
        self.ino = ino
        self.buffer = buffer
        self.ready = threading.Event()
        self.failed = False
        self.used = False


class ReadAhead:
    """Thread-safe.  `start` and `stop` run its thread; without it, `read` is the reader's."""

    def __init__(self, reader: ExtentReader, bytes_max: int = READ_CACHE_BYTES_MAX) -> None:
        self._reader = reader
        self._buffers_max = bytes_max // FRAME_BYTES_MAX
        self._buffers_made = 0
        self._free: list[memoryview] = []
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._frames: OrderedDict[_Key, _Frame] = OrderedDict()
        self._queue: deque[_Frame] = deque()
        self._sequences: OrderedDict[int, _Sequence] = OrderedDict()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._prefetched = self._hits = self._waited = self._misses = self._wasted = self._skipped = 0

    def start(self) -> None:
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; readers that wait for it read themselves."""
        with self._lock:
            self._abort()
        if self._thread is not None:
            self._thread.join()

    # --- what to read ahead --------------------------------------------------------------------------------------------------

    def observe(self, handle: int, offset: int, length: int) -> tuple[int, int] | None:
        """A handle reads [offset, offset + length): the range of the file to prefetch now, if this is a sequence."""
        with self._lock:
            sequence = self._sequences.get(handle)
            if sequence is None or abs(offset - sequence.expected) > DISORDER_BYTES_MAX:  # new, or a jump
                sequence = self._sequences[handle] = _Sequence(offset)
                if len(self._sequences) > OPEN_FILES_MAX:
                    self._sequences.popitem(last=False)
            sequence.reads += 1
            sequence.expected = max(sequence.expected, offset + length)
            if sequence.reads < SEQUENCE_READS_MIN or sequence.ahead > sequence.expected + sequence.window // 2:
                return None
            if sequence.ahead:
                sequence.window = min(sequence.window * 2, READ_AHEAD_BYTES_MAX)
            start = max(sequence.ahead, sequence.expected)
            sequence.ahead = sequence.expected + sequence.window
            return (start, sequence.ahead) if start < sequence.ahead else None

    def forget(self, handle: int) -> None:
        """The handle was closed."""
        with self._lock:
            self._sequences.pop(handle, None)

    def prefetch(self, extents: Sequence[Extent], volume: int, ino: int) -> None:
        """Read these extents, whole, in the background.  Never waits; what finds no buffer is left out."""
        with self._lock:
            if self._thread is None or self._stopping:
                return
            for extent in extents:
                key = _key(extent)
                if not PREFETCH_BYTES_MIN <= extent.length <= FRAME_BYTES_MAX or key in self._frames:
                    continue
                buffer = self._buffer()
                if buffer is None:
                    self._skipped += 1
                    continue
                frame = self._frames[key] = _Frame(extent, volume, ino, buffer)
                self._queue.append(frame)
            self._work.notify()

    # --- reading ---------------------------------------------------------------------------------------------------------------

    def read(self, extent: Extent, volume: int, ino: int, skip: int, length: int, into: memoryview) -> None:
        """Like SegmentReader.read."""
        key = _key(extent)
        frame = self._frames.get(key)
        if frame is not None:
            waits = not frame.ready.is_set()
            frame.ready.wait()
            if self._take(key, frame, extent, skip, length, into, waits=waits):
                return
        else:
            self._misses += 1
        self._reader.read(extent, volume, ino, skip, length, into)

    def statistics(self) -> ReadAheadStatistics:
        with self._lock:
            used = (self._buffers_made - len(self._free)) * FRAME_BYTES_MAX
            return ReadAheadStatistics(
                used, self._buffers_max * FRAME_BYTES_MAX, self._prefetched, self._hits, self._waited, self._misses, self._wasted,
                self._skipped,
            )  # fmt: skip

    def _take(self, key: _Key, frame: _Frame, extent: Extent, skip: int, length: int, into: memoryview, *, waits: bool) -> bool:
        start = extent.skip + skip - frame.extent.skip
        with self._lock:
            inside = start >= 0 and start + length <= frame.extent.length
            if frame.failed or self._frames.get(key) is not frame or not inside:
                self._misses += 1
                return False
            into[:length] = frame.buffer[start : start + length]
            frame.used = True
            self._hits += 1
            self._waited += waits
            if start + length == frame.extent.length:
                self._drop(frame)
            else:
                self._frames.move_to_end(key)
            return True

    # --- called with the lock -----------------------------------------------------------------------------------------------------

    def _buffer(self) -> memoryview | None:
        if self._free:
            return self._free.pop()
        if self._buffers_made < self._buffers_max:
            self._buffers_made += 1
            return aligned_buffer(FRAME_BYTES_MAX)
        for frame in self._frames.values():
            if frame.ready.is_set():
                self._drop(frame)
                return self._free.pop()
        return None

    def _drop(self, frame: _Frame, *, failed: bool = False) -> None:
        """Its buffer may be used again.  Nobody fills it now: it is ready, or still queued."""
        self._wasted += not frame.used and not failed
        frame.failed = frame.failed or failed
        del self._frames[_key(frame.extent)]
        self._free.append(frame.buffer)
        frame.ready.set()

    def _abort(self) -> None:
        self._stopping = True
        while self._queue:
            self._drop(self._queue.popleft(), failed=True)
        self._work.notify_all()

    # --- the thread ------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (frame := self._next()) is not None:
                self._fill(frame)
        finally:  # whatever ended it: nobody may wait for this thread any more
            with self._lock:
                self._abort()

    def _next(self) -> _Frame | None:
        with self._lock:
            while not self._queue and not self._stopping:
                self._work.wait()
            return self._queue.popleft() if self._queue else None

    def _fill(self, frame: _Frame) -> None:
        filled = False
        try:
            self._reader.read(frame.extent, frame.volume, frame.ino, 0, frame.extent.length, frame.buffer)
            filled = True
        except (OSError, Error) as err:
            log.debug("read-ahead left out a frame: %s", err)
        finally:
            with self._lock:
                if filled:
                    self._prefetched += 1
                    frame.ready.set()
                else:
                    self._drop(frame, failed=True)


def _key(extent: Extent) -> _Key:
    """The frame, and which part of it: several extents may name parts of one frame."""
    return extent.segment, extent.incarnation, extent.sequence, extent.skip
