"""The extent map of a file is read and changed here; each change keeps reverse rows, live bytes and totals.

Cutting a huge file must not make an entry long.  A truncation or a hole removes up to REAP_EXTENTS_PER_ENTRY extents at once; if there are
more, it queues a *trim* row (file offsets S to E, index I of the entry before) instead: every extent in [S, E) that was committed by an
entry up to I is hidden from then on, and Reap frees them bit by bit.  What is written later has a larger index and is seen.  An extent
across S or E is cut at once, so an extent is hidden as a whole or not at all.  Totals (`stored_bytes`, `extents`, `used_bytes`) count
hidden extents until they are freed, because their space is not free before.  Rejected: a new data id per truncation, which needs an
indirection on every read.

Unwritten extents (segment 0) are space that fallocate(2) promised: counted like data in all totals, in ClusterRow.allocated_bytes so that
no other writer is promised that space, and never in an answer to a reader, for whom they are holes.  They alone may lie behind the end of
the file.  Lost extents (segment 0 too, made by fsck only) are counted the same way and are in the answer to a reader, for whom they are
EIO.  Extents never overlap, hidden and unwritten ones included: an allocation takes what is hidden out of its way.

In a volume with chapters what is freed goes into history if a snapshot sees it, out of all totals of the head, and its bytes stay (`free`).
Of an extent that is overwritten in part only that part does: it is cut before, which no snapshot sees (`take`, then `add`).  A trim carries
the chapter in which it was made, for what it hides ended then, whoever comes to free it (`until`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import islice

from awsomefsd.base.limits import FILE_BYTES_MAX, LAYOUT_COUNTED_MAX, REAP_EXTENTS_PER_ENTRY
from awsomefsd.base.types import Extent
from awsomefsd.meta.machine.references import add_reference, drop_reference
from awsomefsd.meta.state import extents, history, keys, rows
from awsomefsd.meta.state.extents import Piece
from awsomefsd.meta.state.lookups import RetryLater
from awsomefsd.meta.state.rows_cache import State

SMALL_FILE_EXTENTS = 16  # a deleted file with at most so many is freed by the entry that deletes it

Trims = list[tuple[int, int, int, int]]  # (start, end or 0, index, chapter)


class FileMap:
    """One inode's map, for the time of one entry or query."""

    __slots__ = ("_inode", "_now", "_state", "_trims", "_used", "ino", "volume")

    def __init__(self, state: State, volume: rows.VolumeRow, ino: int, inode: rows.InodeRow) -> None:
        self._state = state
        self._used = volume
        self.volume = volume.volume
        self.ino = ino
        self._inode = inode
        self._now = volume.chapter
        self._trims = trims_of(state, self.volume, ino) if inode.trims else []

    # --- reading --------------------------------------------------------------------------------------------------------
    def stored(self, start: int, end: int, count: int | None = None) -> list[Piece]:
        """Returns the pieces that overlap [start, end), hidden ones too, in order; the first `count` of them and perhaps one more."""
        found: list[Piece] = []
        if not self._inode.extents or start >= end:
            return found
        before = history.extent_before(self._state, self.volume, self.ino, start)
        if before is not None and before[0] + before[1].length > start:
            found.append(before)
        found.extend(islice(history.extents(self._state, self.volume, self.ino, start, end), count))
        return found

    def visible(self, start: int, end: int, count: int) -> tuple[list[Piece], int]:
        """Returns the pieces that a reader sees, and the file offset up to which they are all: `end`, or less beyond `count` pieces."""
        pieces, end = self.part(start, end, count)
        return self.shown(pieces), end

    def part(self, start: int, end: int, count: int) -> tuple[list[Piece], int]:
        """Returns the pieces as `visible`, those that a reader does not see too."""
        pieces = self.stored(start, end, count)
        if len(pieces) >= count:
            end = min(end, pieces[-1][0] + pieces[-1][1].length)
        return pieces, end

    def shown(self, pieces: list[Piece]) -> list[Piece]:
        """Returns those that a reader sees."""
        return [piece for piece in pieces if (piece[1].segment or piece[1].lost) and not self._hidden(piece)]

    def missing(self, pieces: list[Piece], start: int, end: int) -> str:
        """Returns in words why a gap between `pieces`, all of [start, end), is a row that is gone and no hole; "" if there is none.

        The inode counts its extents.  Those of a file with up to LAYOUT_COUNTED_MAX are counted again each time, those of a larger one
        once (extent_counts.py).  Raises RetryLater while that takes longer than one question may.
        """
        inode = self._inode
        gap = end - start - sum(row.length for _, row in pieces)
        if pieces:  # only the first and the last may reach beyond the range
            gap += max(0, start - pieces[0][0]) + max(0, pieces[-1][0] + pieces[-1][1].length - end)
        if gap <= 0 or len(pieces) == inode.extents:
            return ""
        there: int | None
        if inode.extents <= LAYOUT_COUNTED_MAX:
            offsets = history.extent_offsets(self._state.txn, self.volume, self.ino)
            there = sum(1 for _ in islice(offsets, LAYOUT_COUNTED_MAX + 1))
        else:
            there = self._state.extent_counts.count(self.volume, self.ino)
        if there is None:
            raise RetryLater(errno.EAGAIN, f"volume {self.volume} inode {self.ino}: its extents are still being counted")
        return f"{there} of {inode.extents} extents" if there != inode.extents else ""

    def _hidden(self, piece: Piece) -> bool:
        return bool(self._trims) and hidden(piece, self._trims)

    def unwritten(self, start: int, end: int, count: int) -> int:
        """Returns the number of allocated bytes in [start, end), as far as `count` pieces reach."""
        found = 0
        for piece in self.stored(start, end, count):
            if not piece[1].segment and not piece[1].lost and not self._hidden(piece):
                found += extents.sub(piece, start, end)[1].length
        return found

    # --- changing -------------------------------------------------------------------------------------------------------
    def insert(self, piece: Piece) -> None:
        """Puts a piece in the place of all that was there."""
        offset, row = piece
        end = offset + row.length
        if offset < self._inode.size or self._trims or self._inode.allocated_bytes:  # else nothing lies behind the end of the file
            self.punch(offset, end)
        row.chapter = self._now
        joined = self._join_left(piece)
        self.add(joined if joined is not None else piece)

    def _join_left(self, piece: Piece) -> Piece | None:
        """Takes out a left neighbour that is of the same frame, and returns the two as one; None without such a neighbour."""
        if not piece[1].skip or self._trims or not self._inode.extents:
            return None  # a frame's first bytes have no left neighbour in it
        left = history.extent_before(self._state, self.volume, self.ino, piece[0])
        if left is None or not extents.joins(left, piece):
            return None
        self.take(left)
        return extents.join(left, piece)

    def punch(self, start: int, end: int) -> None:
        """Makes [start, end) a hole."""
        for piece in self.stored(start, end):
            left = extents.without(piece, start, end)
            if left and piece[1].chapter != self._now:
                self.take(piece)
                piece = extents.sub(piece, start, end)
                self.add(piece)
            self.free(piece)
            for part in left:
                self.add(part)

    def clear(self, start: int, end: int, index: int) -> None:
        """Hides all of [start, end), however many extents it has.  What entry `index`, which calls this, adds later is seen."""
        for at in (start, end):
            across = self.stored(at, at + 1) if at < FILE_BYTES_MAX else []
            if across and across[0][0] < at:
                self.take(across[0])
                for part in (extents.sub(across[0], 0, at), extents.sub(across[0], at, FILE_BYTES_MAX)):
                    self.add(part)
        inside = self.stored(start, end, REAP_EXTENTS_PER_ENTRY + 1)
        if len(inside) <= REAP_EXTENTS_PER_ENTRY:
            for piece in inside:
                self.free(piece)
            return
        until = end if end < FILE_BYTES_MAX else 0
        decided = history.ended(self._now, self._inode)
        for first, last, earlier, chapter in self._trims:
            if chapter == decided and first >= start and (not until or 0 < last <= until):  # the new one hides all that this one hides
                self._state.unqueue_reap(keys.reap(keys.REAP_TRIM, self.volume, self.ino, earlier))
                self._inode.trims -= 1
        self._state.queue_reap(keys.reap(keys.REAP_TRIM, self.volume, self.ino, index - 1), rows.ReapRow(start, until, decided))
        self._inode.trims += 1
        self._trims = trims_of(self._state, self.volume, self.ino)

    # --- allocation -----------------------------------------------------------------------------------------------------
    def gaps(self, start: int, end: int, count: int) -> tuple[list[tuple[int, int]], int]:
        """Returns the ranges of [start, end) without data and kept space, and the file offset up to which they are all."""
        found: list[tuple[int, int]] = []
        pieces = self.stored(start, end, count + 1)
        if len(pieces) > count:
            end = pieces[count][0]
            del pieces[count:]
        at = start
        for piece in pieces:
            if self._hidden(piece):
                continue
            if at < piece[0]:
                found.append((at, piece[0]))
            at = max(at, piece[0] + piece[1].length)
        if at < end:
            found.append((at, end))
        return found, end

    def allocate(self, start: int, end: int, index: int) -> None:
        """Keeps space for a gap; it becomes one with unwritten neighbours."""
        self.punch(start, end)  # what is hidden there
        for at in (start - 1, end):
            for piece in self.stored(at, at + 1) if at >= 0 else []:
                if not piece[1].segment and not piece[1].lost and not self._hidden(piece):
                    self.free(piece)
                    start, end = min(start, piece[0]), max(end, piece[0] + piece[1].length)
        self.add((start, rows.ExtentRow(end - start, 0, 0, 0, 0, 0, 0, index, chapter=self._now)))

    def copy(self, piece: Piece, index: int) -> None:
        """Adds a piece of another file, or of another place in this one, where no other one is."""
        piece[1].index, piece[1].chapter = index, self._now
        self.add(piece)

    # --- places ---------------------------------------------------------------------------------------------------------
    def share(self, piece: Piece) -> Piece:
        """Marks a piece as one whose bytes others may hold too, and returns it."""
        row = piece[1]
        if row.shared:
            return piece
        drop_reference(self._state, row)
        row.shared = True
        add_reference(self._state, row)
        history.mark_extent(self._state, self.volume, self.ino, piece)
        return piece

    def repoint(self, extent: Extent, places: list[Extent]) -> bool:
        """Makes an extent name the same bytes at other places, which is how collection moves data.  Returns False if it has changed.

        Index, mark and chapter stay what they are: hidden pieces stay hidden, of a shared place each owner is moved by a call of its own,
        and no snapshot sees a change.
        """
        row = history.extent(self._state, self.volume, self.ino, extent.file_offset)
        if row is None or not row.segment or extents.extent_of(extent.file_offset, row) != extent:
            return False
        self.take((extent.file_offset, row))
        for offset, moved in moved_to(row, places):
            joined = self._join_left((offset, moved))
            self.add(joined if joined is not None else (offset, moved))
        return True

    def free(self, piece: Piece) -> None:
        """Frees a piece that is not there any more; or keeps it, if a snapshot sees it."""
        until = self._now
        if until:
            until = ended(piece, history.ended(until, self._inode), self._trims)
        drop_extent(self._state, self._used, self.ino, piece, until)
        self._count(piece, -1)

    def take(self, piece: Piece) -> None:
        """Takes out a piece whose bytes the caller adds again, cut or joined or at another place."""
        drop_extent(self._state, self._used, self.ino, piece, 0)
        self._count(piece, -1)

    def add(self, piece: Piece) -> None:
        """Adds a piece where no other one is."""
        row = piece[1]
        history.put_extent(self._state, self.volume, self.ino, piece)
        add_reference(self._state, row)
        self._used.used_bytes += row.length
        self._state.save_volume(self._used)
        self._count(piece, 1)

    def _count(self, piece: Piece, sign: int) -> None:
        offset, row = piece
        self._state.extent_counts.note(self.volume, self.ino, offset, sign)
        self._inode.extents += sign
        self._inode.stored_bytes += sign * row.length
        if not row.segment:
            self._inode.allocated_bytes += sign * row.length


