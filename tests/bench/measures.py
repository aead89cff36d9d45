"""What is measured: plain system calls from Python, the same client for every target, so that the ratios are of the targets alone.

Each measure gets a directory and an amount and returns a rate (operations or MiB a second).  `cold` measures are called after a remount
and a drop of all caches; what they read was written by `lay_out` before.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
BLOCK = os.urandom(4096)
MEGABYTE = os.urandom(MIB)
PROCESSES = 4


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


def _rate(count: float, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def create(folder: Path, amounts: Amounts, prefix: str = "c") -> float:
    names = _names(folder, prefix, amounts.files)

    def work() -> None:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    return _rate(len(names), work)


def stat(folder: Path, amounts: Amounts) -> float:
    """After `create`, with the kernel's names dropped: every stat asks the filesystem."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    names = _names(folder, "c", amounts.files)

    def work() -> None:
        for name in names:
            os.stat(name)

    return _rate(len(names), work)


def unlink(folder: Path, amounts: Amounts) -> float:
    names = _names(folder, "c", amounts.files)

    def work() -> None:
        for name in names:
            os.unlink(name)

    return _rate(len(names), work)


def small_write(folder: Path, amounts: Amounts) -> float:
    names = _names(folder, "s", amounts.files)

    def work() -> None:
        for name in names:
            fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, BLOCK)
            os.close(fd)

    return _rate(len(names), work)


def small_read(folder: Path, amounts: Amounts) -> float:
    names = _names(folder, "s", amounts.files)

    def work() -> None:
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            os.read(fd, 8192)
            os.close(fd)

    return _rate(len(names), work)


def write_fsync(folder: Path, amounts: Amounts) -> float:
    names = _names(folder, "f", amounts.syncs)

    def work() -> None:
        for name in names:
            fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, BLOCK)
            os.fsync(fd)
            os.close(fd)

    return _rate(len(names), work)


def stream_write(folder: Path, amounts: Amounts) -> float:
    def work() -> None:
        fd = os.open(folder / "stream", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        for _ in range(amounts.stream_mib):
            os.write(fd, MEGABYTE)
        os.fsync(fd)
        os.close(fd)

    return _rate(amounts.stream_mib, work)


def stream_read(folder: Path, amounts: Amounts) -> float:
    buffer = bytearray(MIB)

    def work() -> None:
        fd = os.open(folder / "stream", os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)

    return _rate(amounts.stream_mib, work)


def _random_io(folder: Path, amounts: Amounts, count: int, flags: int, one: Callable[[int, int], object]) -> float:
    choose = random.Random(1)
    offsets = [choose.randrange(amounts.stream_mib * 256) * 4096 for _ in range(count)]
    fd = os.open(folder / "stream", flags)
    try:

        def work() -> None:
            for offset in offsets:
                one(fd, offset)

        return _rate(count, work)
    finally:
        os.close(fd)


def random_read(folder: Path, amounts: Amounts) -> float:
    return _random_io(folder, amounts, amounts.randoms, os.O_RDONLY, lambda fd, offset: os.pread(fd, 4096, offset))


def random_write(folder: Path, amounts: Amounts) -> float:
    return _random_io(folder, amounts, amounts.randoms, os.O_RDWR, lambda fd, offset: os.pwrite(fd, BLOCK, offset))


def random_write_sync(folder: Path, amounts: Amounts) -> float:
    def one(fd: int, offset: int) -> None:
        os.pwrite(fd, BLOCK, offset)
        os.fdatasync(fd)

    return _random_io(folder, amounts, amounts.syncs, os.O_RDWR, one)


def create_by_processes(folder: Path, amounts: Amounts) -> float:
    """PROCESSES clients in one directory, started together by the closing of a pipe."""
    gate_read, gate_write = os.pipe()
    children = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(gate_write)
                os.read(gate_read, 1)
                create(folder, amounts, prefix=f"p{number}-")
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
    return PROCESSES * amounts.files / took


# name, unit, measure, how it is prepared: "" goes on, "cold" remounts and drops all caches first
MEASURES = [
    ("create + close", "/s", create, ""),
    ("stat, names dropped", "/s", stat, ""),
    ("unlink", "/s", unlink, ""),
    ("create by 4 processes", "/s", create_by_processes, ""),
    ("write a 4 KiB file", "/s", small_write, ""),
    ("write a 4 KiB file + fsync", "/s", write_fsync, ""),
    ("read a 4 KiB file, cold", "/s", small_read, "cold"),
    ("1 MiB sequential write + fsync", "MiB/s", stream_write, ""),
    ("1 MiB sequential read, cold", "MiB/s", stream_read, "cold"),
    ("1 MiB sequential read, warm", "MiB/s", stream_read, ""),
    ("random 4 KiB read, cold", "/s", random_read, "cold"),
    ("random 4 KiB write", "/s", random_write, ""),
    ("random 4 KiB write + fdatasync", "/s", random_write_sync, ""),
]
