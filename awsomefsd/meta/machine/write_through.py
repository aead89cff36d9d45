"""WriteData: one write(2) of a mount that shares its volume and remembers nothing, decided whole in one entry.

A Commit is for the dirty log of one mount: it names log and sequence, so that a successor's repetition changes nothing, and that holds
only while no other mount writes the file.  Here every write is an entry under the id of the kernel's own request, so a repetition finds the
stored result, and the order of the log is the order of all nodes' writes.  O_APPEND is resolved here: the end of the file at this entry.

A write that is refused with EAGAIN or ESTALE has changed nothing and is not kept: the writer asks for the layout again, or writes its bytes
again under its new session, and sends the same id.  Times are the entry's, so that each write moves them whatever clock the writer has.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import EXTENTS_PER_COMMIT_MAX, EXTENTS_PER_INODE_MAX, FILE_BYTES_MAX
from awsomefsd.base.types import Extent
from awsomefsd.meta.api.commands import Entry, WriteData
from awsomefsd.meta.api.messages import Found, Reply
from awsomefsd.meta.machine import write_leases
from awsomefsd.meta.machine.attributes import drop_privileges
from awsomefsd.meta.machine.filemap import FileMap
from awsomefsd.meta.machine.inodes import attr_of, save_new_contents
from awsomefsd.meta.machine.ledger import put_inline
from awsomefsd.meta.machine.quota import consume
from awsomefsd.meta.machine.segments import advance, check_place, check_progress, durable_lengths
from awsomefsd.meta.state import extents, history, rows
from awsomefsd.meta.state.lookups import EpochEnded, NotKept, inode_of, session_of, volume_of
from awsomefsd.meta.state.rows_cache import State


def write_data(state: State, entry: Entry, command: WriteData) -> Reply:
    """Makes the bytes of one write(2) visible, at an offset or at the end of the file.  Answered by Found."""
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    _check_places(state, session.session, command)
    row = inode_of(state, command.volume, command.ino)
    start = row.size if command.append else command.offset
    _check(state, command, row, start)
    write_leases.check_may_change(state, entry, volume, command.ino)
    write_leases.count_change(state, entry, volume, command.ino)
    if row.inline and command.extents:
        put_inline(state, volume, command.ino, row, b"")
        row.inline = False
    filemap = FileMap(state, volume, command.ino, row)
    shift = row.size if command.append else 0
    end = max(row.size, start + command.length)
    for piece in extents.overlay((extents.piece_of(_moved(one, shift), entry.index) for one in command.extents), end):
        filemap.insert(piece)
    row.size = end
    if command.length:
        drop_privileges(state, command.volume, command.ino, row, kill=command.kill_suidgid)
        save_new_contents(state, entry, command.volume, command.ino, row)
    else:
        state.save_inode(command.volume, command.ino, row)
    for progress in command.segments:
        advance(state, check_progress(state, session.session, progress), progress)
    consume(state, session, volume, command.consumed_bytes)
    return Found(attr_of(command.ino, row))


def _moved(extent: Extent, shift: int) -> Extent:
    return Extent(
        extent.file_offset + shift, extent.length, extent.segment, extent.incarnation, extent.sequence, extent.frame_offset,
        extent.header_bytes, extent.skip,
    )  # fmt: skip


def _check_places(state: State, session: int, command: WriteData) -> None:
    if len(command.extents) > EXTENTS_PER_COMMIT_MAX:
        raise FsError(errno.E2BIG, f"more than {EXTENTS_PER_COMMIT_MAX} extents")
    try:
        durable = durable_lengths(state, session, command.segments)
        for extent in command.extents:
            check_place(state, session, command.ino, extent, durable)
    except FsError as err:
        if err.errno == errno.ESTALE:
            raise EpochEnded(str(err.args[0])) from err
        raise


def _check(state: State, command: WriteData, row: rows.InodeRow, start: int) -> None:
    if not stat.S_ISREG(row.mode) or command.offset < 0 or command.length < 0 or (command.append and command.inline):
        raise FsError(errno.EINVAL)
    if start + command.length > FILE_BYTES_MAX or row.extents + len(command.extents) > EXTENTS_PER_INODE_MAX:
        raise FsError(errno.EFBIG)
    stored = history.inline(state, command.volume, command.ino) if row.inline and row.stored_bytes else None
    if (stored or b"") != command.inline:
        raise NotKept(errno.EAGAIN, "the inline data of the file is not what the writer saw")
    if command.inline and not extents.covers(command.extents, len(command.inline)):
        raise FsError(errno.EINVAL, "the extents do not take over the inline data")
