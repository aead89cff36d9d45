"""Questions about attributes, extended attributes and figures of a volume, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import StatFs
from awsomefsd.meta.api.messages.base import Message


class GetAttr(Message, tag=11):
    """Found.  `buffered`: what another mount buffers under a write lease counts and stays buffered; else that is committed before."""

    volume: int
    ino: int
    buffered: bool = False
    at: int = 0  # a snapshot; 0: the head


class GetXattr(Message, tag=14):
    """Blob, or Failed(ENODATA)."""

    volume: int
    ino: int
    name: bytes
    at: int = 0  # a snapshot; 0: the head


class ListXattr(Message, tag=15):
    volume: int
    ino: int
    at: int = 0  # a snapshot; 0: the head


class GetStatFs(Message, tag=17):
    """Asks for StatFsReply.  `unneeded`: what the asking session has reserved and would give back; -1: it does not say (older).

    It is shown as free.  What other sessions have reserved is not: how much of that they need nobody else knows, and what is shown can be
    allocated at once.  Session 0, which allocates nothing, is shown all that is reserved as free.
    """

    volume: int
    session: int = 0
    unneeded: int = -1


class Blob(Message, tag=12):
    data: bytes


class Names(Message, tag=13):
    names: list[bytes]


class StatFsReply(Message, tag=15):
    stat: StatFs
