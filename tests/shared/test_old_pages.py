"""Pages that mappings and sendfile(2) fill on a strict mount: they are gone when another node has changed the file."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from buildtools import procs
from buildtools.nodes import await_true
from tests.shared.rig import MAPPINGS, WAIT_S, SharedVolume

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200), pytest.mark.parametrize("shared_volume", ["cached"], indirect=True)]
SIZE = 200_000
Way = Callable[[int], Callable[[], bytes]]


def by_mapping(fd: int) -> Callable[[], bytes]:
    area = mmap.mmap(fd, SIZE, mmap.MAP_SHARED if MAPPINGS else mmap.MAP_PRIVATE, mmap.PROT_READ)
    return lambda: area[0:6] + area[SIZE - 6 :]


def by_sendfile(fd: int) -> Callable[[], bytes]:
    def sent() -> bytes:
        into = os.memfd_create("sent")
        try:
            assert os.sendfile(into, fd, 0, 6) == 6 == os.sendfile(into, fd, SIZE - 6, 6)
            return os.pread(into, 12, 0)
        finally:
            os.close(into)

    return sent


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def written(path: Path, number: int) -> bytes:
    """The bytes of the same place change, and nothing else; returns what is at both ends."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        assert os.pwrite(fd, b"%06d" % number * (SIZE // 6 + 1), 0) >= SIZE
        os.ftruncate(fd, SIZE)
    finally:
        os.close(fd)
    return b"%06d" % number + (b"%06d" % number * 2)[SIZE % 6 :][:6]


@pytest.mark.parametrize("way", [by_mapping, by_sendfile])
def test_what_another_node_has_changed_is_seen_through_what_was_open(places: list[Path], way: Way) -> None:
    one, two, three = (place / "f" for place in places)
    ends = written(one, 1)
    with opened(two) as fd, opened(three) as further:
        looks = [way(fd), way(further)]
        for number in range(2, 6):
            assert [look() for look in looks] == [ends] * 2
            ends = written(one, number)
            for look in looks:
                await_true("the new bytes", lambda look=look, ends=ends: look() == ends, WAIT_S, 0.001)  # type: ignore[misc]
                assert look() == ends


@pytest.mark.parametrize("way", [by_mapping, by_sendfile])
def test_nothing_old_stays_where_readers_never_pause(places: list[Path], way: Way) -> None:
    """READs meet recalls in every way, and the file is contested for most of the time."""
    one, two, three = (place / "f" for place in places)
    written(one, 0)
    ended = threading.Event()
    failed: list[BaseException] = []

    def reads(path: Path) -> None:
        try:
            with opened(path) as fd:
                look = way(fd)
                while not ended.is_set():
                    look()
        except BaseException as err:
            failed.append(err)

    readers = [threading.Thread(target=reads, args=(path,)) for path in (two, three)]
    for reader in readers:
        reader.start()
    try:
        with opened(two) as fd:
            look = way(fd)
            for number in range(1, 40):
                ends = written(one, number)
                await_true("the new bytes", lambda ends=ends: look() == ends, WAIT_S, 0.001)  # type: ignore[misc]
    finally:
        ended.set()
        for reader in readers:
            reader.join(WAIT_S)
    assert not failed, failed


@pytest.mark.parametrize("way", [by_mapping, by_sendfile])
def test_what_a_dead_worker_has_let_be_filled_goes_too(shared_volume: SharedVolume, places: list[Path], way: Way) -> None:
    one, two, _ = (place / "f" for place in places)
    ends = written(one, 1)
    directory = shared_volume.machines.nodes[1].directory
    with opened(two) as fd:
        look = way(fd)
        for number in range(2, 5):
            assert look() == ends
            for pid in procs.pids(str(directory), "worker"):
                os.kill(pid, signal.SIGKILL)
            ends = written(one, number)
            await_true("the new bytes", lambda ends=ends: look() == ends, WAIT_S, 0.001)  # type: ignore[misc]
            assert look() == ends


def test_attributes_go_with_the_lease_also_of_what_a_dead_worker_has_opened(shared_volume: SharedVolume, places: list[Path]) -> None:
    one, two, _ = (place / "f" for place in places)
    written(one, 1)
    with opened(two) as fd:
        for pid in procs.pids(str(shared_volume.machines.nodes[1].directory), "worker"):
            os.kill(pid, signal.SIGKILL)
        for size in range(SIZE + 1, SIZE + 6):
            os.fstat(fd)
            assert os.fstat(fd).st_size == size - 1
            os.truncate(one, size)
            assert os.fstat(fd).st_size == size == two.stat().st_size
