"""Questions about segments, and the answers to requests for space."""

from __future__ import annotations

from awsomefsd.base.types import SegmentInfo
from awsomefsd.meta.api.messages.base import Message


class GetSegments(Message, tag=18):
    segments: list[int]


class GetOwnSegments(Message, tag=72):
    """Those that the metadata keeps for itself.  Answered by Segments."""


class SegmentsLeased(Message, tag=9):
    segments: list[SegmentInfo]


class Reserved(Message, tag=10):
    bytes: int


class Segments(Message, tag=16):
    segments: list[SegmentInfo]
