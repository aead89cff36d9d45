"""Reap does the slow rest of deletions, a bounded number of rows an entry.

The queue is one range of rows, ordered so that a volume's own rows go only when no queued inode or trim points into it.  Each kind moves
its progress in its row or in what it deletes, so a crash between two entries repeats nothing and loses nothing.
"""

from __future__ import annotations

from itertools import islice

from awsomefsd.base.limits import FILE_BYTES_MAX, REAP_EXTENTS_PER_ENTRY
from awsomefsd.meta.api.commands import Entry, Reap
from awsomefsd.meta.api.messages import Done, Reply
from awsomefsd.meta.machine import stream_readers
from awsomefsd.meta.machine.filemap import FileMap, drop_extent, ended, trims_of, unqueue_trims
from awsomefsd.meta.machine.segments import forget_ended
from awsomefsd.meta.machine.sessions import end_rest, has_rest
from awsomefsd.meta.machine.snapshots import free, let_go
from awsomefsd.meta.state import history, keys, rows
from awsomefsd.meta.state.rows_cache import State


def pending(state: State) -> bool:
    """Returns True if there is anything to reap."""
    return state.cluster.reaps > 0 or stream_readers.tombstones_dead(state)


def reap(state: State, entry: Entry, command: Reap) -> Reply:
    """Frees a bounded number of the rows that deletions have left."""
    budget = min(max(command.count, 1), REAP_EXTENTS_PER_ENTRY)
    while budget > 0 and state.cluster.reaps:
        found = next(iter(state.txn.scan(*keys.kind_range(0, keys.REAP))), None)
        assert found is not None, "the count of reap rows is wrong"
        key, raw = found
        budget -= _STEPS[keys.reap_of(key)[0]](state, entry, key, rows.REAP.loads(raw), budget)
    if budget > 0:
        stream_readers.drop_dead_tombstones(state, budget)
    return Done()


def _reap_inode(state: State, entry: Entry, key: bytes, row: rows.ReapRow, budget: int) -> int:
    """Frees extents of an inode that is gone.  Returns how much of the budget it used, as all steps do.

    Its trims, if the volume has chapters, are still there, and behind it in the queue.
    """
    _, number, ino, _ = keys.reap_of(key)
    volume = state.volume(number)
    assert volume is not None
    pieces = list(islice(history.extents(state, number, ino), budget))
    trims = trims_of(state, number, ino) if row.chapter else []
    for piece in pieces:
        drop_extent(state, volume, ino, piece, ended(piece, row.chapter, trims))
    if len(pieces) < budget:
        state.unqueue_reap(key)
        if row.chapter:
            unqueue_trims(state, number, ino)
    return max(1, len(pieces))


def _reap_trim(state: State, entry: Entry, key: bytes, row: rows.ReapRow, budget: int) -> int:
    """Frees extents that a truncation or a hole hid.  `start` moves over what was read: nothing hidden is left before it."""
    _, number, ino, index = keys.reap_of(key)
    volume, inode = state.volume(number), state.inode(number, ino)
    assert volume is not None and inode is not None, "a trim of an inode that is gone"
    pieces = list(islice(history.extents(state, number, ino, row.start, row.end or FILE_BYTES_MAX), budget))
    filemap = FileMap(state, volume, ino, inode)
    for piece in pieces:
        if piece[1].index <= index:
            filemap.free(piece)
    if len(pieces) < budget:
        state.unqueue_reap(key)
        inode.trims -= 1
    else:
        state.write(key, rows.ReapRow(pieces[-1][0] + 1, row.end, row.chapter), rows.REAP)
    if not inode.size and not inode.extents:
        inode.inline = True
    state.save_same_inode(number, ino, inode)
    return max(1, len(pieces))


def _reap_session(state: State, entry: Entry, key: bytes, row: rows.ReapRow, budget: int) -> int:
    session = keys.reap_of(key)[2]
    ended = end_rest(state, entry, session, budget)
    if not has_rest(state, session):
        state.unqueue_reap(key)
        forget_ended(state, session)
    return max(1, ended)


def _reap_volume(state: State, entry: Entry, key: bytes, row: rows.ReapRow, budget: int) -> int:
    """Deletes all rows of a deleted volume: extents first, kept ones too, because they count in segments; the volume's own row last."""
    number = keys.reap_of(key)[1]
    volume = state.volume(number)
    assert volume is not None
    pieces = list(islice(history.extents_of_volume(state, number), budget))
    for ino, piece in pieces:
        drop_extent(state, volume, ino, piece, 0)
    done = len(pieces)
    if volume.chapter and done < budget:
        done += let_go(state, history.clear_all(state, number, budget - done))
    if done == budget:
        return budget
    rest = history.drop_rows_of(state, number, budget - done)
    if done + rest < budget:
        state.drop(keys.volume(number))
        state.unqueue_reap(key)
    return max(1, done + rest)


def _reap_snapshot(state: State, entry: Entry, key: bytes, row: rows.ReapRow, budget: int) -> int:
    """Frees what only a deleted snapshot saw.  It begins where it has ended, because what is freed is gone."""
    _, volume, number, _ = keys.reap_of(key)
    freed = free(state, volume, number, budget) if state.volume(volume) is not None else 0  # with its volume all of it has gone
    if freed < budget:
        state.unqueue_reap(key)
    return max(1, freed)


_STEPS = {
    keys.REAP_INODE: _reap_inode,
    keys.REAP_TRIM: _reap_trim,
    keys.REAP_SESSION: _reap_session,
    keys.REAP_VOLUME: _reap_volume,
    keys.REAP_SNAPSHOT: _reap_snapshot,
}
