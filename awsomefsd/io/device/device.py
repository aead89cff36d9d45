"""Devices: a block device, or a file that stands for one, read and written past the page cache.

Every access goes by O_DIRECT: on a shared disk another node's writes must be seen, and a cached page would hide them.  A filesystem that
refuses O_DIRECT (tmpfs) is served through the page cache, and `direct` says so; such a file must not be shared between nodes.  Nothing is
opened with O_DSYNC: a batch is many writes and one `flush`, which is fdatasync and reaches the device's volatile cache.

`BlockDevice` is the seam: the writer and the reader know no more than it, so a device in memory can record, tear and fail their I/O.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from awsomefsd.base.errors import NotFound, Refused
from awsomefsd.base.limits import BLOCK_BYTES

IOV_MAX = 1024

_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B


class BlockDevice(Protocol):
    """Offsets, lengths (bytes) and addresses of buffers are multiples of `logical_block_bytes`.

    Thread-safe: every call names its offset.  Every call blocks for its I/O and raises OSError.  `physical_block_bytes`: what the medium
    writes as one; a write into a part of it rewrites the rest, which a power cut may tear.
    """

    path: str
    bytes: int
    logical_block_bytes: int
    physical_block_bytes: int

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Reads into `buffer`; returns the bytes read, fewer than asked only at the end of the device."""

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Reads as `pread_into`, into several buffers one after another."""

    def pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Writes all of them.  After an OSError any part of them may have been written."""

    def flush(self) -> None:
        """Makes everything durable whose write had returned before this call."""


class Device:
    """A real device or file, as BlockDevice says.  Thread-safe (every call names its offset).

    `failed`: an I/O has failed, so the descriptor may be of a disk that is gone.  It is closed by `close`, or with its last user.
    """

    _fd = -1

    def __init__(self, path: str, fd: int, *, direct: bool) -> None:
        self.path = path
        self.direct = direct
        self._unwritable = ""
        self.failed = False
        self.is_block_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.bytes, self.logical_block_bytes, self.physical_block_bytes = _measure(fd, self.is_block_device)
        self._fd = fd  # last: whoever made a device of it keeps a descriptor that cannot be measured

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False, exclusive: bool = False) -> Device:
        """Opens a device by its path.  With `exclusive` the kernel refuses a block device that is mounted or otherwise in use (Refused).

        Raises NotFound, Refused (neither a block device nor a file, or blocks larger than ours), or OSError.
        """
        name = os.fspath(path)
        try:
            mode = os.stat(name).st_mode
        except (FileNotFoundError, NotADirectoryError) as err:
            raise NotFound(f"{name} does not exist") from err
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise Refused(f"{name} is neither a block device nor a file")
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        if exclusive and stat.S_ISBLK(mode):
            flags |= os.O_EXCL
        fd, direct = _open(name, flags)
        try:
            device = cls(name, fd, direct=direct)
        except BaseException:
            os.close(fd)
            raise
        if device.logical_block_bytes > BLOCK_BYTES:
            device.close()
            raise Refused(f"{name} has blocks of {device.logical_block_bytes} bytes; at most {BLOCK_BYTES} can be used")
        return device

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        return self.preadv([buffer], offset)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        total = sum(map(len, buffers))
        try:
            done = self._preadv(buffers, offset, total)
            if done < total and offset + done < self.bytes:  # a disk that is gone may have no bytes any more
                raise OSError(errno.EIO, f"short read at {offset + done}", self.path)
        except OSError:
            self.failed = True
            raise
        return done

    def _preadv(self, buffers: Sequence[memoryview], offset: int, total: int) -> int:
        done = os.preadv(self._fd, buffers, offset)
        while done < total:  # a short read is continued; one that is not a whole block is the end of the device
            if done == 0 or done % self.logical_block_bytes:
                break
            more = os.preadv(self._fd, rest_of(buffers, done), offset + done)
            if more == 0:
                break
            done += more
        return done

    def pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        if self._unwritable:
            raise OSError(errno.EROFS, self._unwritable, self.path)
        try:
            self._pwritev(buffers, offset)
        except OSError:
            self.failed = True
            raise

    def _pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        for first in range(0, len(buffers), IOV_MAX):
            part = buffers[first : first + IOV_MAX]
            total = sum(map(len, part))
            done = os.pwritev(self._fd, part, offset)
            while done < total:
                if done == 0 or done % self.logical_block_bytes:
                    raise OSError(errno.EIO, f"short write at {offset + done}", self.path)
                more = os.pwritev(self._fd, rest_of(part, done), offset + done)
                if more == 0:
                    raise OSError(errno.EIO, f"short write at {offset + done}", self.path)
                done += more
            offset += total

    def flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError:
            self.failed = True
            raise

    def forbid_writes(self, why: str) -> None:
        """Has every write from now on raise OSError(EROFS), with `why` as its text."""
        self._unwritable = why

    def lock(self) -> None:
        """Locks the device until it is closed against other users on this machine.  Does not wait; raises Refused."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{self.path} is in use by a daemon on this machine; stop it first") from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def rest_of(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """Returns the part of `buffers` after the first `done` bytes."""
    rest = []
    for buffer in buffers:
        if done < len(buffer):
            rest.append(buffer[done:])
        done = max(0, done - len(buffer))
    return rest


def _open(name: str, flags: int) -> tuple[int, bool]:
    """Returns (descriptor, whether it is direct)."""
    try:
        try:
            return os.open(name, flags | os.O_DIRECT), True
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            return os.open(name, flags), False
    except OSError as err:
        if err.errno == errno.EBUSY:
            raise Refused(f"{name} is in use: {usage_of(name)}; unmount or release it first") from err
        raise


def _measure(fd: int, is_block_device: bool) -> tuple[int, int, int]:
    """Returns (bytes, logical block bytes, physical block bytes)."""
    if not is_block_device:
        found = os.fstat(fd)
        # the alignment that O_DIRECT asks of a file follows the disk below it and is unknown before kernel 6.1; our block is always enough
        return found.st_size, BLOCK_BYTES, max(BLOCK_BYTES, found.st_blksize)
    (size,) = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    (logical,) = struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    (physical,) = struct.unpack("=I", fcntl.ioctl(fd, _BLKPBSZGET, bytes(4)))
    return size, logical, physical


def usage_of(path: str) -> str:
    """Returns how a block device is used now, in words, as far as the kernel knows; "" if it seems free."""
    real = os.path.realpath(path)
    for line in _lines("/proc/self/mounts"):
        source, target = line.split()[:2]
        if source.startswith("/") and os.path.realpath(source) == real:
            return f"mounted at {target}"
    for line in _lines("/proc/swaps")[1:]:
        if line.split() and os.path.realpath(line.split()[0]) == real:
            return "used as swap"
    try:
        number = os.stat(real)
        holders = os.listdir(f"/sys/dev/block/{os.major(number.st_rdev)}:{os.minor(number.st_rdev)}/holders")
    except OSError:
        holders = []
    if holders:
        return "held by " + ", ".join(sorted(holders))
    return f"backing file of {loop}" if (loop := _loop_over(real)) else ""


def _loop_over(real: str) -> str:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        if any(line == real for line in _lines(str(backing))):
            return f"/dev/{backing.parent.parent.name}"
    return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
