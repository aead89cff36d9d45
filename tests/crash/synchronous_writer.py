"""A program that writes synchronously, in every way that Linux has, and never calls fsync for it: its arguments are DIRECTORY and SEED.

It prints a line when all writes have returned: a JSON object, file name to hex of what must be in it.  Then it keeps its files open until
its standard input ends, so that nothing but the writes themselves can have made them durable.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import random
import sys
from collections.abc import Callable

PAGE = 4096
FILE_BYTES = 64 * 1024
SHORT, LONG = 60, 100_000
SETUP, SUBMIT, GETEVENTS, DESTROY = {"x86_64": (206, 209, 208, 207), "aarch64": (0, 2, 4, 1)}.get(platform.machine(), (0, 0, 0, 0))
IOCB_CMD_PWRITE = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Iocb(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_int32), ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16), ("fd", ctypes.c_uint32), ("buffer", ctypes.c_uint64), ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64), ("reserved", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("event_fd", ctypes.c_uint32),
    ]  # fmt: skip


def _syscall(number: int, *args: object) -> int:
    done = int(_libc.syscall(number, *args))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


def aio_write(fd: int, data: mmap.mmap, offset: int, rw_flags: int) -> int:
    """io_submit(2) of one write, and its result: bytes, or an errno below 0."""
    context = ctypes.c_ulong(0)
    _syscall(SETUP, 1, ctypes.byref(context))
    try:
        anchor = ctypes.c_char.from_buffer(data)
        one = Iocb(1, 0, rw_flags, IOCB_CMD_PWRITE, 0, fd, ctypes.addressof(anchor), len(data), offset, 0, 0, 0)
        pointers = (ctypes.POINTER(Iocb) * 1)(ctypes.pointer(one))
        assert _syscall(SUBMIT, context, 1, pointers) == 1
        event = (ctypes.c_uint64 * 4)()
        assert _syscall(GETEVENTS, context, 1, 1, event, None) == 1
        del anchor
        return ctypes.c_int64(event[2]).value
    finally:
        _syscall(DESTROY, context)


def aligned(data: bytes) -> mmap.mmap:
    made = mmap.mmap(-1, len(data))
    made[:] = data
    return made


def plain(fd: int, data: bytes) -> int:
    return os.pwrite(fd, data, 0)


def marked(fd: int, data: bytes) -> int:
    return os.pwritev(fd, [data], 0, os.RWF_DSYNC)


def direct(fd: int, data: bytes) -> int:
    return os.pwritev(fd, [aligned(data)], 0)


def aio(fd: int, data: bytes) -> int:
    return aio_write(fd, aligned(data), 0, 0)


def aio_marked(fd: int, data: bytes) -> int:
    return aio_write(fd, aligned(data), 0, os.RWF_DSYNC)


Way = tuple[str, int, Callable[[int, bytes], int], int]  # name, flags of open(2), how it is written, bytes
WAYS: list[Way] = [
    ("sync", os.O_SYNC, plain, SHORT),
    ("dsync", os.O_DSYNC, plain, LONG),
    ("append", os.O_DSYNC | os.O_APPEND, lambda fd, data: os.write(fd, data), SHORT),
    ("rwf", 0, marked, LONG),
    ("direct", os.O_DIRECT | os.O_DSYNC, direct, PAGE),
    *([("aio", os.O_DIRECT | os.O_DSYNC, aio, PAGE), ("aio-rwf", os.O_DIRECT, aio_marked, PAGE)] if SUBMIT else []),
]


def main(directory: str, seed: int, every_write: bool) -> None:
    """`seed`: of the bytes; `every_write`: the mount makes writes without any flag synchronous as well."""
    dice = random.Random(seed)
    ways = [*WAYS, *([("plain", 0, plain, SHORT)] if every_write else [])]
    wanted: dict[str, str] = {}
    opened: list[int] = []
    for name, flags, write, length in ways:
        before, data = dice.randbytes(FILE_BYTES), dice.randbytes(length)
        fd = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT | flags & ~os.O_DIRECT, 0o644)
        os.write(fd, before)
        os.fsync(fd)  # asynchronous I/O is asynchronous inside a file only
        opened += [fd, os.open(os.path.join(directory, name), os.O_RDWR | flags)]
        done = write(opened[-1], data)
        assert done == length, f"{name}: {done}"
        wanted[name] = (before + data if flags & os.O_APPEND else data + before[length:]).hex()
    loose = os.open(os.path.join(directory, "loose"), os.O_RDWR | os.O_CREAT, 0o644)
    os.write(loose, b"may be lost")
    print(json.dumps(wanted), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3)
