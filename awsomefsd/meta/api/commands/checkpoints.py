"""Commands about the segments that the cluster itself keeps its checkpoints in.
meta/machine/checkpoint_segments.py has their rules."""

from __future__ import annotations

from typing import ClassVar

from awsomefsd.meta.api.commands.base import Command


class KeepSegments(Command, tag=90):
    """The metadata takes `count` free segments of a device for itself, all or none.  `safe_index`: as in LeaseSegments."""

    device: int
    count: int
    safe_index: int = 0


class DropSegments(Command, tag=91):
    """Segments that the metadata kept are free again."""

    segments: list[int]


class Recover(Command, tag=92):
    """First entry after the state was rebuilt from a device alone (meta/machine/checkpoint_segments.py).  `incarnation_seen`: the newest
    found on the devices.

    `proof`: why nobody from before can still write.
    """

    incarnation_seen: int
    proof: str
    node: str = ""  # that has all devices from now on; all others are removed


class KeepForCheckpoint(Command, tag=160):
    """`count` free segments of a device become `node`'s, all or none: only its checkpoints are written there, and only it gives them back.

    `safe_index`: as in LeaseSegments.
    """

    since: ClassVar[int] = 3
    device: int
    count: int
    node: str
    safe_index: int = 0


class AdoptSegments(Command, tag=161):
    """All segments that the metadata keeps and that are no node's become `node`'s.  Its daemon knows that nobody else writes to them."""

    since: ClassVar[int] = 3
    node: str


class CheckpointDone(Command, tag=162):
    """A checkpoint of `node` is durable and complete, and its tail reaches entry `index`: the ones before it may go.

    `segments`: its area, in order.
    """

    since: ClassVar[int] = 3
    node: str
    device: int
    segments: list[int]
    number: int
    term: int
    index: int


class ReturnSegments(Command, tag=163):
    """Segments that `node` kept for its checkpoints are free again.  None of its writes to them is under way."""

    since: ClassVar[int] = 3
    node: str
    segments: list[int]
