"""Questions of scrub, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import SegmentInBays
from awsomefsd.meta.api.messages.base import Message


class GetLiveSegments(Message, tag=73):
    """Segments with live bytes, of whatever state, `count` rows looked at from number `start` on.  Answered by LiveSegments."""

    start: int
    count: int


class GetNames(Message, tag=74):
    """Names of an inode, `count` dentries looked at behind the key `after` (b"": from the first).  Answered by NamePage."""

    volume: int
    ino: int
    after: bytes
    count: int


class LiveSegments(Message, tag=61):
    """`after`: where to go on, 0 at the end.  `segments`: as in Segments."""

    segments: list[SegmentInBays]
    after: int


class NamePage(Message, tag=62):
    """(directory, name), and the key to go on behind, b"" at the end."""

    names: list[tuple[int, bytes]]
    after: bytes
