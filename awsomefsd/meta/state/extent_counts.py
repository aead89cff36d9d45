"""The extents of large files are counted once, in portions, and the count follows every change.

An inode says how many extents it has; a row that is gone shows where fewer are found.  Counting those of a large file takes seconds, so
each question counts a portion, and what is found stays in memory.  This is no part of the state: voters may know different files.
"""

from __future__ import annotations

from awsomefsd.base.limits import EXTENT_COUNTS_MAX, EXTENTS_PER_PORTION
from awsomefsd.meta.state import history
from awsomefsd.meta.state.txn import Txn

_ALL = 1 << 64  # above every file offset: the count is complete


class ExtentCounts:
    """Used by the thread of the state only.  At most EXTENT_COUNTS_MAX files; those that were asked for longest ago are forgotten."""

    __slots__ = ("_counts", "_txn")

    def __init__(self, txn: Txn) -> None:
        self._txn = txn
        self._counts: dict[tuple[int, int], tuple[int, int]] = {}  # (volume, ino) -> offset below which is counted, and the count

    def count(self, volume: int, ino: int) -> int | None:
        """Counts one portion more.  Returns the number of extents, hidden ones too; None while there is more to count.  Raises Corrupt."""
        counted, number = self._counts.pop((volume, ino), (0, 0))
        if counted < _ALL:
            here = 0
            for here, offset in enumerate(history.extent_offsets(self._txn, volume, ino, counted), 1):
                if here == EXTENTS_PER_PORTION:
                    counted = offset + 1
                    break
            else:
                counted = _ALL
            number += here
        self._counts[volume, ino] = counted, number
        if len(self._counts) > EXTENT_COUNTS_MAX:
            del self._counts[next(iter(self._counts))]
        return number if counted == _ALL else None

    def note(self, volume: int, ino: int, offset: int, change: int) -> None:
        """An extent at a file offset was added (1) or removed (-1)."""
        known = self._counts.get((volume, ino))
        if known is not None and offset < known[0]:
            self._counts[volume, ino] = known[0], known[1] + change

    def forget(self) -> None:
        """Rows were changed by something that does not note it."""
        self._counts.clear()
