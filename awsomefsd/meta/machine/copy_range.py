"""copy_file_range(2) by reference: the destination's extents name the places of the source's.

One entry copies as far as a bounded number of pieces reaches, and says how far: the system call may return less than was asked for.  Holes
and unwritten extents of the source become holes.  references.py counts which extents hold which bytes.  What the destination shows counts
as used bytes of the volume, and against its quota, as if the bytes had been copied; no device space is needed.

A row of the source that is gone would become a hole of the destination.  The leader looks for one before it proposes a copy (`refusal`);
the rule does not, because what a voter knows of a large file's extents is no part of the state (extent_counts.py).
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import EXTENTS_PER_INODE_MAX, FILE_BYTES_MAX, REAP_EXTENTS_PER_ENTRY
from awsomefsd.meta.api.commands import CopyRange, Entry
from awsomefsd.meta.api.messages import Failed, Ranged, Reply
from awsomefsd.meta.machine import quota, write_leases
from awsomefsd.meta.machine.attributes import drop_privileges
from awsomefsd.meta.machine.filemap import FileMap
from awsomefsd.meta.machine.inodes import attr_of, save_new_contents
from awsomefsd.meta.machine.references import SHARED_RUNS_MAX, runs_of
from awsomefsd.meta.state import extents, rows
from awsomefsd.meta.state.extents import Piece
from awsomefsd.meta.state.lookups import RetryLater, inode_of, volume_of
from awsomefsd.meta.state.rows_cache import State

PIECES_PER_COPY_MAX = 512


def copy_range(state: State, entry: Entry, command: CopyRange) -> Reply:
    """Makes a range of one file name the bytes of another.  Answered by Ranged, with the bytes copied."""
    volume = volume_of(state, entry, command.volume)
    source = inode_of(state, command.volume, command.ino)
    target = inode_of(state, command.volume, command.new_ino)
    write_leases.check_may_change(state, entry, volume, command.new_ino)
    _check(source, target, command)
    start, at = command.offset, command.new_offset
    length = min(command.length, source.size - start)
    if length <= 0:
        return Ranged(attr_of(command.new_ino, target), 0)
    _check_inline(source, target)
    frommap = FileMap(state, volume, command.ino, source)
    tomap = FileMap(state, volume, command.new_ino, target) if target is not source else frommap
    length = _bounded(state, frommap, tomap, start, at, length)
    pieces = _parts(frommap, start, start + length)
    freed = sum(extents.sub(piece, at, at + length)[1].length for piece in tomap.stored(at, at + length))
    quota.check_room(state, volume, entry.session, sum(piece[1].length for piece in pieces) - freed, 0)
    tomap.punch(at, at + length)
    for piece in frommap.visible(start, start + length, len(pieces) + REAP_EXTENTS_PER_ENTRY)[0]:  # read again: the punch may have cut one
        offset, row = extents.sub(frommap.share(piece), start, start + length)
        tomap.copy((offset - start + at, row), entry.index)
    target.size = max(target.size, at + length)
    target.inline = False
    drop_privileges(state, command.volume, command.new_ino, target, kill=command.kill_suidgid)
    write_leases.count_change(state, entry, volume, command.new_ino)
    save_new_contents(state, entry, command.volume, command.new_ino, target)
    return Ranged(attr_of(command.new_ino, target), length)


def refusal(state: State, command: CopyRange) -> Failed | None:
    """Returns why a copy must not be proposed: a row of its source is gone, or that is not known yet; None if it may be proposed."""
    volume, source = state.volume(command.volume), state.inode(command.volume, command.ino)
    if volume is None or source is None or command.offset < 0:
        return None  # the rule refuses it
    end = min(command.offset + max(command.length, 0), source.size)
    frommap = FileMap(state, volume, command.ino, source)
    stored, end = frommap.part(command.offset, end, PIECES_PER_COPY_MAX)
    try:
        gone = frommap.missing(stored, command.offset, end)
    except RetryLater as err:
        return Failed(err.errno, str(err), True)
    return Failed(errno.EIO, f"volume {command.volume} inode {command.ino}: {gone}; run awsomefsd fsck") if gone else None


def _check(source: rows.InodeRow, target: rows.InodeRow, command: CopyRange) -> None:
    if stat.S_ISDIR(source.mode) or stat.S_ISDIR(target.mode):
        raise FsError(errno.EISDIR)
    if not stat.S_ISREG(source.mode) or not stat.S_ISREG(target.mode):
        raise FsError(errno.EINVAL)
    if command.offset < 0 or command.new_offset < 0 or command.length < 0:
        raise FsError(errno.EINVAL)
    if command.ino == command.new_ino and abs(command.offset - command.new_offset) < command.length:
        raise FsError(errno.EINVAL, "the ranges overlap")
    if command.new_offset + min(command.length, max(0, source.size - command.offset)) > FILE_BYTES_MAX:
        raise FsError(errno.EFBIG)


def _check_inline(source: rows.InodeRow, target: rows.InodeRow) -> None:
    if (source.inline and source.stored_bytes) or (target.inline and target.stored_bytes):
        raise FsError(errno.EOPNOTSUPP, "inline data has no place to name")
    if target.extents + PIECES_PER_COPY_MAX + 2 > EXTENTS_PER_INODE_MAX:
        raise FsError(errno.EFBIG)


def _parts(frommap: FileMap, start: int, end: int) -> list[Piece]:
    return [extents.sub(piece, start, end) for piece in frommap.visible(start, end, 2 * PIECES_PER_COPY_MAX)[0]]


def _bounded(state: State, frommap: FileMap, tomap: FileMap, start: int, at: int, length: int) -> int:
    """Returns how many bytes of the range one entry copies.  Raises FsError(EOPNOTSUPP) if the first frame has too many owners."""
    pieces, end = frommap.visible(start, start + length, PIECES_PER_COPY_MAX)
    length = min(length, end - start)
    if any(row.lost for _, row in pieces):
        raise FsError(errno.EIO, "bytes of the source are lost")
    for offset, row in pieces:
        if runs_of(state, row) >= SHARED_RUNS_MAX:
            length = min(length, max(0, offset - start))
            break
    if length <= 0:
        raise FsError(errno.EOPNOTSUPP, "a frame has too many owners")
    replaced = tomap.stored(at, at + length, REAP_EXTENTS_PER_ENTRY + 1)
    if len(replaced) > REAP_EXTENTS_PER_ENTRY:
        length = min(length, replaced[REAP_EXTENTS_PER_ENTRY][0] - at)
    return length
