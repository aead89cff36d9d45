"""fallocate(2) is an entry, or several that keep space; another command turns kept space back into a reservation.

The changes that a reader can see (zeros, the size, times) happen in one entry as a whole, under the request id: FileMap.clear hides any
number of extents at once.  Only keeping space takes as many entries as there are extents, and those change nothing that a reader sees, so a
worker that dies in between, and its successor that begins again, do no harm.  Data that is dirty in a worker meets these entries in one
order because the worker has flushed the file before it asks; what was committed is never committed again (commits.py), so nothing that was
acknowledged before comes back over a hole, and what was written since is committed later, and seen.

A range is rounded to blocks, as on ext4, where space is kept; zeros are exact.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import BLOCK_BYTES, EXTENTS_PER_INODE_MAX, FILE_BYTES_MAX, REAP_EXTENTS_PER_ENTRY, SEGMENTS_FOR_COLLECTION
from awsomefsd.meta.api.commands import FALLOC_KEEP_SIZE, FALLOC_MODES, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, Draw, Entry, Fallocate
from awsomefsd.meta.api.messages import Ranged, Reply, Reserved
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine import quota, write_leases
from awsomefsd.meta.machine.attributes import drop_privileges
from awsomefsd.meta.machine.filemap import FileMap
from awsomefsd.meta.machine.inodes import attr_of, save_new_contents
from awsomefsd.meta.machine.ledger import put_inline
from awsomefsd.meta.state import extents, history, rows
from awsomefsd.meta.state.lookups import NotKept, inode_of, session_of, volume_of
from awsomefsd.meta.state.rows_cache import State


def fallocate(state: State, entry: Entry, command: Fallocate) -> Reply:
    """Keeps space for a range, makes it a hole, or zeroes it.  Answered by Ranged."""
    volume = volume_of(state, entry, command.volume)
    row = inode_of(state, command.volume, command.ino)
    write_leases.check_may_change(state, entry, volume, command.ino)
    _check(row, command)
    start, end = command.offset, command.offset + command.length
    reached = end
    if command.mode & FALLOC_PUNCH_HOLE:
        _zero(state, entry, volume, command, row)
    else:
        reached = _keep(state, entry, volume, command, row)
    if not command.mode & FALLOC_KEEP_SIZE:
        row.size = max(row.size, end)
    if not row.size and not row.extents:
        row.inline = True
    if not command.goes_on:
        drop_privileges(state, command.volume, command.ino, row, kill=command.kill_suidgid)
    write_leases.count_change(state, entry, volume, command.ino)
    save_new_contents(state, entry, command.volume, command.ino, row)
    return Ranged(attr_of(command.ino, row), max(reached, start))


def _check(row: rows.InodeRow, command: Fallocate) -> None:
    if stat.S_ISDIR(row.mode):
        raise FsError(errno.EISDIR)
    if not stat.S_ISREG(row.mode):
        raise FsError(errno.ENODEV)
    if command.offset < 0 or command.length <= 0:
        raise FsError(errno.EINVAL)
    if command.mode not in FALLOC_MODES:
        raise FsError(errno.EOPNOTSUPP)
    if command.offset + command.length > FILE_BYTES_MAX:
        raise FsError(errno.EFBIG)
    if not command.mode & FALLOC_PUNCH_HOLE:
        if row.inline and row.stored_bytes:
            raise NotKept(errno.EAGAIN, "inline data has to become extents first")
        if row.extents + REAP_EXTENTS_PER_ENTRY > EXTENTS_PER_INODE_MAX:
            raise FsError(errno.EFBIG)


def _zero(state: State, entry: Entry, volume: rows.VolumeRow, command: Fallocate, row: rows.InodeRow) -> None:
    """Makes the range zeros, and keeps no space for them."""
    start, end = command.offset, command.offset + command.length
    if not row.inline:
        FileMap(state, volume, command.ino, row).clear(start, end, entry.index)
    elif row.stored_bytes > start:
        data = history.inline(state, command.volume, command.ino)
        assert data is not None, "an inode counts inline bytes that it does not have"
        rest = data[end:]  # without one nothing has to be kept: an inline row may be shorter than the file
        put_inline(state, volume, command.ino, row, data[:start] + (bytes(end - start) + rest if rest else b""))


def _keep(state: State, entry: Entry, volume: rows.VolumeRow, command: Fallocate, row: rows.InodeRow) -> int:
    """Keeps space for the gaps of the range, and for all of it where it is to be zeroed.  Returns the file offset that it reached."""
    start, end = command.offset, command.offset + command.length
    low = start if command.goes_on else start - start % BLOCK_BYTES
    high = min(end + -end % BLOCK_BYTES, FILE_BYTES_MAX)
    filemap = FileMap(state, volume, command.ino, row)
    count = REAP_EXTENTS_PER_ENTRY
    gaps, reached = filemap.gaps(low, high, count)
    if command.mode & FALLOC_ZERO_RANGE:
        kept = filemap.unwritten(start, end, count)
        freed = sum(extents.sub(piece, start, end)[1].length for piece in filemap.stored(start, end, count + 1)[:count])
        outside = sum(last - first for first, last in gaps if last <= start or first >= end)
        wanted = end - start + outside
        quota.check_room(state, volume, entry.session, wanted - freed, wanted - kept)
        filemap.clear(start, end, entry.index)
        gaps, reached = filemap.gaps(low, high, count)
    else:
        wanted = sum(last - first for first, last in gaps)
        quota.check_room(state, volume, entry.session, wanted, wanted)
    if gaps:
        row.inline = False
    for first, last in gaps:
        filemap.allocate(first, last, entry.index)
    return reached


def draw(state: State, entry: Entry, command: Draw) -> Reply:
    """Turns space that is kept for a range into a reservation of the session; the range becomes a hole.  Answered by Reserved."""
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    row = inode_of(state, command.volume, command.ino)
    if command.length <= 0 or command.offset < 0 or command.bytes < command.length:
        raise FsError(errno.EINVAL)
    filemap = FileMap(state, volume, command.ino, row)
    end = command.offset + command.length
    if not row.allocated_bytes or filemap.unwritten(command.offset, end, REAP_EXTENTS_PER_ENTRY) < command.length:
        raise NotKept(errno.ENOSPC, "not all of the range is allocated")
    spare = SEGMENTS_FOR_COLLECTION * usable_bytes(state.cluster.segment_bytes_max)
    if quota.device_bytes_unpromised(state, session.session, volume.home) + quota.kept_for(command.length) - spare < command.bytes:
        raise NotKept(errno.ENOSPC, "the spare segments are used up")
    filemap.punch(command.offset, end)
    if not row.size and not row.extents:
        row.inline = True
    state.save_same_inode(command.volume, command.ino, row)  # space that is only promised is in no snapshot
    quota.promise(state, session, volume, command.bytes)
    return Reserved(command.bytes)
