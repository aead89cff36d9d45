"""Mounts and files that need not be strict: what a mount that is coherent from close to open, and a bounded one, may show, and what not."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from buildtools import procs
from buildtools.nodes import await_true
from tests.shared.rig import BOUND_S, WAIT_S, SharedVolume, needs_kept_names, needs_mappings
from tests.shared.views import mapped

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200), pytest.mark.parametrize("shared_volume", ["loose"], indirect=True)]
STRICT, CLOSE, BOUNDED = 0, 1, 2  # the nodes
NAME = "user.awsomefs.consistency"
SIZE = 300_000


def read(path: Path) -> bytes:
    """As `path.read_bytes`, and the same through a mapping of the same descriptor."""
    with path.open("rb") as file:
        data = file.read()
        assert mapped(file.fileno()) == data
        return data


@contextmanager
def stopped(shared_volume: SharedVolume, number: int) -> Iterator[None]:
    pids = procs.pids(str(shared_volume.machines.nodes[number].directory), "worker")
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_what_was_closed_is_seen_by_the_next_open(places: list[Path]) -> None:
    """Also with the size and the mtime of before, with somebody reading all the time, and by whichever node it was written."""
    for turn in range(12):
        writer = places[turn % 3]
        data = b"%6d" % turn * (SIZE // 6 if turn % 4 else SIZE // 12)
        (writer / "f").write_bytes(data)
        if turn % 2:
            os.utime(writer / "f", ns=(1, 1))
        older = None
        if turn % 3 == 1:
            older = os.open(places[CLOSE] / "f", os.O_RDONLY)
            assert os.pread(older, 6, 0) == data[:6]
            assert os.fstat(older).st_size == len(data)
            data = data[::-1][: -turn * 6]
            with (places[STRICT] / "f").open("r+b") as file:
                file.write(data)
                file.truncate()
            other = os.open(places[CLOSE] / "f", os.O_RDWR)
            assert os.lseek(other, 0, os.SEEK_END) == len(data)
            os.close(other)
            os.utime(places[STRICT] / "f", ns=(1, 1))
        assert read(places[CLOSE] / "f") == data == read(places[CLOSE] / "f") == read(places[BOUNDED] / "f")
        if older is not None:
            os.close(older)


def test_a_bounded_mount_is_never_older_than_its_bound(places: list[Path], figures: list[str]) -> None:
    writer, reader = places[STRICT], places[BOUNDED]
    (writer / "f").write_bytes(b"old")
    fd = os.open(reader / "f", os.O_RDONLY)
    seen: dict[str, float] = {}
    looks = {
        "bytes": lambda: os.pread(fd, 9, 0) == b"newer",
        "attributes": lambda: (reader / "f").stat().st_size == 5,
        "a new name": (reader / "g").exists,
        "a removed name": lambda: not (reader / "h").exists(),
        "a listing": lambda: sorted(os.listdir(reader)) == ["f", "g"],
    }
    (writer / "h").touch()
    try:
        await_true("the name", (reader / "h").exists, WAIT_S, 0.05)
        looked = time.monotonic()
        assert not any(look() for name, look in looks.items() if name != "a removed name")
        with (writer / "f").open("r+b") as file:
            file.write(b"newer")
        (writer / "g").touch()
        (writer / "h").unlink()
        returned = time.monotonic()
        while len(seen) < len(looks):
            for name, look in looks.items():
                begun = time.monotonic()
                new = look()
                if new:
                    seen.setdefault(name, begun - returned)
                assert new or begun < returned + BOUND_S, f"{name}: old {begun - returned:.2f} s after the change"
            time.sleep(0.02)  # else the looks keep the processors from the nodes
    finally:
        os.close(fd)
    figures.append(f"bounded={BOUND_S}: seen after " + ", ".join(f"{age:.2f} s ({name})" for name, age in seen.items()))
    kept = sum(age > 0.1 for age in seen.values())
    assert kept >= 2 or returned - looked > BOUND_S / 2, "nothing was kept, and the changes did not take so long that all had to be old"


@needs_mappings
@needs_kept_names
def test_pages_names_and_attributes_are_used_without_the_worker(shared_volume: SharedVolume, places: list[Path]) -> None:
    place = places[CLOSE]
    os.setxattr(places[STRICT], NAME, b"bounded=3600")
    (places[STRICT] / "f").write_bytes(b"page" * SIZE)
    fd = os.open(place / "f", os.O_RDONLY)
    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as area:
        await_true("the bound of the directory", lambda: os.pread(fd, 8 * SIZE, 0) == area[:] and (place / "f").stat().st_size > 0, WAIT_S)
        assert os.getxattr(place / "f", NAME) == b"bounded=3600" and os.stat(place).st_mode
        (place / "f").stat()
        results: list[object] = []

        def reading() -> None:
            for _ in range(3):
                results.append(os.pread(fd, 8 * SIZE, 0) == area[:] == b"page" * SIZE and os.fstat(fd).st_size == 4 * SIZE)
                results.append((place / "f").stat().st_size == 4 * SIZE)

        thread = threading.Thread(target=reading)
        with stopped(shared_volume, CLOSE):
            thread.start()
            thread.join(30)
            served = list(results)
        thread.join(WAIT_S)
    os.close(fd)
    assert served == [True] * 6, served


def test_an_attribute_is_inherited_and_wins_over_the_mount(places: list[Path]) -> None:
    strict = [place / "strict" for place in places]
    strict[STRICT].mkdir()
    os.setxattr(strict[STRICT], NAME, b"strict")
    (strict[STRICT] / "below").mkdir()
    assert os.getxattr(strict[STRICT] / "below", NAME) == b"strict"
    writer, *readers = [place / "below" for place in strict]
    (writer / "f").write_bytes(b"x")
    fds = [os.open(place / "f", os.O_RDONLY) for place in readers]
    for turn in range(8):
        data = b"%d" % turn * (turn + 1)
        with (writer / "f").open("r+b") as file:
            file.write(data)
        (writer / f"name{turn}").touch()
        for fd, place in zip(fds, readers, strict=True):
            assert os.pread(fd, 99, 0) == data == read(place / "f") and os.fstat(fd).st_size == len(data)
            assert (place / f"name{turn}").exists() and not (place / f"name{turn + 1}").exists()
    for fd in fds:
        os.close(fd)
    os.removexattr(strict[STRICT] / "below", NAME)
    (writer / "free").touch()
    assert os.listxattr(writer / "free") == []


def test_nonsense_is_refused(shared_volume: SharedVolume, places: list[Path]) -> None:
    for place in places:
        for value in (b"", b"relaxed", b"bounded", b"bounded=", b"bounded=-1", b"bounded=0", b"bounded=9999", b"strict\0", b"\xff"):
            with pytest.raises(OSError) as caught:
                os.setxattr(place, NAME, value)
            assert caught.value.errno == errno.EINVAL, value
    assert os.listxattr(places[0]) == []
    words = "\n".join(path.read_text() for path in shared_volume.machines.nodes[0].directory.rglob("*.log"))
    assert "is not a consistency level; write strict, close-to-open or bounded=SECONDS" in words


def test_a_worker_that_dies_and_one_that_was_stopped_show_nothing_old(shared_volume: SharedVolume, places: list[Path]) -> None:
    writer = places[STRICT]
    for number in (CLOSE, BOUNDED):
        (writer / "f").write_bytes(b"old")
        reader = places[number]
        fd = os.open(reader / "f", os.O_RDONLY)
        assert os.pread(fd, 9, 0) == b"old" == read(reader / "f")
        with stopped(shared_volume, number) if number == BOUNDED else nullcontext():  # a strict writer waits for the leases of the other
            with (writer / "f").open("r+b") as file:
                file.write(b"new")
            os.utime(writer / "f", ns=(1, 1))
        assert read(reader / "f") == b"new"
        directory = str(shared_volume.machines.nodes[number].directory)
        before = procs.pids(directory, "worker")
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        with (writer / "f").open("r+b") as file:
            file.write(b"won")
        os.utime(writer / "f", ns=(1, 1))
        assert read(reader / "f") == b"won", "opened under the successor"
        await_true("read through the older descriptor", lambda fd=fd: os.pread(fd, 9, 0) == b"won", WAIT_S, 0.05)
        await_true("successors", lambda d=directory, b=before: len(set(procs.pids(d, "worker")) - set(b)) >= len(b), WAIT_S, 0.1)
        os.close(fd)


def test_a_file_that_was_replaced_is_never_reported_gone(places: list[Path]) -> None:
    """Its name may be old: then the file is not there any more, and the kernel looks again."""
    (places[STRICT] / "f").write_bytes(b"-")
    for turn in range(10):
        assert read(places[BOUNDED] / "f") in {b"-", *(b"%d" % older for older in range(turn))}
        (places[STRICT] / "new").write_bytes(b"%d" % turn)
        os.rename(places[STRICT] / "new", places[STRICT] / "f")
        assert read(places[CLOSE] / "f") == b"%d" % turn
