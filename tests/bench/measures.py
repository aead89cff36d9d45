"""What is measured: plain system calls from Python, the same client for every target, so that the ratios are of the targets alone.

Each measure gets a directory and an amount and returns how many operations or MiB it did in what time.  `cold` measures are called after a
remount and a drop of all caches; what they read was written by those before them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import sqlite3
import subprocess
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
BLOCK = os.urandom(4096)
MEGABYTE = os.urandom(MIB)
PROCESSES = 4
MANY_PROCESSES = 16
CALLERS = 16
LINE = b"x" * 99 + b"\n"


@dataclass(frozen=True)
class Amounts:
    files: int
    syncs: int
    stream_mib: int
    randoms: int


FULL = Amounts(files=2_000, syncs=400, stream_mib=256, randoms=2_000)
QUICK = Amounts(files=400, syncs=60, stream_mib=64, randoms=300)


def _names(folder: Path, prefix: str, count: int) -> list[str]:
    return [f"{folder}/{prefix}{number}" for number in range(count)]


class Measured(NamedTuple):
    """What was done: operations or MiB."""

    count: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.count / self.seconds


def timed(count: float, work: Callable[[], None]) -> Measured:
    began = time.perf_counter()
    work()
    return Measured(count, time.perf_counter() - began)


def _each(folder: Path, prefix: str, amounts: Amounts, one: Callable[[str], object]) -> Measured:
    names = _names(folder, prefix, amounts.files)

    def work() -> None:
        for name in names:
            one(name)

    return timed(len(names), work)


def create(folder: Path, amounts: Amounts, prefix: str = "c") -> Measured:
    names = _names(folder, prefix, amounts.files)

    def work() -> None:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    return timed(len(names), work)


def stat(folder: Path, amounts: Amounts) -> Measured:
    """After `create`, with the kernel's names dropped: every stat asks the filesystem."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    names = _names(folder, "c", amounts.files)

    def work() -> None:
        for name in names:
            os.stat(name)

    return timed(len(names), work)


def unlink(folder: Path, amounts: Amounts) -> Measured:
    names = _names(folder, "c", amounts.files)

    def work() -> None:
        for name in names:
            os.unlink(name)

    return timed(len(names), work)


def mkdir(folder: Path, amounts: Amounts) -> Measured:
    return _each(folder, "d", amounts, os.mkdir)


def symlink(folder: Path, amounts: Amounts) -> Measured:
    return _each(folder, "l", amounts, lambda name: os.symlink("where", name))


def chmod(folder: Path, amounts: Amounts) -> Measured:
    return _each(folder, "d", amounts, lambda name: os.chmod(name, 0o700))


def rename(folder: Path, amounts: Amounts) -> Measured:
    return _each(folder, "d", amounts, lambda name: os.rename(name, f"{name}-renamed"))


def small_write(folder: Path, amounts: Amounts) -> Measured:
    names = _names(folder, "s", amounts.files)

    def work() -> None:
        for name in names:
            fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, BLOCK)
            os.close(fd)

    return timed(len(names), work)


def small_read(folder: Path, amounts: Amounts) -> Measured:
    names = _names(folder, "s", amounts.files)

    def work() -> None:
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            os.read(fd, 8192)
            os.close(fd)

    return timed(len(names), work)


def write_fsync(folder: Path, amounts: Amounts) -> Measured:
    names = _names(folder, "f", amounts.syncs)

    def work() -> None:
        for name in names:
            fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, BLOCK)
            os.fsync(fd)
            os.close(fd)

    return timed(len(names), work)


