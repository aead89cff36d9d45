"""The one door to the versioned rows: those of inodes, names, extents, inline bytes and extended attributes.

Snapshots see these rows as they were, so whoever changes one has to keep its value first, and whoever reads one has to say as of when.
A rule that did either past this module would break a promise that no test of that rule knows of; therefore nobody else names the keys of
these kinds, and buildtools/versioned_rows.py proves it.  Inodes are cached by State, which is the door to them (rows_cache.py).

Each function is of one kind of row.  Those that read take `at`: a snapshot, or 0 for the head, which is what all rules read.  Those that
change are of the head, and keep what a snapshot sees (chapters.py); in a volume that never had one they do what was done before there were
chapters.  What happens to a file without a name no snapshot sees, so its values ended when it lost its name: who changes them brings the
inode.

An extent's row and its reverse row, which leads from a place to it, are written and deleted together.  Counters of inodes and volumes are
the rules'.  Errors are those of the codecs: Corrupt, FormatTooNew.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from awsomefsd.base.limits import FILE_BYTES_MAX, FRAME_BYTES_MAX
from awsomefsd.meta.state import chapters, keys, rows
from awsomefsd.meta.state.chapters import KeptValue
from awsomefsd.meta.state.extents import Piece

if TYPE_CHECKING:
    from awsomefsd.meta.state.rows_cache import State
    from awsomefsd.meta.state.txn import Txn


# --- inodes -------------------------------------------------------------------------------------------------------------
def inode(state: State, volume: int, ino: int, at: int) -> rows.InodeRow | None:
    """Returns an inode as a live snapshot sees it, which the caller does not change; None if it had no name then.

    What the cache has not written back is of the present chapter, so what is stored is enough.
    """
    row: rows.InodeRow | None = chapters.value(state.txn, keys.inode(volume, ino), at)
    return row if row is not None and row.nlink else None


# --- names --------------------------------------------------------------------------------------------------------------
def dentry(state: State, volume: int, parent: int, name: bytes, at: int = 0) -> rows.DentryRow | None:
    """Returns where a name leads to, or None."""
    key = keys.dentry(volume, parent, name)
    if at:
        found: rows.DentryRow | None = chapters.value(state.txn, key, at)
        return found
    raw = state.txn.get(key)
    return None if raw is None else rows.DENTRY.loads(raw)


def dentries(state: State, volume: int, parent: int, after: bytes) -> Iterator[tuple[bytes, rows.DentryRow]]:
    """Yields (key, dentry) of a directory, or with `parent` 0 of the volume, in order, from behind the key `after` (b"": all)."""
    start, end = keys.kind_range(volume, keys.DENTRY)
    if parent:
        start, end = keys.dentry(volume, parent, b""), keys.dentry(volume, parent + 1, b"")
    for key, raw in state.txn.scan(max(start, after + b"\0") if after else start, end):
        yield key, rows.DENTRY.loads(raw)


def cookies(state: State, volume: int, parent: int, after: int, count: int, at: int = 0) -> list[tuple[int, rows.CookieRow]]:
    """Returns (readdir offset, entry) of a directory, the first `count` behind the offset `after`."""
    span = keys.cookies_after(volume, parent, after)
    if at:
        return [(keys.last_u64(key), row) for key, row in islice(chapters.values(state.txn, *span, at), count)]
    return [(keys.last_u64(key), rows.COOKIE.loads(raw)) for key, raw in islice(state.txn.scan(*span), count)]


def add_name(state: State, volume: int, parent: int, name: bytes, row: rows.DentryRow) -> None:
    """Writes the two rows of a name that is not there."""
    put = state.txn.put
    if state.chaptered:
        row.chapter = state.now(volume)
    put(keys.dentry(volume, parent, name), rows.DENTRY.dumps(row))
    put(keys.cookie(volume, parent, row.cookie), rows.COOKIE.dumps(rows.CookieRow(row.ino, row.kind, name, row.chapter)))


def drop_name(state: State, volume: int, parent: int, name: bytes, row: rows.DentryRow) -> None:
    """Deletes the two rows of a name."""
    if state.chaptered and (chapter := state.chapter(volume)) is not None:
        chapters.keep(state.txn, chapter, keys.dentry(volume, parent, name), chapter.now)
        chapters.keep(state.txn, chapter, keys.cookie(volume, parent, row.cookie), chapter.now)
    delete = state.txn.delete
    delete(keys.dentry(volume, parent, name))
    delete(keys.cookie(volume, parent, row.cookie))


# --- values of an inode -------------------------------------------------------------------------------------------------
def _keep(state: State, volume: int, inode: rows.InodeRow, key: bytes) -> int:
    """Keeps a value of an inode that is changed or deleted now.  Returns the chapter of a new one."""
    chapter = state.chapter(volume)
    if chapter is None:
        return 0
    chapters.keep(state.txn, chapter, key, ended(chapter.now, inode))
    return chapter.now


def ended(now: int, inode: rows.InodeRow) -> int:
    """Returns in which chapter a value of an inode has ended that is changed now."""
    return now if inode.nlink else min(now, inode.chapter)


# --- extended attributes ------------------------------------------------------------------------------------------------
def xattr(state: State, volume: int, ino: int, name: bytes, at: int = 0) -> bytes | None:
    """Returns the value of an attribute, or None."""
    key = keys.xattr(volume, ino, name)
    if at:
        row: rows.XattrRow | None = chapters.value(state.txn, key, at)
        return None if row is None else bytes(row.value)
    raw = state.txn.get(key)
    return None if raw is None else bytes(rows.XATTR.loads(raw).value)


def xattr_names(state: State, volume: int, ino: int, at: int = 0) -> list[bytes]:
    """Returns the names of all attributes of an inode."""
    span = keys.xattrs_range(volume, ino)
    found = (key for key, _ in chapters.values(state.txn, *span, at)) if at else state.keys_in(span)
    return [key[keys.NAME_AT :] for key in found]


def put_xattr(state: State, volume: int, ino: int, inode: rows.InodeRow, name: bytes, value: bytes) -> None:
    key, row = keys.xattr(volume, ino, name), rows.XattrRow(value)
    if state.chaptered:
        row.chapter = _keep(state, volume, inode, key)
    state.txn.put(key, rows.XATTR.dumps(row))


def drop_xattr(state: State, volume: int, ino: int, inode: rows.InodeRow, name: bytes) -> None:
    key = keys.xattr(volume, ino, name)
    if state.chaptered:
        _keep(state, volume, inode, key)
    state.txn.delete(key)


def drop_xattrs(state: State, volume: int, ino: int, inode: rows.InodeRow) -> None:
    """Deletes all attributes of an inode."""
    for key in state.keys_in(keys.xattrs_range(volume, ino)):
        if state.chaptered:
            _keep(state, volume, inode, key)
        state.txn.delete(key)


# --- inline bytes -------------------------------------------------------------------------------------------------------
def inline(state: State, volume: int, ino: int, at: int = 0) -> bytes | None:
    """Returns the bytes of a small file; None if it has no row of them.  Behind them it reads as zeros."""
    key = keys.inline(volume, ino)
    if at:
        row: rows.InlineRow | None = chapters.value(state.txn, key, at)
        return None if row is None else bytes(row.data)
    raw = state.txn.get(key)
    return None if raw is None else bytes(rows.INLINE.loads(raw).data)


def put_inline(state: State, volume: int, ino: int, inode: rows.InodeRow, data: bytes) -> None:
    key, row = keys.inline(volume, ino), rows.InlineRow(data)
    if state.chaptered:
        row.chapter = _keep(state, volume, inode, key)
    state.txn.put(key, rows.INLINE.dumps(row))


def drop_inline(state: State, volume: int, ino: int, inode: rows.InodeRow) -> None:
    key = keys.inline(volume, ino)
    if state.chaptered:
        _keep(state, volume, inode, key)
    state.txn.delete(key)


# --- extents ------------------------------------------------------------------------------------------------------------
def extent(state: State, volume: int, ino: int, offset: int) -> rows.ExtentRow | None:
    """Returns the extent that begins at a file offset, or None."""
    raw = state.txn.get(keys.extent(volume, ino, offset))
    return None if raw is None else rows.EXTENT.loads(raw)


def extents(state: State, volume: int, ino: int, start: int = 0, end: int = FILE_BYTES_MAX) -> Iterator[Piece]:
    """Yields the extents that begin in [start, end), hidden ones too; with `end` FILE_BYTES_MAX all to the last."""
    for key, raw in state.txn.scan(keys.extent(volume, ino, start), _extents_end(volume, ino, end)):
        yield keys.last_u64(key), rows.EXTENT.loads(raw)


def _extents_end(volume: int, ino: int, end: int) -> bytes:
    return keys.extent(volume, ino, end) if end < FILE_BYTES_MAX else keys.extents_range(volume, ino)[1]


def extents_as_of(state: State, volume: int, ino: int, start: int, end: int, at: int) -> Iterator[Piece]:
    """Yields the extents that overlap [start, end) as a snapshot sees them, those too that a trim hides which Reap has not come to."""
    low = keys.extent(volume, ino, max(0, start - FRAME_BYTES_MAX))  # one that has a place is no longer than its frame
    for key, row in chapters.values(state.txn, low, _extents_end(volume, ino, end), at):
        offset = keys.last_u64(key)
        if offset + row.length > start and (row.segment or row.lost):
            yield offset, row


def extent_before(state: State, volume: int, ino: int, offset: int) -> Piece | None:
    """Returns the last extent that begins before a file offset, or None."""
    found = state.txn.last(keys.extents_range(volume, ino)[0], keys.extent(volume, ino, offset))
    return None if found is None else (keys.last_u64(found[0]), rows.EXTENT.loads(found[1]))


def extent_offsets(txn: Txn, volume: int, ino: int, start: int = 0) -> Iterator[int]:
    """Yields where the extents of an inode begin, from `start` on, without a look at their rows."""
    for key, _ in txn.scan(keys.extent(volume, ino, start), keys.extents_range(volume, ino)[1]):
        yield keys.last_u64(key)


def extents_of_volume(state: State, volume: int) -> Iterator[tuple[int, Piece]]:
    """Yields (ino, extent) of all files of a volume."""
    for key, raw in state.txn.scan(*keys.kind_range(volume, keys.EXTENT)):
        yield keys.first_u64(key), (keys.last_u64(key), rows.EXTENT.loads(raw))


def put_extent(state: State, volume: int, ino: int, piece: Piece) -> None:
    """Writes an extent, and its reverse row if it has a place, where no other one is.  The chapter is the caller's."""
    offset, row = piece
    put = state.txn.put
    put(keys.extent(volume, ino, offset), rows.EXTENT.dumps(row))
    if row.segment:
        put(keys.reverse(row.segment, row.frame_offset, volume, ino, offset), rows.REVERSE.dumps(rows.ReverseRow(row.incarnation)))


