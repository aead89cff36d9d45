"""What is no proof against a request, what becomes of a worker whose thread died, and that repeated requests show files as they are now."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.types import ROOT_INO, Attr
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.api.context import Context, SetAttrIn
from awsomefsd.vfs.vfs import Vfs
from tests.rigs.mount_without_kernel import Held, Rig, Started, finish, rig, until
from tests.unit.fuse.dict_filesystem import DictFs
from tests.unit.fuse.test_session import Kernel, mkdir

UNKNOWN = {"signal": None, "code": None, "exited": True}  # as the keeper says it of a worker that another keeper had started


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def executing_at_one_death(kernel: Kernel) -> None:
    dead = kernel.session(DictFs())
    kernel.die(dead, mkdir(b"a", 4))
    dead.slots[0].executing()
    dead.slots[0].add_death()


def test_a_death_of_unknown_cause_is_held_against_no_request(kernel: Kernel) -> None:
    """Worker, keeper and worker killed in turn, while the same request was executing."""
    executing_at_one_death(kernel)
    kernel.session(fs := DictFs(), previous=UNKNOWN).recover()
    assert kernel.answer()[:2] == (4, 0) and fs.executed == [("a", 4)]


def test_a_known_end_is_still_counted(kernel: Kernel) -> None:
    executing_at_one_death(kernel)
    kernel.session(DictFs(), previous={**UNKNOWN, "code": 70}).recover()
    assert kernel.answer()[:2] == (4, errno.EIO)


def test_a_worker_whose_thread_dies_ends() -> None:
    code = (
        "import threading, time\n"
        "from awsomefsd.worker import process\n"
        "threading.excepthook = process._thread_died\n"
        "threading.Thread(target=lambda: 1 / 0, daemon=True).start()\n"
        "time.sleep(20)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert ended.returncode == 70 and "ZeroDivisionError" in ended.stderr


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def change(vfs: Vfs, ctx: Context, kind: str, ino: int) -> Any:
    if kind == "link":
        return vfs.link(ctx, ino, ROOT_INO, b"other")
    if kind == "create":  # of a name that is there
        return vfs.create(ctx, ROOT_INO, b"file", 0o644, os.O_RDWR)
    if kind == "xattr":
        return vfs.setxattr(ctx, ino, b"user.a", b"value", 0)
    if kind == "rename":
        return vfs.rename(ctx, ROOT_INO, b"file", ROOT_INO, b"other", 0)
    return vfs.setattr(ctx, ino, None, SetAttrIn(c.SET_MODE, mode=0o600) if kind == "mode" else SetAttrIn(c.SET_MTIME, mtime_ns=1))


@pytest.mark.parametrize("kind", ["link", "create", "xattr", "rename", "mode", "time"])
def test_a_repeated_change_tells_the_size_of_now(r: Rig, kind: str) -> None:
    """The entry was made while what had been written was dirty; the worker died before it had the answer.  The kernel appends at the size
    that it is told: an older one would overwrite what was acknowledged."""
    ino, fh = r.create(b"file")
    r.flush()
    r.write(ino, fh, 0, b"a" * 100)
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, c.Commit):
            return None
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[0]

    r.gate().on_propose = on_propose
    ctx = r.ctx()
    Started(change(r.vfs, ctx, kind, ino))
    until(lambda: held)
    assert held[0].answered.wait(60)
    r.kill()

    seen: list[Attr] = []

    def look(vfs: Vfs) -> None:
        """Another request that the dead worker had read: by then the first answer was taken up."""
        seen.append(finish(vfs.getattr(r.ctx(), ino, fh)))

    results = r.start(lambda vfs: change(vfs, r.ctx(ctx.unique), kind, ino), look)
    told = results[0][0] if kind == "create" else results[0]
    if isinstance(told, Attr):
        seen.append(told)
    assert len(seen) == (1 if kind in ("xattr", "rename") else 2), results
    assert [(attr.ino, attr.size) for attr in seen] == [(ino, 100)] * len(seen)
    assert r.attr(ino).size == 100 and r.content(ino) == b"a" * 100
