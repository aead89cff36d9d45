"""The third step of a repair goes a volume at a time: the bytes of files, and their places.

The first rule: a byte that is not known any more is EIO, never a zero.  An extent that is gone would be a hole, and a hole reads
as zeros; so where an inode counts more extents than there are, the missing ones are made again from the reverse rows and the frames on the
device if their length follows from the inode's totals, and else become *lost* extents.  A lost one stays until the range is overwritten or
cut.  An extent whose place is used by another one, or is unknown, becomes lost too.  Of two that overlap, the later one is believed.
"""

from __future__ import annotations

import stat
from collections import Counter
from itertools import pairwise

from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_METADATA, SEGMENT_SEALED
from awsomefsd.meta.check.repair_rows import lose_unknown, lost
from awsomefsd.meta.check.repair_txn import FrameFacts, RepairTxn
from awsomefsd.meta.machine.device_numbers import index_of
from awsomefsd.meta.machine.filemap import Trims, hidden
from awsomefsd.meta.machine.references import Runs, counted
from awsomefsd.meta.state import extents, keys, rows
from awsomefsd.meta.state.extents import Piece

Shared = dict[tuple[int, int], tuple[int, Runs]]
Reverse = dict[tuple[int, int], list[tuple[int, int, int, int]]]  # (volume, ino) -> (file offset, segment, frame offset, incarnation)


class References:
    """The references that the extents of all volumes make to segments: live bytes, shared runs, reverse rows."""

    def __init__(self, repairs: RepairTxn) -> None:
        self.repairs = repairs
        self.segments: dict[int, rows.SegmentRow] = {
            row.segment: row for _, row in repairs.scan(keys.kind_range(0, keys.SEGMENT), rows.SEGMENT)
        }
        self.shared: Shared = {}
        self.reverse: dict[bytes, bytes] = {}
        self.live: Counter[int] = Counter()
        self.stale: Reverse = {}
        for key, row in repairs.scan(keys.kind_range(0, keys.REVERSE), rows.REVERSE):
            segment, frame_offset, volume, ino, offset, until = keys.reverse_of(key)
            if not until and repairs.overlay.get(keys.extent(volume, ino, offset)) is None:
                self.stale.setdefault((volume, ino), []).append((offset, segment, frame_offset, row.incarnation))

    def usable(self, where: str, row: rows.ExtentRow) -> bool:
        """Returns True if the place of an extent can still have its bytes, and repairs the row of the segment so that it says so."""
        segment = self.segments.get(row.segment)
        device = self.repairs.device_of(row.segment)
        end = row.frame_offset + row.header_bytes + row.skip + row.length
        if device is None or end > device.segment_bytes:
            return False
        if segment is None:
            segment = self.segments[row.segment] = rows.SegmentRow(
                row.segment, device.device, index_of(device, row.segment), SEGMENT_SEALED, row.incarnation
            )
            self.repairs.note(f"segment {row.segment}", f"its row is made again, for {where}")
        if segment.incarnation != row.incarnation or segment.state == SEGMENT_METADATA:
            return False
        if segment.state == SEGMENT_FREE:
            segment.state, segment.freed_index = SEGMENT_SEALED, 0
            self.repairs.note(f"segment {row.segment}", f"is not free: it holds bytes of {where}")
        if segment.committed_bytes < end:
            self.repairs.correct(f"segment {row.segment}", segment, committed_bytes=end)
        return True

    def add(self, volume: int, ino: int, offset: int, row: rows.ExtentRow) -> None:
        if row.segment:
            key = keys.reverse(row.segment, row.frame_offset, volume, ino, offset)
            self.reverse[key] = rows.REVERSE.dumps(rows.ReverseRow(row.incarnation))
        if row.shared:
            place = (row.segment, row.frame_offset)
            runs = self.shared.get(place, (0, []))[1]
            self.shared[place] = (row.incarnation, counted(runs, row.skip, row.skip + row.length, 1)[0])
        else:
            self.live[row.segment] += row.length

    def frame(self, segment: int, frame_offset: int) -> FrameFacts | None:
        device = self.repairs.device_of(segment)
        if device is None:
            return None
        at = device.first_segment_offset + index_of(device, segment) * device.segment_bytes + frame_offset
        return self.repairs.hints.frame(device.uuid, at)

    def finish(self) -> None:
        """Writes the rows that follow from all references.  Call it once after the last volume."""
        for (segment, _), (_, runs) in self.shared.items():
            self.live[segment] += sum(end - start for start, end, _ in runs)
        expected = {
            keys.shared(*place): rows.SHARED.dumps(rows.SharedRow(incarnation, runs)) for place, (incarnation, runs) in self.shared.items()
        }
        self.repairs.index(keys.kind_range(0, keys.SHARED), expected, "counts of shared places")
        self.repairs.index(keys.kind_range(0, keys.REVERSE), self.reverse, "reverse rows")
        for row in self.segments.values():
            self.repairs.correct(f"segment {row.segment}", row, live_bytes=self.live[row.segment])
            self.repairs.put(keys.segment(row.segment), row, rows.SEGMENT)


