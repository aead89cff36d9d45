"""fallocate(2) as one entry, and the way back from kept space to a reservation.

What a reader can see of an entry (zeros, the size, times) happens in it as a whole, under the request id: FileMap.clear hides any number of
extents at once.  Only keeping space takes as many entries as there are extents, and those change nothing that anybody reads, so a worker
that dies in between, and its successor that begins anew, do no harm.  Data that is dirty in a worker meets these entries in one order
because the worker has flushed the file before it asks; what was committed is never committed again (commits.py), so nothing that was
acknowledged before comes back over a hole, and what was written since is committed later, and seen.

A range is rounded to blocks, as on ext4, where space is kept; zeros are exact.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.errors import FsError
from awsomefsd.limits import BLOCK_BYTES, EXTENTS_PER_INODE_MAX, FILE_BYTES_MAX, REAP_EXTENTS_PER_ENTRY, SEGMENTS_FOR_COLLECTION
from awsomefsd.meta import extents, keys, leases, quota, rows
from awsomefsd.meta.attributes import contents_touched, put_inline
from awsomefsd.meta.commands import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, Draw, Entry, Fallocate
from awsomefsd.meta.filemap import FileMap
from awsomefsd.meta.inodes import attr_of, contents_changed
from awsomefsd.meta.messages import Ranged, Reply, Reserved
from awsomefsd.meta.refuse import NotNow, inode_of, session_of, volume_of
from awsomefsd.meta.segments import usable_bytes
from awsomefsd.meta.state import State

MODES = (0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE)


def fallocate(state: State, entry: Entry, command: Fallocate) -> Reply:
    volume = volume_of(state, entry, command.volume)
    row = inode_of(state, command.volume, command.ino)
    leases.may_change(state, entry, volume, command.ino)
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
        contents_touched(state, command.volume, command.ino, row, kill=command.kill_suidgid)
    leases.changed(state, entry, volume, command.ino)
    contents_changed(state, entry, command.volume, command.ino, row)
    return Ranged(attr_of(command.ino, row), max(reached, start))


def _check(row: rows.InodeRow, command: Fallocate) -> None:
    if stat.S_ISDIR(row.mode):
        raise FsError(errno.EISDIR)
    if not stat.S_ISREG(row.mode):
        raise FsError(errno.ENODEV)
    if command.offset < 0 or command.length <= 0:
        raise FsError(errno.EINVAL)
    if command.mode not in MODES:
        raise FsError(errno.EOPNOTSUPP)
    if command.offset + command.length > FILE_BYTES_MAX:
        raise FsError(errno.EFBIG)
    if not command.mode & FALLOC_PUNCH_HOLE:
        if row.inline and row.stored_bytes:
            raise NotNow(errno.EAGAIN, "inline data has to become extents first")
        if row.extents + REAP_EXTENTS_PER_ENTRY > EXTENTS_PER_INODE_MAX:
            raise FsError(errno.EFBIG)


def _zero(state: State, entry: Entry, volume: rows.VolumeRow, command: Fallocate, row: rows.InodeRow) -> None:
    """Zeros, and no space kept for them."""
    start, end = command.offset, command.offset + command.length
    if not row.inline:
        FileMap(state, volume, command.ino, row).clear(start, end, entry.index)
    elif row.stored_bytes > start:
        data = state.read(keys.inline(command.volume, command.ino), rows.INLINE).data
        rest = data[end:]  # without one nothing has to be kept: an inline row may be shorter than the file
        put_inline(state, volume, command.ino, row, data[:start] + (bytes(end - start) + rest if rest else b""))


def _keep(state: State, entry: Entry, volume: rows.VolumeRow, command: Fallocate, row: rows.InodeRow) -> int:
    """Space for what has none in the range; for all of it where it is to be zeroed.  Returns how far it came."""
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
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    row = inode_of(state, command.volume, command.ino)
    if command.length <= 0 or command.offset < 0 or command.bytes < command.length:
        raise FsError(errno.EINVAL)
    filemap = FileMap(state, volume, command.ino, row)
    end = command.offset + command.length
    if not row.allocated_bytes or filemap.unwritten(command.offset, end, REAP_EXTENTS_PER_ENTRY) < command.length:
        raise NotNow(errno.ENOSPC, "not all of the range is allocated")
    spare = SEGMENTS_FOR_COLLECTION * usable_bytes(state.cluster.segment_bytes_max)
    if quota.device_bytes_unpromised(state, session.session, volume.home) + quota.kept_for(command.length) - spare < command.bytes:
        raise NotNow(errno.ENOSPC, "the spare segments are used up")
    filemap.punch(command.offset, end)
    if not row.size and not row.extents:
        row.inline = True
    state.save_inode(command.volume, command.ino, row)
    quota.promise(state, session, volume, command.bytes)
    return Reserved(command.bytes)
