"""Locks of a mount whose session ends while a request for one is on its way."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import LOCK_END_MAX, LOCK_FLOCK, LOCK_POSIX, Lock
from awsomefsd.meta.api.commands import SetLock
from awsomefsd.meta.api.messages import Done
from awsomefsd.vfs.ops.data import RELEASE_FLOCK_UNLOCK
from awsomefsd.vfs.ops.locks import F_RDLCK, F_UNLCK, F_WRLCK, LockOps
from awsomefsd.vfs.state.mount_state import MountState
from tests.rigs.mount_without_kernel import LIMIT_S, After, Held, Rig, error_of, rig

FH, INO = 5, 2
LOCK = Lock(LOCK_POSIX, 77, 1000, F_WRLCK, 0, LOCK_END_MAX)


class Mount:
    """What is used of mount_state.MountState."""

    volume = 1
    background_unique = MountState.background_unique

    def __init__(self) -> None:
        self.failed: set[int] = set()
        opens = SimpleNamespace(get=lambda fh: fh)
        self.session = SimpleNamespace(recovering=False, check_handle=self.check_handle, opens=opens)
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


# --- the end of an open file description --------------------------------------------------------------------------------------
@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


@pytest.mark.parametrize("kind", [LOCK_POSIX, LOCK_FLOCK])
def test_whoever_asks_after_a_release_does_not_meet_its_locks(r: Rig, kind: int) -> None:
    """close(2) does not wait for RELEASE: who is told that the file is closed asks while the lock's end is still on its way."""
    ino = r.file(b"file", b"x")
    first, second, other = r.open(ino), r.open(ino), r.open(ino)
    mine, theirs = Lock(kind, 77, 1, F_RDLCK, 0, LOCK_END_MAX), Lock(kind, 78, 2, F_RDLCK, 0, LOCK_END_MAX)
    asked = Lock(kind, 79, 3, F_WRLCK, 0, LOCK_END_MAX)
    r.call("setlk", ino, first, mine, False)
    r.call("setlk", ino, second, theirs, False)
    assert r.call("getlk", ino, other, asked) is not None
    gate = r.gate()
    held: list[Held] = []

    def hold(command: Any, unique: int) -> Held | None:
        if not isinstance(command, SetLock) or command.lock_type != F_UNLCK:
            return None
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[-1]

    gate.on_propose = hold
    flags = (RELEASE_FLOCK_UNLOCK, 77, RELEASE_FLOCK_UNLOCK, 78) if kind == LOCK_FLOCK else (0, 0, 0, 0)
    releases = [r.begin("release", ino, first, 0, *flags[:2]), r.begin("release", ino, second, 0, *flags[2:])]
    waiting = [r.begin("getlk", ino, other, asked), r.begin("setlk", ino, other, asked, False)]
    for one in reversed(held):
        assert one.answered.wait(LIMIT_S)
        assert not any(each.ended.is_set() for each in waiting)
        one.release()
    assert len(held) == 2
    for release in releases:
        release.result()
    assert [each.result() for each in waiting] == [None, None]


def test_the_classic_locks_of_a_process_are_gone_when_a_close_of_the_file_returns(r: Rig) -> None:
    """FLUSH, which close(2) waits for, ends those of this owner with whatever handle they were taken, and no others."""
    ino = r.file(b"file", b"x")
    taken, closed, other = r.open(ino), r.open(ino), r.open(ino)
    r.call("setlk", ino, taken, Lock(LOCK_POSIX, 77, 1, F_WRLCK, 0, 9), False)
    r.call("setlk", ino, taken, Lock(LOCK_POSIX, 88, 1, F_WRLCK, 20, 29), False)  # of the open file description itself
    r.call("flush", ino, closed, 66)
    assert r.call("getlk", ino, other, Lock(LOCK_POSIX, 79, 3, F_WRLCK, 0, 9)) is not None, "another process closed it"
    r.call("flush", ino, closed, 77)
    assert r.call("getlk", ino, other, Lock(LOCK_POSIX, 79, 3, F_WRLCK, 0, 19)) is None
    assert r.call("getlk", ino, other, Lock(LOCK_POSIX, 79, 3, F_WRLCK, 0, 29)) is not None
    r.close_file(ino, taken, owner=77)
    assert r.call("getlk", ino, other, Lock(LOCK_POSIX, 79, 3, F_WRLCK, 0, 29)) is None


def test_a_lock_that_is_decided_behind_the_close_of_its_file_is_nobodys(r: Rig) -> None:
    """Its caller was killed while it waited, and is gone: what it asked for must keep nobody out until the session ends."""
    ino, first = r.create(b"f")
    killed, third = r.open(ino), r.open(ino)

    def lock(owner: int) -> Lock:
        return Lock(LOCK_FLOCK, owner, 1000, F_WRLCK, 0, LOCK_END_MAX)

    r.call("setlk", ino, first, lock(71), False)
    held: list[After] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, SetLock) and command.lock_type == F_UNLCK and not held:
            held.append(After(r.worker.client.propose(command, unique)))
            return held[0]
        return None

    r.gate().on_propose = on_propose
    released = r.begin("release", ino, first, 0, RELEASE_FLOCK_UNLOCK, 71)
    waits = r.begin("setlk", ino, killed, lock(72), False)
    gone = r.begin("release", ino, killed, 0, RELEASE_FLOCK_UNLOCK, 72)
    assert not waits.ended.is_set()
    held[0].release()
    for one in (released, gone):
        one.result()
    assert error_of(waits.result) == errno.EINTR
    assert r.call("setlk", ino, third, lock(73), False) is None
    r.close_file(ino, third, 73, RELEASE_FLOCK_UNLOCK)
