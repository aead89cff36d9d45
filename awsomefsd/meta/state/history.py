"""The one door to the versioned rows: those of inodes, names, extents, inline bytes and extended attributes.

Snapshots will see these rows as they were, so whoever changes one has to keep its value first, and whoever reads one has to say as of when.
A rule that did either past this module would break a promise that no test of that rule knows of; therefore nobody else names the keys of
these kinds, and buildtools/versioned_rows.py proves it.  Inodes are cached by State, which is the door to them (rows_cache.py).

Each function is of one kind of row and of the head of a volume.  An extent's row and its reverse row, which leads from a place to it, are
written and deleted together.  Counters of inodes and volumes are the rules'.  Errors are those of the codecs: Corrupt, FormatTooNew.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from awsomefsd.base.limits import FILE_BYTES_MAX
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.extents import Piece

if TYPE_CHECKING:
    from awsomefsd.meta.state.rows_cache import State
    from awsomefsd.meta.state.txn import Txn


# --- names --------------------------------------------------------------------------------------------------------------
def dentry(state: State, volume: int, parent: int, name: bytes) -> rows.DentryRow | None:
    """Returns where a name leads to, or None."""
    raw = state.txn.get(keys.dentry(volume, parent, name))
    return None if raw is None else rows.DENTRY.loads(raw)


def dentries(state: State, volume: int, parent: int, after: bytes) -> Iterator[tuple[bytes, rows.DentryRow]]:
    """Yields (key, dentry) of a directory, or with `parent` 0 of the volume, in order, from behind the key `after` (b"": all)."""
    start, end = keys.kind_range(volume, keys.DENTRY)
    if parent:
        start, end = keys.dentry(volume, parent, b""), keys.dentry(volume, parent + 1, b"")
    for key, raw in state.txn.scan(max(start, after + b"\0") if after else start, end):
        yield key, rows.DENTRY.loads(raw)


def cookies(state: State, volume: int, parent: int, after: int, count: int) -> list[tuple[int, rows.CookieRow]]:
    """Returns (readdir offset, entry) of a directory, the first `count` behind the offset `after`."""
    found = islice(state.txn.scan(*keys.cookies_after(volume, parent, after)), count)
    return [(keys.last_u64(key), rows.COOKIE.loads(raw)) for key, raw in found]


def add_name(state: State, volume: int, parent: int, name: bytes, row: rows.DentryRow) -> None:
    """Writes the two rows of a name that is not there."""
    put = state.txn.put
    put(keys.dentry(volume, parent, name), rows.DENTRY.dumps(row))
    put(keys.cookie(volume, parent, row.cookie), rows.COOKIE.dumps(rows.CookieRow(row.ino, row.kind, name, row.chapter)))


def drop_name(state: State, volume: int, parent: int, name: bytes, cookie: int) -> None:
    """Deletes the two rows of a name."""
    delete = state.txn.delete
    delete(keys.dentry(volume, parent, name))
    delete(keys.cookie(volume, parent, cookie))


# --- extended attributes ------------------------------------------------------------------------------------------------
def xattr(state: State, volume: int, ino: int, name: bytes) -> bytes | None:
    """Returns the value of an attribute, or None."""
    raw = state.txn.get(keys.xattr(volume, ino, name))
    return None if raw is None else bytes(rows.XATTR.loads(raw).value)


def xattr_names(state: State, volume: int, ino: int) -> list[bytes]:
    """Returns the names of all attributes of an inode."""
    return [key[keys.NAME_AT :] for key in state.keys_in(keys.xattrs_range(volume, ino))]


def put_xattr(state: State, volume: int, ino: int, name: bytes, value: bytes) -> None:
    state.txn.put(keys.xattr(volume, ino, name), rows.XATTR.dumps(rows.XattrRow(value)))


def drop_xattr(state: State, volume: int, ino: int, name: bytes) -> None:
    state.txn.delete(keys.xattr(volume, ino, name))


def drop_xattrs(state: State, volume: int, ino: int) -> None:
    """Deletes all attributes of an inode."""
    for key in state.keys_in(keys.xattrs_range(volume, ino)):
        state.txn.delete(key)


# --- inline bytes -------------------------------------------------------------------------------------------------------
def inline(state: State, volume: int, ino: int) -> bytes | None:
    """Returns the bytes of a small file; None if it has no row of them.  Behind them it reads as zeros."""
    raw = state.txn.get(keys.inline(volume, ino))
    return None if raw is None else bytes(rows.INLINE.loads(raw).data)


def put_inline(state: State, volume: int, ino: int, data: bytes) -> None:
    state.txn.put(keys.inline(volume, ino), rows.INLINE.dumps(rows.InlineRow(data)))


def drop_inline(state: State, volume: int, ino: int) -> None:
    state.txn.delete(keys.inline(volume, ino))


# --- extents ------------------------------------------------------------------------------------------------------------
def extent(state: State, volume: int, ino: int, offset: int) -> rows.ExtentRow | None:
    """Returns the extent that begins at a file offset, or None."""
    raw = state.txn.get(keys.extent(volume, ino, offset))
    return None if raw is None else rows.EXTENT.loads(raw)


def extents(state: State, volume: int, ino: int, start: int = 0, end: int = FILE_BYTES_MAX) -> Iterator[Piece]:
    """Yields the extents that begin in [start, end), hidden ones too; with `end` FILE_BYTES_MAX all to the last."""
    high = keys.extent(volume, ino, end) if end < FILE_BYTES_MAX else keys.extents_range(volume, ino)[1]
    for key, raw in state.txn.scan(keys.extent(volume, ino, start), high):
        yield keys.last_u64(key), rows.EXTENT.loads(raw)


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
    """Writes an extent, and its reverse row if it has a place, where no other one is."""
    offset, row = piece
    put = state.txn.put
    put(keys.extent(volume, ino, offset), rows.EXTENT.dumps(row))
    if row.segment:
        put(keys.reverse(row.segment, row.frame_offset, volume, ino, offset), rows.REVERSE.dumps(rows.ReverseRow(row.incarnation)))


def mark_extent(state: State, volume: int, ino: int, piece: Piece) -> None:
    """Writes an extent that got the mark `shared`; its place is the same."""
    state.txn.put(keys.extent(volume, ino, piece[0]), rows.EXTENT.dumps(piece[1]))


def drop_extent(state: State, volume: int, ino: int, piece: Piece) -> None:
    """Deletes an extent with its reverse row."""
    offset, row = piece
    delete = state.txn.delete
    delete(keys.extent(volume, ino, offset))
    if row.segment:
        delete(keys.reverse(row.segment, row.frame_offset, volume, ino, offset))


# --- the end of a volume ------------------------------------------------------------------------------------------------
def drop_rows_of(state: State, volume: int, count: int) -> int:
    """Deletes the first `count` rows of a deleted volume, of whatever kind.  Returns how many there were."""
    state.evict_volume(volume)
    found = state.keys_in(keys.volume_range(volume), count)
    for key in found:
        state.txn.delete(key)
    return len(found)
