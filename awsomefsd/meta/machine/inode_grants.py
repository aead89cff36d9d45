"""Inode numbers are granted to a mount, which gives them to what it makes by itself; records bring them into the log (records.py).

A number is granted once and used once: a grant is taken off the volume's counter, a record's number lies in a grant of its mount and above
every number that the mount has used, and what was passed over or given back is never used.  Grants are the mount's in one volume: records
of a session that has ended go on under the next one there, and a session of another volume begins with nothing.  What the quota counts for
them is the session's, and ends with it; without it a record's inode has to find room in the quota as any other.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import INODE_RANGES_MAX, INODES_GRANTED_MAX, INODES_PER_GRANT_MAX
from awsomefsd.base.types import NAMES_DELEGATED
from awsomefsd.meta.api.commands import Entry, GrantInodes
from awsomefsd.meta.api.messages import InodesGranted, Reply
from awsomefsd.meta.machine import write_leases
from awsomefsd.meta.machine.quota import GRANT_SHARE
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import NotKept, session_of, volume_of
from awsomefsd.meta.state.rows_cache import State

Numbers = list[tuple[int, int]]


def log_of(state: State, mount: int, volume: int) -> rows.OpLogRow | None:
    """Returns the row of a mount that has records or inode numbers in the volume that its session serves, or None."""
    row = _row(state, mount)
    return row if row is not None and row.volume == volume else None


def _row(state: State, mount: int) -> rows.OpLogRow | None:
    row: rows.OpLogRow | None = state.read(keys.op_log(mount), rows.OPLOG)
    return row


def save_log(state: State, mount: int, row: rows.OpLogRow) -> None:
    state.write(keys.op_log(mount), row, rows.OPLOG)


def grant(state: State, entry: Entry, command: GrantInodes) -> Reply:
    """Grants inode numbers to the mount of the session, or takes unused ones back.  Answered by InodesGranted."""
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    if not session.mount or (session.shared and not _may_use(session, volume)):
        raise FsError(errno.EINVAL, "inode numbers are granted to mounts that hold their volume, or decide names under leases")
    if not 0 <= command.count <= INODES_PER_GRANT_MAX:
        raise FsError(errno.EINVAL, f"{command.count} inode numbers at once")
    row = log_of(state, session.mount, command.volume) or rows.OpLogRow(command.volume)
    numbers = above(row.numbers, command.lowest)
    reserved = min(row.reserved, count_of(numbers))
    count = min(command.count, INODES_GRANTED_MAX - count_of(numbers))
    if volume.quota_inodes and command.count:
        left = volume.quota_inodes - volume.used_inodes - volume.granted_inodes + row.reserved - reserved
        if left <= 0:
            raise NotKept(errno.EDQUOT, f"volume {volume.name} may have {volume.quota_inodes} inodes")
        count = min(count, max(1, left // GRANT_SHARE))
    first = volume.next_ino
    if count:
        last = numbers.pop()[0] if numbers and numbers[-1][1] == first else first
        numbers.append((last, first + count))
    if command.count and (not count or len(numbers) > INODE_RANGES_MAX):
        raise NotKept(errno.EAGAIN, f"the mount has {count_of(numbers) - count} inode numbers that it has not used")
    volume.next_ino += count
    _keep(state, volume, row, numbers, reserved + count)
    save_log(state, session.mount, row)
    return InodesGranted(first, count)


def _may_use(session: rows.SessionRow, volume: rows.VolumeRow) -> bool:
    """Returns False for one who shares the volume and decides nothing: its numbers would fill the quota of the others."""
    return write_leases.may_lease(session) and volume.names == NAMES_DELEGATED


def above(numbers: Numbers, lowest: int) -> Numbers:
    """Returns the numbers from `lowest` on."""
    return [(max(first, lowest), end) for first, end in numbers if end > lowest]


def count_of(numbers: Numbers) -> int:
    return sum(end - first for first, end in numbers)


def holds(row: rows.OpLogRow, ino: int) -> bool:
    """Returns True if the number was granted and is above every number that was used."""
    return any(first <= ino < end for first, end in row.numbers)


def use(state: State, volume: rows.VolumeRow, row: rows.OpLogRow, ino: int) -> None:
    """Notes that a record has made the inode `ino`; the numbers below it are gone too.  The caller saves the mount's row."""
    _keep(state, volume, row, above(row.numbers, ino + 1), max(row.reserved - 1, 0))


def _keep(state: State, volume: rows.VolumeRow, row: rows.OpLogRow, numbers: Numbers, reserved: int) -> None:
    reserved = min(reserved, count_of(numbers))
    volume.granted_inodes += reserved - row.reserved
    row.numbers, row.reserved = numbers, reserved
    state.save_volume(volume)


def end_session(state: State, mount: int) -> None:
    """Takes what the quota counts for a mount's numbers off it: its session ends.  The numbers stay the mount's."""
    row = _row(state, mount)
    if row is not None and row.reserved:
        volume = state.volume(row.volume)
        if volume is not None:
            volume.granted_inodes -= row.reserved
            state.save_volume(volume)
        row.reserved = 0
        save_log(state, mount, row)


def forget(state: State, mount: int) -> None:
    """Deletes a mount's row: it sends nothing again."""
    end_session(state, mount)
    state.txn.delete(keys.op_log(mount))