def mark_extent(state: State, volume: int, ino: int, piece: Piece) -> None:
    """Writes an extent that got the mark `shared`; its place is the same."""
    state.txn.put(keys.extent(volume, ino, piece[0]), rows.EXTENT.dumps(piece[1]))


def take_extent(state: State, volume: int, ino: int, piece: Piece) -> None:
    """Deletes an extent with its reverse row, whose bytes the caller puts back under other keys or places: no snapshot sees a change."""
    offset, row = piece
    delete = state.txn.delete
    delete(keys.extent(volume, ino, offset))
    if row.segment:
        delete(keys.reverse(row.segment, row.frame_offset, volume, ino, offset))


def drop_extent(state: State, volume: int, ino: int, piece: Piece, until: int) -> bool:
    """Deletes an extent, which ended in chapter `until`.  Returns True if it was kept, and so are its bytes.

    Space that is only promised is in no snapshot.
    """
    offset, row = piece
    if (row.segment or row.lost) and (chapter := state.chapter(volume)) is not None:
        key = keys.extent(volume, ino, offset)
        if chapters.keep(state.txn, chapter, key, until):
            state.txn.delete(key)
            return True
    take_extent(state, volume, ino, piece)
    return False


# --- kept values --------------------------------------------------------------------------------------------------------
def kept_extent(state: State, volume: int, ino: int, offset: int, until: int) -> rows.ExtentRow | None:
    """Returns the extent that began at a file offset until a chapter, if it is kept; else None."""
    found: rows.ExtentRow | None = chapters.kept_value(state.txn, keys.extent(volume, ino, offset), until)
    return found


