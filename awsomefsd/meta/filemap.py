"""The extent map of a file in the state: read, punch, insert, cut, free; each change keeps reverse rows, live bytes and totals right.

Cutting a huge file must not make an entry long.  A truncation removes up to REAP_EXTENTS_PER_ENTRY extents at once; if there are more, it
queues a *trim* row (file offset S, index I of the entry) instead: every extent at or behind S that was committed by an entry up to I is
hidden from then on, and Reap frees them bit by bit.  What is written later has a larger index and is seen.  An extent across S is cut at
once, so an extent is hidden as a whole or not at all.  Totals (`stored_bytes`, `extents`, `used_bytes`) count hidden extents until they are
freed, because their space is not free before.  Rejected: a new data id per truncation, which needs an indirection on every read.
"""

from __future__ import annotations

from itertools import islice

from awsomefsd.limits import FILE_BYTES_MAX, REAP_EXTENTS_PER_ENTRY
from awsomefsd.meta import extents, keys, rows
from awsomefsd.meta.extents import Piece
from awsomefsd.meta.segments import add_live, take_live
from awsomefsd.meta.state import State

SMALL_FILE_EXTENTS = 16  # a deleted file with at most so many is freed by the entry that deletes it

Trims = list[tuple[int, int]]  # (start, index)


class FileMap:
    """One inode's map, for the time of one entry or query."""

    __slots__ = ("_inode", "_state", "_trims", "_used", "ino", "volume")

    def __init__(self, state: State, volume: rows.VolumeRow, ino: int, inode: rows.InodeRow) -> None:
        self._state = state
        self._used = volume
        self.volume = volume.volume
        self.ino = ino
        self._inode = inode
        self._trims = trims_of(state, self.volume, ino) if inode.trims else []

    # --- reading --------------------------------------------------------------------------------------------------------
    def stored(self, start: int, end: int, count: int | None = None) -> list[Piece]:
        """Pieces that overlap [start, end), hidden ones too, in order; the first `count` of them and perhaps one more."""
        found: list[Piece] = []
        if not self._inode.extents or start >= end:
            return found
        low, high = keys.extents_range(self.volume, self.ino)
        first = keys.extent(self.volume, self.ino, start)
        before = self._state.txn.last(low, first)
        if before is not None:
            offset, row = keys.last_u64(before[0]), rows.EXTENT.loads(before[1])
            if offset + row.length > start:
                found.append((offset, row))
        last = keys.extent(self.volume, self.ino, end) if end < FILE_BYTES_MAX else high
        scan = islice(self._state.txn.scan(first, last), count)
        found.extend((keys.last_u64(key), rows.EXTENT.loads(raw)) for key, raw in scan)
        return found

    def visible(self, start: int, end: int, count: int) -> tuple[list[Piece], int]:
        """Pieces that a reader sees, and up to where they are all: `end`, or less where `count` did not reach."""
        pieces = self.stored(start, end, count)
        if len(pieces) >= count:
            end = min(end, pieces[-1][0] + pieces[-1][1].length)
        if self._trims:
            pieces = [piece for piece in pieces if not hidden(piece, self._trims)]
        return pieces, end

    # --- changing -------------------------------------------------------------------------------------------------------
    def insert(self, piece: Piece) -> None:
        """Put a piece in the place of whatever was there."""
        offset, row = piece
        end = offset + row.length
        if offset < self._inode.size or self._trims:  # nothing lies behind the end of the file but hidden pieces
            self.punch(offset, end)
        joined = self._join_left(piece)
        self._add(joined if joined is not None else piece)

    def _join_left(self, piece: Piece) -> Piece | None:
        """Take out a left neighbour that is the same frame, and return the two as one."""
        if not piece[1].skip or self._trims or not self._inode.extents:
            return None  # a frame's first bytes have no left neighbour in it
        low, _ = keys.extents_range(self.volume, self.ino)
        before = self._state.txn.last(low, keys.extent(self.volume, self.ino, piece[0]))
        if before is None:
            return None
        left = (keys.last_u64(before[0]), rows.EXTENT.loads(before[1]))
        if not extents.joins(left, piece):
            return None
        self.free(left)
        return extents.join(left, piece)

    def punch(self, start: int, end: int) -> None:
        """Make [start, end) a hole."""
        for piece in self.stored(start, end):
            left = extents.without(piece, start, end)
            self.free(piece)
            for part in left:
                self._add(part)

    def cut(self, size: int, index: int) -> None:
        """Nothing behind `size` is seen any more."""
        across = self.stored(size, size + 1)
        if across and across[0][0] < size:
            kept = extents.sub(across[0], 0, size)
            self.free(across[0])
            self._add(kept)
            rest = across[0][0] + across[0][1].length
        else:
            rest = size
        behind = self._first_behind(rest, REAP_EXTENTS_PER_ENTRY + 1)
        if len(behind) <= REAP_EXTENTS_PER_ENTRY:
            for piece in behind:
                self.free(piece)
            return
        for start, earlier in self._trims:
            if start >= size:  # the new one hides all that this one hides
                self._state.unqueue_reap(keys.reap(keys.REAP_TRIM, self.volume, self.ino, earlier))
                self._inode.trims -= 1
        self._state.queue_reap(keys.reap(keys.REAP_TRIM, self.volume, self.ino, index), rows.ReapRow(size))
        self._inode.trims += 1
        self._trims = trims_of(self._state, self.volume, self.ino)

    def _first_behind(self, start: int, count: int) -> list[Piece]:
        found: list[Piece] = []
        if not self._inode.extents:
            return found
        _, high = keys.extents_range(self.volume, self.ino)
        for key, raw in self._state.txn.scan(keys.extent(self.volume, self.ino, start), high):
            found.append((keys.last_u64(key), rows.EXTENT.loads(raw)))
            if len(found) == count:
                break
        return found

    def free(self, piece: Piece) -> None:
        drop_extent(self._state, self._used, self.ino, piece)
        self._inode.extents -= 1
        self._inode.stored_bytes -= piece[1].length

    def _add(self, piece: Piece) -> None:
        offset, row = piece
        put = self._state.txn.put
        put(keys.extent(self.volume, self.ino, offset), rows.EXTENT.dumps(row))
        put(
            keys.reverse(row.segment, row.frame_offset, self.volume, self.ino, offset),
            rows.REVERSE.dumps(rows.ReverseRow(row.incarnation)),
        )
        add_live(self._state, row.segment, row.length)
        self._used.used_bytes += row.length
        self._state.save_volume(self._used)
        self._inode.extents += 1
        self._inode.stored_bytes += row.length


def hidden(piece: Piece, trims: Trims) -> bool:
    offset, row = piece
    return any(offset >= start and row.index <= index for start, index in trims)


def trims_of(state: State, volume: int, ino: int) -> Trims:
    return [(rows.REAP.loads(raw).start, keys.last_u64(key)) for key, raw in state.txn.scan(*keys.trims_range(volume, ino))]


def drop_extent(state: State, volume: rows.VolumeRow, ino: int, piece: Piece) -> None:
    """Delete a piece with its reverse row and all totals but the inode's (which may be gone)."""
    offset, row = piece
    state.txn.delete(keys.extent(volume.volume, ino, offset))
    state.txn.delete(keys.reverse(row.segment, row.frame_offset, volume.volume, ino, offset))
    take_live(state, row.segment, row.length)
    volume.used_bytes -= row.length
    state.save_volume(volume)
