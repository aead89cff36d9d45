"""Log commands of volumes that an orchestrator asked for (CSI), and of the nodes that use them.

What the orchestrator must find again after any restart is here and nowhere else: its name for a volume, what it asked for, and which
node may use it.  One entry makes the volume and its record, one ends both, so no crash leaves one without the other.
"""

from __future__ import annotations

from typing import ClassVar

from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.meta.api.commands.base import Command

LEVEL = 2  # builds that know volumes of orchestrators (base/levels.py)


class MakeCsiVolume(Command, tag=100):
    """A record, and with `volume` 0 a volume of its own named csi-ID; otherwise a directory `path` of that volume, made by who mounts it.

    EEXIST if the name or the id is taken: whoever asked compares what is there with what it wants.
    """

    since: ClassVar[int] = LEVEL
    id: str  # a UUID
    name: str  # as the orchestrator calls it
    capacity: int
    block: bool
    settings: list[tuple[str, str]]  # what was asked for beside that, to compare a repeated request with, and for the nodes
    volume: int = 0
    path: str = ""
    quota_bytes: int = 0
    quota_inodes: int = 0
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    names: int = 0  # of a volume of its own, as in CreateVolume

    def level_needed(self) -> int:
        return DELEGATION if self.names else self.since


class SetCsiVolume(Command, tag=101):
    """-1 leaves a value; None leaves the settings.  Quotas are the volume's, and only where it has no other use."""

    since: ClassVar[int] = LEVEL
    id: str
    capacity: int = -1
    quota_bytes: int = -1
    quota_inodes: int = -1
    settings: list[tuple[str, str]] | None = None


class DropCsiVolume(Command, tag=102):
    """The record goes, and with `destroy` the volume that was made with it.  EBUSY while a node claims or a session mounts it."""

    since: ClassVar[int] = LEVEL
    id: str
    destroy: bool


class ClaimVolume(Command, tag=103):
    """The node uses a volume (or a directory of it).  EBUSY if another node claims the same and one of both is `exclusive`.

    Claiming what the node claims already keeps the epoch.  `attached`: claimed by the orchestrator for it, and only ended by it.
    """

    since: ClassVar[int] = LEVEL
    volume: int
    path: str
    node: str
    boot_id: str
    exclusive: bool
    attached: bool = False


class EndClaims(Command, tag=104):
    """Claims of a node end: of one volume and path, or (`volume` 0) all of them but those of `keep_boot_id`.

    `proof`: why nothing of them is mounted there any more (unstaged, another boot, fenced, the node was removed).  `epoch`: only this one.
    `keep_out`: there is no such proof for one that was staged; it stays, marked, until its node has unstaged it
    (meta/machine/csi_volumes.py).
    """

    since: ClassVar[int] = LEVEL
    node: str
    volume: int
    path: str
    proof: str
    epoch: int = 0
    keep_boot_id: str = ""
    attached: bool = False  # those made by the orchestrator too
    keep_out: bool = False
