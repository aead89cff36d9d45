"""Questions about snapshots, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import SnapshotInfo
from awsomefsd.meta.api.messages.base import Message


class ListSnapshots(Message, tag=220):
    """Answered by Snapshots: those of a volume, or the one of that name, if there is one.  ENOENT without such a volume."""

    volume: int
    name: str = ""


class FlushVolumes(Message, tag=222):
    """Answered by Done when all mounts of the volumes have written what they held back when it was asked; meta/server/flushes.py.

    Failed(ETIMEDOUT), (EIO) or (EOPNOTSUPP) name the mount that has not.
    """

    volumes: list[int]


class AnswerFlush(Message, tag=223):
    """A session has written what it held back when it heard of `flush` (FlushAsked); or `errno` says why it could not.  Done."""

    session: int
    epoch: int
    flush: int
    errno: int = 0


# --- replies ------------------------------------------------------------------------------------------------------------------
class FlushAsked(Message, tag=221):
    """Answers an AwaitSpaceRecall of a worker that flushes: it writes out what its mount holds back, and says so (AnswerFlush)."""

    flush: int


class Snapshots(Message, tag=220):
    """In the order in which they were made.  Answers CreateSnapshots too, in the order of the volumes that it names."""

    snapshots: list[SnapshotInfo]
