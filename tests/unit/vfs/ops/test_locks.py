"""Locks of a mount whose session ends while a request for one is on its way."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import LOCK_END_MAX, LOCK_POSIX, Lock
from awsomefsd.meta.api.commands import SetLock
from awsomefsd.meta.api.messages import Done
from awsomefsd.vfs.ops.locks import F_UNLCK, F_WRLCK, LockOps

FH, INO = 5, 2
LOCK = Lock(LOCK_POSIX, 77, 1000, F_WRLCK, 0, LOCK_END_MAX)


class Mount:
    """What is used of mount_state.MountState."""

    volume = 1

    def __init__(self) -> None:
        self.failed: set[int] = set()
        self.session = SimpleNamespace(recovering=False, check_handle=self.check_handle)
        self.proposed: list[SetLock] = []
        self.acked: list[int] = []
        self.uniques = SimpleNamespace(next_background_unique=lambda: 99)
        self.metadata = SimpleNamespace(ack=self.acked.append)

    def check_handle(self, fh: int) -> None:
        if fh in self.failed:
            raise FsError(errno.EIO)

    def propose(self, command: Any, unique: int) -> str:
        self.proposed.append(command)
        return "wait"


def begin(mount: Mount, locks: LockOps) -> Any:
    op = locks.setlk(SimpleNamespace(unique=3, pid=1), INO, FH, LOCK, False)  # type: ignore[arg-type]
    assert next(op) == "wait"  # type: ignore[arg-type]
    return op


def test_a_lock_that_is_granted_for_a_handle_of_the_old_session_is_given_back_and_not_held():
    mount = Mount()
    locks = LockOps(mount, SimpleNamespace())  # type: ignore[arg-type]
    op = begin(mount, locks)
    mount.failed.add(FH)  # SessionKeeper.after_session_loss
    locks.forget_all()
    assert op.send(Done()) == "wait", "the lock may be the new session's"
    with pytest.raises(FsError) as raised:
        op.send(Done())
    assert raised.value.errno == errno.EIO
    assert [command.lock_type for command in mount.proposed] == [F_WRLCK, F_UNLCK]
    assert mount.acked == [99] and not locks.holds(INO, LOCK_POSIX, LOCK.owner)


def test_a_lock_is_held_when_the_handle_is_still_good():
    mount = Mount()
    locks = LockOps(mount, SimpleNamespace())  # type: ignore[arg-type]
    op = begin(mount, locks)
    with pytest.raises(StopIteration):
        op.send(Done())
    assert locks.holds(INO, LOCK_POSIX, LOCK.owner) and len(mount.proposed) == 1
