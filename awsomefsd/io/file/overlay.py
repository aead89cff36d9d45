"""Overlapping writes become the fewest pieces: later ones win, neighbours join.

The dirty log keeps every write as its own record.  Before a flush the records of a file are laid over each other, so a block that was
written a thousand times goes to the device once, and a run of small appends becomes one frame.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from awsomefsd.io.segment.block_stream import slice_views


class RecordOverlay:
    """Non-overlapping [start, end) runs, each a list of buffers in order.  Not thread-safe."""

    __slots__ = ("_data", "_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._data: list[list[memoryview]] = []

    def put(self, start: int, data: memoryview) -> None:
        """Lays `data` over what is there."""
        end = start + len(data)
        if start == end:
            return
        if self._ends and start == self._ends[-1]:  # an append, the usual case
            self._ends[-1] = end
            self._data[-1].append(data)
            return
        if not self._ends or start > self._ends[-1]:
            self._add(len(self._starts), start, end, [data])
            return
        self._punch(start, end)
        self._add(bisect_left(self._starts, start), start, end, [data])

    def runs(self) -> list[tuple[int, list[memoryview]]]:
        """Returns (start, buffers) in order; neighbours that touch are one run."""
        joined: list[tuple[int, list[memoryview]]] = []
        last_end = -1
        for start, end, data in zip(self._starts, self._ends, self._data, strict=True):
            if start == last_end:
                joined[-1][1].extend(data)
            else:
                joined.append((start, list(data)))
            last_end = end
        return joined

    def _add(self, at: int, start: int, end: int, data: list[memoryview]) -> None:
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self._data.insert(at, data)

    def _punch(self, start: int, end: int) -> None:
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        left_start, right_end = self._starts[first], self._ends[last - 1]
        left = slice_views(self._data[first], 0, start - left_start) if left_start < start else []
        right_from = end - self._starts[last - 1]
        right = slice_views(self._data[last - 1], right_from, right_end - self._starts[last - 1]) if right_end > end else []
        del self._starts[first:last], self._ends[first:last], self._data[first:last]
        if right:
            self._add(first, end, right_end, right)
        if left:
            self._add(first, left_start, start, left)
