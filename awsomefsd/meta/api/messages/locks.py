"""Questions about POSIX locks, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import Lock
from awsomefsd.meta.api.commands import AnyCommand
from awsomefsd.meta.api.messages.base import Message


class GetLocks(Message, tag=21):
    """All locks of a session, as (ino, lock)."""

    session: int


class TestLock(Message, tag=22):
    """Locked(the first lock that conflicts, or None), for F_GETLK."""

    volume: int
    ino: int
    lock: Lock


class WaitLock(Message, tag=24):
    """Like Propose of its SetLock, but answered when it is granted.  Cancel ends it with Failed(EINTR).

    `no_deadlock`: of an open file description, which takes no part in the search for circles (EDEADLK).
    """

    unique: int
    session: int
    epoch: int
    acks: list[int]
    command: AnyCommand
    no_deadlock: bool = False


class Cancel(Message, tag=25):
    """End the WaitLock of that request id; not answered itself."""

    unique: int


class Locks(Message, tag=19):
    locks: list[tuple[int, Lock]]


class Locked(Message, tag=20):
    lock: Lock | None
