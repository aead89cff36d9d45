"""The check of one segment: its footer, and header, data and identity of every extent that lives in it.

No false alarms: what looks wrong is asked for and read again; an extent that was moved or freed meanwhile, or a segment in its next
incarnation, is no finding.  Scrub checks every segment in turn; a read that met wrong bytes has its segment checked at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, Error, FormatTooNew
from awsomefsd.base.failpoints import hit
from awsomefsd.base.types import SEGMENT_SEALED, SegmentInfo
from awsomefsd.io.device.buffers import BOUNCE_BYTES, aligned_buffer
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.footer import unpack_footer
from awsomefsd.io.segment.reader import FOOTER_READ_BYTES_MAX, SegmentReader
from awsomefsd.meta.api.messages import GetSegments
from awsomefsd.meta.api.messages.collection import GetPieces, LivePiece, ask_again
from awsomefsd.meta.client.paths import path_of

READ_BYTES = BOUNCE_BYTES // 2
PAGE = 512
DATA, HEADER, FOOTER = "data", "header", "footer"


class ScrubFinding(Struct, frozen=True):
    """One fault that scrub found.  `path`, `offset` and `length` if it is in a file; `repaired` if it was repaired from a second copy.

    `segment` and `incarnation`: of one whose content is whole and only has to be moved out of it; 0 for other faults.
    """

    kind: str
    where: str
    what: str
    volume: str = ""
    path: str = ""
    offset: int = 0
    repaired: bool = False
    ino: int = 0
    length: int = 0
    segment: int = 0
    incarnation: int = 0


class Counted(Protocol):
    """What was looked at; the check adds to it."""

    extents: int
    rechecked: int  # seemed wrong, and had only changed meanwhile


class SegmentCheck:
    """Checks segments, one thread at a time.  `call` asks the metadata service; `pace(bytes, began)` waits after each read, and may raise.

    `began` is the time.monotonic() at which the read began.
    """

    def __init__(
        self, call: Callable[[Any], Any], found: Callable[[ScrubFinding], None], pace: Callable[[int, float], None], counted: Counted
    ) -> None:
        self._call = call
        self._found = found
        self._pace = pace
        self._counted = counted

    def run(self, device: BlockDevice, info: SegmentInfo) -> None:
        """Reads all that lives in the segment.  Blocks; raises what `call` and `pace` raise."""
        hit("scrub.segment.before")
        self._footer(device, info)
        reader = SegmentReader({info.device: device}, lambda _: replace(info, footer_bytes=0), ChecksumCache())
        after: tuple[int, int, int, int] | None = (0, 0, 0, 0)
        until = 0
        while after is not None:
            pieces = self._call(GetPieces(info.segment, *after, PAGE, until))
            for piece in pieces.pieces:
                self._extent(reader, device, info, piece)
            after, until = pieces.after, pieces.until

    def _footer(self, device: BlockDevice, info: SegmentInfo) -> None:
        if info.state != SEGMENT_SEALED or not 0 < info.footer_bytes <= FOOTER_READ_BYTES_MAX:
            return
        buffer = aligned_buffer(info.footer_bytes)
        began = time.monotonic()
        try:
            got = device.pread_into(buffer, info.byte_offset + info.footer_offset)
            unpack_footer(buffer[:got], info.segment, info.incarnation)
        except (Corrupt, FormatTooNew, OSError) as err:
            if not self._same(info):
                self._counted.rechecked += 1
                return
            what = f"its footer is damaged ({err}); nothing is lost, the frames' own headers serve, and collection moves what is there"
            self._found(ScrubFinding(FOOTER, f"segment {info.segment}", what, segment=info.segment, incarnation=info.incarnation))
        self._pace(len(buffer), began)

    def _same(self, info: SegmentInfo) -> bool:
        """Returns True if the segment is unchanged since it was read."""
        (now,) = self._call(GetSegments([info.segment])).segments
        return bool((now.incarnation, now.state, now.footer_offset) == (info.incarnation, info.state, info.footer_offset))

    def _extent(self, reader: SegmentReader, device: BlockDevice, info: SegmentInfo, piece: LivePiece) -> None:
        extent = piece.extent
        self._counted.extents += 1
        for skip in range(0, extent.length, READ_BYTES):
            length = min(READ_BYTES, extent.length - skip)
            began = time.monotonic()
            why = _try(reader, piece, skip, length)
            self._pace(length, began)
            if why and self._confirmed(device, piece, skip, length):
                volume, offset = str(piece.volume), extent.file_offset + skip
                path = path_of(self._call, piece.volume, piece.ino)
                lost = _try(SegmentReader({info.device: device}, lambda _: info, ChecksumCache()), piece, skip, length)
                kind = DATA if lost else HEADER
                mended = "nothing is lost, the footer serves, and collection moves what is there"
                what = why if lost else f"a header is damaged ({why}); {mended}"
                where = f"segment {extent.segment} volume {volume} inode {piece.ino}"
                place = (0, 0) if lost else (info.segment, info.incarnation)
                self._found(ScrubFinding(kind, where, what, volume, path, offset, False, piece.ino, length, *place))
                if lost:
                    continue
                return

    def _confirmed(self, device: BlockDevice, piece: LivePiece, skip: int, length: int) -> bool:
        """Returns True if the finding still holds: the extent is still there, and the segment is unchanged."""
        extent = piece.extent
        now = self._call(ask_again(piece, PAGE)).pieces
        if all(other.extent != extent for other in now):
            self._counted.rechecked += 1
            return False
        (info,) = self._call(GetSegments([extent.segment])).segments
        again = SegmentReader({info.device: device}, lambda _: replace(info, footer_bytes=0), ChecksumCache())
        if not _try(again, piece, skip, length):
            self._counted.rechecked += 1
            return False
        return True


def _try(reader: SegmentReader, piece: LivePiece, skip: int, length: int) -> str:
    """Returns the reason why these bytes cannot be read; "" if they can."""
    try:
        reader.read(piece.extent, piece.volume, piece.ino, skip, length, aligned_buffer(length))
    except (Error, OSError) as err:
        return str(err)
    return ""
