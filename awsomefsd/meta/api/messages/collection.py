"""Questions of the collector, and their answers."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.base.types import Extent, SegmentInBays
from awsomefsd.meta.api.messages.base import Message


class GetSparse(Message, tag=65):
    """Sealed segments with live bytes, `count` rows looked at from segment number `start` on.  Answered by Sparse."""

    start: int
    count: int


class GetPieces(Message, tag=66):
    """Asks for extents in a segment, from the given place in its reverse rows on; at most `count` rows are read.  Answered by Pieces.

    `until`: of the first one, if it is a kept one.
    """

    segment: int
    frame_offset: int
    volume: int
    ino: int
    file_offset: int
    count: int
    until: int = 0


class GetFilePieces(Message, tag=67):
    """Extents of a file in [start, end), at most `count`.  Answered by Pieces."""

    volume: int
    ino: int
    start: int
    end: int
    count: int


# --- replies ------------------------------------------------------------
class CollectorOpened(Message, tag=55):
    session: int
    epoch: int


class Relocated(Message, tag=56):
    """Bytes of extents that were moved, and of those that were skipped."""

    moved_bytes: int
    skipped_bytes: int


class Sparse(Message, tag=57):
    """`after`: where to go on, 0 at the end.  `free`, `total`: segments of all devices.  `segments`: as in Segments."""

    segments: list[SegmentInBays]
    after: int
    free: int
    total: int


class LivePiece(Struct, array_like=True, gc=False):
    """An extent with its file.  `shared`: others may hold the same bytes.  `until`: of one that only snapshots see; 0: of the head."""

    volume: int
    ino: int
    extent: Extent
    shared: bool
    until: int = 0


def ask_again(piece: LivePiece, count: int) -> GetPieces | GetFilePieces:
    """Returns the question that Pieces answers with the piece, if it is still there: all there is in its place, `count` at most."""
    extent = piece.extent
    if piece.until:
        return GetPieces(extent.segment, extent.frame_offset, piece.volume, piece.ino, extent.file_offset, 1, piece.until)
    return GetFilePieces(piece.volume, piece.ino, extent.file_offset, extent.file_offset + extent.length, count)


class Pieces(Message, tag=58):
    """`after`: (frame offset, volume, inode, file offset) of the first row not looked at, None at the end; `until`: of that row."""

    pieces: list[LivePiece]
    after: tuple[int, int, int, int] | None = None
    until: int = 0
