"""Answers to Apply and GrantInodes, and to OpenSession of a mount that has an op log."""

from __future__ import annotations

from awsomefsd.base.types import Attr
from awsomefsd.meta.api.messages.base import Message
from awsomefsd.meta.api.messages.sessions import SessionOpened


class Applied(Message, tag=180):
    """Answers Apply.  `applied`: the newest record of the log that is applied now; 0: none.

    `errno`, `text`, `retry`: why it went no further (0: all is done).  `refused`: the record that was refused; 0 with ESTALE is a gap, or a
    batch of another round, of which nothing was done.  `round`: of the log from now on.  With `retry` the rest may be sent again as it is.
    `differs`: the first record after which governed fields were others than its `check` says (0: none); it is applied all the same.
    `errnos`, `attrs`: of the inodes as in Committed; empty where the batch ended before them.
    """

    applied: int
    errno: int = 0
    text: str = ""
    retry: bool = False
    refused: int = 0
    differs: int = 0
    errnos: list[int] = []
    attrs: list[Attr | None] = []
    round: int = 0


class InodesGranted(Message, tag=181):
    """Inode numbers `first` to `first + count - 1`, for records of the mount only."""

    first: int
    count: int


class SessionGoesOn(SessionOpened, tag=182):
    """SessionOpened of a mount that has sent records, or may: `applied` is the newest that is applied of the op log `log`, in this `round`.

    `numbers`: (first, end) of the inode numbers that it was granted and has not used, in ascending order.  `names`: of the volume.
    `level`, `site`: at which the cluster acts.
    """

    log: int = 0
    applied: int = 0
    numbers: list[tuple[int, int]] = []
    round: int = 0
    names: int = 0
    level: int = 0
    site: int = 0
