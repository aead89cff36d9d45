"""The open-file table: file handles that mean the same to a successor worker as to the one that gave them out.

An append-only log of fixed records in shared memory (OPEN, CLOSE, BASE), and dicts beside it for speed.  A record is 40 bytes and then a
seal word (mark and crc32c) whose store makes it count; the seal of the *next* record is zeroed before that, so that the log always ends
at a zero seal and old records of an earlier lap can never follow.  A kill leaves a record or its absence.  An OPEN that is absent was not
answered, it is executed again; one that is there is found by its request's unique and gives the same handle.

There are two halves.  When the log holds more closed records than open ones (plus a slack), or is full, the open ones are copied to the
other half, behind a BASE record with the next handle, and one store of the generation word makes that half the log (generation & 1).
So handles are never reused in a mount, not even the highest one that was closed before a compaction.

Rejected: a table with a slot per handle (its free list would have to be recovered, and handles would be reused).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c

from awsomefsd import shm
from awsomefsd.errors import Corrupt, FormatTooNew, FsError
from awsomefsd.limits import OPEN_FILES_MAX

MAGIC = b"awsmopen"
VERSION = 1
KIND_FILE, KIND_DIRECTORY = 0, 1
RECORD_BYTES = 48
SLACK_RECORDS = 1024  # closed records that do not yet make a compaction worth while

OPEN, CLOSE, BASE = 1, 2, 3
_RECORD = struct.Struct("<IBBHQQQQ")  # flags, type, kind, reserved, fh, ino, unique, epoch
_WORDS = RECORD_BYTES // 8
_SEAL = _WORDS - 1
_MARK = 0x4F50_454E << 32
_GENERATION = 8  # word of page 0

assert _RECORD.size == _SEAL * 8


def required_bytes(files_max: int = OPEN_FILES_MAX) -> int:
    """Size of the memfd (sparse) for a table of `files_max` open files."""
    return shm.PAGE_BYTES + 2 * shm.round_up((2 * files_max + SLACK_RECORDS + 2) * RECORD_BYTES, shm.PAGE_BYTES)


class OpenFile(NamedTuple):
    """An open file or directory.  `unique` is the request that opened it, `epoch` the session's at that time (0: not given)."""

    fh: int
    ino: int
    flags: int
    kind: int
    unique: int
    epoch: int


