"""The command that takes and releases POSIX locks."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command


class SetLock(Command, tag=40):
    """Grant, convert or (lock_type F_UNLCK 2) release a range for the entry's session; EAGAIN if the lock of another owner conflicts."""

    volume: int
    ino: int
    kind: int
    owner: int
    pid: int
    lock_type: int
    start: int
    end: int
    handle: int = 0
