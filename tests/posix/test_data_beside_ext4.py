"""Data: allocation, holes, seeking, copies, and every way to read and write, told alike by a mount and by ext4; and over kills."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import shutil
import subprocess
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.posix.beside_ext4 import ANNA, LIBC, ROOT, Beside, User, check, ext4, moved, shown, tell, tick, times

pytestmark = pytest.mark.root
USERS = pytest.mark.parametrize("user", [ROOT, ANNA], ids=["root", "anna"])
KEEP, PUNCH, ZERO = 1, 2, 16
BLOCK = 4096
FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
Told = Iterator[tuple[Any, Any]]


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


@pytest.fixture(scope="module")
def beside(node, tmp_path_factory) -> Iterator[Beside]:
    with ext4(tmp_path_factory.mktemp("beside")) as other:
        for root in (node.mountpoint, other):
            root.chmod(0o755)
        yield Beside(node.mountpoint, other)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    check(LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def new(name: str, data: bytes = b"", flags: int = 0) -> int:
    fd = os.open(name, os.O_CREAT | os.O_RDWR | flags, 0o644)
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]
    os.fsync(fd)
    return fd


def content(fd: int) -> bytes:
    parts, at = [], 0
    while part := os.pread(fd, 1 << 20, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def digest(fd: int) -> str:
    return zlib.crc32(content(fd)).to_bytes(4, "big").hex()


def picture(fd: int) -> tuple[Any, ...]:
    """Size, blocks, where data is."""
    spans, at = [], 0
    while isinstance(start := tell(os.lseek, fd, at, os.SEEK_DATA), int):
        at = os.lseek(fd, start, os.SEEK_HOLE)
        spans.append((start, at))
    os.fsync(fd)
    info = os.fstat(fd)
    return info.st_size, info.st_blocks, spans, start


# --- fallocate ----------------------------------------------------------------------------------------------------------------
def allocations(root: str) -> Told:
    number = 0
    for blocks in (0, 1, 3, 10):
        for mode in (0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP):
            for offset, length in ((0, 1), (0, BLOCK), (BLOCK, 4 * BLOCK), (100, 3 * BLOCK), (20 * BLOCK, 2 * BLOCK), (0, 1 << 20)):
                number += 1
                name = f"file{number}"
                fd = new(name, b"x" * (blocks * BLOCK))
                before = times(name)
                tick()
                told = tell(fallocate, fd, mode, offset, length)
                size, touched = os.fstat(fd).st_size, moved(before, times(name))
                aligned = not offset % BLOCK and not length % BLOCK  # else ext4 tells blocks where we tell bytes
                seen = picture(fd) if aligned else None  # before anything is read: ext4 takes cached zeros for data
                yield (blocks, mode, offset, length), (told, touched, size, seen, digest(fd))
                os.ftruncate(fd, size)  # frees what is kept behind the end
                yield (number, "same size"), os.fstat(fd).st_blocks if aligned else None
                os.ftruncate(fd, BLOCK)
                os.ftruncate(fd, 2 * BLOCK)
                yield (number, "truncated"), (digest(fd), os.fstat(fd).st_size)
                os.close(fd)
                os.unlink(name)


def test_allocation_holes_and_zeros(beside: Beside) -> None:
    beside.same(allocations)


def set_id_bits(root: str) -> Told:
    for mode in (0, KEEP, PUNCH | KEEP, ZERO):
        fd = new(f"file{mode}", b"x" * 9000)
        for bits in (0o6755, 0o2644, 0o4700):
            os.chmod(f"file{mode}", bits)
            fallocate(fd, mode, 0, 100)
            yield (mode, bits), shown(fd)


@USERS
def test_set_id_bits(beside: Beside, user: User) -> None:
    beside.same(set_id_bits, user)


def refusals(root: str) -> Told:
    fd = new("file", b"x" * 10)
    for mode in (0, KEEP, PUNCH, PUNCH | KEEP, ZERO, 4, 0x40, 0x80, 0x200, PUNCH | ZERO | KEEP):
        for offset, length in ((-1, 1), (0, 0), (0, -1), (1 << 62, 1 << 62), (0, 1)):
            if not (mode in (0, KEEP, PUNCH | KEEP, ZERO) and length == 1 and offset == 0):
                yield (mode, offset, length), tell(fallocate, fd, mode, offset, length)
    only = os.open("file", os.O_RDONLY)
    yield "read only", tell(fallocate, only, 0, 0, 1)
    yield "directory", tell(fallocate, os.open(".", os.O_RDONLY), 0, 0, 1)
    os.mkfifo("fifo")
    yield "fifo", tell(fallocate, os.open("fifo", os.O_RDWR), 0, 0, 1)
    yield "too large", tell(fallocate, fd, 0, 0, 1 << 42)
    os.ftruncate(fd, 10)  # ext4 keeps what it got
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        yield whence, [tell(os.lseek, fd, at, whence) for at in (-1, 1 << 62)]
    for request in (FICLONE, FICLONERANGE):
        yield request, tell(fcntl.ioctl, new("other"), request, fd if request == FICLONE else bytes(32))


def test_refusals(beside: Beside) -> None:
    beside.same(refusals)


def seeking(root: str) -> Told:
    fd = new("file")
    for at in (5, 6, 300, (1 << 24) - 1, (1 << 32) - 3):
        os.pwrite(fd, b"d" * BLOCK, at * BLOCK)
        yield ("dirty", at), picture(fd)[2:]
    for start in (0, 1, 5 * BLOCK, 5 * BLOCK + 7, 7 * BLOCK, (1 << 32) * BLOCK):
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            yield (start, whence), tell(os.lseek, fd, start, whence)
    yield "size", os.fstat(fd).st_size
    fallocate(fd, PUNCH | KEEP, 6 * BLOCK, 300 * BLOCK)
    fallocate(fd, 0, 20 * BLOCK, 5 * BLOCK)
    os.pwrite(fd, b"w" * BLOCK, 22 * BLOCK)
    yield "after a hole", picture(fd)[2:]
    os.ftruncate(fd, 30 * BLOCK)
    yield "cut", picture(fd)[2:]  # not the blocks: ext4 needs some for its own tree


def test_seeking_up_to_16_tib(beside: Beside) -> None:
    beside.same(seeking)


# --- copies -------------------------------------------------------------------------------------------------------------------
def copies(root: str, *, seed: int) -> Told:
    chance = random.Random(seed)
    source = new("source", chance.randbytes(400_000))
    target = new("target", b"t" * 10_000)
    os.chmod("target", 0o6755)
    places = ((0, 0, 1), (100, 5_000, 300_000), (399_000, 20_000, 9_000), (400_000, 0, 5), (1 << 40, 0, 5), (0, 1 << 33, 8))
    for offset, at, length in places:
        before = times("target")
        tick()
        copied = tell(os.copy_file_range, source, target, length, offset, at)
        yield (offset, at, length), (copied, moved(before, times("target")), shown(target))
        os.ftruncate(target, min(os.fstat(target).st_size, 1 << 20))
        yield (offset, at, "content"), digest(target)
    yield "same file", tell(os.copy_file_range, source, source, 50_000, 0, 100_000)
    yield "overlapping", tell(os.copy_file_range, source, source, 50_000, 0, 49_999)
    yield "then", digest(source)
    yield "small", (tell(os.copy_file_range, new("a", b"small"), small := new("b", b"dest"), 9, 1, 4), digest(small))
    yield "read only", tell(os.copy_file_range, source, os.open("target", os.O_RDONLY), 5, 0, 0)
    yield "append", tell(os.copy_file_range, source, os.open("target", os.O_WRONLY | os.O_APPEND), 5, 0, 0)
    yield "directory", tell(os.copy_file_range, os.open(".", os.O_RDONLY), target, 5, 0, 0)
    os.ftruncate(source, 100)
    os.pwrite(source, b"new", 0)
    yield "apart", (digest(source), digest(target))


@USERS
def test_copies(beside: Beside, user: User, seed: int) -> None:
    beside.same(partial(copies, seed=seed), user)


def test_a_copy_takes_no_room_on_the_device_and_counts_in_the_volume(node, seed) -> None:
    root = node.mountpoint / "reference"
    root.mkdir()
    data = random.Random(seed).randbytes(24 << 20)
    (root / "a").write_bytes(data)
    fd = os.open(root / "a", os.O_RDWR)
    os.fsync(fd)
    before = os.statvfs(root)
    for number in range(5):
        other = os.open(root / f"b{number}", os.O_CREAT | os.O_RDWR)
        at = 0
        while at < len(data):
            at += os.copy_file_range(fd, other, len(data) - at, at, at)
        assert os.fstat(other).st_blocks * 512 >= len(data)
        os.close(other)
    after = os.statvfs(root)
    assert (before.f_bfree - after.f_bfree) * before.f_frsize < len(data)
    os.ftruncate(fd, 0)
    os.close(fd)
    for number in (1, 3):
        (root / f"b{number}").unlink()
    assert (root / "b0").read_bytes() == (root / "b2").read_bytes() == (root / "b4").read_bytes() == data
    shutil.rmtree(root)


# --- every way in and out -----------------------------------------------------------------------------------------------------
def ways(root: str, *, seed: int) -> Told:
    chance = random.Random(seed)
    data = chance.randbytes(200_000)
    source = new("source", data)
    for flag in ("O_SYNC", "O_DSYNC", "O_APPEND"):
        fd = new(flag, b"begin", getattr(os, flag))
        os.lseek(fd, 0, os.SEEK_SET)
        yield flag, (os.write(fd, data[:10_000]), os.pwrite(fd, b"at", 3), digest(fd))
        os.ftruncate(fd, 2)
        yield (flag, "cut"), (os.write(fd, b"end"), digest(fd))
    sent = new("sent")
    yield "sendfile", (os.sendfile(sent, source, 1_000, 150_000), digest(sent))
    reader, writer = os.pipe()
    spliced = new("spliced")
    moved_bytes = os.splice(source, writer, 60_000, offset_src=77)
    yield "splice", (moved_bytes, os.splice(reader, spliced, moved_bytes, offset_dst=5_000), digest(spliced))
    with mmap.mmap(source, 0) as area:
        area[5:10] = b"STORE"
        area.flush()
        yield "shared", (os.pread(source, 20, 0), len(area))
        os.pwrite(source, b"written", 50_000)
        yield "coherent", bytes(area[50_000:50_010])
        area[199_999:200_000] = b"!"
    yield "unmapped", os.pread(source, 5, 199_997)
    with mmap.mmap(source, 0, flags=mmap.MAP_PRIVATE) as area:
        area[0:5] = b"local"
        yield "private", (area[0:5], os.pread(source, 5, 0))
    for size in (0, 1, 4_095, 4_097, 1 << 20, 70_000, (16 << 40) - BLOCK, 3):
        os.ftruncate(source, size)
        yield ("truncate", size), (os.fstat(source).st_size, zlib.crc32(os.pread(source, 100, max(0, size - 50))))
    folder = os.open(".", os.O_RDONLY)
    yield "directory", (os.fsync(folder), os.fdatasync(folder))
    shutil.copy(shutil.which("true") or "/bin/true", "binary")
    with open("script", "w") as file:
        file.write("#!/bin/sh\necho from the script $1\n")
    os.chmod("script", 0o755)
    yield "exec", (subprocess.run(["./binary"]).returncode, subprocess.run(["./script", "x"], capture_output=True).stdout)
    busy = subprocess.Popen([shutil.copy(shutil.which("sleep") or "/bin/sleep", "sleep"), "60"])
    yield "busy", tell(os.open, "sleep", os.O_WRONLY)
    busy.kill()
    busy.wait()


@USERS
def test_every_way_to_read_and_write(beside: Beside, user: User, seed: int) -> None:
    beside.same(partial(ways, seed=seed), user)


def direct(root: str) -> Told:
    area = mmap.mmap(-1, 1 << 20)
    area.write(bytes(range(256)) * 4096)
    fd = new("direct", flags=os.O_DIRECT)
    yield "write", os.pwritev(fd, [area], 8192)
    back = mmap.mmap(-1, 1 << 20)
    yield "read", (os.preadv(fd, [back], 8192), back[:] == area[:])
    yield "past the end", os.preadv(fd, [back], 4 << 20)
    other = os.open("direct", os.O_RDWR)
    os.pwrite(other, b"buffered", 8192)
    yield "sees the buffered", (os.preadv(fd, [back], 8192), back[:20])
    fallocate(fd, PUNCH | KEEP, 8192, BLOCK)
    yield "sees the hole", (os.preadv(fd, [back], 8192), back[:20], os.pread(other, 20, 8192))
    with mmap.mmap(other, 16384) as mapped:
        yield "mapped", mapped[8192:8200]
        os.pwritev(fd, [memoryview(area)[:BLOCK]], 8192)
        yield "mapped after", mapped[8192:8200]


def test_direct(beside: Beside) -> None:
    beside.same(direct)


# --- over kills ---------------------------------------------------------------------------------------------------------------
def test_ranges_over_killed_workers(node, seed) -> None:
    """Punching, zeroing, allocating, copying and writing, against bytes in memory, while the worker is killed."""
    chance, root = random.Random(seed), node.mountpoint / "kills"
    root.mkdir()
    fds = [os.open(root / name, os.O_CREAT | os.O_RDWR) for name in "ab"]
    model = [bytearray(), bytearray()]
    stop = threading.Event()

    def kill() -> None:
        for _ in range(4):
            if stop.wait(0.4):
                return
            node.replaced("worker", node.kill("worker")["worker"])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        steps = 0
        while killer.is_alive() or steps < 200:
            steps += 1
            which = chance.randrange(2)
            fd, data = fds[which], model[which]
            start, length = chance.randrange(300_000), chance.randint(1, 60_000)
            end = start + length
            kind = chance.choice(("write", "punch", "zero", "allocate", "copy", "check"))
            if kind == "write":
                part = chance.randbytes(length)
                assert os.pwrite(fd, part, start) == length
                data.extend(bytes(max(0, start - len(data))))
                data[start:end] = part
            elif kind in ("punch", "zero"):
                fallocate(fd, PUNCH | KEEP if kind == "punch" else ZERO | KEEP, start, length)
                data[start:end] = bytes(max(0, min(end, len(data)) - start))
            elif kind == "allocate":
                fallocate(fd, 0, start, length)
                data.extend(bytes(max(0, end - len(data))))
            elif kind == "copy":
                source = model[1 - which]
                copied = os.copy_file_range(fds[1 - which], fd, length, start, start)
                assert copied <= max(0, min(length, len(source) - start)) and (copied or start >= len(source))
                if copied:
                    data.extend(bytes(max(0, start - len(data))))
                    data[start : start + copied] = source[start : start + copied]
            else:
                assert content(fd) == data
        assert [content(fd) for fd in fds] == model
    finally:
        stop.set()
        killer.join()
        for fd in fds:
            os.close(fd)
