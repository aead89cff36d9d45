"""Write leases on inodes are granted and ended by entries, which also count which mount has changed the data since.

A session that shares its volume buffers data, size and times of an inode only under a write lease, of which an inode has one at a time.
It is an entry: it survives a change of leader, and ends with its session.  Read leases are the leader's memory
(meta/server/leases/lease_table.py).

Where names are delegated an inode of any kind may be leased, a directory above all: the holder decides what happens to its names and
attributes, and sends records of that (records.py), which touch nothing that it does not hold.  What a record makes, its session holds.

Each grant has an *epoch*, new for every holder; a commit that names another one is refused, so what was buffered under an ended lease can
never land (the fence at the resource).  A commit or a truncation without a lease is refused while another session holds one: the leader
recalls first, and this refusal stands if it did not.

`changes` counts changes of the data, those under one write lease as one, and locks lost with their session.  A mount that comes back names
the value it knew; if another mount has made any of what came since, its old handles and dirty data are stale
(`changed_by_others`).  A volume that is held whole (OpenSession without `shared`) needs none of this, and pays one comparison.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import LEASE_WRITE, NAMES_DELEGATED
from awsomefsd.meta.api.commands import AcquireLease, Entry, ReleaseLease
from awsomefsd.meta.api.messages import Done, Leased, Reply
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import RetryLater, inode_of, is_live, session_of, volume_of
from awsomefsd.meta.state.rows_cache import State


def of_inode(state: State, volume: int, ino: int) -> rows.LeaseRow:
    """Returns the lease row of an inode; a new one if none was written yet.

    A lease of a session that has ended is over, also while its row still names it (sessions.py).
    """
    row: rows.LeaseRow | None = state.read(keys.lease(volume, ino), rows.LEASE)
    if row is None:
        return rows.LeaseRow()
    if row.session and not is_live(state, row.session):
        row.session = 0
    return row


def acquire(state: State, entry: Entry, command: AcquireLease) -> Reply:
    """Grants the write lease of an inode to the session.  Answered by Leased; RetryLater while another session has it."""
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    if not session.shared:
        raise FsError(errno.EINVAL, f"session {session.session} holds its volume whole")
    if not stat.S_ISREG(inode_of(state, command.volume, command.ino).mode) and volume.names != NAMES_DELEGATED:
        raise FsError(errno.EINVAL, "write leases are for regular files")
    row = of_inode(state, command.volume, command.ino)
    if row.session not in (0, session.session):
        raise RetryLater(errno.EAGAIN, f"session {row.session} holds the write lease of inode {command.ino}")
    if not row.session:
        row.session = session.session
        row.epoch += 1
        state.txn.put(keys.leaser(session.session, command.volume, command.ino), rows.MARK)
        state.write(keys.lease(command.volume, command.ino), row, rows.LEASE)
    return Leased(0, 0, LEASE_WRITE, row.epoch, row.changes, changed_by_others(row, entry.mount, command.known))


def grant_with_inode(state: State, entry: Entry, volume: int, ino: int) -> Leased | None:
    """Grants the write lease of an inode that this entry makes; None for a session that holds its volume whole or caches nothing."""
    session = state.session(entry.session) if entry.session else None
    if session is None or not may_lease(session):
        return None
    row = rows.LeaseRow(session.session, 1)
    state.ledger.grant(state, session.session, volume, ino, row)
    return Leased(0, 0, LEASE_WRITE, row.epoch, row.changes, False)


def may_lease(session: rows.SessionRow) -> bool:
    """Returns True for a session that shares its volume and caches under leases."""
    return session.shared and (session.caches or not session.uncached)


def holder_of(state: State, volume: int, ino: int) -> int:
    """Returns the session that has the write lease of an inode; 0: none."""
    return of_inode(state, volume, ino).session


def changed_by_others(row: rows.LeaseRow, mount: int, known: int) -> bool:
    """Returns True if another mount has changed the data since `mount` got the number `known` (0: it knows nothing)."""
    return bool(known) and row.changes != known and not (row.mount == mount and row.changes - row.run <= known)


def changes_since(state: State, volume: int, ino: int, mount: int, known: int) -> tuple[int, bool]:
    """Returns the number of changes of an inode's data, and `changed_by_others` of it."""
    row = of_inode(state, volume, ino)
    return row.changes, changed_by_others(row, mount, known)


