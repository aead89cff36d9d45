"""Rows of a mount, by the system calls that programs make, in a new directory of it that is removed at the end."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base.sizes import format_bytes
from awsomefsd.node.benchmark.rows import MIB, Measured, of_times, rate, times

PREFIX = ".awsomefsd-bench-"
FILES, SYNCS, DIRECTORIES, READS = 1_000, 200, 50, 400
_PIECE = 8  # MiB, of rates
_PAGE = 4096


def measure(directory: str, size: int, seconds: float, told: Callable[[str], None]) -> list[Measured]:
    """Measures names, then a file of `size` bytes; `told` hears what comes next.  Raises OSError; what was made is removed."""
    disk = os.statvfs(directory)
    if disk.f_bavail * disk.f_frsize < 2 * size:
        free = format_bytes(disk.f_bavail * disk.f_frsize)
        raise OSError(
            errno.ENOSPC, f"{free} are free, and twice the size of the file ({format_bytes(size)}) is wanted; give a smaller --size"
        )
    work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=directory))
    try:
        told("names")
        found = _names(work, directory, seconds)
        told("syncs")
        found += _syncs(work, directory, seconds)
        told("data")
        return found + _data(work / "data", directory, size, seconds)
    finally:
        shutil.rmtree(work)


def _names(work: Path, of: str, seconds: float) -> list[Measured]:
    top = work / "names"
    top.mkdir()
    names = [str(top / f"f{number}") for number in range(FILES)]

    def create(number: int) -> None:
        os.close(os.open(names[number], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    found = [times("mount.create", of, create, FILES, seconds)]
    made = found[0].samples
    found.append(times("mount.stat", of, lambda number: os.lstat(names[number]), made, seconds))

    def listed() -> float:
        began = time.perf_counter()
        with os.scandir(top) as entries:
            count = sum(1 for entry in entries if entry.stat(follow_symlinks=False))
        return (time.perf_counter() - began) * 1_000 * 1_000 / count

    found.append(of_times("mount.list", of, [listed() for _ in range(3)]))
    found.append(times("mount.rename", of, lambda number: os.rename(names[number], names[number] + "r"), made, seconds))
    renamed = found[-1].samples
    gone = times("mount.remove", of, lambda number: os.unlink(names[number] + ("r" if number < renamed else "")), made, seconds)
    return [*found, gone]


def _syncs(work: Path, of: str, seconds: float) -> list[Measured]:
    block = os.urandom(_PAGE)
    fd = os.open(work / "synced", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    parent = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:

        def sync(_: int) -> None:
            os.write(fd, block)
            os.fsync(fd)

        def mkdir(number: int) -> None:
            os.mkdir(work / f"d{number}")
            os.fsync(parent)

        return [times("mount.sync", of, sync, SYNCS, seconds), times("mount.mkdir", of, mkdir, DIRECTORIES, seconds)]
    finally:
        os.close(parent)
        os.close(fd)


def _data(path: Path, of: str, size: int, seconds: float) -> list[Measured]:
    block = os.urandom(MIB)  # neither zeros nor the same in each row of a page: nothing can be saved
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        written = _pieces(size, lambda offset, length: _write(fd, memoryview(block)[:length], offset))
        began = time.perf_counter()
        os.fsync(fd)
        count, spent = written.pop()
        written.append((count, spent + time.perf_counter() - began))  # without the sync it is a figure of memory
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        read = _pieces(size, lambda offset, length: _read(fd, length, offset))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        pages = max(size // _PAGE, 1)
        small = times("mount.read4k", of, lambda _: os.pread(fd, _PAGE, random.randrange(pages) * _PAGE), READS, seconds)
        return [rate("mount.write", of, written), rate("mount.read", of, read), small]
    finally:
        os.close(fd)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _read(fd: int, length: int, offset: int) -> None:
    while length:
        got = len(os.pread(fd, length, offset))
        if not got:
            raise OSError(errno.EIO, f"the file ends at byte {offset}, before what was written")
        length, offset = length - got, offset + got


def _pieces(size: int, do: Callable[[int, int], None]) -> list[tuple[int, float]]:
    """Does 1 MiB after the other, and returns (bytes, seconds) of each _PIECE of them."""
    pieces = []
    for start in range(0, size, _PIECE * MIB):
        began, end = time.perf_counter(), min(start + _PIECE * MIB, size)
        for offset in range(start, end, MIB):
            do(offset, min(MIB, end - offset))
        pieces.append((end - start, time.perf_counter() - began))
    return pieces