def replace_kept_extent(state: State, volume: int, ino: int, offset: int, until: int, new: list[Piece]) -> None:
    """Puts kept extents in the place of one, of the same chapter: their bytes lie elsewhere, which no snapshot sees."""
    chapters.drop_kept(state.txn, keys.extent(volume, ino, offset), until)
    for offset, row in new:
        chapters.put_kept(state.txn, keys.extent(volume, ino, offset), until, row, rows.EXTENT.dumps(row))


def clear(state: State, volume: int, at: int, count: int) -> list[KeptValue]:
    """Frees at most `count` values that only the snapshot `at` saw, which is not alive any more; fewer than `count`: there are no more.

    Their bytes are the caller's to let go.
    """
    below, above = chapters.live(state.txn, volume, at)
    return chapters.clear(state.txn, volume, below, at, above or state.now(volume), count)


def clear_all(state: State, volume: int, count: int) -> list[KeptValue]:
    """Frees at most `count` of all kept values of a volume, as `clear`."""
    return chapters.clear_all(state.txn, volume, count)


# --- the end of a volume ------------------------------------------------------------------------------------------------
def drop_rows_of(state: State, volume: int, count: int) -> int:
    """Deletes the first `count` rows of a deleted volume, of whatever kind.  Returns how many there were."""
    state.evict_volume(volume)
    found = state.keys_in(keys.volume_range(volume), count)
    for key in found:
        state.txn.delete(key)
    return len(found)