class OpenTable:
    """Thread-safe.  `fresh` formats the area; so does an area without header.  Iterating gives a snapshot of the OpenFiles."""

    def __init__(self, mem: shm.Mem, fresh: bool = False) -> None:
        self._view = shm.bytes_view(mem)
        self._words = shm.words(self._view)
        self._half_bytes = (len(self._view) - shm.PAGE_BYTES) // 2 // shm.PAGE_BYTES * shm.PAGE_BYTES
        self._records_max = self._half_bytes // RECORD_BYTES - 1  # one place for the zero seal behind the last
        self.files_max = min(OPEN_FILES_MAX, self._records_max * 3 // 4)
        if self.files_max < 1:
            raise Corrupt(f"open-file table: {len(self._view)} bytes are too few")
        self._lock = threading.Lock()
        self._files: dict[int, OpenFile] = {}
        self._places: dict[int, int] = {}  # fh to the index of its record
        self._uniques: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._next_fh = 1
        self._used = 0  # records in the log
        found = shm.read_header(self._view, MAGIC, VERSION, "open-file table") if not fresh else None
        self.formatted = found is None
        if found is None:
            self._format()
        elif found[0] != self._half_bytes:
            raise Corrupt(f"open-file table: halves of {found[0]} bytes, expected {self._half_bytes}")
        self._select(self._words[_GENERATION])
        self._load()

    def open(self, ino: int, flags: int, unique: int, kind: int | None = None, epoch: int = 0) -> int:
        """A handle; the same one again for a `unique` (not 0) that has opened already.  O_DIRECTORY in `flags` makes it KIND_DIRECTORY.

        Raises FsError(ENFILE) at files_max.
        """
        if kind is None:
            kind = KIND_DIRECTORY if flags & os.O_DIRECTORY else KIND_FILE
        with self._lock:
            known = self._uniques.get(unique)
            if known is not None:
                return known
            if len(self._files) >= self.files_max:
                raise FsError(errno.ENFILE, f"{self.files_max} files are open in this mount")
            fh = self._next_fh
            self._next_fh = fh + 1
            self._append(_RECORD.pack(flags & shm.U32, OPEN, kind, 0, fh, ino, unique, epoch))
            self._places[fh] = self._used - 1
            self._remember(OpenFile(fh, ino, flags, kind, unique, epoch))
            return fh

    def close(self, fh: int) -> OpenFile | None:
        """Forget a handle; None if it is not open (a release that is executed again)."""
        with self._lock:
            if fh not in self._files:
                return None
            self._append(_RECORD.pack(0, CLOSE, 0, 0, fh, 0, 0, 0))
            return self._forget(fh)

    def get(self, fh: int) -> OpenFile | None:
        return self._files.get(fh)

    def find_unique(self, unique: int) -> int | None:
        """The open handle that this request made."""
        return self._uniques.get(unique)

    def count(self, ino: int) -> int:
        """Open handles of an inode."""
        return self._counts.get(ino, 0)

    def __iter__(self) -> Iterator[OpenFile]:
        with self._lock:
            return iter(list(self._files.values()))

    def __len__(self) -> int:
        return len(self._files)

    # --- the log -----------------------------------------------------------------------------------------------------------

    def _append(self, record: bytes) -> None:
        if self._used >= self._records_max or self._used > 2 * len(self._files) + SLACK_RECORDS:
            self._compact()
        words, first = self._log_words, self._used * _WORDS
        start = first * 8
        words[first + _WORDS + _SEAL] = 0
        self._log[start : start + _RECORD.size] = record
        words[first + _SEAL] = _MARK | crc32c(record)
        self._used += 1

    def _compact(self) -> None:
        """Copy what is open to the other half and make that the log."""
        base = _RECORD.pack(0, BASE, 0, 0, self._next_fh, 0, 0, 0)
        parts: list[bytes | memoryview] = [base, (_MARK | crc32c(base)).to_bytes(8, "little")]
        log = self._log
        for at in self._places.values():
            parts.append(log[at * RECORD_BYTES : (at + 1) * RECORD_BYTES])
        self._places = {fh: at for at, fh in enumerate(self._places, start=1)}
        self._used = 1 + len(self._places)
        generation = self._words[_GENERATION] + 1
        self._select(generation)
        self._log_words[self._used * _WORDS + _SEAL] = 0
        self._log[: self._used * RECORD_BYTES] = b"".join(parts)
        self._words[_GENERATION] = generation

    def _select(self, generation: int) -> None:
        start = shm.PAGE_BYTES + (generation & 1) * self._half_bytes
        self._log = self._view[start : start + self._half_bytes]
        self._log_words = shm.words(self._log)

    def _format(self) -> None:
        shm.clear_header(self._view)
        self._words[_GENERATION] = 0
        self._select(0)
        self._log_words[_SEAL] = 0
        shm.write_header(self._view, MAGIC, VERSION, (self._half_bytes, 0, 0))

    def _load(self) -> None:
        while self._used <= self._records_max and (seal := self._log_words[self._used * _WORDS + _SEAL]):
            start = self._used * RECORD_BYTES
            raw = self._log[start : start + _RECORD.size]
            if seal != _MARK | crc32c(raw):
                raise Corrupt(f"open-file table: record {self._used} fails its checksum")
            flags, type_, kind, _, fh, ino, unique, epoch = _RECORD.unpack(raw)
            if type_ == OPEN:
                self._places[fh] = self._used
                self._remember(OpenFile(fh, ino, flags, kind, unique, epoch))
                self._next_fh = max(self._next_fh, fh + 1)
            elif type_ == CLOSE and fh in self._files:
                self._forget(fh)
            elif type_ == BASE:
                self._next_fh = max(self._next_fh, fh)
            else:
                raise FormatTooNew(f"open-file table: record {self._used} of type {type_}, handle {fh}; upgrade this node")
            self._used += 1

    def _remember(self, file: OpenFile) -> None:
        self._files[file.fh] = file
        if file.unique:
            self._uniques[file.unique] = file.fh
        self._counts[file.ino] = self._counts.get(file.ino, 0) + 1

    def _forget(self, fh: int) -> OpenFile:
        file = self._files.pop(fh)
        del self._places[fh]
        if self._uniques.get(file.unique) == fh:
            del self._uniques[file.unique]
        left = self._counts[file.ino] - 1
        if left:
            self._counts[file.ino] = left
        else:
            del self._counts[file.ino]
        return file
