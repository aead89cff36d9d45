"""One inode has attributes for stat(2), times, and an end; namespace, attributes and commits share the code for them.

Times that we set only move forward, so a clock that was set back shows no file changing in the past.  The exception is an mtime that
utimensat(2) set: the next change of the contents may move it back to the present.
"""

from __future__ import annotations

import stat

from awsomefsd.base.types import Attr
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.machine.filemap import SMALL_FILE_EXTENTS, drop_extent
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.extents import Piece
from awsomefsd.meta.state.rows_cache import State

DIRECTORY_BYTES_SHOWN = 4096


def attr_of(ino: int, row: rows.InodeRow) -> Attr:
    """Returns the attributes of an inode as messages carry them."""
    return Attr(
        ino,
        row.mode,
        row.nlink,
        row.uid,
        row.gid,
        row.rdev,
        row.size,
        row.stored_bytes,
        row.atime_ns,
        row.mtime_ns,
        row.ctime_ns,
        row.btime_ns,
        row.inline,
        row.xattrs,
        row.consistency,
    )


def save_changed(state: State, entry: Entry, volume: int, ino: int, row: rows.InodeRow) -> None:
    """Saves an inode that has changed, with a new ctime and version.

    The ctime always differs from the one before, whatever the clocks of leaders are: by it a mount that keeps pages knows that they are
    old.  An entry that changes an inode twice moves it once, so that it stays the mtime of the same change.
    """
    again = row.stamp == entry.stamp and row.site == entry.site
    row.ctime_ns = max(entry.time_ns, row.ctime_ns + (not again))
    row.stamp, row.site = entry.stamp, entry.site
    state.save_inode(volume, ino, row)


def save_new_contents(state: State, entry: Entry, volume: int, ino: int, row: rows.InodeRow) -> None:
    """Saves an inode whose contents have changed (names of a directory, bytes of a file), with a new mtime too."""
    set_mtime(row, entry.time_ns)
    save_changed(state, entry, volume, ino, row)


def set_mtime(row: rows.InodeRow, time_ns: int) -> None:
    """Moves the mtime forward; or to `time_ns` if utimensat(2) had set it."""
    if row.mtime_explicit or time_ns > row.mtime_ns:
        row.mtime_ns = time_ns
        row.mtime_explicit = False


def tombstone(state: State, entry: Entry, kind: int, volume: int, ino: int, name: bytes = b"") -> None:
    """Writes a tombstone for a removal while the change stream has a registered reader."""
    if state.cluster.readers:
        row = rows.TombstoneRow(kind, volume, ino, name, entry.stamp, entry.site)
        state.write(keys.tombstone(entry.index, state.tombstones_written), row, rows.TOMBSTONE)
        state.tombstones_written += 1


def end_or_pin(state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, *, pinned: bool) -> None:
    """Ends an inode whose nlink is 0, or keeps it as an orphan while the entry's session or another one may have it open."""
    save_changed(state, entry, volume.volume, ino, row)
    holders = _uncached_sessions(state, volume) if volume.sharers else set()
    if pinned and entry.session:
        holders.add(entry.session)
    for session in sorted(holders):
        pin(state, session, volume.volume, ino)
    if not holders:
        end_inode(state, entry, volume, ino, row)


def _uncached_sessions(state: State, volume: rows.VolumeRow) -> set[int]:
    """Returns the live sessions of a volume that do not say what they open."""
    found = state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION)
    return {row.session for row in found if row is not None and row.uncached and row.volume == volume.volume and not row.ended}


def pin(state: State, session: int, volume: int, ino: int) -> None:
    """Keeps an inode without names while the session has it open."""
    state.txn.put(keys.orphan(volume, ino, session), rows.MARK)
    state.txn.put(keys.pinner(session, volume, ino), rows.MARK)


def drop_pins(state: State, volume: int, ino: int) -> None:
    """Ends all pins of an inode that gets a name."""
    for key in state.keys_in(keys.orphans_range(volume, ino)):
        state.txn.delete(key)
        state.txn.delete(keys.pinner(keys.last_u64(key), volume, ino))


def unpin(state: State, entry: Entry, volume: rows.VolumeRow, ino: int, session: int) -> None:
    """Ends the pin of a session, and the inode too if it was the last.  Nothing happens if there is no such pin."""
    state.txn.delete(keys.pinner(session, volume.volume, ino))
    if state.txn.delete(keys.orphan(volume.volume, ino, session)) and not state.any_in(keys.orphans_range(volume.volume, ino)):
        row = state.inode(volume.volume, ino)
        assert row is not None, "a pin names an inode that is gone"
        end_inode(state, entry, volume, ino, row)


def end_inode(state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow) -> None:
    """Removes an inode without names and pins; the extents of a large one are left to Reap."""
    number = volume.volume
    txn = state.txn
    if row.xattrs:
        for key in state.keys_in(keys.xattrs_range(number, ino)):
            txn.delete(key)
    if row.inline and row.stored_bytes:
        txn.delete(keys.inline(number, ino))
        volume.used_bytes -= row.stored_bytes
    if not stat.S_ISLNK(row.mode):
        drop_locks(state, number, ino)
    if volume.leased:
        _drop_lease(state, number, ino)
    if row.trims:
        for key in state.keys_in(keys.trims_range(number, ino)):
            state.unqueue_reap(key)
    if row.extents > SMALL_FILE_EXTENTS:
        state.queue_reap(keys.reap(keys.REAP_INODE, number, ino, 0), rows.ReapRow())
    elif row.extents:
        for piece in extents_of(state, number, ino, SMALL_FILE_EXTENTS):
            drop_extent(state, volume, ino, piece)
    state.drop(keys.inode(number, ino))
    volume.used_inodes -= 1
    state.save_volume(volume)
    tombstone(state, entry, rows.TOMB_INODE, number, ino)


def extents_of(state: State, volume: int, ino: int, count: int) -> list[Piece]:
    """Returns the first `count` extents of an inode, hidden or not."""
    found: list[Piece] = []
    for key, raw in state.txn.scan(*keys.extents_range(volume, ino)):
        found.append((keys.last_u64(key), rows.EXTENT.loads(raw)))
        if len(found) == count:
            break
    return found


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
