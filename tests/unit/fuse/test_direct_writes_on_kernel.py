"""Asynchronous direct writes against the kernel, beside programs that read the same file through its pages."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from awsomefsd.fuse.negotiate import BACKGROUND_REQUESTS_MAX
from tests.conftest import missing_for_mounts
from tests.crash.synchronous_writer import SUBMIT, aio_write
from tests.unit.fuse.fuse_server import LIMIT_S, Served, in_process, run

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(missing_for_mounts()), reason=missing_for_mounts() or "-"),
    pytest.mark.skipif(not SUBMIT, reason="the numbers of the system calls are not known here"),
]
BLOCK = 4096
WRITERS = BACKGROUND_REQUESTS_MAX + 6


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "mnt").mkdir()
    one = Served(tmp_path / "mnt", late_files=1, drops_pages=True)
    one.start()
    yield one
    one.close()


def write_at(path: Path, block: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as data:
        data[:] = b"n" * BLOCK
        assert aio_write(fd, data, block * BLOCK, 0) == BLOCK
    os.close(fd)


def read_beside(path: Path, read: Callable[[int], bytes], blocks: int, meetings: Sequence[Path]) -> list[bytes]:
    """First bytes of each block behind asynchronous writes of all of them, for one who also read while they were under way."""
    writers = [threading.Thread(target=write_at, args=(path, block)) for block in range(blocks)]
    for writer in writers:
        writer.start()
    for meeting in meetings:
        meeting.open("rb").close()  # blocks until the test opens it too
        for block in range(blocks):
            read(block)
    for writer in writers:
        writer.join()
    return [read(block) for block in range(blocks)]


def by_read(path: Path, blocks: int, meetings: Sequence[Path]) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY)
    return read_beside(path, lambda block: os.pread(fd, 1, block * BLOCK), blocks, meetings)


def by_mapping(path: Path, blocks: int, meetings: Sequence[Path]) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        return read_beside(path, lambda block: mapped[block * BLOCK : block * BLOCK + 1], blocks, meetings)


@pytest.mark.parametrize("way", [by_read, by_mapping])
def test_who_reads_behind_an_asynchronous_direct_write_sees_it(served: Served, tmp_path: Path, way: Callable[..., list[bytes]]) -> None:
    path, meetings = served.directory / "wait0", [tmp_path / "submitted", tmp_path / "read"]
    for meeting in meetings:
        os.mkfifo(meeting)
    run(os.truncate, path, BLOCK)
    reader = in_process(way, path, 1, meetings)
    served.await_fact(lambda facts: facts["parked"] == 1)
    for meeting in meetings:
        meeting.open("wb").close()
    served.say("gate")
    assert reader.result(LIMIT_S) == [b"n"]
    served.await_fact(lambda facts: facts["parked"] == 0)  # the memory of a request is freed when its caller goes on already


def read_and_write(path: Path, meetings: Sequence[Path]) -> list[bytes]:
    """More asynchronous writes than the kernel sends in the background, and behind them in its queue reads of the same blocks."""
    reads: list[bytes] = []
    fd = os.open(path, os.O_RDONLY)
    threads = [threading.Thread(target=write_at, args=(path, block)) for block in range(WRITERS)]
    for thread in threads:
        thread.start()
    meetings[0].open("rb").close()
    readers = [threading.Thread(target=lambda at: reads.append(os.pread(fd, 1, at)), args=(block * BLOCK,)) for block in range(WRITERS)]
    for thread in readers:
        thread.start()
    meetings[1].open("rb").close()
    for thread in threads + readers:
        thread.join()
    return reads


def test_writes_that_wait_for_pages_hold_nothing_up(served: Served, tmp_path: Path) -> None:
    """Each waits until the kernel has dropped its pages, and the kernel for READs of these pages, which need a reader and its queue."""
    path, meetings = served.directory / "wait0", [tmp_path / "submitted", tmp_path / "reading"]
    for meeting in meetings:
        os.mkfifo(meeting)
    run(os.truncate, path, WRITERS * BLOCK)
    caller = in_process(read_and_write, path, meetings)
    served.await_fact(lambda facts: facts["parked"] == BACKGROUND_REQUESTS_MAX)
    for meeting in meetings:
        meeting.open("wb").close()
    served.say("gate")
    assert len(caller.result(LIMIT_S)) == WRITERS
    served.await_fact(lambda facts: facts["parked"] == 0)
