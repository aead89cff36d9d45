"""Caches bounded in bytes: the least recently used entry goes first.  One class serves checksum tables and read-ahead data.

A cached entry can never be stale: keys hold (segment, incarnation, …), and what they name is written once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from msgspec import Struct

from awsomefsd.base.limits import CHECKSUM_CACHE_BYTES_MAX
from awsomefsd.io.segment.footer import ChecksumTable, FrameChecks

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_FRAME_OVERHEAD_BYTES = 400  # of a FrameChecks with its key, measured


class CacheStatistics(Struct, frozen=True):
    """The figures of one cache; the counters are since it was made."""

    bytes_used: int
    bytes_max: int
    entries: int
    hits: int
    misses: int
    evictions: int


class ByteLru(Generic[K, V]):
    """A map that holds at most `bytes_max`.  Thread-safe.  `on_drop` gets every value that leaves, outside the lock."""

    def __init__(self, bytes_max: int, on_drop: Callable[[V], None] | None = None) -> None:
        self._bytes_max = bytes_max
        self._on_drop = on_drop
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: K) -> V | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Stores a value of `size` bytes.  A value larger than the whole cache is not kept (and dropped at once)."""
        dropped: list[V] = []
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self._bytes -= old[1]
                dropped.append(old[0])
            if size > self._bytes_max:
                dropped.append(value)
            else:
                self._entries[key] = (value, size)
                self._bytes += size
            dropped += self._evict()
        self._dropped(dropped)

    def _evict(self) -> list[V]:
        dropped: list[V] = []
        while self._bytes > self._bytes_max:
            _, (victim, victim_size) = self._entries.popitem(last=False)
            self._bytes -= victim_size
            self._evictions += 1
            dropped.append(victim)
        return dropped

    def bound(self, bytes_max: int) -> None:
        with self._lock:
            self._bytes_max = bytes_max
            dropped = self._evict()
        self._dropped(dropped)

    def discard(self, key: K) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._bytes -= entry[1]
        if entry is not None:
            self._dropped([entry[0]])

    def clear(self) -> None:
        with self._lock:
            dropped = [value for value, _ in self._entries.values()]
            self._entries.clear()
            self._bytes = 0
        self._dropped(dropped)

    def statistics(self) -> CacheStatistics:
        with self._lock:
            return CacheStatistics(self._bytes, self._bytes_max, len(self._entries), self._hits, self._misses, self._evictions)

    def _dropped(self, values: list[V]) -> None:
        if self._on_drop is not None:
            for value in values:
                self._on_drop(value)


class ChecksumCache:
    """The checksums that are known: whole segments by their footers, single frames by their headers or because we wrote them.

    Thread-safe.
    """

    def __init__(self, bytes_max: int = CHECKSUM_CACHE_BYTES_MAX) -> None:
        self._tables: ByteLru[tuple[int, int], ChecksumTable] = ByteLru(bytes_max // 2)
        self._frames: ByteLru[tuple[int, int, int], FrameChecks] = ByteLru(bytes_max - bytes_max // 2)

    def bound(self, share: float) -> None:
        """Sets the share (0 to 1) of CHECKSUM_CACHE_BYTES_MAX that may be used from now on."""
        for cache in (self._tables, self._frames):
            cache.bound(int(CHECKSUM_CACHE_BYTES_MAX // 2 * share))

    def table(self, segment: int, incarnation: int) -> ChecksumTable | None:
        return self._tables.get((segment, incarnation))

    def frame(self, segment: int, incarnation: int, sequence: int) -> FrameChecks | None:
        return self._frames.get((segment, incarnation, sequence))

    def remember_table(self, table: ChecksumTable) -> None:
        self._tables.put((table.segment, table.incarnation), table, table.memory_bytes)

    def remember_frame(self, frame: FrameChecks) -> None:
        size = _FRAME_OVERHEAD_BYTES + 4 * len(frame.checksums)
        self._frames.put((frame.segment, frame.incarnation, frame.sequence), frame, size)

    def forget(self, segment: int, incarnation: int, sequence: int) -> None:
        """Drops what is known of a frame, so that a second read takes it from the device."""
        self._tables.discard((segment, incarnation))
        self._frames.discard((segment, incarnation, sequence))

    def statistics(self) -> tuple[CacheStatistics, CacheStatistics]:
        """Returns the figures of footers and of single frames."""
        return self._tables.statistics(), self._frames.statistics()
