"""What the adapter for pyfuse3 tells the vfs."""

from __future__ import annotations

import os
from typing import Any

import pytest

from awsomefsd.base.types import ROOT_INO
from awsomefsd.vfs.api.context import Context, Opened

pytest.importorskip("pyfuse3")
pytest.importorskip("trio")
import trio

from awsomefsd.worker.pyfuse3 import Adapter


class Files:
    """The part of a filesystem that is asked here."""

    def __init__(self) -> None:
        self.flags: list[int] = []

    def open(self, ctx: Context, ino: int, flags: int) -> Opened:
        return Opened(7)

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int:
        self.flags.append(ctx.open_flags)
        return len(data)

    def release(self, *_: Any) -> None:
        pass

    def replied(self, unique: int) -> None:
        pass


class Caller:
    uid = gid = pid = 0


@pytest.mark.parametrize(("flags", "told"), [(os.O_RDWR, 0), (os.O_RDWR | os.O_SYNC, os.O_SYNC), (os.O_WRONLY | os.O_DSYNC, os.O_DSYNC)])
def test_a_write_says_that_its_file_was_opened_synchronously(flags: int, told: int) -> None:
    """libfuse has the flags of a WRITE, and pyfuse3 drops them."""
    fs = Files()
    adapter = Adapter(fs, lambda: 2)

    async def run() -> None:
        opened = await adapter.open(ROOT_INO + 1, flags, Caller())
        await adapter.write(opened.fh, 0, b"x")
        await adapter.release(opened.fh)

    trio.run(run)
    assert fs.flags == [told] and not adapter._synchronous
