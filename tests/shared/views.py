"""What a node shows of a small directory, by all ways there are, and what it goes on to show through what was opened before.

`Watcher(place, names)` opens and reads all of these, so that whatever may be cached on that node is.  `look()` asks again: paths,
names that are not there, listings, links, attributes, extended attributes, contents; the descriptors of before; a new mapping.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.shared.rig import MAPPINGS

Picture = dict[str, Any]


def attributes(info: os.stat_result) -> tuple[Any, ...]:
    """All but atime, and what is said of a directory's size."""
    size = None if stat.S_ISDIR(info.st_mode) else (info.st_size, info.st_blocks)
    times = info.st_mtime_ns, info.st_ctime_ns
    return info.st_ino, oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size, info.st_rdev, *times


def extended(path: int | str | Path) -> dict[str, bytes]:
    follow = {} if isinstance(path, int) else {"follow_symlinks": False}
    return {key: os.getxattr(path, key, **follow) for key in sorted(os.listxattr(path, **follow))}  # type: ignore[arg-type]


def mapped(fd: int) -> bytes:
    """The bytes through a mapping: a shared one, where the kernel has them."""
    size = os.fstat(fd).st_size
    if not size:
        return b""
    with mmap.mmap(fd, size, mmap.MAP_SHARED if MAPPINGS else mmap.MAP_PRIVATE, mmap.PROT_READ) as area:
        return area[:]


def path_picture(path: Path) -> Any:
    try:
        info = path.lstat()
    except OSError as err:
        return err.errno
    found: list[Any] = [attributes(info)]
    if stat.S_ISLNK(info.st_mode):
        return [*found, os.readlink(path)]
    found.append(extended(path))
    if stat.S_ISDIR(info.st_mode):
        found.append(sorted((entry.name, entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in os.scandir(path)))
    elif stat.S_ISREG(info.st_mode):
        with path.open("rb") as file:
            found += [file.read(), mapped(file.fileno()), os.access(path, os.X_OK)]
    return found


def descriptor_picture(fd: int) -> Any:
    info = os.fstat(fd)
    found: list[Any] = [attributes(info), extended(fd)]
    if stat.S_ISDIR(info.st_mode):
        return [*found, sorted(os.listdir(fd))]
    return [*found, os.pread(fd, info.st_size + 1, 0), os.lseek(fd, 0, os.SEEK_END), holes(fd, info.st_size)]


def holes(fd: int, size: int) -> list[int]:
    """Where data and holes begin, by turns."""
    found, at, what = [], 0, os.SEEK_DATA
    while at < size:
        try:
            at = os.lseek(fd, at, what)
        except OSError:
            break  # no data behind this
        found.append(at)
        what = os.SEEK_HOLE if what == os.SEEK_DATA else os.SEEK_DATA
    return found


class Watcher:
    """`names`: what an operation concerns, also what is not there yet."""

    def __init__(self, place: Path, names: Sequence[str]) -> None:
        self.place, self.names = place, names
        self.fds: dict[str, int] = {}
        for name in names:
            if os.path.lexists(place / name) and not os.path.islink(place / name):
                self.fds[name] = os.open(place / name, os.O_RDONLY if (place / name).is_dir() else os.O_RDWR)
        self.before = self.look()

    def look(self) -> Picture:
        found: Picture = {f"open {name}": descriptor_picture(fd) for name, fd in self.fds.items()}
        found |= {f"path {name}": path_picture(self.place / name) for name in self.names}
        found["names"] = sorted(os.listdir(self.place))
        return found

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


def differences(expected: Picture, got: Picture) -> list[str]:
    return [
        f"{key}: {str(got[key])[:300]}, where it was done {str(expected[key])[:300]}" for key in expected if expected[key] != got[key]
    ]
