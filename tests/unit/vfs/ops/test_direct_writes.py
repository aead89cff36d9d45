"""Direct writes take older pages of their ranges from the kernel before they are answered (vfs/ops/direct_writes.py)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import Resume
from awsomefsd.vfs.ops.direct_writes import WRITE_LOCKOWNER
from awsomefsd.vfs.ops.writing import WRITE_CACHE
from tests.rigs.mount_without_kernel import Rig, Started, until

BLOCK = b"n" * 4096
Dropped = tuple[int, int, int]


class Pages:
    """The kernel's part: what it was told to drop, and a drop that is over when the test says so."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.told: list[Dropped] = []
        self.waiting: list[Callable[[], None]] = []
        rig.mount.caches.drop_pages = self.drop

    def drop(self, ino: int, offset: int, length: int, then: Callable[[], None] | None) -> None:
        self.told.append((ino, offset, length))
        if then is not None:
            self.waiting.append(then)

    def let_go(self) -> None:
        until(lambda: self.waiting)
        self.waiting.pop()()

    def read(self, ino: int, fh: int) -> None:
        ctx = self.rig.ctx()
        ctx.fills_pages = True
        self.rig.request("read", ctx, ino, fh, 0, 4096)

    def write(self, ino: int, fh: int, write_flags: int = WRITE_LOCKOWNER, open_flags: int = 0) -> Started:
        ctx = self.rig.ctx(open_flags=open_flags)
        return Started(self.rig.request("write", ctx, ino, fh, 4096, memoryview(BLOCK), write_flags))


class Failed:
    """A flush whose device fails."""

    def start(self, resume: Resume) -> None:
        resume(None, FsError(errno.EIO))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.start()
    yield rig
    rig.close()


def with_pages(rig: Rig) -> tuple[Pages, int, int]:
    """A new file that the kernel has read, and so may have pages of; with its inode and handle."""
    pages = Pages(rig)
    ino, fh = rig.create(b"file")
    pages.read(ino, fh)
    return pages, ino, fh


def test_it_is_answered_when_the_pages_of_its_range_are_gone(rig: Rig) -> None:
    pages, ino, fh = with_pages(rig)
    write = pages.write(ino, fh)
    until(lambda: pages.waiting)
    assert pages.told == [(ino, 4096, 4096)] and not write.ended.is_set()
    assert rig.read(ino, fh, 4096, 4096) == BLOCK, "the bytes are stored before: who reads from now on gets them"
    pages.let_go()
    assert write.result() == 4096


@pytest.mark.parametrize("how", ["a buffered write", "a predecessor"])
def test_pages_that_came_otherwise_go_too(rig: Rig, how: str) -> None:
    ino, fh = rig.create(b"file")
    if how == "a predecessor":
        rig.restart()
    pages = Pages(rig)
    if how == "a buffered write":
        assert pages.write(ino, fh, 0).result() == 4096
    write = pages.write(ino, fh, 0, os.O_DIRECT)
    pages.let_go()
    assert write.result() == 4096 and pages.told == [(ino, 4096, 4096)]


def test_on_a_mount_the_notifier_takes_them(rig: Rig) -> None:
    assert rig.mount.caches.drop_pages == rig.worker.notifier.drop_pages


def test_nobody_waits_who_need_not(rig: Rig) -> None:
    """No page of the file was filled since it is open, or it is the kernel that writes a mapped page, and may wait for this very drop."""
    pages = Pages(rig)
    ino, fh = rig.create(b"file")
    other, other_fh = rig.create(b"other")
    assert pages.write(ino, fh).result() == 4096
    pages.read(ino, fh)
    assert pages.write(other, other_fh).result() == 4096
    assert pages.write(ino, fh, WRITE_LOCKOWNER | WRITE_CACHE, os.O_DIRECT).result() == 4096
    rig.close_file(ino, fh)
    assert pages.write(ino, rig.open(ino)).result() == 4096
    assert pages.told == []


def test_one_that_failed_may_have_stored_its_bytes(rig: Rig) -> None:
    pages, ino, fh = with_pages(rig)
    with patch.object(rig.mount.buffered.flusher, "flush", lambda ino: Failed()):
        write = pages.write(ino, fh, open_flags=os.O_DSYNC)
        pages.let_go()
        with pytest.raises(FsError) as failed:
            write.result()
    assert failed.value.errno == errno.EIO and pages.told == [(ino, 4096, 4096)]


def test_the_dirty_log_does_not_wait_for_the_kernel(rig: Rig) -> None:
    """The kernel may wait for the writing of a mapped page, and that for room in the log."""
    pages, ino, fh = with_pages(rig)
    write = pages.write(ino, fh)
    until(lambda: pages.waiting)
    rig.flush()
    assert rig.mount.buffered.dirty.used_bytes == 0
    pages.let_go()
    assert write.result() == 4096


def test_a_successor_does_not_write_again_what_waits_for_the_kernel(rig: Rig) -> None:
    """Others have read these bytes, and written new ones over them; the record of the first write is in the log no more."""
    pages = Pages(rig)
    ino, fh = rig.create(b"file")
    pages.read(ino, fh)
    pages.write(ino, fh)
    until(lambda: pages.waiting)
    first = rig.unique
    rig.flush()
    rig.write(ino, fh, 4096, b"o" * 4096)
    rig.flush()
    rig.restart()
    pages = Pages(rig)
    ctx = rig.ctx(first, open_flags=os.O_DIRECT)
    ctx.waits_only = True
    again = Started(rig.request("write", ctx, ino, fh, 4096, memoryview(BLOCK), WRITE_LOCKOWNER))
    pages.let_go()
    assert again.result() == 4096 and pages.told == [(ino, 4096, 4096)]
    assert rig.read(ino, fh, 4096, 4096) == b"o" * 4096


def test_an_append_is_answered_at_once(rig: Rig) -> None:
    pages, ino, fh = with_pages(rig)
    assert pages.write(ino, fh, open_flags=os.O_APPEND).result() == 4096
    assert pages.told == [(ino, 0, 0)] and not pages.waiting


def test_pages_that_are_filled_while_the_last_handle_closes_are_known(rig: Rig) -> None:
    """RELEASE is not waited for: somebody may open and read the file between the look for other handles and what follows from it."""
    pages, ino, fh = with_pages(rig)
    opens = rig.mount.session.opens
    count, again = opens.count, list[int]()

    def counted(asked: int) -> int:
        found = count(asked)
        if asked == ino and not found and not again:
            again.append(rig.open(ino))
            pages.read(ino, again[0])
        return found

    with patch.object(opens, "count", counted):
        rig.mount.handle_closed(ino, fh)
    write = pages.write(ino, again[0])
    pages.let_go()
    assert write.result() == 4096 and pages.told == [(ino, 4096, 4096)]
