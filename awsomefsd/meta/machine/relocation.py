"""Collection asks the state for sparse segments and for the extents in them, and moves those with one entry.

The collector (io/collect/collector.py) reads pieces, copies their bytes into segments of its own session, flushes, and proposes Relocate.
Between its query and the entry others may overwrite, cut, copy or free; so each extent is moved by compare-and-swap on the place it names.
Bytes at a place (segment, incarnation, frame, offset) never change, so a place that is still named holds what was copied: index and mark
need no comparison, and an extent that has changed is skipped, its copy being dead bytes of the new segment.

Shared bytes: the collector maps old bytes to new ones one to one, so two extents overlap at the new place only where they overlapped at the
old one, and both carry the mark; each owner's move takes one holder from the old bytes and adds one to the new, and they are counted once
at either place in between.  An owner that is left behind keeps the old bytes alive, nothing else.

Nothing that a reader of the file can see changes: no times, no stamp of the inode, no change counted against leases.  Extents of inodes
that are gone, of deleted volumes, and hidden ones are not in its answers: Reap frees them.

An extent that only snapshots see is moved in history, whatever has become of its inode, and keeps its chapters, so no move makes a version.
One that went into history since it was asked for is skipped, and told with its `until` the next time.
"""

from __future__ import annotations

import errno
from typing import cast

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import EXTENTS_PER_COMMIT_MAX, EXTENTS_PER_INODE_MAX
from awsomefsd.base.types import SEGMENT_SEALED, SegmentInBays
from awsomefsd.meta.api.commands import Entry, Relocate, Relocation
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.api.messages.collection import GetFilePieces, GetPieces, GetSparse, LivePiece, Pieces, Relocated, Sparse
from awsomefsd.meta.machine import locality
from awsomefsd.meta.machine.filemap import FileMap, hidden, moved_to, trims_of
from awsomefsd.meta.machine.references import add_reference, drop_reference
from awsomefsd.meta.machine.segments import advance, check_place, check_progress, describe, durable_lengths
from awsomefsd.meta.state import extents, history, keys
from awsomefsd.meta.state.extents import Piece
from awsomefsd.meta.state.lookups import session_of
from awsomefsd.meta.state.rows_cache import State

ROWS_READ_MAX = 4_096  # rows of one query: the service answers nothing else meanwhile


def relocate(state: State, entry: Entry, command: Relocate) -> Reply:
    """Makes extents name the copies that the collector has made of their bytes.  Answered by Relocated."""
    session = session_of(state, entry)
    if session.volume:
        raise FsError(errno.EINVAL, f"session {session.session} serves a volume and collects nothing")
    _check(state, session.session, command)
    moved = skipped = 0
    for move in command.moves:
        if _move(state, move):
            moved += move.extent.length
        else:
            skipped += move.extent.length
    for step in command.segments:  # sealing comes last: a sealed segment takes no extents
        advance(state, check_progress(state, session.session, step), step)
    return Relocated(moved, skipped)


def _move(state: State, move: Relocation) -> bool:
    volume = state.volume(move.volume)
    if move.until and state.chaptered:  # else builds that do not know the field may vote too, and move what is in the head
        return volume is not None and not volume.deleted and _move_kept(state, move)
    row = state.inode(move.volume, move.ino) if volume is not None and not volume.deleted else None
    if volume is None or row is None or row.extents + len(move.places) > EXTENTS_PER_INODE_MAX:
        return False
    if not FileMap(state, volume, move.ino, row).repoint(move.extent, move.places):
        return False
    state.save_same_inode(move.volume, move.ino, row)
    return True


def _move_kept(state: State, move: Relocation) -> bool:
    extent = move.extent
    row = history.kept_extent(state, move.volume, move.ino, extent.file_offset, move.until)
    if row is None or not row.segment or extents.extent_of(extent.file_offset, row) != extent:
        return False
    moved = moved_to(row, move.places)
    history.replace_kept_extent(state, move.volume, move.ino, extent.file_offset, move.until, moved)
    drop_reference(state, row)
    for _, part in moved:
        add_reference(state, part)
    return True


