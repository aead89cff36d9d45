"""The journal's only way to the disk, a dozen calls.

So a crash test can record every write and sync, drop those that were not synced, reorder them inside one sync, and open the journal again
on what is left.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.codec import Bytes

SPARE_THREAD = "journal-spare"


class Disk(Protocol):
    """The calls of the journal to the disk.  Each blocks until it is done and may raise OSError."""

    def open(self, path: str, flags: int) -> int:
        """Returns a descriptor, closed on exec; a file that is made has mode 0600."""

    def close(self, fd: int) -> None:
        """Closes a descriptor."""

    def size(self, fd: int) -> int:
        """Returns the bytes of the file."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Returns up to `length` bytes; fewer only at the end of the file."""

    def pwrite(self, fd: int, data: Bytes, offset: int) -> None:
        """Writes all of `data`, or raises OSError."""

    def fdatasync(self, fd: int) -> None:
        """Makes the file's bytes durable."""

    def sync_directory(self, path: str) -> None:
        """Makes the names in the directory durable."""

    def rename(self, old: str, new: str) -> None:
        """Renames a file; durable after `sync_directory`."""

    def unlink(self, path: str) -> None:
        """Removes a file; durable after `sync_directory`."""

    def names(self, directory: str) -> list[str]:
        """Returns the names in the directory, in any order."""

    def lock(self, directory: str) -> int:
        """Returns a descriptor that keeps every other process from the directory until it is closed.

        Raises BlockingIOError if one has it.
        """

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        """Starts `work` on another thread; the function returned waits for its end."""


class OsDisk:
    """The operating system's disk."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        piece = os.pread(fd, length, offset)
        if len(piece) == length or not piece:
            return piece
        pieces = [piece]
        done = len(piece)
        while done < length and (piece := os.pread(fd, length - done, offset + done)):
            pieces.append(piece)
            done += len(piece)
        return b"".join(pieces)

    def pwrite(self, fd: int, data: Bytes, offset: int) -> None:
        written = os.pwrite(fd, data, offset)
        if written < len(data):
            view = memoryview(data)
            while written < len(view):
                written += os.pwrite(fd, view[written:], offset + written)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def names(self, directory: str) -> list[str]:
        return os.listdir(directory)

    def lock(self, directory: str) -> int:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        thread = threading.Thread(target=work, name=SPARE_THREAD, daemon=True)
        thread.start()
        return thread.join
