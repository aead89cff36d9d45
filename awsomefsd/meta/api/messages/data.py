"""Questions about the bytes of files and where they lie, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import Attr, Extent, SegmentInBays
from awsomefsd.meta.api.messages.base import Message


class GetLayout(Message, tag=16):
    """Extents that overlap [start, end) in order (holes are gaps), with the segments they name; or the inline data.

    Layouts of much fragmented files come in parts: see Layout.end.
    """

    volume: int
    ino: int
    start: int
    end: int
    at: int = 0  # a snapshot; 0: the head


class GetOrphans(Message, tag=135):
    """Inodes(those without a name that stay because the session may have them open)."""

    session: int


class Committed(Message, tag=7):
    """Per InodeCommit, in order: errno and, if 0, the inode's attributes now."""

    errnos: list[int]
    attrs: list[Attr | None]


class Layout(Message, tag=14):
    """`end`: up to where this layout is exact (at most the asked end); ask again from there.  `segments`: as in Segments."""

    size: int
    extents: list[Extent]
    segments: list[SegmentInBays]
    inline: bytes | None = None
    end: int = 0


class Ranged(Message, tag=30):
    """Answers Fallocate and CopyRange: the changed inode, and the file offset that was reached, or the number of bytes copied."""

    attr: Attr
    reached: int


class Inodes(Message, tag=135):
    inos: list[int]
