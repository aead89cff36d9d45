"""Snapshots of a volume are made and deleted here, and what only a deleted one saw is let go.

A snapshot is one row, and the beginning of a chapter (meta/state/chapters.py): no other row is touched, however large the volume is.  It is
deleted with its row too; what it alone saw is freed behind that, a bounded number of values at a time, and the neighbours that count are
those that live then.

No command comes here yet: fsck, dumps and mounts have to know the rows of history before the first one is written.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.machine.references import drop_reference
from awsomefsd.meta.state import chapters, history, keys, rows
from awsomefsd.meta.state.chapters import KeptValue
from awsomefsd.meta.state.rows_cache import INCOMPAT_SNAPSHOTS, State


def make(state: State, entry: Entry, volume: rows.VolumeRow) -> int:
    """Makes a snapshot of a volume as it is at this entry, and returns its number."""
    state.write_back()  # it sees what is stored
    number = max(volume.chapter, 1)  # rows of before have the chapter 0
    state.write(keys.snapshot(volume.volume, number), rows.SnapshotRow(entry.index, entry.time_ns), rows.SNAPSHOT)
    volume.newest, volume.chapter = number, number + 1
    state.save_volume(volume)
    state.cluster.incompat |= INCOMPAT_SNAPSHOTS
    state.chaptered = True
    return number


def delete(state: State, volume: rows.VolumeRow, number: int) -> None:
    """Deletes a snapshot; the caller sees to it that `free` is called until it is done.  Raises FsError(ENOENT) if there is none."""
    if not state.txn.delete(keys.snapshot(volume.volume, number)):
        raise FsError(errno.ENOENT, f"volume {volume.name} has no snapshot {number}")
    if volume.newest == number:
        volume.newest = max(chapters.live(state.txn, volume.volume, number)[0], 0)
        state.save_volume(volume)


def free(state: State, volume: rows.VolumeRow, number: int, count: int) -> bool:
    """Frees at most `count` values that only a deleted snapshot saw.  Returns True if there are no more."""
    return let_go(state, history.clear(state, volume.volume, number, count)) < count


def let_go(state: State, values: list[KeptValue]) -> int:
    """Lets the bytes go of values that are not kept any more.  Returns how many there were."""
    for value in values:
        if isinstance(value.row, rows.ExtentRow) and value.row.segment:
            drop_reference(state, value.row)
    return len(values)
