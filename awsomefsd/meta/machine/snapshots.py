"""Snapshots of volumes are made, listed and deleted here, and what only a deleted one saw is let go.

A snapshot is one row with its name, and the beginning of a chapter (meta/state/chapters.py): no other row is touched, however large the
volume is.  It is deleted with its row too; what it alone saw Reap frees behind that, a bounded number of values at a time, and the
neighbours that count are those that live then.  Its number is never given again, and it is the one that is asked for (`at`); a mount names
its uuid as well, since a recovery from a copy goes back to earlier numbers.

While a session reads a snapshot it is not deleted, and a volume is not while it has snapshots.
"""

from __future__ import annotations

import errno
import uuid

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import SNAPSHOT_NAME_BYTES_MAX, SNAPSHOTS_PER_VOLUME_MAX
from awsomefsd.base.types import SNAPSHOT_FLUSHED, SNAPSHOT_WORDS, SnapshotInfo
from awsomefsd.meta.api.commands import CreateSnapshots, DeleteSnapshot, Entry, NewSnapshot, OpenSnapshot
from awsomefsd.meta.api.messages import Done, Reply
from awsomefsd.meta.api.messages.snapshots import ListSnapshots, Snapshots
from awsomefsd.meta.machine import volumes
from awsomefsd.meta.machine.references import drop_reference
from awsomefsd.meta.state import chapters, history, keys, rows
from awsomefsd.meta.state.chapters import KeptValue
from awsomefsd.meta.state.rows_cache import INCOMPAT_SNAPSHOTS, State


# --- making -----------------------------------------------------------------------------------------------------------------
def create(state: State, entry: Entry, command: CreateSnapshots) -> Reply:
    """Makes snapshots of several volumes, or of none."""
    _check_new(command)
    found = [_check_volume(state, new, command.name) for new in command.snapshots]
    numbers = _make_all(state, entry, command, found)
    state.cluster.incompat |= INCOMPAT_SNAPSHOTS
    state.chaptered = True
    return Snapshots([_describe(state, volume.volume, number) for volume, number in zip(found, numbers, strict=True)])


def _check_new(command: CreateSnapshots) -> None:
    if not _is_valid_name(command.name):
        raise FsError(errno.EINVAL, f"a snapshot's name has 1 to {SNAPSHOT_NAME_BYTES_MAX} printable bytes, no slash and no @")
    if not 0 <= command.word < SNAPSHOT_FLUSHED:  # which is said by a later entry
        raise FsError(errno.EINVAL, f"a snapshot is made as {' or '.join(SNAPSHOT_WORDS[:SNAPSHOT_FLUSHED])}")
    if not command.snapshots or len({new.volume for new in command.snapshots}) != len(command.snapshots):
        raise FsError(errno.EINVAL, "a snapshot is of one volume or more, each named once")
    if len({new.uuid for new in command.snapshots}) != len(command.snapshots) or not all(_is_uuid(new.uuid) for new in command.snapshots):
        raise FsError(errno.EINVAL, "each snapshot has a UUID of its own")


def _check_volume(state: State, new: NewSnapshot, name: str) -> rows.VolumeRow:
    """Returns the volume of a snapshot that may be made."""
    volume = volumes.existing(state, new.volume)
    if state.txn.get(keys.snapname(volume.volume, name)) is not None:
        raise FsError(errno.EEXIST, f"volume {volume.name} has a snapshot {name}")
    if len(state.keys_in(keys.snapshots_range(volume.volume), SNAPSHOTS_PER_VOLUME_MAX)) == SNAPSHOTS_PER_VOLUME_MAX:
        raise FsError(errno.ENOSPC, f"volume {volume.name} has {SNAPSHOTS_PER_VOLUME_MAX} snapshots already; delete some")
    return volume


def _make_all(state: State, entry: Entry, command: CreateSnapshots, found: list[rows.VolumeRow]) -> list[int]:
    state.write_back()  # a snapshot sees what is stored
    return [_make(state, entry, volume, command, new.uuid) for volume, new in zip(found, command.snapshots, strict=True)]


