"""What a mount on several nodes keeps: asked of the leader once, gone before anybody else's change, and over when its worker is stopped."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.limits import FUSE_SLOTS
from buildtools import leader, procs
from buildtools.nodes import await_true
from tests.shared.rig import WAIT_S, SharedVolume, needs_mappings

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
QUESTIONS = ("GetAttr", "Lookup", "ReadDir", "GetLayout", "GetXattr", "ListXattr", "ReadLink", "GetLease")
FILES, ROUNDS = 5, 20
only_cached = pytest.mark.parametrize("shared_volume", ["cached"], indirect=True)


def look(place: Path) -> list[Any]:
    """Everything that is there, by every kind of question."""
    found: list[Any] = [sorted(os.listdir(place)), (place / "none").exists(), os.readlink(place / "s"), os.getxattr(place / "0", "user.a")]
    for number in range(FILES):
        path = place / str(number)
        found.append((path.stat(), path.read_bytes(), os.listxattr(path)))
    return found


def asked(shared_volume: SharedVolume) -> int:
    counts = leader.requests(shared_volume.machines.nodes[shared_volume.machines.leader()].run / "meta.sock")
    return sum(counts.get(kind, 0) for kind in QUESTIONS)


@only_cached
def test_what_was_read_is_not_asked_for_again(shared_volume: SharedVolume, places: list[Path], figures: list[str]) -> None:
    one, two, _ = places
    for number in range(FILES):
        (one / str(number)).write_bytes(b"%d" % number * 20_000)
    os.symlink("0", one / "s")
    os.setxattr(one / "0", "user.a", b"x")
    before = look(two)
    look(two)
    start = asked(shared_volume)
    begun = time.perf_counter()
    for _ in range(ROUNDS):
        assert look(two) == before
    took_us = (time.perf_counter() - begun) / ROUNDS / (FILES + 1) * 1e6
    again = asked(shared_volume) - start
    figures.append(f"requests of {ROUNDS} looks at {FILES} files: {again}; stat, open, read, close of one: {took_us:.0f} us")
    assert again < ROUNDS, "about nothing: the other nodes' own questions are among these"
    os.chmod(one / "0", 0o600)
    (one / "1").write_bytes(b"new")
    assert (two / "0").stat().st_mode & 0o777 == 0o600 and (two / "1").read_bytes() == b"new"


@only_cached
@needs_mappings
def test_recalls_end_with_mappings_reads_and_listings_under_way(places: list[Path]) -> None:
    one, two, three = places
    size = 1 << 20
    (one / "f").write_bytes(b"a" * size)
    files = [os.open(place / "f", os.O_RDWR) for place in (one, two)]
    maps = [mmap.mmap(fd, size) for fd in files]
    ended = threading.Event()
    failed: list[BaseException] = []

    def reading() -> None:
        try:
            while not ended.is_set():
                try:
                    data = (three / "f").read_bytes()
                except FileNotFoundError:
                    continue  # it has its other name
                listed = os.listdir(three)  # a rename between two getdents shows both names, as POSIX has it for readdir
                assert len(data) <= size and {"f", "g"} >= set(listed) != set() and len(set(listed)) == len(listed)
        except BaseException as err:
            failed.append(err)

    reader = threading.Thread(target=reading)
    reader.start()
    try:
        for turn in range(4):
            for number, mapped in enumerate(maps):
                mapped[number * 4096 : number * 4096 + 4] = b"%4d" % turn  # dirty in both kernels while the others' leases are recalled
            os.pwrite(files[turn % 2], b"b", size - 1)
            os.truncate(three / "f", size // 2)
            os.truncate(one / "f", size)
            os.rename(two / "f", two / "g")
            os.rename(three / "g", three / "f")
        for mapped in maps:
            mapped.flush()
    finally:
        ended.set()
        reader.join(WAIT_S)
        for mapped in maps:
            mapped.close()
        for fd in files:
            os.close(fd)
    assert not failed, failed
    assert (two / "f").read_bytes()[:4] == b"   3" == (three / "f").read_bytes()[:4]


def test_the_end_of_a_file_through_a_descriptor_of_before(places: list[Path]) -> None:
    """lseek(2) asks.  copy_file_range(2) takes the size that the kernel knows, which fstat(2) brings (docs/KNOWN-ISSUES.md)."""
    one, two = (place / "f" for place in places[:2])
    one.write_bytes(b"x" * 10)
    fd, copy = os.open(two, os.O_RDONLY), os.open(places[1] / "copy", os.O_RDWR | os.O_CREAT)
    try:
        for size in (10, 5_000, 3, 9_000):
            os.truncate(one, size)
            assert os.lseek(fd, 0, os.SEEK_END) == size
        with one.open("ab") as longer:
            longer.write(b"end")
        assert os.fstat(fd).st_size == 9_003 == os.copy_file_range(fd, copy, 1 << 20, 0, 0)
        assert os.pread(copy, 9, 9_000) == b"end"
    finally:
        os.close(fd)
        os.close(copy)


@only_cached
def test_a_stopped_worker_serves_nothing_past_its_lease(shared_volume: SharedVolume, places: list[Path]) -> None:
    one, two, _ = places
    (one / "f").write_bytes(b"old")
    node = shared_volume.machines.nodes[1]
    assert (two / "f").read_bytes() == b"old" and (two / "f").stat().st_size == 3
    fd = os.open(two / "f", os.O_RDONLY)
    workers = procs.pids(str(node.directory), "worker")
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    results: list[Any] = []

    def reading() -> None:
        results.append((os.pread(fd, 9, 0), os.fstat(fd).st_size, (two / "f").read_bytes(), sorted(os.listdir(two))))

    thread = threading.Thread(target=reading)
    try:
        (one / "f").write_bytes(b"newer")  # waits until the stopped one's session is over
        (one / "g").touch()
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() or results[0] == (b"newer", 5, b"newer", ["f", "g"])
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    thread.join(WAIT_S)
    assert results == [(b"newer", 5, b"newer", ["f", "g"])]
    os.close(fd)


@only_cached
def test_what_a_dead_worker_had_told_the_kernel_is_forgotten(shared_volume: SharedVolume, places: list[Path]) -> None:
    one, two, _ = places
    (one / "f").write_bytes(b"old")
    fd = os.open(two / "f", os.O_RDONLY)
    assert os.pread(fd, 9, 0) == b"old" and os.fstat(fd).st_size == 3 and os.listdir(two) == ["f"]
    node = shared_volume.machines.nodes[1]
    before = procs.pids(str(node.directory), "worker")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    (one / "f").write_bytes(b"newer")
    (one / "g").touch()
    await_true("successors", lambda: len(set(procs.pids(str(node.directory), "worker")) - set(before)) >= len(before), WAIT_S, 0.1)
    assert (os.pread(fd, 9, 0), os.fstat(fd).st_size, sorted(os.listdir(two))) == (b"newer", 5, ["f", "g"])
    os.close(fd)


@only_cached
def test_what_is_mounted_on_a_directory_stays(places: list[Path]) -> None:
    """INC_EPOCH makes the kernel take a directory for another one, and unmount what is on it."""
    one, two, _ = places
    (one / "sub" / "on").mkdir(parents=True)
    look = [two / "sub", two / "sub" / "on", two / "none"]
    for path in look:
        os.path.lexists(path)  # names are told with a timeout
    subprocess.run(["mount", "-t", "tmpfs", "none", str(two / "sub" / "on")], check=True)
    try:
        (two / "sub" / "on" / "mine").touch()
        for turn in range(3):
            for place in (one, one / "sub"):
                (place / f"new{turn}").touch()
            assert os.listdir(two / "sub" / "on") == ["mine"], f"unmounted in turn {turn}"
            assert (two / f"new{turn}").exists() and (two / "sub" / f"new{turn}").exists()
            os.unlink(one / f"new{turn}")
            assert not (two / f"new{turn}").exists()
    finally:
        subprocess.run(["umount", str(two / "sub" / "on")], check=False)


def waiting(threads: list[threading.Thread]) -> bool:
    return all(thread.is_alive() for thread in threads)


def beside_waiting_writes(shared_volume: SharedVolume, places: list[Path], prefix: str) -> bool:
    """The third node reads what the second one has dirty, while writes of that one wait for leases of the first; whether they still did."""
    one, two, three = places
    workers = procs.pids(str(shared_volume.machines.nodes[0].directory), "worker")
    files = [f"{prefix}{number}" for number in range(3 * FUSE_SLOTS)]
    writing = [os.open(two / name, os.O_CREAT | os.O_WRONLY) for name in files]
    for name in files:
        with (one / name).open("r+b") as held:
            held.write(b"one")
            os.fsync(held.fileno())
    (two / f"{prefix}mine").write_bytes(b"m" * 5_000)
    threads = [threading.Thread(target=os.pwrite, args=(fd, b"two", 3)) for fd in writing]
    before = asked(shared_volume)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        for thread in threads:
            thread.start()
        await_true("the writes ask", lambda: asked(shared_volume) >= before + len(files) or not waiting(threads), WAIT_S)
        assert (three / f"{prefix}mine").read_bytes() == b"m" * 5_000
        waited = waiting(threads)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    for thread, fd in zip(threads, writing, strict=True):
        thread.join(WAIT_S)
        os.close(fd)
    assert all((three / name).read_bytes() == b"onetwo" for name in files)
    return waited


@only_cached
def test_a_recall_is_answered_while_more_writes_wait_than_there_are_readers(shared_volume: SharedVolume, places: list[Path]) -> None:
    """Where the stopped node's session ended meanwhile, the writes had gone on, and nothing is shown: once more."""
    assert any(beside_waiting_writes(shared_volume, places, f"{attempt} ") for attempt in range(3))
