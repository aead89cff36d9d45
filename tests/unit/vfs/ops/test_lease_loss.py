"""`on-lease-loss=error`: a fenced mount answers ETIMEDOUT; what was under way leaves nothing behind and happens once (lease_loss.py)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import SESSION_SELF_FENCE_MS
from awsomefsd.base.types import LOCK_POSIX, ROOT_INO, Lock
from awsomefsd.base.wait import Signal, Steps
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.ops.lease_loss import GivingUp
from tests.rigs.mount_without_kernel import BIG, After, Held, Rig, Started, error_of, until

WRITE, UNLOCK = 1, 2


class Failing(Rig):
    on_lease_loss = "error"

    def fence(self) -> None:
        """As without a quorum: the lease runs out, and its renewal has no answer."""
        keeper = self.worker.client._keeper
        with keeper._changed:
            keeper._core._asked = True
            self.lease_clock.advance(SESSION_SELF_FENCE_MS / 1000 + 1)
            keeper._changed.notify_all()
        until(lambda: keeper._core._fenced)

    def heal(self) -> None:
        keeper = self.worker.client._keeper
        with keeper._changed:
            keeper._core._asked = False
        keeper.doubt()
        until(lambda: self.mount.session.lease.left_ns() > 0)


@pytest.fixture(params=[False, True], ids=["whole", "shared"])
def r(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Failing]:
    made = Failing(tmp_path)
    made.hold_lease_clock()
    made.shared = request.param
    try:
        made.start()
        yield made
    finally:
        made.close()


def keeping(r: Rig, kind: type, wrap: Callable[[Any], Any]) -> list[Any]:
    """The first command of this kind goes through `wrap`."""
    found: list[Any] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, kind) and not found:
            found.append(wrap(r.worker.client.propose(command, unique)))
            return found[0]
        return None

    r.gate().on_propose = on_propose
    return found


def begun(r: Rig, started: Started, kept: list[Any]) -> Started:
    until(lambda: bool(kept) or started.ended.is_set())
    assert not started.ended.is_set()
    return started


def test_without_a_lease_operations_fail_and_go_on_with_it(r: Failing) -> None:
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"before")
    r.fence()
    for call in (
        lambda: r.call("lookup", ROOT_INO, b"f"),
        lambda: r.call("read", ino, fh, 0, 9),
        lambda: r.call("write", ino, fh, 0, memoryview(b"x"), 0),
        lambda: r.call("create", ROOT_INO, b"g", 0o644, os.O_RDWR),
        lambda: r.call("fsync", ino, fh, False),
        lambda: r.call("setlk", ino, fh, Lock(LOCK_POSIX, 7, 1, WRITE, 0, 9), False),
    ):
        assert error_of(call) == errno.ETIMEDOUT
    r.heal()
    assert r.read(ino, fh, 0, 9) == b"before" and error_of(r.lookup, b"g") == errno.ENOENT
    r.close_file(ino, fh)


def test_what_was_under_way_is_answered_and_its_result_kept_until_it_has_ended(r: Failing) -> None:
    kept = keeping(r, c.Create, After)
    ctx = r.ctx()
    made = begun(r, Started(r.vfs.mkdir(ctx, ROOT_INO, b"d", 0o755)), kept)
    r.fence()
    assert error_of(made.result) == errno.ETIMEDOUT
    r.vfs.replied(ctx.unique)  # the session has sent the answer
    r.heal()
    kept[0].release()
    until(lambda: b"d" in r.listdir())
    until(lambda: not r.worker.client._core.is_registered(ctx.unique))
    r.unmount()
    r.check()


def test_a_handle_that_nobody_was_given_is_closed(r: Failing) -> None:
    kept = keeping(r, c.Create, Held)
    made = begun(r, r.begin("create", ROOT_INO, b"f", 0o644, os.O_RDWR), kept)
    assert kept[0].answered.wait(60)
    r.fence()
    assert error_of(made.result) == errno.ETIMEDOUT
    kept[0].release()
    r.heal()
    ino = r.lookup(b"f").ino
    assert r.mount.session.opens.count(ino) == 0


def test_a_write_keeps_its_bytes_when_its_slot_is_used_again(r: Failing) -> None:
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, bytes(BIG))
    r.fsync(ino, fh)
    kept = keeping(r, c.WriteData if r.shared else c.Commit, After)
    slot = bytearray(b"a" * BIG)
    writing = r.begin("write", ino, fh, 0, memoryview(slot), 0)
    last = writing if r.shared else r.begin("fsync", ino, fh, False)
    begun(r, last, kept)
    r.fence()
    assert error_of(last.result) == errno.ETIMEDOUT
    slot[:] = b"z" * BIG
    r.heal()
    kept[0].release()
    until(lambda: r.read(ino, fh, 0, BIG) == b"a" * BIG)
    r.close_file(ino, fh)


def test_a_lock_wait_ends_and_its_lock_is_nobodys(r: Failing) -> None:
    ino, fh = r.create(b"f")
    other = r.open(ino)
    r.call("setlk", ino, other, Lock(LOCK_POSIX, 8, 2, WRITE, 0, 9), False)
    waiting = r.begin("setlk", ino, fh, Lock(LOCK_POSIX, 7, 1, WRITE, 0, 9), True)
    assert not waiting.ended.is_set()
    r.fence()
    assert error_of(waiting.result) == errno.ETIMEDOUT
    r.heal()
    until(lambda: not r.vfs.locks._waiting)
    r.call("setlk", ino, other, Lock(LOCK_POSIX, 8, 2, UNLOCK, 0, 9), False)
    assert r.call("getlk", ino, other, Lock(LOCK_POSIX, 8, 2, WRITE, 0, 9)) is None
    r.close_file(ino, fh, owner=7)
    r.close_file(ino, other, owner=8)


def begin_sync(r: Failing, how: str, ino: int, fh: int) -> Started:
    """What is answered when the file is flushed."""
    if how == "O_DSYNC":
        return Started(r.request("write", r.ctx(open_flags=os.O_RDWR | os.O_DSYNC), ino, fh, 0, memoryview(b"y" * BIG), 0))
    return r.begin("fsync", ino, fh, False) if how == "fsync" else r.begin("flush", ino, fh, 7)


@pytest.mark.parametrize("how", ["fsync", "O_DSYNC", "close of a rewritten file"])
def test_a_failed_flush_whose_caller_was_given_up_is_told_to_the_next_fsync(tmp_path: Path, how: str) -> None:
    r = Failing(tmp_path)
    r.hold_lease_clock()
    try:
        r.start()
        ino, fh = r.create(b"f")
        r.close_file(ino, fh)
        fh = r.open(ino, os.O_RDWR | os.O_TRUNC)
        r.write(ino, fh, 0, b"x" * BIG)
        flushing, flush = Signal(), r.worker.data.flusher.flush
        r.worker.data.flusher.flush = lambda ino: flushing  # type: ignore[method-assign, assignment, misc]
        syncing = begin_sync(r, how, ino, fh)
        r.fence()
        assert error_of(syncing.result) == errno.ETIMEDOUT
        r.worker.data.flusher.flush = flush  # type: ignore[method-assign]
        flushing.fire(None, FsError(errno.ENOSPC))
        r.heal()
        assert error_of(r.fsync, ino, fh) == errno.ENOSPC
        r.fsync(ino, fh)
    finally:
        r.close()


def test_a_request_that_begins_while_the_lease_runs_out_is_answered() -> None:
    left = [1]
    giving_up, late = GivingUp(lambda: left[0]), list[Any]()
    wait = Signal()

    def op() -> Steps:
        left[0] = 0  # behind the look of whoever served it, before it is known here
        assert giving_up.fenced() == [1]
        return (yield wait)

    begun = Started(giving_up.bounded(1, op(), lambda *outcome: late.append(outcome)))
    assert error_of(begun.result) == errno.ETIMEDOUT and giving_up.goes_on(1)
    wait.fire("done")
    assert late == [("done", None)] and not giving_up.goes_on(1)
    again = Started(giving_up.bounded(2, iter_of(Signal()), lambda *_: None))
    assert error_of(again.result) == errno.ETIMEDOUT


def iter_of(wait: Signal) -> Steps:
    yield wait
