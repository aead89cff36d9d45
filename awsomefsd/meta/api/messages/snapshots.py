"""Questions about snapshots, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import SnapshotInfo
from awsomefsd.meta.api.messages.base import Message


class ListSnapshots(Message, tag=220):
    """Answered by Snapshots: those of a volume, or the one of that name, if there is one.  ENOENT without such a volume."""

    volume: int
    name: str = ""


# --- replies ------------------------------------------------------------------------------------------------------------------
class Snapshots(Message, tag=220):
    """In the order in which they were made.  Answers CreateSnapshots too, in the order of the volumes that it names."""

    snapshots: list[SnapshotInfo]
