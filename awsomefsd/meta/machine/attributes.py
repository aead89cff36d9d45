"""SetAttr and SetAtimes; extended attributes are in xattrs.py.

A truncation is decided here, at once; writes that the worker still holds dirty may be older than it.  So it leaves a *cut* in the inode:
(sequence, size), the newest dirty record at that moment and how much of older records may be seen.  Cuts are kept with ascending sequences
and sizes: a record up to several of them obeys the smallest, which is the first that is not older than the record (see commits.py).  They
go when newer records are committed.  Beyond CUTS_MAX the oldest is dropped: its records are the likeliest to be committed already.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import FILE_BYTES_MAX
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.meta.api.commands import (
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_KILL_SETGID,
    SET_KILL_SUIDGID,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    Entry,
    SetAtimes,
    SetAttr,
)
from awsomefsd.meta.api.messages import Committed, Found, Reply
from awsomefsd.meta.machine import write_leases, xattrs
from awsomefsd.meta.machine.inodes import attr_of, save_changed, set_mtime
from awsomefsd.meta.state import rows
from awsomefsd.meta.state.lookups import inode_of, volume_of
from awsomefsd.meta.state.rows_cache import State

CUTS_MAX = 64  # truncations of one inode that overtook uncommitted records


def set_attr(state: State, entry: Entry, command: SetAttr) -> Reply:
    """Changes the attributes that the mask names, the size included.  Answered by Found."""
    volume = volume_of(state, entry, command.volume)
    row = inode_of(state, command.volume, command.ino)
    mask = command.mask
    if mask & SET_SIZE:
        _check_size(row, command.size)
        write_leases.check_may_change(state, entry, volume, command.ino)
    if mask & SET_MODE:
        row.mode = stat.S_IFMT(row.mode) | stat.S_IMODE(command.mode)
        xattrs.follow_chmod(state, command.volume, command.ino, row)
    if mask & SET_UID:
        row.uid = command.uid
    if mask & SET_GID:
        row.gid = command.gid
    if mask & SET_KILL_SUIDGID:
        kill_suidgid(row)
    if mask & SET_KILL_SETGID and not stat.S_ISDIR(row.mode) and state.acts_at(MENDED_RULES):
        row.mode &= ~stat.S_ISGID
    if mask & (SET_UID | SET_GID | SET_SIZE) and row.xattrs and not stat.S_ISDIR(row.mode):
        xattrs.drop(state, command.volume, command.ino, row, xattrs.CAPABILITY)  # privileges were given to other bytes, by another owner
    if mask & SET_SIZE:
        _set_size(state, entry, volume, command, row)
        write_leases.count_change(state, entry, volume, command.ino)
    _set_times(entry, command, row)
    save_changed(state, entry, command.volume, command.ino, row)  # chown(-1, -1) too: its mask is empty
    return Found(attr_of(command.ino, row))


def set_atimes(state: State, entry: Entry, command: SetAtimes) -> Reply:
    """Sets the access times of several inodes.  Answered by Committed.

    ctime and the inode's version stay: a read changes nothing that others have to learn.
    """
    volume_of(state, entry, command.volume)
    reply = Committed([], [])
    for ino, atime_ns in command.atimes:
        row = state.inode(command.volume, ino)
        reply.errnos.append(0 if row is not None else errno.ENOENT)
        if row is not None:
            row.atime_ns = atime_ns
            state.save_same_inode(command.volume, ino, row)  # a read after a snapshot must not copy a row
        reply.attrs.append(attr_of(ino, row) if row is not None else None)
    return reply


def kill_suidgid(row: rows.InodeRow) -> None:
    """Clears the set-ID bits, as a change of the contents by a caller without CAP_FSETID does."""
    if not stat.S_ISDIR(row.mode):
        row.mode &= ~stat.S_ISUID
        if row.mode & stat.S_IXGRP:
            row.mode &= ~stat.S_ISGID


def drop_privileges(state: State, volume: int, ino: int, row: rows.InodeRow, *, kill: bool) -> None:
    """Drops the privileges of a file whose bytes change: capabilities always, the set-ID bits unless the caller has CAP_FSETID."""
    if row.xattrs:
        xattrs.drop(state, volume, ino, row, xattrs.CAPABILITY)
    if kill:
        kill_suidgid(row)


def _check_size(row: rows.InodeRow, size: int) -> None:
    if stat.S_ISDIR(row.mode):
        raise FsError(errno.EISDIR)
    if not stat.S_ISREG(row.mode) or size < 0:
        raise FsError(errno.EINVAL)
    if size > FILE_BYTES_MAX:
        raise FsError(errno.EFBIG)


def _set_times(entry: Entry, command: SetAttr, row: rows.InodeRow) -> None:
    mask = command.mask
    if mask & SET_ATIME:
        row.atime_ns = entry.time_ns if command.atime_ns is None else command.atime_ns
    if mask & SET_MTIME:
        row.mtime_ns = entry.time_ns if command.mtime_ns is None else command.mtime_ns
        row.mtime_explicit = command.mtime_ns is not None
    if mask & SET_CTIME and command.ctime_ns is not None:
        row.ctime_ns = max(row.ctime_ns, command.ctime_ns)
    if mask & (SET_MTIME | SET_SIZE) and command.log:
        follow_log(row, command.log)
        row.times_sequence = max(row.times_sequence, command.sequence)


def _set_size(state: State, entry: Entry, volume: rows.VolumeRow, command: SetAttr, row: rows.InodeRow) -> None:
    state.ledger.cut(state, entry, volume, command.ino, row, command.size)
    row.size = command.size
    if not row.size and not row.extents:
        row.inline = True  # a file that starts again may be small again
    set_mtime(row, entry.time_ns)
    if command.log:
        follow_log(row, command.log)
        _add_cut(row, command.sequence, command.size)


def follow_log(row: rows.InodeRow, log: int) -> None:
    """Forgets what an older dirty log has left in the inode: its session has ended."""
    if row.log != log:
        row.log, row.sequence, row.times_sequence, row.cuts = log, 0, 0, []


def _add_cut(row: rows.InodeRow, sequence: int, size: int) -> None:
    if sequence <= row.sequence:
        return  # everything older is committed
    cuts = [cut for cut in row.cuts if cut[1] < size]
    if cuts and cuts[-1][0] >= sequence:
        return  # the same records obey a smaller size already
    cuts.append((sequence, size))
    row.cuts = cuts[-CUTS_MAX:]
