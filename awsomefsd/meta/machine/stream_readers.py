"""Registered readers of the change stream, and the tombstones that are kept for them.

A reader's cursor says which entries it has read; the log is kept from the smallest cursor on, and so is a tombstone until every cursor has
passed it.  Without readers none is written.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NAME_BYTES_MAX, REAP_EXTENTS_PER_ENTRY, STREAM_READERS_MAX
from awsomefsd.meta.api.commands import AdvanceReader, Entry, RegisterReader, RemoveReader
from awsomefsd.meta.api.messages import Done, Reply
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State

_TOMBSTONES = keys.kind_range(0, keys.TOMBSTONE)


def cursors(state: State) -> dict[str, int]:
    """Returns reader -> index of the last entry it has read."""
    prefix = len(keys.kind_range(0, keys.READER)[0])
    return {key[prefix:].decode(): rows.READER.loads(raw).cursor for key, raw in state.txn.scan(*keys.kind_range(0, keys.READER))}


def register(state: State, entry: Entry, command: RegisterReader) -> Reply:
    """Registers a reader of the change stream at a cursor."""
    _check_name(command.name)
    if command.cursor < 0:
        raise FsError(errno.EINVAL, "a cursor is an index")
    if state.txn.get(keys.reader(command.name)) is not None:
        return Done()
    if state.cluster.readers >= STREAM_READERS_MAX:
        raise FsError(errno.ENOSPC, f"{STREAM_READERS_MAX} readers are registered")
    state.write(keys.reader(command.name), rows.ReaderRow(command.cursor), rows.READER)
    state.cluster.readers += 1
    return Done()


def advance(state: State, entry: Entry, command: AdvanceReader) -> Reply:
    """Moves the cursor of a reader forward, and drops tombstones that all have passed."""
    _check_name(command.name)
    row: rows.ReaderRow | None = state.read(keys.reader(command.name), rows.READER)
    if row is None:
        raise FsError(errno.ENOENT, f"no reader {command.name}")
    if command.cursor > row.cursor:  # a cursor never goes back: what it passed may be gone
        state.write(keys.reader(command.name), rows.ReaderRow(command.cursor), rows.READER)
        drop_dead_tombstones(state, REAP_EXTENTS_PER_ENTRY)
    return Done()


def remove(state: State, entry: Entry, command: RemoveReader) -> Reply:
    """Removes a reader."""
    _check_name(command.name)
    if not state.txn.delete(keys.reader(command.name)):
        raise FsError(errno.ENOENT, f"no reader {command.name}")
    state.cluster.readers -= 1
    drop_dead_tombstones(state, REAP_EXTENTS_PER_ENTRY)
    return Done()


def _check_name(name: str) -> None:
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise FsError(errno.EINVAL, "not a reader's name")


def _dead_range(state: State) -> keys.Range:
    """Returns the range of tombstones that every reader has passed."""
    if not state.cluster.readers:
        return _TOMBSTONES
    return _TOMBSTONES[0], keys.tombstone(min(cursors(state).values()) + 1, 0)


def tombstones_dead(state: State) -> bool:
    """Returns True if every reader has passed some tombstone."""
    return state.any_in(_dead_range(state))


def drop_dead_tombstones(state: State, count: int) -> None:
    """Deletes up to `count` tombstones that every reader has passed."""
    for key in state.keys_in(_dead_range(state), count):
        state.txn.delete(key)
