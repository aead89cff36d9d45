"""The leader's ledger: what a change of names does beyond its inodes is done in the same entry (meta/state/ledger.py says why it is apart).

An inode without names stays while a session has it open: it is *pinned*.  Without pins it ends, and its extents with it, or by Reap.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from itertools import islice

from awsomefsd.base.limits import FILE_BYTES_MAX
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.machine.filemap import SMALL_FILE_EXTENTS, FileMap, drop_extent, ended, trims_of, unqueue_trims
from awsomefsd.meta.machine.inodes import tombstone
from awsomefsd.meta.state import history, keys, rows
from awsomefsd.meta.state.rows_cache import State


class LeaderLedger:
    """Implements ledger.Ledger over all rows.  It has no state of its own."""

    __slots__ = ()

    def new_number(self, state: State, volume: rows.VolumeRow) -> int:
        ino = _take_number(state, volume)
        volume.used_inodes += 1
        state.save_volume(volume)
        return ino

    def grant(self, state: State, session: int, volume: int, ino: int, lease: rows.LeaseRow) -> None:
        state.txn.put(keys.leaser(session, volume, ino), rows.MARK)
        state.write(keys.lease(volume, ino), lease, rows.LEASE)

    # --- pins -----------------------------------------------------------------------------------------------------------
    def pin(self, state: State, sessions: Iterable[int], volume: int, ino: int) -> None:
        for session in sorted(sessions):
            state.txn.put(keys.orphan(volume, ino, session), rows.MARK)
            state.txn.put(keys.pinner(session, volume, ino), rows.MARK)

    def unpin(self, state: State, entry: Entry, volume: rows.VolumeRow, ino: int, session: int) -> None:
        state.txn.delete(keys.pinner(session, volume.volume, ino))
        if state.txn.delete(keys.orphan(volume.volume, ino, session)) and not state.any_in(keys.orphans_range(volume.volume, ino)):
            row = state.inode(volume.volume, ino)
            assert row is not None, "a pin names an inode that is gone"
            self.end(state, entry, volume, ino, row)

    def drop_pins(self, state: State, volume: int, ino: int) -> None:
        for key in state.keys_in(keys.orphans_range(volume, ino)):
            state.txn.delete(key)
            state.txn.delete(keys.pinner(keys.last_u64(key), volume, ino))

    # --- the end --------------------------------------------------------------------------------------------------------
    def end(self, state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow) -> None:
        """Removes the inode; the extents of a large one are left to Reap."""
        number = volume.volume
        if row.xattrs:
            history.drop_xattrs(state, number, ino, row)
        if row.inline and row.stored_bytes:
            history.drop_inline(state, number, ino, row)
            volume.used_bytes -= row.stored_bytes
        if not stat.S_ISLNK(row.mode):
            drop_locks(state, number, ino)
        if volume.leased:
            _drop_lease(state, number, ino)
        until = history.ended(volume.chapter, row) if volume.chapter else 0
        if row.extents > SMALL_FILE_EXTENTS:
            state.queue_reap(keys.reap(keys.REAP_INODE, number, ino, 0), rows.ReapRow(chapter=until))
        elif row.extents:
            trims = trims_of(state, number, ino) if until and row.trims else []
            for piece in list(islice(history.extents(state, number, ino), SMALL_FILE_EXTENTS)):
                drop_extent(state, volume, ino, piece, ended(piece, until, trims) if trims else until)
        if row.trims and not (until and row.extents > SMALL_FILE_EXTENTS):  # else they say what ended before, until Reap is through
            unqueue_trims(state, number, ino)
        state.drop_inode(number, ino)
        volume.used_inodes -= 1
        state.save_volume(volume)
        tombstone(state, entry, rows.TOMB_INODE, number, ino)

    # --- bytes ----------------------------------------------------------------------------------------------------------
    def cut(self, state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, size: int) -> None:
        if row.inline and size < row.size:
            _cut_inline(state, volume, ino, row, size)
        elif size < row.size or (size == row.size and row.allocated_bytes):  # as ext4: space kept behind the end goes too
            FileMap(state, volume, ino, row).clear(size, FILE_BYTES_MAX, entry.index)


LEADER = LeaderLedger()


def _take_number(state: State, volume: rows.VolumeRow) -> int:
    given = state.given
    if given is not None:
        assert not given.taken, "a record makes two inodes"
        given.taken = True
        return given.ino
    ino = volume.next_ino
    volume.next_ino = ino + 1
    return ino


def _drop_lease(state: State, volume: int, ino: int) -> None:
    row: rows.LeaseRow | None = state.read(keys.lease(volume, ino), rows.LEASE)
    if row is not None:
        if row.session:
            state.txn.delete(keys.leaser(row.session, volume, ino))
        state.txn.delete(keys.lease(volume, ino))


def drop_locks(state: State, volume: int, ino: int) -> None:
    """Deletes all locks of an inode that ends."""
    stored = state.read(keys.locks(volume, ino), rows.LOCKS)
    if stored is not None:
        state.txn.delete(keys.locks(volume, ino))
        state.unlocked.add((volume, ino))
        for session in {lock.session for lock in stored.locks}:
            state.txn.delete(keys.locker(session, volume, ino))


def _cut_inline(state: State, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, size: int) -> None:
    """Cuts inline data.  Growth needs nothing: an inline row may be shorter than the file and reads as zeros behind its end."""
    if row.stored_bytes <= size:
        return
    stored = history.inline(state, volume.volume, ino)
    assert stored is not None, "an inode counts inline bytes that it does not have"
    put_inline(state, volume, ino, row, stored[:size])


def put_inline(state: State, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, data: bytes) -> None:
    """Makes `data` the inline data of an inode; the caller saves the inode."""
    if data:
        history.put_inline(state, volume.volume, ino, row, data)
    elif row.stored_bytes:
        history.drop_inline(state, volume.volume, ino, row)
    if len(data) != row.stored_bytes:
        volume.used_bytes += len(data) - row.stored_bytes
        row.stored_bytes = len(data)
        state.save_volume(volume)
