"""The same steps on a mount of ours and on ext4 on a loop device, each in a process of its own, as any user; what they tell must be equal.

A case is a function of a directory that yields pairs (what, result); an OSError inside `tell` is a result too.  Of times is told which
changed: the clocks of two runs are not the same.  ext4 stamps with the time of the last tick, so steps that compare times are a tick
apart (`tick`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGE_BYTES = 1 << 30
TICK_S = 0.011  # CONFIG_HZ is 100 at least
CLOCK_REALTIME_COARSE = 5  # by which ext4 stamps; Python has no name for it
LIMIT_S = 120
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
STATX_MODE = 2
CAP_FSETID = 4
Case = Callable[[str], Iterable[tuple[Any, Any]]]


class User:
    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = (), umask: int = 0o022) -> None:
        self.uid, self.gid, self.groups, self.umask = uid, gid, groups, umask

    def become(self) -> None:
        os.umask(self.umask)
        if self.uid:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)


class RootWithout(User):
    """Root that has lost one capability."""

    def __init__(self, capability: int) -> None:
        super().__init__(0, 0)
        self.capability = capability

    def become(self) -> None:
        super().become()
        header, sets = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)  # version 3, this process
        check(LIBC.capget(header, sets))
        effective, permitted, inheritable, *above = struct.unpack("6I", sets.raw)
        effective &= ~(1 << self.capability)
        check(LIBC.capset(header, struct.pack("6I", effective, permitted, inheritable, *above)))


ROOT = User(0, 0)
ANNA, BERT = User(2001, 3001, (3002,)), User(2002, 3003)


def tell(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except OSError as err:
        return errno.errorcode[err.errno or 0]


def tick() -> None:
    """Returns when the clock of ticks has moved on: a virtual machine may get its ticks late."""
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
        time.sleep(TICK_S)


def check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename2(old: str, new: str, flags: int) -> None:
    check(LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def link_fd(fd: int, new: str) -> None:
    """linkat(2) of what is open, through /proc: for those who lack CAP_DAC_READ_SEARCH too."""
    check(LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(new), 0x400))


def link_empty(fd: int, new: str) -> None:
    check(LIBC.linkat(fd, b"", AT_FDCWD, os.fsencode(new), AT_EMPTY_PATH))


def shown(path: str | int) -> tuple[Any, ...]:
    info = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    size = -1 if stat.S_ISDIR(info.st_mode) else info.st_size
    return oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size, info.st_rdev


def mode_alone(path: str) -> str:
    """The mode as statx(2) tells it to those who ask for nothing else, such as `stat -c %a`: the kernel may take it from what it knows."""
    found = ctypes.create_string_buffer(256)
    check(LIBC.statx(AT_FDCWD, os.fsencode(path), 0, STATX_MODE, found))
    (mode,) = struct.unpack_from("H", found, 28)
    return oct(mode)


def times(path: str) -> tuple[int, int, int]:
    info = os.lstat(path)
    return info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns


def moved(before: tuple[int, int, int], after: tuple[int, int, int]) -> str:
    """Which of atime, mtime and ctime are others than before."""
    return "".join(letter for letter, one, other in zip("amc", before, after, strict=True) if one != other)


def attributes(path: str) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(os.listxattr(path, follow_symlinks=False))}


def run_as(user: User, case: Case, directory: str) -> list[tuple[Any, Any]]:
    """What the case told, from a process that is this user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.chdir(directory)
            user.become()
            with open(writer, "wb") as out:
                try:
                    found: Any = list(case("."))
                except BaseException as err:  # told to the parent
                    found = [("died", repr(err))]
                pickle.dump(found, out)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as source:
        raw = source.read()
    os.waitpid(pid, 0)
    told: list[tuple[Any, Any]] = pickle.loads(raw)
    assert not (told and told[-1][0] == "died"), told[-1]
    return told


class Beside:
    """Two directories, ours and ext4's."""

    def __init__(self, ours: Path, ext4: Path) -> None:
        self.ours, self.ext4 = ours, ext4
        self._count = 0

    def same(
        self, case: Case, user: User = ROOT, *, prepare: Callable[[str], Any] | None = None, mode: int = 0o777
    ) -> list[tuple[Any, Any]]:
        """Run the case in a fresh directory on both sides; what it told, after it was compared."""
        self._count += 1
        told = []
        for root in (self.ours, self.ext4):
            directory = root / f"case-{self._count}"
            directory.mkdir()
            directory.chmod(mode)
            if prepare is not None:
                prepare(str(directory))
            told.append(run_as(user, case, str(directory)))
        ours, ext4 = told
        assert ours == ext4, "\n".join(
            f"{one[0]}: ours {one[1]}, ext4 {other[1]}" for one, other in zip(ours, ext4, strict=False) if one != other
        )
        assert ours, "the case told nothing"
        return ours


@contextmanager
def ext4(directory: Path, options: str = "") -> Iterator[Path]:
    """An empty ext4 on a loop device; it goes with the block."""
    image, mountpoint = directory / "ext4.img", directory / "ext4"
    with image.open("wb") as out:
        out.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-I", "256", str(image)], check=True, timeout=LIMIT_S)
    mountpoint.mkdir()
    words = ",".join(filter(None, ("loop", options)))
    subprocess.run(["mount", "-o", words, str(image), str(mountpoint)], check=True, timeout=LIMIT_S)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True, timeout=LIMIT_S)
