"""fsck of one volume's data: inline rows, the extent maps against inodes and segments, reverse rows from this side, totals."""

from __future__ import annotations

import stat
from collections import Counter

from awsomefsd.base.limits import INLINE_BYTES_MAX
from awsomefsd.base.types import SEGMENT_FREE
from awsomefsd.meta.machine.filemap import Trims, hidden
from awsomefsd.meta.machine.references import Runs, counted
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination

Segments = dict[int, rows.SegmentRow]
SharedBytes = dict[tuple[int, int], tuple[int, Runs]]  # (segment, frame offset) -> incarnation and what marked extents hold


class VolumeDataCheck:
    """The check of one volume's data; `check` adds its faults to the examination."""

    def __init__(
        self,
        exam: Examination,
        volume: rows.VolumeRow,
        inodes: dict[int, rows.InodeRow],
        segments: Segments,
        live: Counter[int],
        shared: SharedBytes,
    ) -> None:
        self.exam = exam
        self.volume = volume
        self.number = volume.volume
        self.inodes = inodes
        self.segments = segments
        self.live = live  # per segment, over all volumes; what is shared is counted by frame, what is unwritten under 0
        self.shared = shared
        self.counts: Counter[int] = Counter()
        self.stored: Counter[int] = Counter()
        self.allocated: Counter[int] = Counter()
        self.reaping: dict[int, int] = {}  # inode that is gone -> the chapter in which it ended
        self.trims: dict[int, Trims] = {}

    def where(self, ino: int) -> str:
        return f"volume {self.number} inode {ino}"

    def check(self) -> None:
        self._reap_rows()
        self._extents()
        self._inline()
        if self.volume.deleted:
            return  # its rows go one by one; only what counts in segments must be right
        for ino, row in self.inodes.items():
            if stat.S_ISREG(row.mode):
                self.exam.equal("extent-count", self.where(ino), row.extents, self.counts[ino])
                self.exam.equal("stored-bytes", self.where(ino), row.stored_bytes, self.stored[ino])
                self.exam.equal("allocated-bytes", self.where(ino), row.allocated_bytes, self.allocated[ino])
            self.exam.equal("trim-count", self.where(ino), row.trims, len(self.trims.get(ino, ())))
        self.exam.equal("used-bytes", f"volume {self.number}", self.volume.used_bytes, sum(self.stored.values()))

    def _reap_rows(self) -> None:
        for key, row in self.exam.rows(keys.kind_range(0, keys.REAP), rows.REAP):
            kind, number, ino, index = keys.reap_of(key)
            if number != self.number:
                continue
            if kind == keys.REAP_INODE:
                self.reaping[ino] = row.chapter
                if ino in self.inodes:
                    self.exam.fault("reap-stale", self.where(ino), "queued to be reaped, and still there")
            elif kind == keys.REAP_TRIM:
                self.trims.setdefault(ino, []).append((row.start, row.end, index, row.chapter))
                if ino not in self.inodes and not self.volume.deleted and not self.reaping.get(ino):
                    self.exam.fault("reap-stale", self.where(ino), "a trim of an inode that is gone")

    # --- extents ----------------------------------------------------------------------------------------------------------
    def _extents(self) -> None:
        last_ino, last_end = 0, 0
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.EXTENT), rows.EXTENT):
            ino, offset = keys.first_u64(key), keys.last_u64(key)
            where = f"{self.where(ino)} offset {offset}"
            if ino == last_ino and offset < last_end:
                self.exam.fault("extents-overlap", where, f"the extent before ends at {last_end}")
            last_ino, last_end = ino, offset + row.length
            self.counts[ino] += 1
            self.stored[ino] += row.length
            self._bytes(where, ino, offset, row)
            if not self.volume.deleted:
                self._owner(where, ino, offset, row)
            if not row.segment:
                self.allocated[ino] += row.length

    def kept(self, key: bytes, until: int, row: rows.ExtentRow) -> None:
        """An extent of history: it holds bytes as one of the head does, and counts in no total of it."""
        ino, offset = keys.first_u64(key), keys.last_u64(key)
        if row.segment:
            self._bytes(f"{self.where(ino)} offset {offset} until {until}", ino, offset, row, until)

    def _bytes(self, where: str, ino: int, offset: int, row: rows.ExtentRow, until: int = 0) -> None:
        self._holds(row)
        if not row.segment:
            return
        self._place(where, row)
        reverse = keys.reverse_until(keys.reverse(row.segment, row.frame_offset, self.number, ino, offset), until)
        if self.exam.txn.get(reverse) is None:
            self.exam.fault("extent-without-reverse", where, f"segment {row.segment} frame {row.frame_offset}")

    def _holds(self, row: rows.ExtentRow) -> None:
        if row.shared:
            place = (row.segment, row.frame_offset)
            runs = self.shared.get(place, (0, []))[1]
            self.shared[place] = (row.incarnation, counted(runs, row.skip, row.skip + row.length, 1)[0])
        else:
            self.live[row.segment] += row.length

    def _owner(self, where: str, ino: int, offset: int, row: rows.ExtentRow) -> None:
        inode = self.inodes.get(ino)
        if inode is None:
            if ino not in self.reaping:
                self.exam.fault("extent-without-inode", where, "the inode does not exist and is not being reaped")
            return
        if inode.inline or not stat.S_ISREG(inode.mode):
            self.exam.fault("inline-with-extents", where, "the inode says that its data is inline, or is no file")
        if row.segment and offset + row.length > inode.size and not hidden((offset, row), self.trims.get(ino, [])):
            self.exam.fault("extent-past-size", where, f"ends at {offset + row.length}, the file at {inode.size}")

    def _place(self, where: str, row: rows.ExtentRow) -> None:
        segment = self.segments.get(row.segment)
        if segment is None or segment.state == SEGMENT_FREE:
            self.exam.fault("extent-in-free-segment", where, f"segment {row.segment} is free or unknown")
        elif segment.incarnation != row.incarnation:
            self.exam.fault("extent-foreign-incarnation", where, f"{row.incarnation}; segment {row.segment} has {segment.incarnation}")
        elif row.frame_offset + row.header_bytes + row.skip + row.length > segment.committed_bytes:
            self.exam.fault("extent-past-committed", where, f"segment {row.segment} is committed to {segment.committed_bytes}")

    # --- inline -----------------------------------------------------------------------------------------------------------
    def _inline(self) -> None:
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.INLINE), rows.INLINE):
            ino = keys.first_u64(key)
            inode = self.inodes.get(ino)
            self.stored[ino] += len(row.data)
            if self.volume.deleted:
                continue
            if inode is None:
                self.exam.fault("inline-without-inode", self.where(ino), f"{len(row.data)} bytes")
            elif not inode.inline or self.counts[ino]:
                self.exam.fault("inline-with-extents", self.where(ino), f"{len(row.data)} inline bytes and {self.counts[ino]} extents")
            elif not 0 < len(row.data) <= min(INLINE_BYTES_MAX, inode.size):
                self.exam.fault("inline-bytes", self.where(ino), f"{len(row.data)} bytes in a file of {inode.size}")
