"""The journal's only way to the disk: ten calls, so that a crash test can record every write and sync, drop those that were not synced,
reorder them inside one sync, and open the journal again on what is left.
"""

from __future__ import annotations

import os
from typing import Protocol

from awsomefsd.codec import Bytes


class Disk(Protocol):
    def open(self, path: str, flags: int) -> int: ...

    def close(self, fd: int) -> None: ...

    def size(self, fd: int) -> int: ...

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""

    def pwrite(self, fd: int, data: Bytes, offset: int) -> None:
        """All of `data`, or OSError."""

    def fdatasync(self, fd: int) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def rename(self, old: str, new: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def names(self, directory: str) -> list[str]: ...


class OsDisk:
    """The real one."""

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