def _make(state: State, entry: Entry, volume: rows.VolumeRow, command: CreateSnapshots, uuid_: str) -> int:
    number = max(volume.chapter, 1)  # rows of before have the chapter 0
    row = rows.SnapshotRow(
        entry.index, entry.time_ns, command.name, uuid_, entry.stamp, command.word,
        volume.used_bytes, volume.used_inodes, volume.next_ino, volume.quota_bytes, volume.quota_inodes,
    )  # fmt: skip
    state.write(keys.snapshot(volume.volume, number), row, rows.SNAPSHOT)
    state.write(keys.snapname(volume.volume, command.name), rows.SnapshotNameRow(number), rows.SNAPNAME)
    volume.newest, volume.chapter = number, number + 1
    state.save_volume(volume)
    return number


def _is_valid_name(name: str) -> bool:
    sound = name.isprintable() and name not in (".", "..") and not set("/@") & set(name)
    return sound and 0 < len(name.encode()) <= SNAPSHOT_NAME_BYTES_MAX


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


# --- reading ----------------------------------------------------------------------------------------------------------------
def listing(state: State, body: ListSnapshots) -> Reply:
    """Answers ListSnapshots."""
    volume = volumes.existing(state, body.volume).volume
    if body.name:
        key = keys.snapname(volume, body.name) if _is_valid_name(body.name) else b""
        named: rows.SnapshotNameRow | None = state.read(key, rows.SNAPNAME) if key else None
        return Snapshots([] if named is None else [_describe(state, volume, named.snapshot)])
    numbers = [keys.last_u32(key) for key in state.keys_in(keys.snapshots_range(volume))]
    return Snapshots([_describe(state, volume, number) for number in numbers])


def _describe(state: State, volume: int, number: int) -> SnapshotInfo:
    row: rows.SnapshotRow = state.read(keys.snapshot(volume, number), rows.SNAPSHOT)
    below, above = chapters.live(state.txn, volume, number)
    shelves = [shelf for _, _, shelf in chapters.shelves(state.txn, volume, below, number, above or state.now(volume))]
    return SnapshotInfo(
        volume, number, row.uuid, row.name, row.time_ns, row.word, row.used_bytes, row.used_inodes,
        sum(shelf.bytes for shelf in shelves),
    )  # fmt: skip


def check_opened(state: State, command: OpenSnapshot) -> None:
    """Raises FsError(ENOENT) unless the snapshot that a session is to read is there."""
    row: rows.SnapshotRow | None = state.read(keys.snapshot(command.volume, command.snapshot), rows.SNAPSHOT)
    if row is None or row.uuid != command.uuid:
        raise FsError(errno.ENOENT, f"volume {command.volume} has no snapshot {command.snapshot} with UUID {command.uuid} (any more)")


# --- deleting ---------------------------------------------------------------------------------------------------------------
def delete(state: State, entry: Entry, command: DeleteSnapshot) -> Reply:
    """Deletes a snapshot; Reap frees what it alone saw."""
    volume, number = volumes.existing(state, command.volume), command.snapshot
    key = keys.snapshot(volume.volume, number)
    row: rows.SnapshotRow | None = state.read(key, rows.SNAPSHOT)
    if row is None:
        raise FsError(errno.ENOENT, f"volume {volume.name} has no snapshot {number}")
    for session in state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION):
        if (session.volume, session.snapshot, session.ended) == (volume.volume, number, False):
            raise FsError(errno.EBUSY, f"snapshot {row.name} of volume {volume.name} is mounted on node {session.node}")
    state.txn.delete(key)
    state.txn.delete(keys.snapname(volume.volume, row.name))
    if volume.newest == number:
        volume.newest = max(chapters.live(state.txn, volume.volume, number)[0], 0)
        state.save_volume(volume)
    state.queue_reap(keys.reap(keys.REAP_SNAPSHOT, volume.volume, number, 0), rows.ReapRow())
    return Done()


def free(state: State, volume: int, number: int, count: int) -> int:
    """Frees at most `count` values that only a deleted snapshot saw.  Returns how many; fewer than `count`: there are no more."""
    return let_go(state, history.clear(state, volume, number, count))


def let_go(state: State, values: list[KeptValue]) -> int:
    """Lets the bytes go of values that are not kept any more.  Returns how many there were."""
    for value in values:
        if isinstance(value.row, rows.ExtentRow) and value.row.segment:
            drop_reference(state, value.row)
    return len(values)