def hidden(piece: Piece, trims: Trims) -> bool:
    offset, row = piece
    return any(offset >= start and (not end or offset < end) and row.index <= index for start, end, index, _ in trims)


def ended(piece: Piece, now: int, trims: Trims) -> int:
    """Returns in which chapter a piece has ended that is freed now: that of the oldest trim that hides it."""
    return min((trim[3] for trim in trims if trim[3] < now and hidden(piece, [trim])), default=now)


def moved_to(row: rows.ExtentRow, places: list[Extent]) -> list[Piece]:
    """Returns an extent as pieces at the places where its bytes lie too: all else of it stays."""
    pieces = [extents.piece_of(place, row.index) for place in places]
    for _, moved in pieces:
        moved.shared, moved.chapter = row.shared, row.chapter
    return pieces


def trims_of(state: State, volume: int, ino: int) -> Trims:
    found = []
    for key, raw in state.txn.scan(*keys.trims_range(volume, ino)):
        row: rows.ReapRow = rows.REAP.loads(raw)
        found.append((row.start, row.end, keys.last_u64(key), row.chapter))
    return found


def visible_as_of(state: State, volume: int, ino: int, start: int, end: int, at: int) -> Iterator[Piece]:
    """Yields the pieces of a file that a snapshot shows in [start, end), in order.  The caller changes nothing meanwhile."""
    trims = [trim for trim in trims_of(state, volume, ino) if trim[3] <= at]
    return (piece for piece in history.extents_as_of(state, volume, ino, start, end, at) if not hidden(piece, trims))


def unqueue_trims(state: State, volume: int, ino: int) -> None:
    """Forgets the trims of an inode that is gone."""
    for key in state.keys_in(keys.trims_range(volume, ino)):
        state.unqueue_reap(key)


def drop_extent(state: State, volume: rows.VolumeRow, ino: int, piece: Piece, until: int) -> None:
    """Deletes a piece with its reverse row and takes it from all totals but the inode's (which may be gone).

    A piece that a snapshot sees, which ended in chapter `until` (0: the volume has none), keeps its bytes.
    """
    row = piece[1]
    if not until:
        history.take_extent(state, volume.volume, ino, piece)
        drop_reference(state, row)
    elif not history.drop_extent(state, volume.volume, ino, piece, until) or not row.segment:
        drop_reference(state, row)
    volume.used_bytes -= row.length
    state.save_volume(volume)
