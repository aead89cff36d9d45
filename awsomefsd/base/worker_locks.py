"""A worker holds a lock for its life, so a lock that can be taken proves that its process has exited.

state_dir/workers/MOUNT-WORKER.lock is locked (flock) by the worker before it opens its session.  The kernel takes the lock away when the
last thread of the process releases its descriptors, and a thread in the middle of a read or write of a device does not: so a lock that
can be taken says that the process has exited and that none of its I/O is under way, whatever killed it, and whether or not a keeper saw it.

A process removes a file only while it holds its lock.  A process that has taken a lock then checks that its file is still the one of that
name.  So a lock is never held on a file that others cannot see.  A missing file proves nothing: the worker may be of a build that did not
lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from string import hexdigits

from awsomefsd.base.errors import Refused

DIRECTORY = "workers"


def _place(state_dir: Path | str, mount: int, worker: int) -> Path:
    return Path(state_dir) / DIRECTORY / f"{mount:x}-{worker}.lock"


class WorkerLock:
    """A lock that was taken; it ends with this object, which a worker keeps until its process ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)


def hold(state_dir: Path | str, mount: int, worker: int) -> WorkerLock:
    """Takes the lock without waiting, called by the worker itself.  Raises Refused if another process is this worker, and OSError."""
    path = _place(state_dir, mount, worker)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(fd, path):
                return WorkerLock(fd)
        except BlockingIOError:
            os.close(fd)
            raise Refused(f"worker {worker} of mount {mount:x} runs already") from None
        os.close(fd)


def exited(state_dir: Path | str, mount: int, worker: int) -> bool:
    """Returns True if it is proved that this worker of the mount and every one before it have exited; False without its file.

    Never waits for a lock.  Raises OSError.
    """
    if not _place(state_dir, mount, worker).exists():
        return False
    for path in (Path(state_dir) / DIRECTORY).glob(f"{mount:x}-*.lock"):
        number = path.stem.partition("-")[2]
        if number.isdecimal() and int(number) <= worker and not _free(path):
            return False
    return True


def tidy(state_dir: Path | str, needed: Container[int]) -> None:
    """Removes the files of workers that have exited, except for mounts in `needed`, whose sessions may still have to be proved ended."""
    for path in (Path(state_dir) / DIRECTORY).glob("*.lock"):
        mount = path.stem.partition("-")[0]
        if not (all(char in hexdigits for char in mount) and mount and int(mount, 16) in needed):
            _free(path, remove=True)


def _free(path: Path, *, remove: bool = False) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove and _is(fd, path):
            path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _is(fd: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(path))
    return False