def release(state: State, entry: Entry, command: ReleaseLease) -> Reply:
    """Ends a write lease of the session."""
    session = session_of(state, entry, command.volume)
    row = of_inode(state, command.volume, command.ino)
    if (row.session, row.epoch) == (session.session, command.lease):
        _drop(state, command.volume, command.ino, row)
    return Done()


def _drop(state: State, volume: int, ino: int, row: rows.LeaseRow) -> None:
    state.txn.delete(keys.leaser(row.session, volume, ino))
    row.session = 0
    state.write(keys.lease(volume, ino), row, rows.LEASE)


def end_session_write_leases(state: State, session: int, count: int) -> int:
    """Ends up to `count` write leases of an ended session (-1: all), and returns how many it ended.

    Another session may have the lease of such an inode by now, or the inode has ended: then only the session's marker goes.
    """
    found = state.keys_in(keys.leaser_range(session), count)
    for key in found:
        _, volume, ino = keys.session_inode_of(key)
        state.txn.delete(key)
        row: rows.LeaseRow | None = state.read(keys.lease(volume, ino), rows.LEASE)
        if row is not None and row.session == session:
            row.session = 0
            state.write(keys.lease(volume, ino), row, rows.LEASE)
    return len(found)


def is_held(state: State, entry: Entry, volume: rows.VolumeRow, ino: int, lease: int) -> bool:
    """Returns True if the entry's session holds the write lease of that epoch, or holds its volume whole and needs none."""
    if not volume.sharers:
        return True
    row = of_inode(state, volume.volume, ino)
    return (row.session, row.epoch) == (entry.session, lease)


def check_may_change(state: State, entry: Entry, volume: rows.VolumeRow, ino: int) -> None:
    """Raises RetryLater if another session holds the write lease of an inode that the entry would change without one."""
    if not volume.sharers:
        return
    row = of_inode(state, volume.volume, ino)
    if row.session not in (0, entry.session):
        raise RetryLater(errno.EAGAIN, f"session {row.session} holds the write lease of inode {ino}")


def count_change(state: State, entry: Entry, volume: rows.VolumeRow, ino: int, lease: int = 0) -> None:
    """Counts a change of an inode's data by the entry, under the lease of that epoch (0: under none).

    A rule calls it when nothing can refuse the entry any more.
    """
    if not volume.sharers:
        return
    row = of_inode(state, volume.volume, ino)
    if lease and row.lease == lease and row.mount == entry.mount:
        return
    _count(state, volume.volume, ino, row, entry.mount, lease)


def _count(state: State, volume: int, ino: int, row: rows.LeaseRow, mount: int, lease: int) -> None:
    row.run = row.run + 1 if row.mount == mount else 1
    row.changes += 1
    row.mount, row.lease = mount, lease
    state.write(keys.lease(volume, ino), row, rows.LEASE)


def count_lost_lock(state: State, volume: int, ino: int) -> None:
    """Counts a lock that ended with its session as a change that is another's for every mount."""
    _count(state, volume, ino, of_inode(state, volume, ino), 0, 0)


def some(state: State, after: bytes, count: int) -> tuple[list[tuple[tuple[int, int], tuple[int, int]]], bytes]:
    """Returns up to `count` write leases as ((volume, ino), (session, epoch)), and what to give as `after` for those that follow.

    b"" as `after` is the beginning, and returned it is the end.
    """
    low, high = keys.kind_range(0, keys.LEASER)
    markers = state.keys_in((after + b"\0" if after else low, high), count)
    found = []
    for marker in markers:
        session, volume, ino = keys.session_inode_of(marker)
        row = of_inode(state, volume, ino)
        if row.session == session:
            found.append(((volume, ino), (session, row.epoch)))
    return found, markers[-1] if len(markers) == count else b""
