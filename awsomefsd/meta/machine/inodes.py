"""One inode has attributes for stat(2), times, and an end; namespace, attributes and commits share the code for them.

Times that we set only move forward, so a clock that was set back shows no file changing in the past.  The exception is an mtime that
utimensat(2) set: the next change of the contents may move it back to the present.
"""

from __future__ import annotations

from awsomefsd.base.types import Attr
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.state import keys, rows
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
    if holders:
        state.ledger.pin(state, holders, volume.volume, ino)
    else:
        state.ledger.end(state, entry, volume, ino, row)


def _uncached_sessions(state: State, volume: rows.VolumeRow) -> set[int]:
    """Returns the live sessions of a volume that do not say what they open."""
    found = state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION)
    return {row.session for row in found if row is not None and row.uncached and row.volume == volume.volume and not row.ended}
