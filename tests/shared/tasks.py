"""The functions that a program of tests/shared (programs.py) can be asked to call on its node."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import random
import stat
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rigs.external_programs import picture
from tests.shared.rig import MAPPINGS

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    checked(LIBC.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def renameat2(old: str | os.PathLike[str], new: str | os.PathLike[str], flags: int) -> None:
    checked(LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


# --- open files and locks, by number ----------------------------------------------------------------------------------------------
FILES: dict[int, int] = {}


def do_open(slot: int, path: str, flags: int = os.O_RDWR) -> None:
    FILES[slot] = os.open(path, flags, 0o644)


def do_close(slot: int) -> None:
    os.close(FILES.pop(slot))


def do_dup(slot: int, new: int) -> None:
    FILES[new] = os.dup(FILES[slot])


def do_close_in_child(slot: int) -> int:
    """A child that has copies of the descriptors closes its one; returns its exit status."""
    child = os.fork()
    if not child:
        os.close(FILES[slot])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def do_close_in_thread(slot: int) -> None:
    """Somebody who shares the descriptors closes one."""
    closer = threading.Thread(target=do_close, args=(slot,))
    closer.start()
    closer.join()


def do_pread(slot: int, length: int, offset: int) -> bytes:
    return os.pread(FILES[slot], length, offset)


def do_lock(slot: int, how: str, kind: int, start: int = 0, length: int = 0, wait: bool = False) -> None:
    """`how`: posix, ofd or flock."""
    if how == "flock":
        operation = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}[kind]
        fcntl.flock(FILES[slot], operation | (0 if wait else fcntl.LOCK_NB))
        return
    commands = {"posix": (fcntl.F_SETLK, fcntl.F_SETLKW), "ofd": (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW)}[how]
    fcntl.fcntl(FILES[slot], commands[wait], struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


# --- storms -----------------------------------------------------------------------------------------------------------------------
def do_shuffle(place: str, folders: list[str], slots: int, seed: int, rounds: int) -> Counter[str]:
    """Files of a fixed number are renamed, exchanged, linked and given back one of two names; nobody ever removes a last name."""
    dice, told = random.Random(seed), Counter[str]()

    def name() -> str:
        return os.path.join(place, dice.choice(folders), f"n{dice.randrange(slots)}")

    for _ in range(rounds):
        kind, one, two = dice.choice(("rename", "rename", "exchange", "twin")), name(), name()
        try:
            if kind == "rename":
                renameat2(one, two, 1)
            elif kind == "exchange":
                renameat2(one, two, 2)
            else:  # a second name, of this process' own, and away with it
                mine = os.path.join(place, dice.choice(folders), f"twin-{seed}")
                os.link(one, mine)
                os.unlink(mine)
            told[kind] += 1
        except (FileNotFoundError, FileExistsError) as err:
            told[type(err).__name__] += 1
    return told


def do_nest(place: str, names: list[str], seed: int, rounds: int) -> Counter[str]:
    """Directories are moved into each other, anywhere."""
    dice, told = random.Random(seed), Counter[str]()
    for _ in range(rounds):
        found = [folder for folder, _, _ in os.walk(place)]
        source, target = dice.choice(found), dice.choice(found)
        try:
            renameat2(source, os.path.join(target, dice.choice(names)), 1)
            told["moved"] += 1
        except OSError as err:
            if err.errno not in NEST_ERRORS:
                raise
            told[errno.errorcode[err.errno]] += 1
    return told


NEST_ERRORS = (errno.ENOENT, errno.EEXIST, errno.EINVAL, errno.ENOTEMPTY, errno.EBUSY)


def do_create_many(place: str, own: str, common: int, count: int) -> list[int]:
    """Files of this process' own, and some that others want to make too: which of these were made here."""
    won = []
    for number in range(count):
        os.close(os.open(os.path.join(place, f"{own}-{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if number < common:
            try:
                os.close(os.open(os.path.join(place, f"common-{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                won.append(number)
            except FileExistsError:
                pass
    return won


def do_create_until(place: str, over: str, most: int) -> int:
    """How many files were made, one after the other, until there was a file `over`, or one more was refused."""
    for number in range(most):
        if os.path.exists(over):
            return number
        try:
            os.close(os.open(os.path.join(place, f"n-{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError:
            return number
    return most


# --- bytes ------------------------------------------------------------------------------------------------------------------------
HEAD = struct.Struct("<4sHIII")  # magic, writer, number, length of the rest, its checksum
MAGIC = b"REC!"


def record(writer: int, number: int, length: int, dice: random.Random) -> bytes:
    body = dice.randbytes(length)
    return HEAD.pack(MAGIC, writer, number, length, zlib.crc32(body)) + body


def records(data: bytes) -> list[tuple[int, int]]:
    """(writer, number) in the order of the file; ValueError where one is torn."""
    found, at = [], 0
    while at < len(data):
        magic, writer, number, length, crc = HEAD.unpack_from(data, at)
        body = data[at + HEAD.size : at + HEAD.size + length]
        if magic != MAGIC or len(body) != length or zlib.crc32(body) != crc:
            raise ValueError(f"torn at {at} of {len(data)}: {data[at : at + 30].hex()}")
        found.append((writer, number))
        at += HEAD.size + length
    return found


def do_append(place: str, files: int, writer: int, seed: int, count: int, large: int) -> dict[int, list[int]]:
    """Records to random files, one write(2) each, `large` of them of up to 1 MiB (from memory that begins at a page): what went where."""
    dice, done = random.Random(seed), dict[int, list[int]]()
    with mmap.mmap(-1, 1 << 20) as page_aligned:
        for number in range(count):
            size = dice.choice((1 << 20, dice.randrange(1 << 20))) - HEAD.size if number < large else dice.choice((0, 30, 5_000))
            data, target = record(writer, number, max(size, 0), dice), dice.randrange(files)
            page_aligned[: len(data)] = data
            fd = os.open(os.path.join(place, f"log{target}"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                with memoryview(page_aligned) as view, view[: len(data)] as part:
                    assert os.write(fd, part) == len(data)
            finally:
                os.close(fd)
            done.setdefault(target, []).append(number)
    return done


def do_write_ranges(path: str, ranges: list[tuple[int, int]], seed: int) -> None:
    """Each range is written in a few pieces, in any order, often with what others write beside it on the same page."""
    dice, fd = random.Random(seed), os.open(path, os.O_RDWR)
    pieces = []
    for start, end in ranges:
        cuts = sorted({start, end, *(dice.randrange(start, end) for _ in range(2))})
        pieces += list(itertools.pairwise(cuts))
    dice.shuffle(pieces)
    try:
        for start, end in pieces:
            data = filling(seed, start, end)
            assert os.pwrite(fd, data, start) == len(data)
            assert os.pread(fd, len(data), start) == data, (start, end)
    finally:
        os.close(fd)


def filling(seed: int, start: int, end: int) -> bytes:
    """What a writer puts there; never a zero."""
    return bytes(1 + (seed * 89 + at * 7 + at // 251) % 255 for at in range(start, end))


def do_map_read(path: str, size: int, start: int, length: int) -> bytes:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ) as area:
        return area[start : start + length]


def do_map_write(path: str, size: int, start: int, data: bytes) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as area:
        area[start : start + len(data)] = data
        area.flush()


# --- any load ---------------------------------------------------------------------------------------------------------------------
STRESS_ERRORS = (
    errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENODATA, errno.ELOOP, errno.ESTALE,
    errno.EXDEV, errno.EPERM, errno.EBUSY, errno.ENXIO,
)  # fmt: skip


def do_stress(place: str, seed: int, rounds: int) -> Counter[str]:
    """Whatever can be done, on a few names in a few directories, beside others that do the same."""
    dice, told = random.Random(seed), Counter[str]()

    def path() -> str:
        depth = dice.choice((0, 0, 0, 1, 1, 2))
        return os.path.join(place, *(f"d{dice.randrange(2)}" for _ in range(depth)), f"f{dice.randrange(5)}")

    for _ in range(rounds):
        kind = dice.choice([*STRESS, "create", "create", "create", "mkdir"])
        try:
            STRESS[kind](dice, path(), path())
            told[kind] += 1
        except OSError as err:
            if err.errno not in STRESS_ERRORS:
                raise
            told[errno.errorcode[err.errno]] += 1
    return told


def _rw(flags: int, act: Callable[[random.Random, int], object]) -> Callable[[random.Random, str, str], None]:
    def do(dice: random.Random, path: str, _: str) -> None:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o644)
        try:
            act(dice, fd)
        finally:
            os.close(fd)

    return do


def _copy(dice: random.Random, one: str, two: str) -> None:
    source = os.open(one, os.O_RDONLY | os.O_NONBLOCK)
    try:
        target = os.open(two, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.copy_file_range(source, target, dice.randrange(1, 50_000), dice.randrange(9_000), dice.randrange(9_000))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _mapped(dice: random.Random, fd: int) -> None:
    size = os.fstat(fd).st_size
    if size and stat.S_ISREG(os.fstat(fd).st_mode):
        try:
            # Others may cut it: nothing is touched, the kernel's bookkeeping is enough.
            area = mmap.mmap(fd, size, mmap.MAP_SHARED if MAPPINGS else mmap.MAP_PRIVATE)
        except ValueError as err:  # cut since that look: Python looks itself and does not even ask the kernel
            raise OSError(errno.EINVAL, str(err)) from err
        with area:
            area.flush()


STRESS: dict[str, Callable[[random.Random, str, str], object]] = {
    "create": _rw(os.O_RDWR | os.O_CREAT, lambda dice, fd: os.pwrite(fd, dice.randbytes(dice.randrange(1, 9_000)), dice.randrange(20_000))),
    "write": _rw(os.O_RDWR, lambda dice, fd: os.pwrite(fd, dice.randbytes(dice.randrange(1, 40_000)), dice.randrange(90_000))),
    "append": _rw(os.O_WRONLY | os.O_APPEND, lambda dice, fd: os.write(fd, dice.randbytes(dice.randrange(1, 3_000)))),
    "read": _rw(os.O_RDONLY, lambda dice, fd: os.pread(fd, 50_000, dice.randrange(90_000))),
    "truncate": _rw(os.O_RDWR, lambda dice, fd: os.ftruncate(fd, dice.randrange(100_000))),
    "punch": _rw(os.O_RDWR, lambda dice, fd: fallocate(fd, 3, dice.randrange(50_000), dice.randrange(1, 50_000))),
    "allocate": _rw(os.O_RDWR, lambda dice, fd: fallocate(fd, 0, dice.randrange(50_000), dice.randrange(1, 50_000))),
    "fsync": _rw(os.O_RDWR, lambda dice, fd: os.fsync(fd)),
    "map": _rw(os.O_RDWR, _mapped),
    "copy": _copy,
    "mkdir": lambda dice, one, two: os.mkdir(os.path.join(os.path.dirname(one), f"d{dice.randrange(2)}")),
    "rmdir": lambda dice, one, two: os.rmdir(os.path.join(os.path.dirname(one), f"d{dice.randrange(2)}")),
    "move": lambda dice, one, two: os.rename(os.path.dirname(one), os.path.join(os.path.dirname(two), f"d{dice.randrange(2)}")),
    "rename": lambda dice, one, two: renameat2(one, two, dice.choice((0, 0, 1, 2))),
    "link": lambda dice, one, two: os.link(one, two),
    "symlink": lambda dice, one, two: os.symlink(os.path.basename(two), one),
    "unlink": lambda dice, one, two: os.unlink(one),
    "chmod": lambda dice, one, two: os.chmod(one, dice.choice((0o600, 0o644, 0o777))),
    "chown": lambda dice, one, two: os.chown(one, dice.randrange(3), dice.randrange(3), follow_symlinks=False),
    "xattr": lambda dice, one, two: os.setxattr(one, f"user.x{dice.randrange(3)}", dice.randbytes(dice.randrange(60))),
    "unxattr": lambda dice, one, two: os.removexattr(one, f"user.x{dice.randrange(3)}"),
    "list": lambda dice, one, two: [os.lstat(entry.path) for entry in os.scandir(os.path.dirname(one))],
}


def do_picture(place: str) -> dict[str, Any]:
    return picture(Path(place))


# --- looking all the time ---------------------------------------------------------------------------------------------------------
def do_hammer(place: str, names: list[str], begun: str, over: str) -> int:
    """Looks at everything in every way until a file `over` (not on the mount) is there: requests are always on their way.

    It makes `begun` (not on the mount) after its first round, so that nothing is tested beside a program that has yet to begin.
    """
    looks, fds = 0, {name: os.open(os.path.join(place, name), os.O_RDONLY) for name in names}
    while not os.path.exists(over):
        for name, fd in fds.items():
            os.pread(fd, 1 << 20, 0)
            os.fstat(fd)
            with contextlib.suppress(FileNotFoundError):
                os.stat(os.path.join(place, name))
                with open(os.path.join(place, name), "rb") as file:
                    file.read()
            looks += 1
        os.listdir(place)
        if not os.path.exists(begun):
            open(begun, "x").close()
    for fd in fds.values():
        os.close(fd)
    return looks
