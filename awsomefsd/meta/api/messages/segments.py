"""Questions about segments, and the answers to requests for space."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.base.types import SegmentInBays, SegmentInfo
from awsomefsd.meta.api.messages.base import Message


class GetSegments(Message, tag=18):
    segments: list[int]


class GetOwnSegments(Message, tag=72):
    """Those that the metadata keeps for itself.  Answered by Segments."""


class GetCheckpoints(Message, tag=163):
    """What the nodes keep for checkpoints.  Answered by Checkpoints.  For clusters of level 3 and above."""


class SegmentsLeased(Message, tag=9):
    segments: list[SegmentInfo]


class Reserved(Message, tag=10):
    bytes: int


class Segments(Message, tag=16):
    """Rows of segments.  One that is in no bays is encoded as a SegmentInfo, and decoded as one that has none (`bays_of`)."""

    segments: list[SegmentInBays]


class NodeCheckpoint(Struct, array_like=True, gc=False):
    """What one node keeps for checkpoints, and the newest that it has completed: `area`, its segments in order; [] if there is none."""

    node: str
    segments: list[int]
    area: list[int]
    device: int
    number: int
    term: int
    index: int


class Checkpoints(Message, tag=164):
    """`kept`: all segments that the metadata keeps, also those of no node."""

    kept: list[SegmentInfo]
    nodes: list[NodeCheckpoint]
