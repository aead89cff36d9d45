"""The layout of one file as a worker knows it: a sorted map of extents, exact inside one window of the file.

The metadata service has the truth; this is a cache of it that commits and truncations of this worker keep exact, so that a file that was
just written is read without asking.  Outside the window nothing is known, which is not the same as a hole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from awsomefsd.base.types import Extent

EVERYWHERE = 1 << 63  # end of a window that reaches past any file


def cut(extent: Extent, start: int, end: int) -> Extent:
    """Returns the part of `extent` inside [start, end), which it must overlap."""
    start, end = max(start, extent.file_offset), min(end, extent.file_offset + extent.length)
    assert start < end
    return Extent(
        start, end - start, extent.segment, extent.incarnation, extent.sequence, extent.frame_offset, extent.header_bytes,
        extent.skip + start - extent.file_offset,
    )  # fmt: skip


class ExtentMap:
    """Extents by file offset, never overlapping; [known_start, known_end) is where the map is exact.  Not thread-safe."""

    __slots__ = ("_extents", "_starts", "known_end", "known_start")

    def __init__(self, *, known_empty: bool = False) -> None:
        self._starts: list[int] = []
        self._extents: list[Extent] = []
        self.known_start = 0
        self.known_end = EVERYWHERE if known_empty else 0

    def __len__(self) -> int:
        return len(self._extents)

    def knows(self, start: int, end: int) -> bool:
        return self.known_start <= start and end <= self.known_end

    def forget(self) -> None:
        self._starts.clear()
        self._extents.clear()
        self.known_start = self.known_end = 0

    def learn(self, start: int, end: int, extents: list[Extent]) -> None:
        """Takes up the layout of [start, end) as the service gave it; the window grows if it touches, else it is replaced."""
        if start > self.known_end or end < self.known_start or self.known_start == self.known_end:
            self.forget()
            self.known_start, self.known_end = start, end
        else:
            self.known_start, self.known_end = min(start, self.known_start), max(end, self.known_end)
            self._punch(start, end)
        for extent in extents:
            part = cut(extent, start, end)
            at = bisect_left(self._starts, part.file_offset)
            self._starts.insert(at, part.file_offset)
            self._extents.insert(at, part)

    def insert(self, extent: Extent) -> None:
        """Takes up a committed extent, which replaces what it covers; ignored where it does not touch the window (it will be asked for)."""
        start, end = extent.file_offset, extent.file_offset + extent.length
        if start > self.known_end or end < self.known_start:
            return
        self.known_start, self.known_end = min(start, self.known_start), max(end, self.known_end)
        starts = self._starts
        if not starts or (start > starts[-1] and start >= starts[-1] + self._extents[-1].length):
            starts.append(start)
            self._extents.append(extent)
            return
        self._punch(start, end)
        at = bisect_left(starts, start)
        starts.insert(at, start)
        self._extents.insert(at, extent)

    def truncate(self, size: int) -> None:
        """Removes what is at or beyond `size`; from there on the map is exact: nothing is there."""
        self._punch(size, EVERYWHERE)
        if self.known_start >= size:
            self.known_start = size
        if self.known_end >= size:
            self.known_end = EVERYWHERE

    def overlapping(self, start: int, end: int) -> list[Extent]:
        """Returns the extents that overlap [start, end), in order, whole."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._starts[first] + self._extents[first].length <= start:
            first += 1
        return self._extents[first : bisect_left(self._starts, end)]

    def _punch(self, start: int, end: int) -> None:
        hit = self.overlapping(start, end)
        if not hit:
            return
        at = bisect_left(self._starts, hit[0].file_offset)
        kept = []
        if hit[0].file_offset < start:
            kept.append(cut(hit[0], hit[0].file_offset, start))
        if hit[-1].file_offset + hit[-1].length > end:
            kept.append(cut(hit[-1], end, hit[-1].file_offset + hit[-1].length))
        self._extents[at : at + len(hit)] = kept
        self._starts[at : at + len(hit)] = [extent.file_offset for extent in kept]
