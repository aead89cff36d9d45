"""Sessions: renewals, reports of workers, and the answers."""

from __future__ import annotations

from awsomefsd.base.types import SessionInfo, VolumeInfo
from awsomefsd.meta.api.messages.base import Message


class Renew(Message, tag=23):
    """Keep a session alive.  Failed(ESTALE) if it has ended.  `seen_index`: nothing older than this is used by the session any more."""

    session: int
    epoch: int
    seen_index: int


class AwaitSpaceRecall(Message, tag=170):
    """Answered by Done when somebody else needs space: the worker gives back what it has reserved and does not need, then asks anew.

    Answered by FlushAsked, if it `flushes`, when it is to write out what its mount holds back; that too it goes on with, and asks anew.
    Failed(ESTALE) if the session has ended.
    """

    session: int
    epoch: int
    flushes: bool = False


class GetSessions(Message, tag=29):
    pass


class Report(Message, tag=30):
    """A worker's figures, by name; the newest of each mount are kept while its connection lives."""

    figures: dict[str, int]


class GetReports(Message, tag=31):
    """Answered by Reports, of the mounts behind `after_mount`.  meta/api/report_pages.py asks for all."""

    after_mount: int = 0


class SessionOpened(Message, tag=8):
    """`resumed`: the same session as before.  `changed_by_others`: another mount has held the volume since this mount's last session."""

    session: int
    epoch: int
    resumed: bool
    changed_by_others: bool
    ttl_ms: int
    volume: VolumeInfo
    reserved_bytes: int = 0


class Sessions(Message, tag=24):
    sessions: list[SessionInfo]


class Reports(Message, tag=25):
    """Figures by mount.  `more`: the last one, if others follow."""

    figures: dict[int, dict[str, int]]
    more: int = 0
