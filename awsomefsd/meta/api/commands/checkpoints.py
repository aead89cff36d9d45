"""Commands about the segments that the cluster itself keeps its checkpoints in.
meta/machine/checkpoint_segments.py has their rules."""

from __future__ import annotations

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
