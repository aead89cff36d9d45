"""Many locks that wait, and waits that end without a lock: what they cost the other requests of their mount."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.types import LOCK_END_MAX, LOCK_FLOCK, LOCK_POSIX, ROOT_INO, Lock
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client import core
from awsomefsd.meta.server import proposals
from awsomefsd.vfs.ops.locks import F_UNLCK, F_WRLCK
from tests.rigs.mount_without_kernel import LIMIT_S, Rig, Started, rig, until

INFLIGHT, RESULTS = 8, 64


@pytest.fixture
def r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(core, "RPC_INFLIGHT_MAX", INFLIGHT)
    monkeypatch.setattr(proposals, "RESULTS_PER_MOUNT_MAX", RESULTS)
    with rig(tmp_path) as made:
        yield made


def test_more_locks_wait_than_requests_may_be_on_their_way(r: Rig) -> None:
    """Any user can do that: the session is renewed, other requests are answered, and the unlock reaches the leader."""
    ino, fh = r.create(b"f")
    r.call("setlk", ino, fh, Lock(LOCK_FLOCK, 1, 1, F_WRLCK, 0, LOCK_END_MAX), False)
    contexts = [r.ctx() for _ in range(3 * INFLIGHT)]
    waits = [
        Started(r.vfs.setlk(ctx, ino, fh, Lock(LOCK_FLOCK, 100 + number, 1, F_WRLCK, 0, LOCK_END_MAX), True))
        for number, ctx in enumerate(contexts)
    ]
    client = r.worker.client
    renewed = threading.Event()
    client.submit(m.Renew(client.session, client.epoch, 0), lambda reply, error: renewed.set())
    assert renewed.wait(LIMIT_S) and r.lookup(b"f").ino == ino
    r.call("setlk", ino, fh, Lock(LOCK_FLOCK, 1, 1, F_UNLCK, 0, LOCK_END_MAX), False)
    until(lambda: any(wait.ended.is_set() for wait in waits))
    for ctx, wait in zip(contexts, waits, strict=True):
        if not wait.ended.is_set():
            r.vfs.interrupt(ctx.unique)
    until(lambda: all(wait.ended.is_set() for wait in waits))


def test_interrupted_waits_leave_no_results(r: Rig) -> None:
    """An alarm around fcntl(F_SETLKW), again and again: each of them took an acknowledgement along, and lost it."""
    ino, fh = r.create(b"f")
    r.call("setlk", ino, fh, Lock(LOCK_POSIX, 1, 1, F_WRLCK, 0, 99), False)
    for number in range(2 * RESULTS):
        ctx = r.ctx()
        made = Started(r.vfs.mkdir(ctx, ROOT_INO, b"%d" % number, 0o755))
        assert made.ended.wait(LIMIT_S), f"mkdir {number} hangs"
        r.vfs.replied(ctx.unique)
        ctx = r.ctx()
        wait = Started(r.vfs.setlk(ctx, ino, fh, Lock(LOCK_POSIX, 2, 2, F_WRLCK, 0, 99), True))
        until(lambda unique=ctx.unique: unique in r.vfs.locks._waiting)
        r.vfs.interrupt(ctx.unique)
        assert wait.ended.wait(LIMIT_S) and wait.error.errno == errno.EINTR  # type: ignore[union-attr]
        r.vfs.replied(ctx.unique)


def test_many_locks_that_were_waited_for_and_never_given_back(r: Rig) -> None:
    """Nothing but waits acknowledges the results of those before."""
    ino, fh = r.create(b"f")
    for number in range(2 * RESULTS):
        ctx = r.ctx()
        wait = Started(r.vfs.setlk(ctx, ino, fh, Lock(LOCK_POSIX, 1, 1, F_WRLCK, 2 * number, 2 * number), True))
        assert wait.ended.wait(LIMIT_S), f"lock {number} hangs"
        assert wait.error is None
        r.vfs.replied(ctx.unique)
    assert block_on(r.worker.client.ask(m.GetStatus()), LIMIT_S).figures["results_held"] <= RESULTS