def _check(state: State, session: int, command: Relocate) -> None:
    if sum(len(move.places) for move in command.moves) > EXTENTS_PER_COMMIT_MAX:
        raise FsError(errno.E2BIG, f"more than {EXTENTS_PER_COMMIT_MAX} extents")
    durable = durable_lengths(state, session, command.segments)
    for move in command.moves:
        at = move.extent.file_offset
        for place in move.places:
            check_place(state, session, move.ino, place, durable)
            if place.file_offset != at:
                raise FsError(errno.EINVAL, f"inode {move.ino}: the copies of {move.extent} do not follow each other")
            at += place.length
        if at != move.extent.file_offset + move.extent.length or not extents.is_valid(move.extent):
            raise FsError(errno.EINVAL, f"inode {move.ino}: the copies do not cover {move.extent}")


# --- what the collector asks ------------------------------------------------------------------------------------------------
def sparse(state: State, body: GetSparse) -> Reply:
    """Answers GetSparse: sealed segments with live bytes on devices that are not absent, and how many segments are free."""
    count = min(max(body.count, 1), ROWS_READ_MAX)
    _, end = keys.kind_range(0, keys.SEGMENT)
    state.write_back()
    found_keys = state.keys_in((keys.segment(body.start), end), count + 1)
    after = keys.last_u64(found_keys[count]) if len(found_keys) > count else 0
    segments = [row for key in found_keys[:count] if (row := state.segment(keys.last_u64(key))) is not None]
    absent = {device.device for device in state.devices() if device.absent}
    sealed = [row for row in segments if row.state == SEGMENT_SEALED and row.live_bytes]
    found = [cast(SegmentInBays, describe(state, row)) for row in sealed if row.device not in absent]
    devices = locality.leasable(state.devices())
    return Sparse(found, after, sum(row.segments_free for row in devices), sum(row.segments for row in devices))


def pieces(state: State, body: GetPieces) -> Reply:
    """Answers GetPieces: the extents that live in a segment."""
    count = min(max(body.count, 1), ROWS_READ_MAX)
    _, end = keys.reverse_range(body.segment)
    first = keys.reverse_until(keys.reverse(body.segment, body.frame_offset, body.volume, body.ino, body.file_offset), body.until)
    found: list[LivePiece] = []
    for number, key in enumerate(state.keys_in((first, end), count + 1)):
        _, frame_offset, volume, ino, offset, until = keys.reverse_of(key)
        if number == count:
            return Pieces(found, (frame_offset, volume, ino, offset), until)
        if until:
            found += _kept_pieces(state, volume, ino, offset, until)
        elif (row := history.extent(state, volume, ino, offset)) is not None:
            found += _live_pieces(state, volume, ino, [(offset, row)])
    return Pieces(found)


def _kept_pieces(state: State, volume: int, ino: int, offset: int, until: int) -> list[LivePiece]:
    owner, row = state.volume(volume), history.kept_extent(state, volume, ino, offset, until)
    if owner is None or owner.deleted or row is None:
        return []
    return [LivePiece(volume, ino, extents.extent_of(offset, row), row.shared, until)]


def file_pieces(state: State, body: GetFilePieces) -> Reply:
    """Answers GetFilePieces: the extents of a range of a file."""
    volume, row = state.volume(body.volume), state.inode(body.volume, body.ino)
    if volume is None or row is None:
        return Pieces([])
    count = min(max(body.count, 1), ROWS_READ_MAX)
    stored = FileMap(state, volume, body.ino, row).stored(body.start, body.end, count)
    return Pieces(_live_pieces(state, body.volume, body.ino, stored))


def _live_pieces(state: State, volume: int, ino: int, stored: list[Piece]) -> list[LivePiece]:
    """Returns those of the pieces that are worth moving: neither hidden nor of a deleted file."""
    owner, row = state.volume(volume), state.inode(volume, ino)
    if owner is None or owner.deleted or row is None:
        return []
    trims = trims_of(state, volume, ino) if row.trims else []
    return [
        LivePiece(volume, ino, extents.extent_of(*piece), piece[1].shared)
        for piece in stored
        if piece[1].segment and not hidden(piece, trims)
    ]
