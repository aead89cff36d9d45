"""fsck of one volume's history: each kept value is seen by a live snapshot, lies on its shelf and is counted there, and nothing else is."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination
from awsomefsd.meta.state.row_codecs import CODEC_OF

Shelf = tuple[int, int]  # (until, chapter)


def check_kept(
    exam: Examination, volume: rows.VolumeRow, clearing: set[int], extent: Callable[[bytes, int, rows.ExtentRow], None]
) -> None:
    """Adds the faults of a volume's history to the examination.

    `clearing`: deleted snapshots, which may have left something.  `extent` is called for (key of the head, until, row) of kept ones.
    """
    _Kept(exam, volume, clearing, extent).check()


class _Kept:
    def __init__(
        self, exam: Examination, volume: rows.VolumeRow, clearing: set[int], extent: Callable[[bytes, int, rows.ExtentRow], None]
    ) -> None:
        self.exam = exam
        self.volume = volume
        self.number = volume.volume
        self.extent = extent
        self.live = {keys.last_u32(key): row.name for key, row in exam.rows(keys.snapshots_range(self.number), rows.SNAPSHOT)}
        self.seeing = sorted(clearing.union(self.live))
        self.rows: Counter[Shelf] = Counter()
        self.bytes: Counter[Shelf] = Counter()

    def where(self, key: bytes, until: int) -> str:
        return f"volume {self.number} {CODEC_OF[keys.kind_of(key)[2]].what} {key[keys.PREFIX_BYTES :].hex()} until {until}"

    def check(self) -> None:
        where = f"volume {self.number}"
        self.exam.equal("newest-snapshot", where, self.volume.newest, max(self.live, default=0))
        if self.volume.newest and self.volume.newest >= self.volume.chapter:
            self.exam.fault("newest-snapshot", where, f"the present chapter is {self.volume.chapter}")
        found = self.exam.rows(keys.snapnames_range(self.number), rows.SNAPNAME)
        named = sorted((row.snapshot, key[keys.PREFIX_BYTES + 4 :].decode(errors="replace")) for key, row in found)
        if named != sorted(self.live.items()):
            self.exam.fault("snapshot-name", where, f"index {named}, snapshots {self.live}")
        for kind in keys.VERSIONED:
            for place, row in self.exam.rows(keys.kind_range(self.number, kind + keys.HISTORY), CODEC_OF[kind]):
                self._value(*keys.history_of(place), row)
        for marker, _ in self.exam.rows(keys.kind_range(self.number, keys.KEPT), rows.MARKER):
            try:
                until, _, key = keys.kept_of(marker)
            except struct.error:
                self.exam.fault("unknown-key", marker.hex(), "too short for a marker")
                continue
            if self.exam.txn.get(keys.history(key, until)) is None:
                self.exam.fault("kept-marker", self.where(key, until), "a marker of a value that is not kept")
        self._shelves()

    def _value(self, key: bytes, until: int, row: rows.Row) -> None:
        chapter: int = row.chapter  # type: ignore[attr-defined]
        at = bisect_left(self.seeing, chapter)
        if at == len(self.seeing) or self.seeing[at] >= until:
            self.exam.fault("kept-unseen", self.where(key, until), f"no snapshot is in chapters {chapter} to {until}")
        if self.exam.txn.get(keys.kept(key, until, chapter)) is None:
            self.exam.fault("kept-marker", self.where(key, until), f"no marker on the shelf of chapter {chapter}")
        shelf = until, chapter
        self.rows[shelf] += 1
        if isinstance(row, rows.ExtentRow):
            self.bytes[shelf] += row.length if row.segment else 0
            self.extent(key, until, row)
        elif isinstance(row, rows.InlineRow):
            self.bytes[shelf] += len(row.data)

    def _shelves(self) -> None:
        stored = {
            keys.shelf_of(key): (row.rows, row.bytes) for key, row in self.exam.rows(keys.kind_range(self.number, keys.SHELF), rows.SHELF)
        }
        for shelf in sorted(self.rows.keys() | stored.keys()):
            where = f"volume {self.number} shelf until {shelf[0]} of chapter {shelf[1]}"
            count, size = stored.get(shelf, (0, 0))
            self.exam.equal("shelf-count", f"{where}, rows", count, self.rows[shelf])
            self.exam.equal("shelf-count", f"{where}, bytes", size, self.bytes[shelf])
