"""A mount that decides names by itself answers as one whose names are durable, at whatever step of a record its worker is killed.

A kill is a copy of the shared memory at that moment; nothing of the worker reaches the cluster from then on, or the copy.  The next worker
begins over the copy, with the request that was not answered.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest

from awsomefsd.base.errors import Error, Unavailable
from awsomefsd.base.types import TRUNCATE_BIT
from awsomefsd.base.wait import Errand
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.file.flusher import Flusher
from awsomefsd.io.file.op_log import OpLog
from awsomefsd.io.file.record_ring import RecordRing
from awsomefsd.io.file.shipper import Shipper
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.state.atimes import NOATIME
from awsomefsd.vfs.state.delegated_names import DelegatedNames
from tests.differential import machine, strategies, vfs_side
from tests.differential.vfs_side import UMASK, VfsSide
from tests.rigs.mount_without_kernel import Rig, Started, _claiming

pytestmark = pytest.mark.timeout(1200)

STEPS: tuple[tuple[type, str], ...] = (  # of records and of the data beside them, around which a worker may die
    (OpLog, "store"), (RecordRing, "publish"), (RecordRing, "set_state"), (OpLog, "applied"), (OpLog, "_clean"), (DirtyLog, "mark_clean"),
    (Shipper, "_send"), (Shipper, "_taken"), (DelegatedNames, "applied"), (Flusher, "_propose"), (Flusher, "_finish"),
)  # fmt: skip
HITS_MAX = 40  # between two kills


class Mortal(MetaClient):
    dead = False

    def _send(self, data: bytes) -> None:
        if not self.dead:
            super()._send(data)


class Durable(Rig):
    atime = (NOATIME, False)

    def ctx(self, unique: int | None = None, uid: int = 0, open_flags: int = 0) -> Context:
        ctx = super().ctx(unique, uid, open_flags)
        ctx.umask, ctx.reply_bytes_max = UMASK, 1 << 16
        return ctx


class Killed(Durable):
    """`turn` is held by a call but while it waits, so that a copy is of one moment."""

    delegated = True
    chance: random.Random

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.turn = threading.RLock()
        self.left = 0  # hits until the worker dies; 0: it lives
        self.copies: dict[str, int] = {}
        self.kills: Counter[str] = Counter()
        self.repeated = 0

    def make_client(self, *args: Any) -> MetaClient:
        return Mortal(*args, **self.client_options)

    def hit(self, where: str) -> None:
        if not self.left or not self.turn.acquire(blocking=False):
            return
        try:
            self.left -= 1
            if not self.left and self.alive and not self.copies:  # a call may give hits to one that has just died
                self.kills[where] += 1
                client = self.worker.client
                client.dead = True  # type: ignore[attr-defined]
                self.copies = {name: copy_of(fd) for name, fd in self.fds.items()}
                threading.Thread(target=client.fail, args=(Unavailable("killed"),)).start()  # who is here may have any lock
        finally:
            self.turn.release()

    def call(self, method: str, *args: Any, unique: int | None = None, open_flags: int = 0) -> Any:
        if self.copies:
            self.succeed([])
        self.left = self.left or self.chance.randrange(1, HITS_MAX)
        ctx = self.ctx(unique, open_flags=open_flags)
        value, error = self.outcome(method, ctx, args)
        if self.copies:
            self.repeated += 1
            (value,) = self.succeed([ctx.unique, ctx.unique | TRUNCATE_BIT], lambda _vfs: self.request(method, ctx, *args))
            error = value if isinstance(value, BaseException) else None
        with self.turn:
            self.vfs.replied(ctx.unique)
        if error is not None:
            raise error
        return value

    def outcome(self, method: str, ctx: Context, args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
        errands: list[Errand] = []
        try:
            with self.turn:
                op = self.request(method, ctx, *args)
                if not isinstance(op, GeneratorType):
                    return op, None
                started = Started(_claiming(op, errands, threading.get_ident()))
                while errands:
                    errands.pop().run()
            return started.result(), None
        except (Error, OSError) as err:
            return None, err

    def succeed(self, unanswered: list[int], *repeat: Callable[[Any], Any]) -> Any:
        self.left = 0
        self.kill()
        for fd in self.fds.values():
            os.close(fd)
        self.fds, self.copies = self.copies, {}
        self.unanswered = unanswered
        return self.start(*repeat)


def copy_of(fd: int) -> int:
    size, copy = os.fstat(fd).st_size, os.memfd_create("copy")
    os.ftruncate(copy, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break  # no more of it
        data = os.pread(fd, os.lseek(fd, at, os.SEEK_HOLE) - at, at)
        at += os.pwrite(copy, data, at)
    return copy


class Side(VfsSide):
    def call(self, method: str, *arguments: Any) -> Any:
        return self.rig.call(method, *arguments)


@pytest.fixture
def rigs(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Durable, Killed]]:
    made: list[Durable] = []
    try:
        for kind in (Durable, Killed):
            folder = tmp_path / kind.__name__
            folder.mkdir()
            made.append(kind(folder))
            made[-1].hold_lease_clock()
        durable, killed = made
        assert isinstance(killed, Killed)
        killed.chance = random.Random(seed)
        for owner, name in STEPS:
            monkeypatch.setattr(owner, name, hitting(killed, getattr(owner, name)))
        for one in made:
            one.start()
        yield durable, killed
    finally:
        for one in made:
            one.close()


def hitting(killed: Killed, step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, before and behind which the worker may die.  Those of the other mount count too, which does no harm."""

    @wraps(step)
    def hit(*args: Any, **options: Any) -> Any:
        killed.hit(f"{step.__qualname__} before")
        value = step(*args, **options)
        killed.hit(f"{step.__qualname__} after")
        return value

    return hit


def test_it_answers_as_a_mount_with_durable_names(rigs: tuple[Durable, Killed], seed: int, figures: list[str]) -> None:
    sides = [Side(one) for one in rigs]
    sides[0].name, sides[1].name = "durable", "mount"
    kinds = tuple(kind for kind in strategies.ARGUMENTS if kind in vfs_side.kinds())
    bench = machine.Bench(sides, kinds, None, users=("root",), plain=True)
    machine.explore(bench, seed, 25, 40)
    killed = rigs[1]
    if killed.copies:
        killed.succeed([])
    killed.left = 0
    names = killed.worker.names
    assert names is not None and names.decides and names.shipper.differing == 0
    assert killed.repeated > 5 and len(killed.kills) > 2, "otherwise this shows nothing"
    figures.append(f"workers killed at steps of records: {bench.steps} operations, {killed.repeated} repeated, {dict(killed.kills)}")
    for one in rigs:
        one.unmount()
        one.check()
