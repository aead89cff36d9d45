"""Commands about volumes."""

from __future__ import annotations

from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.meta.api.commands.base import Command

UNDECIDED = "*"  # `home` of a volume that has no data yet: its first segment decides


class CreateVolume(Command, tag=3):
    """A volume with an empty root directory (inode 1).  `names` is an index of NAMES_WORDS; an older build would leave it out."""

    name: str
    uuid: str
    quota_bytes: int = 0
    quota_inodes: int = 0
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    names: int = 0

    def level_needed(self) -> int:
        return DELEGATION if self.names else self.since


class SetVolume(Command, tag=4):
    """-1 leaves a value, "" leaves the name."""

    volume: int
    quota_bytes: int = -1
    quota_inodes: int = -1
    name: str = ""


class SetNames(Command, tag=142):
    """`names` is an index of NAMES_WORDS.  A mount learns it with its next session."""

    since = DELEGATION

    volume: int
    names: int


class DeleteVolume(Command, tag=5):
    """EBUSY while a session holds it; ENOTEMPTY while it has files and `force` is false.  Contents are reaped by Reap entries."""

    volume: int
    force: bool = False
