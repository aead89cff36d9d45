"""Requests that wait for the kernel, which may need a reader of ours before the wait is over."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from awsomefsd.base.wait import KernelWait, keeping
from awsomefsd.vfs.api.context import Context
from tests.unit.fuse.dict_filesystem import DictFs
from tests.unit.fuse.test_session import Kernel, mkdir, serve, write_late


class WaitingFs(DictFs):
    """Each write waits for the kernel when its bytes are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.thens: list[Callable[[], None] | None] = []
        self.noted = 0

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Any:
        def steps() -> Any:
            yield KernelWait(self.thens.append, self._note, is_last=True)
            return 3

        if not ctx.waits_only:
            self._store(ino, offset, data)
        return keeping(data, steps())

    def _note(self) -> None:
        self.noted += 1


@pytest.mark.parametrize("left", ["parked", "in its slot"])
def test_readers_of_a_successor_begin_before_the_wait_is_over(left: str) -> None:
    kernel = Kernel()
    try:
        dead = kernel.session(DictFs())
        if left == "parked":
            assert dead.park.park(write_late(4, 0, b"new")) is not None
        else:
            kernel.die(dead, write_late(4, 0, b"new"))
        session = kernel.session(fs := WaitingFs(), previous={"signal": signal.SIGKILL})
        session.recover()
        session.wait_repeated()
        assert len(fs.thens) == 1 and kernel.nothing_more()
        session.start()
        assert kernel.ask(mkdir(b"a", 100))[:2] == (100, 0)
        then = fs.thens.pop()
        assert then is not None
        then()
        assert kernel.answer()[:2] == (4, 0)
    finally:
        kernel.close()


def test_a_successor_repeats_the_wait_alone() -> None:
    """Somebody may have written other bytes over those of the write since; its record is in the dirty log no more."""
    kernel = Kernel()
    try:
        dead = kernel.session(fs := WaitingFs())
        dead.recover()
        kernel.ours.send(write_late(4, 0, b"new"))
        assert dead.read_one(dead.slots[0]) and len(fs.thens) == fs.noted == 1
        fs._store(2, 0, b"other")
        session = kernel.session(fs, previous={"signal": signal.SIGKILL})
        session.recover()
        assert bytes(fs.data[2]).startswith(b"other") and fs.noted == 2
        then = fs.thens.pop()
        assert then is not None
        then()
        assert kernel.answer()[:2] == (4, 0) and not len(session.park)
    finally:
        kernel.close()


def test_who_keeps_a_slot_does_not_wait() -> None:
    kernel = Kernel(slot_count=1, park_bytes=4096)
    try:
        session = serve(kernel, fs := WaitingFs())
        assert kernel.ask(write_late(4, 0, bytes(14_000)))[:2] == (4, 0)
        assert fs.thens == [None] and not fs.noted and session.control.counters()["fuse_slots_kept"] == 1
    finally:
        kernel.close()
