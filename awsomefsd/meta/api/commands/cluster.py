"""Commands about the cluster itself, its log and its members."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command
from awsomefsd.meta.raft.membership import Membership


class Init(Command, tag=1):
    """First entry of a cluster."""

    cluster_uuid: str
    site: int
    start_level: int = 1  # at which the cluster acts


class NoOp(Command, tag=70):
    """First entry of every leader: with it, all that came before is committed."""


class ChangeMembership(Command, tag=71):
    """The members from this entry on (in force when it is appended, not when it is applied).  Proposed by Raft itself only."""

    membership: Membership


class RepairRows(Command, tag=95):
    """Rows as fsck wants them: what has to go, and what has to be there.  Proposed by fsck on a stopped node only.

    Values and keys as they are in the store, so that it repairs what this machine cannot read itself; applied index and stamp stay.
    """

    deletes: list[bytes]
    puts: list[tuple[bytes, bytes]]
