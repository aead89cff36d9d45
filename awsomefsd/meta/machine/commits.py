"""Commit: durable bytes become visible, all inodes of one entry at once.

The entry as a whole is refused (and changes nothing) if a segment is not leased to the session any more or an extent lies outside what is
durable: a zombie, or a writer whose predecessor's segments were sealed.  An inode by itself is refused with an errno in the reply: gone
(ENOENT), not in the shape the worker believes (ESTALE), or changed under a write lease that has ended (ENOLCK; write_leases.py).

A dirty record may come twice (the successor of a dead worker replays its log) or late (behind a truncation).  So a commit names log and
sequence: what is not newer than the last committed sequence is ignored; what a truncation overtook is clipped to that truncation's size.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import EXTENTS_PER_COMMIT_MAX, EXTENTS_PER_INODE_MAX, FILE_BYTES_MAX, INLINE_BYTES_MAX
from awsomefsd.base.types import Attr, SegmentProgress
from awsomefsd.meta.api.commands import Commit, Entry, InodeCommit
from awsomefsd.meta.api.messages import Committed, Reply
from awsomefsd.meta.machine import write_leases
from awsomefsd.meta.machine.attributes import follow_log
from awsomefsd.meta.machine.filemap import FileMap
from awsomefsd.meta.machine.inodes import attr_of, set_mtime
from awsomefsd.meta.machine.ledger import put_inline
from awsomefsd.meta.machine.quota import consume
from awsomefsd.meta.machine.segments import advance, check_place, check_progress, durable_lengths
from awsomefsd.meta.state import extents, history, rows
from awsomefsd.meta.state.lookups import session_of, volume_of
from awsomefsd.meta.state.rows_cache import State


def commit(state: State, entry: Entry, command: Commit) -> Reply:
    """Makes durable bytes visible in all inodes of the command.  Answered by Committed, with an errno and attributes for each inode."""
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    check(state, session.session, command.inodes, command.segments)
    for step in command.inodes:
        if not step.lease:
            write_leases.check_may_change(state, entry, volume, step.ino)
    errnos, attrs = settle(state, entry, session, volume, command.inodes, command.segments)
    consume(state, session, volume, command.consumed_bytes)
    return Committed(errnos, attrs)


def settle(
    state: State,
    entry: Entry,
    session: rows.SessionRow,
    volume: rows.VolumeRow,
    inodes: list[InodeCommit],
    steps: list[SegmentProgress],
) -> tuple[list[int], list[Attr | None]]:
    """Makes checked bytes visible, and advances the segments.  Returns an errno and attributes for each inode."""
    errnos: list[int] = []
    attrs: list[Attr | None] = []
    for step in inodes:
        row = state.inode(volume.volume, step.ino)
        number = _commit_inode(state, entry, volume, row, step) if row is not None else errno.ENOENT
        errnos.append(number)
        attrs.append(attr_of(step.ino, row) if row is not None and not number else None)
    for progress in steps:  # sealing comes last: a sealed segment takes no extents
        advance(state, check_progress(state, session.session, progress), progress)
    return errnos, attrs


# --- checks of the whole entry ------------------------------------------------------------------------------------------
def check(state: State, session: int, inodes: list[InodeCommit], steps: list[SegmentProgress]) -> None:
    """Raises FsError if the entry as a whole is refused.  Changes nothing."""
    if sum(len(step.extents) for step in inodes) > EXTENTS_PER_COMMIT_MAX:
        raise FsError(errno.E2BIG, f"more than {EXTENTS_PER_COMMIT_MAX} extents")
    durable = durable_lengths(state, session, steps)
    for step in inodes:
        if step.size < 0 or step.size > FILE_BYTES_MAX:
            raise FsError(errno.EINVAL, f"inode {step.ino}: size {step.size}")
        for extent in step.extents:
            check_place(state, session, step.ino, extent, durable)


# --- one inode ----------------------------------------------------------------------------------------------------------
def _commit_inode(state: State, entry: Entry, volume: rows.VolumeRow, row: rows.InodeRow, step: InodeCommit) -> int:
    """Returns the errno of one inode.  Unless it is 0, nothing of the inode was changed."""
    if not stat.S_ISREG(row.mode) or (step.inline and step.extents):
        return errno.EINVAL
    if row.log == step.log and step.sequence <= row.sequence:
        return 0
    if step.lease and not write_leases.is_held(state, entry, volume, step.ino, step.lease):
        return errno.ENOLCK
    old = (history.inline(state, volume.volume, step.ino) or b"") if row.inline and row.stored_bytes else b""
    overtaken = _overtaken(row, step)
    end = max(row.size, step.size) if overtaken is None else min(overtaken, row.size)
    patched = old
    if step.inline:
        if not row.inline:
            return errno.ESTALE
        if any(offset < 0 or offset + len(data) > INLINE_BYTES_MAX for offset, data in step.inline):
            return errno.ESTALE
        patched = patch(old, step.inline, end)
    elif step.extents and old and not extents.covers(step.extents, len(old)):
        return errno.ESTALE
    elif row.extents + len(step.extents) > EXTENTS_PER_INODE_MAX:
        return errno.EFBIG
    follow_log(row, step.log)
    write_leases.count_change(state, entry, volume, step.ino, step.lease)
    if step.extents:
        if row.inline:
            put_inline(state, volume, step.ino, row, b"")
            row.inline = False
        _insert(state, entry, volume, row, step, end)
    elif patched != old:
        put_inline(state, volume, step.ino, row, patched)
    row.size = max(row.size, end)
    _finish(state, entry, volume.volume, row, step)
    return 0


def _overtaken(row: rows.InodeRow, step: InodeCommit) -> int | None:
    """Returns the file size up to which these records may be seen: that of the first truncation that overtook them.  None without one."""
    if row.log == step.log:
        for sequence, size in row.cuts:
            if step.sequence <= sequence:
                return size
    return None


def _insert(state: State, entry: Entry, volume: rows.VolumeRow, row: rows.InodeRow, step: InodeCommit, end: int) -> None:
    """Lays the extents over the map; nothing may lie behind `end`, the file's size after this entry."""
    pieces = extents.overlay((extents.piece_of(extent, entry.index) for extent in step.extents), end)
    filemap = FileMap(state, volume, step.ino, row)
    for piece in pieces:
        filemap.insert(piece)
    row.inline = not end and not row.extents


def patch(data: bytes, patches: list[tuple[int, bytes]], end: int) -> bytes:
    """Returns inline data after writes at offsets, nothing behind `end`; a gap reads as zeros."""
    out = bytearray(data)
    for offset, part in patches:
        part = part[: max(0, end - offset)]
        if part:
            if offset > len(out):
                out.extend(bytes(offset - len(out)))
            out[offset : offset + len(part)] = part
    return bytes(out)


def _finish(state: State, entry: Entry, volume: int, row: rows.InodeRow, step: InodeCommit) -> None:
    """Sets the times and saves the inode.

    ctime is the time of the write, as mtime is, not of its commit: a flush in the background must not change what stat(2) shows.
    """
    row.sequence = max(row.sequence, step.sequence)
    if row.cuts:
        row.cuts = [cut for cut in row.cuts if cut[0] > row.sequence]
    if step.sequence > row.times_sequence:
        set_mtime(row, step.mtime_ns)
        row.ctime_ns = max(row.ctime_ns, step.mtime_ns)
    row.stamp, row.site = entry.stamp, entry.site
    state.save_inode(volume, step.ino, row)