def stream_write(folder: Path, amounts: Amounts) -> Measured:
    def work() -> None:
        fd = os.open(folder / "stream", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        for _ in range(amounts.stream_mib):
            os.write(fd, MEGABYTE)
        os.fsync(fd)
        os.close(fd)

    return timed(amounts.stream_mib, work)


def stream_read(folder: Path, amounts: Amounts) -> Measured:
    buffer = bytearray(MIB)

    def work() -> None:
        fd = os.open(folder / "stream", os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)

    return timed(amounts.stream_mib, work)


def _random_io(folder: Path, amounts: Amounts, count: int, flags: int, one: Callable[[int, int], object]) -> Measured:
    choose = random.Random(1)
    offsets = [choose.randrange(amounts.stream_mib * 256) * 4096 for _ in range(count)]
    fd = os.open(folder / "stream", flags)
    try:

        def work() -> None:
            for offset in offsets:
                one(fd, offset)

        return timed(count, work)
    finally:
        os.close(fd)


def list_long(folder: Path, amounts: Amounts) -> Measured:
    """As `ls -l`: the names of a directory and the attributes of each; entries."""
    count = 0

    def work() -> None:
        nonlocal count
        with os.scandir(folder) as entries:
            for entry in entries:
                os.lstat(entry.path)
                count += 1

    measured = timed(1, work)
    if count < amounts.files:
        raise OSError(f"{count} entries where {amounts.files} files were written")
    return Measured(count, measured.seconds)


def source_tree(amounts: Amounts) -> Path:
    """A tar file of Python's own modules, up to so many; made once for all targets."""
    place = Path(tempfile.gettempdir()) / f"afs-bench-tree-{os.getpid()}-{amounts.files}.tar"
    if not place.exists():
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts and "dist-packages" not in path.parts)
        with tarfile.open(place, "w") as tar:
            for path in files[: amounts.files // 2]:
                tar.add(path, Path("tree") / path.relative_to(root), recursive=False)
        atexit.register(place.unlink, missing_ok=True)
    return place


def unpack(folder: Path, amounts: Amounts) -> Measured:
    tree = source_tree(amounts)
    with tarfile.open(tree) as tar:
        count = len(tar.getnames())
    return timed(count, lambda: _tool("tar", "--extract", "--no-same-owner", "--file", tree, "--directory", folder))


def remove_tree(folder: Path, amounts: Amounts) -> Measured:
    count = sum(len(files) + 1 for _, _, files in os.walk(folder / "tree"))
    return timed(count, lambda: _tool("rm", "-r", folder / "tree"))


def _tool(*words: str | Path) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{words[0]}: {done.stderr.strip()[-200:]}")


def _transactions(folder: Path, amounts: Amounts, mode: str) -> Measured:
    """Of one row of 100 B each, durable: synchronous=FULL."""
    count = amounts.syncs // 2
    try:
        with contextlib.closing(sqlite3.connect(folder / f"{mode}.db", isolation_level=None)) as db:
            db.execute(f"pragma journal_mode={mode}")
            db.execute("pragma synchronous=full")
            db.execute("create table if not exists t (k integer primary key, v blob)")

            def work() -> None:
                for _ in range(count):
                    db.execute("insert into t (v) values (?)", (LINE,))

            return timed(count, work)
    except sqlite3.Error as err:
        raise OSError(f"sqlite: {err}") from err


def sqlite_journal(folder: Path, amounts: Amounts) -> Measured:
    return _transactions(folder, amounts, "delete")


def sqlite_wal(folder: Path, amounts: Amounts) -> Measured:
    return _transactions(folder, amounts, "wal")


def random_read(folder: Path, amounts: Amounts) -> Measured:
    return _random_io(folder, amounts, amounts.randoms, os.O_RDONLY, lambda fd, offset: os.pread(fd, 4096, offset))


def random_write(folder: Path, amounts: Amounts) -> Measured:
    return _random_io(folder, amounts, amounts.randoms, os.O_RDWR, lambda fd, offset: os.pwrite(fd, BLOCK, offset))


def random_write_sync(folder: Path, amounts: Amounts) -> Measured:
    def one(fd: int, offset: int) -> None:
        os.pwrite(fd, BLOCK, offset)
        os.fdatasync(fd)

    return _random_io(folder, amounts, amounts.syncs, os.O_RDWR, one)


def sync_by_callers(folder: Path, amounts: Amounts) -> Measured:
    """CALLERS threads, a file each, that write 4 KiB and sync."""
    files = [os.open(name, os.O_CREAT | os.O_WRONLY, 0o644) for name in _names(folder, "y", CALLERS)]
    rounds = max(amounts.syncs // 8, 1)

    def caller(fd: int) -> None:
        for _ in range(rounds):
            os.pwrite(fd, BLOCK, 0)
            os.fdatasync(fd)

    for fd in files:
        os.pwrite(fd, BLOCK, 0)
        os.fsync(fd)
    threads = [threading.Thread(target=caller, args=(fd,)) for fd in files]
    try:

        def work() -> None:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return timed(CALLERS * rounds, work)
    finally:
        for fd in files:
            os.close(fd)


def append(folder: Path, amounts: Amounts) -> Measured:
    fd = os.open(folder / "lines", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    try:

        def work() -> None:
            for _ in range(amounts.randoms):
                os.write(fd, LINE)

        return timed(amounts.randoms, work)
    finally:
        os.close(fd)


def create_by_processes(folder: Path, amounts: Amounts) -> Measured:
    return _by_processes(folder, amounts, PROCESSES, amounts.files)


def create_by_many_processes(folder: Path, amounts: Amounts) -> Measured:
    return _by_processes(folder, amounts, MANY_PROCESSES, amounts.files // 4)


def _by_processes(folder: Path, amounts: Amounts, processes: int, each: int) -> Measured:
    """So many clients in one directory, started together by the closing of a pipe."""
    gate_read, gate_write = os.pipe()
    children = []
    for number in range(processes):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(gate_write)
                os.read(gate_read, 1)
                create(folder, replace(amounts, files=each), prefix=f"p{processes}-{number}-")
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    os.close(gate_read)
    began = time.perf_counter()
    os.close(gate_write)
    failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
    took = time.perf_counter() - began
    if failed:
        raise OSError("a client process failed")
    return Measured(processes * each, took)


def settle(folder: Path, amounts: Amounts) -> None:
    """Has on the device what earlier measures wrote: else the next one that syncs pays for it too."""
    written = {folder, folder / "stream", folder / "lines", folder / "fio", *map(Path, _names(folder, "s", amounts.files))}
    for path in written:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


# name, unit, measure, how it is prepared: "" goes on, "settled" has all on the device first, "cold" remounts and drops all caches, "warm"
# does it once before it is measured (caches of *all* targets were dropped meanwhile); or what makes that which it measures
Row = tuple[str, str, Callable[[Path, Amounts], Measured], str | Callable[[Path, Amounts], None]]
CALLS: list[Row] = [
    ("create + close", "/s", create, ""),
    ("stat, names dropped", "/s", stat, ""),
    ("unlink", "/s", unlink, ""),
    ("mkdir", "/s", mkdir, ""),
    ("chmod", "/s", chmod, ""),
    ("rename", "/s", rename, ""),
    ("symlink", "/s", symlink, ""),
    ("create by 4 processes", "/s", create_by_processes, ""),
    ("create by 16 processes", "/s", create_by_many_processes, ""),
    ("write a 4 KiB file", "/s", small_write, ""),
    ("write a 4 KiB file + fsync", "/s", write_fsync, "settled"),
    ("read a 4 KiB file, cold", "/s", small_read, "cold"),
    ("ls -l, cold", "entries/s", list_long, "cold"),
    ("tar x of a source tree", "files/s", unpack, ""),
    ("rm -r of it", "files/s", remove_tree, ""),
    ("1 MiB sequential write + fsync", "MiB/s", stream_write, "settled"),
    ("1 MiB sequential read, cold", "MiB/s", stream_read, "cold"),
    ("1 MiB sequential read, warm", "MiB/s", stream_read, "warm"),
    ("random 4 KiB read, cold", "/s", random_read, "cold"),
    ("random 4 KiB write", "/s", random_write, ""),
    ("100 B append", "/s", append, ""),
    ("random 4 KiB write + fdatasync", "/s", random_write_sync, "settled"),
    ("4 KiB write + fdatasync, 16 callers", "/s", sync_by_callers, ""),
    ("sqlite transaction, rollback journal", "/s", sqlite_journal, "settled"),
    ("sqlite transaction, WAL", "/s", sqlite_wal, "settled"),
]