class VolumeDataRepair:
    """The repair of one volume's data; `repair` adds its references to those of the other volumes."""

    def __init__(self, repairs: RepairTxn, volume: rows.VolumeRow, references: References) -> None:
        self.repairs = repairs
        self.volume = volume
        self.number = volume.volume
        self.references = references
        self.inodes: dict[int, rows.InodeRow] = {
            keys.first_u64(key): row for key, row in repairs.scan(keys.kind_range(self.number, keys.INODE), rows.INODE)
        }
        self.used = 0
        self.trims: dict[int, Trims] = {}
        self.reaping: set[int] = set()

    def where(self, ino: int) -> str:
        return f"volume {self.number} inode {ino}"

    def repair(self) -> None:
        self._reaps()
        for ino, row in self.inodes.items():
            if row.trims > len(self.trims.get(ino, ())) and row.extents:
                lose_unknown(self.repairs, self.number, ino, self.repairs.cluster().applied_index)
            self.repairs.correct(self.where(ino), row, trims=len(self.trims.get(ino, ())))
        found: dict[int, list[Piece]] = {}
        for key, extent in self.repairs.scan(keys.kind_range(self.number, keys.EXTENT), rows.EXTENT):
            found.setdefault(keys.first_u64(key), []).append((keys.last_u64(key), extent))
        inline = {keys.first_u64(key): row for key, row in self.repairs.scan(keys.kind_range(self.number, keys.INLINE), rows.INLINE)}
        for ino in sorted(self.inodes.keys() | found.keys() | inline.keys()):
            self._file(ino, found.get(ino, []), inline.get(ino))
        self.repairs.correct(f"volume {self.number}", self.volume, used_bytes=self.used)
        for ino, row in self.inodes.items():
            self.repairs.put(keys.inode(self.number, ino), row, rows.INODE)
        self.repairs.put(keys.volume(self.number), self.volume, rows.VOLUME)

    def _reaps(self) -> None:
        for key, row in self.repairs.scan(keys.kind_range(0, keys.REAP), rows.REAP):
            kind, volume, ino, index = keys.reap_of(key)
            if volume != self.number or kind not in (keys.REAP_INODE, keys.REAP_TRIM):
                continue
            if (kind == keys.REAP_INODE) == (ino in self.inodes) and not self.volume.deleted:
                self.repairs.overlay.delete(key)
                self.repairs.note(self.where(ino), "what was queued to be freed of it is not any more")
            elif kind == keys.REAP_INODE:
                self.reaping.add(ino)
            else:
                self.trims.setdefault(ino, []).append((row.start, row.end, index, row.chapter))

    def _file(self, ino: int, pieces: list[Piece], inline: rows.InlineRow | None) -> None:
        row = self.inodes.get(ino)
        old = list(pieces)
        if row is None:
            if ino not in self.reaping and not self.volume.deleted:
                pieces = []
            inline = inline if self.volume.deleted else None
        elif not stat.S_ISREG(row.mode):
            pieces, inline = [], None
        else:
            pieces, inline = self._inline(ino, row, pieces, inline)
            pieces = self._complete(ino, row, pieces)
            pieces = self._cut(ino, row, pieces)
        pieces = [self._placed(ino, piece) for piece in self._disjoint(ino, pieces)]
        self._write(ino, old, pieces, inline)
        stored = sum(piece[1].length for piece in pieces) + (len(inline.data) if inline is not None else 0)
        self.used += stored
        if row is not None:
            totals = {"extents": len(pieces), "stored_bytes": stored}
            totals["allocated_bytes"] = sum(piece[1].length for piece in pieces if not piece[1].segment)
            if stat.S_ISREG(row.mode) and (pieces or inline is not None) and row.inline != (inline is not None):
                self.repairs.correct(self.where(ino), row, inline=inline is not None)
            if stat.S_ISREG(row.mode):
                self.repairs.correct(self.where(ino), row, **totals)

    def _write(self, ino: int, old: list[Piece], pieces: list[Piece], inline: rows.InlineRow | None) -> None:
        overlay = self.repairs.overlay
        kept = {offset for offset, _ in pieces}
        gone = [offset for offset, _ in old if offset not in kept]
        for offset in gone:
            overlay.delete(keys.extent(self.number, ino, offset))
        for offset, extent in pieces:
            self.repairs.put(keys.extent(self.number, ino, offset), extent, rows.EXTENT)
            self.references.add(self.number, ino, offset, extent)
        if gone:
            self.repairs.note(self.where(ino), f"{len(gone)} extents are removed or lie elsewhere now")
        if inline is None:
            if overlay.delete(keys.inline(self.number, ino)):
                self.repairs.note(self.where(ino), "inline data is removed: no inode has it")
        else:
            self.repairs.put(keys.inline(self.number, ino), inline, rows.INLINE)

    # --- what is missing ---------------------------------------------------------------------------------------------------------
    def _inline(
        self, ino: int, row: rows.InodeRow, pieces: list[Piece], inline: rows.InlineRow | None
    ) -> tuple[list[Piece], rows.InlineRow | None]:
        """Returns the pieces and the inline data of a file, of which one is empty: a file has inline data or extents, never both."""
        if inline is not None and (pieces or row.extents):
            if row.extents or not row.inline:
                return pieces, None
            return [], inline
        if inline is not None:
            data = inline.data[: row.size]
            return [], rows.InlineRow(data) if data else None
        if row.inline and row.stored_bytes and not pieces:
            self.repairs.note(self.where(ino), f"its {row.stored_bytes} bytes are lost: reading them is EIO", loss=True)
            length = min(row.stored_bytes, row.size)
            pieces = [(0, lost(length, self.repairs.cluster().applied_index))] if length else []
            row.extents, row.stored_bytes = len(pieces), length
        return pieces, None

    def _complete(self, ino: int, row: rows.InodeRow, pieces: list[Piece]) -> list[Piece]:
        """Returns the pieces with others in the place of extents that are gone: made again from the device, or lost."""
        missing = row.extents - len(pieces)
        if missing <= 0:
            return pieces
        stored = sum(piece[1].length for piece in pieces)
        allocated = sum(piece[1].length for piece in pieces if not piece[1].segment)
        if row.stored_bytes - stored == row.allocated_bytes - allocated:
            return pieces  # only kept space is gone
        known = sorted(self.references.stale.get((self.number, ino), ()))
        remade = [self._remake(ino, row, pieces, known, at) for at in range(len(known))] if missing == len(known) else []
        good = [piece for piece in remade if piece is not None]
        if not row.trims and len(good) == missing and sum(piece[1].length for piece in good) == row.stored_bytes - stored:
            self.repairs.note(self.where(ino), f"{missing} extents are made again from the frames on the device")
            return sorted([*pieces, *good], key=lambda piece: piece[0])
        self.repairs.note(self.where(ino), f"{missing} extents are gone: reading there is EIO", loss=True)
        index = self.repairs.cluster().applied_index
        gaps = _gaps(pieces, row.size)
        if missing == len(known):  # then each is in the gap that its reverse row names
            gaps = [(max(start, min(at[0] for at in known if start <= at[0] < end)), end)
                    for start, end in gaps if any(start <= at[0] < end for at in known)]  # fmt: skip
        return sorted([*pieces, *((start, lost(end - start, index)) for start, end in gaps)], key=lambda piece: piece[0])

    def _remake(self, ino: int, row: rows.InodeRow, pieces: list[Piece], known: list[tuple[int, int, int, int]], at: int) -> Piece | None:
        """Returns the longest extent that can have been there, if the frame says that it is of this file; else None."""
        offset, segment, frame_offset, incarnation = known[at]
        frame = self.references.frame(segment, frame_offset)
        if frame is None or (frame.volume, frame.ino, frame.segment, frame.incarnation) != (self.number, ino, segment, incarnation):
            return None
        skip = offset - frame.file_offset
        starts = [piece[0] for piece in pieces] + [place[0] for place in known]
        next_starts = [start for start in starts if start > offset]
        length = min([frame.logical_bytes - skip, row.size - offset, *(start - offset for start in next_starts)])
        if skip < 0 or length <= 0:
            return None
        shared = self.repairs.overlay.get(keys.shared(segment, frame_offset)) is not None
        return offset, rows.ExtentRow(
            length, segment, incarnation, frame.sequence, frame_offset, frame.header_bytes, skip,
            self.repairs.cluster().applied_index, shared,
        )  # fmt: skip

    # --- what is there, and wrong ------------------------------------------------------------------------------------------------
    def _cut(self, ino: int, row: rows.InodeRow, pieces: list[Piece]) -> list[Piece]:
        """Cuts pieces at the end of the file: only kept space and hidden pieces may lie behind it."""
        trims = self.trims.get(ino, [])
        left = []
        for piece in pieces:
            offset, extent = piece
            if extent.segment and offset + extent.length > row.size and not hidden(piece, trims):
                self.repairs.note(f"{self.where(ino)} offset {offset}", f"ended behind the end of the file, {row.size}")
                if offset >= row.size:
                    continue
                piece = extents.sub(piece, offset, row.size)
            left.append(piece)
        return left

    def _disjoint(self, ino: int, pieces: list[Piece]) -> list[Piece]:
        pieces = [piece for piece in pieces if piece[1].length > 0]
        ordered = all(a[0] + a[1].length <= b[0] for a, b in pairwise(pieces))
        if ordered:
            return pieces
        self.repairs.note(self.where(ino), "extents overlap: the later one is kept")
        laid: list[Piece] = []
        for piece in sorted(pieces, key=lambda piece: (piece[1].index, piece[1].sequence)):
            offset, extent = piece
            laid = [rest for old in laid for rest in extents.without(old, offset, offset + extent.length)]
            laid.append(piece)
        return sorted(laid, key=lambda piece: piece[0])

    def _placed(self, ino: int, piece: Piece) -> Piece:
        offset, extent = piece
        where = f"{self.where(ino)} offset {offset}"
        if not extent.segment or self.references.usable(where, extent):
            return piece
        self.repairs.note(where, f"{extent.length} bytes are lost: segment {extent.segment} does not hold them any more", loss=True)
        return offset, lost(extent.length, extent.index)


def _gaps(pieces: list[Piece], size: int) -> list[tuple[int, int]]:
    gaps, at = [], 0
    for offset, row in pieces:
        if at < min(offset, size):
            gaps.append((at, min(offset, size)))
        at = max(at, offset + row.length)
    if at < size:
        gaps.append((at, size))
    return gaps
