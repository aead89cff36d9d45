"""The record of a mount: what a keeper has to know to take the mount up, in shared memory beside the mount's other memory.

It goes wherever the descriptors of the mount go: to its workers, to the daemon, to the service manager.  All of them have the same memory,
so no copy of it is ever out of date.  The keeper alone writes the description.  A worker stores three words and takes a lock:

* *served*: a worker is about to read requests, so what the other areas hold counts from now on;
* *ended*: the mount is over, and nobody has to take it up;
* *needs*: the format of the other areas that a program has to know to serve the mount; 0: every program that there was knows it;
* the lock says that a process which was given the descriptors lives.  The kernel drops it when the last thread of that process has ended.

The description has two places, written in turn.  A keeper that is killed in the middle of a write leaves the other one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import zlib
from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import KIB

RECORD = "record"  # its name among the descriptors of a mount
VERSION = 1
_PLACE_BYTES = 256 * KIB  # above what one message of the keeper's protocol may hold
_PLACES = (4 * KIB, 4 * KIB + _PLACE_BYTES)
RECORD_BYTES = _PLACES[1] + _PLACE_BYTES
FORMAT_WITH_OPS, FORMAT_IN_DOUBT = 2, 3  # of the areas of a mount: there is an op log; and it may not be shipped (op_log.py)
MEMORY_FORMAT = FORMAT_IN_DOUBT  # the highest that the workers of this program know
_SERVED, _ENDED, _NEEDS = 0, 8, 16  # offsets of the words; the lock is on the first byte
_ENDED_WORDS = {1: False, 2: True}
_WORD = struct.Struct("<Q")
_HEADER = struct.Struct("<QII")  # sequence number, length, CRC-32
_MFD_NOEXEC_SEAL = 8
_FLOCK = struct.Struct("hhqqi4x")  # struct flock


class MountRecord:
    """The record in the memfd `fd`, which this object does not own.  One thread of each process uses it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, description: dict[str, Any]) -> None:
        """Stores the description.  Raises OSError, and ProtocolError if it is too long."""
        payload = json.dumps({"version": VERSION, **description}, separators=(",", ":")).encode()
        if len(payload) > _PLACE_BYTES - _HEADER.size:
            raise ProtocolError(f"the description of a mount has {len(payload)} bytes, more than {_PLACE_BYTES - _HEADER.size}")
        latest = max((self._place(number) for number in range(len(_PLACES))), key=lambda found: found[0])
        number = latest[0] + 1
        content = _HEADER.pack(number, len(payload), zlib.crc32(payload)) + payload
        if os.pwrite(self._fd, content, _PLACES[number % len(_PLACES)]) != len(content):
            raise OSError(errno.ENOSPC, "no memory for the description of a mount")

    def read(self) -> dict[str, Any] | None:
        """Returns the description; None if there is none, or only one that this build does not know.  Raises OSError."""
        number, payload = max(self._place(number) for number in range(len(_PLACES)))
        description: dict[str, Any] | None = json.loads(payload) if number else None
        return description if description is not None and description["version"] == VERSION else None

    def _place(self, index: int) -> tuple[int, bytes]:
        """Returns (sequence number, payload) of one place, (0, b"") if it holds nothing whole."""
        content = os.pread(self._fd, _PLACE_BYTES, _PLACES[index])
        if len(content) < _HEADER.size:
            return 0, b""
        number, length, checksum = _HEADER.unpack_from(content)
        payload = content[_HEADER.size : _HEADER.size + length]
        return (number, payload) if number and len(payload) == length and zlib.crc32(payload) == checksum else (0, b"")

    def set_served(self) -> None:
        """Notes that a worker is about to read requests.  Raises OSError."""
        os.pwrite(self._fd, _WORD.pack(1), _SERVED)

    def served(self) -> bool:
        """Returns True if a worker has come as far as to read requests."""
        return _WORD.unpack(os.pread(self._fd, _WORD.size, _SERVED))[0] == 1

    def set_ended(self, clean: bool) -> None:
        """Notes that the mount is over, and whether everything was flushed.  Raises OSError."""
        os.pwrite(self._fd, _WORD.pack(2 if clean else 1), _ENDED)

    def ended(self) -> bool | None:
        """Returns whether everything was flushed at the end of the mount; None while it has not ended."""
        return _ENDED_WORDS.get(_WORD.unpack(os.pread(self._fd, _WORD.size, _ENDED))[0])

    def set_needs(self, memory_format: int) -> None:
        """Notes which format of the other areas a worker has to know from now on.

        Raised before the first change that a program below it would not see, and lowered behind the last one that is left.  Raises OSError.
        """
        os.pwrite(self._fd, _WORD.pack(memory_format), _NEEDS)

    def needs(self) -> int:
        """Returns the format of the other areas that a worker has to know; 0 is below all.  Raises OSError."""
        return int(_WORD.unpack(os.pread(self._fd, _WORD.size, _NEEDS))[0])

    def lock(self) -> bool:
        """Takes the lock for the rest of this process's life; returns False if another process has it.  Raises OSError."""
        own = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)  # a file description of our own, which owns the lock
        try:
            fcntl.fcntl(own, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        except (BlockingIOError, PermissionError):
            os.close(own)
            return False
        return True

    def locked(self) -> bool:
        """Returns True if a process has the lock.  It takes nothing, so it disturbs nobody who is about to take it.  Raises OSError."""
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def create_record() -> int:
    """Returns the descriptor of an empty record.  Raises OSError."""
    fd = create_memfd(RECORD)
    try:
        os.ftruncate(fd, RECORD_BYTES)
        os.pwrite(fd, bytes(4 * KIB), 0)  # so that the words have memory when it is scarce
    except OSError:
        os.close(fd)
        raise
    return fd


def create_memfd(name: str) -> int:
    """Returns an empty memfd of ours, close-on-exec.  Raises OSError."""
    try:
        return os.memfd_create(f"awsomefs-{name}", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError:  # a kernel before 6.3 does not know the flag, a later one warns without it
        return os.memfd_create(f"awsomefs-{name}", os.MFD_CLOEXEC)
