"""The open-file table: file handles that mean the same to a successor worker as to the one that gave them out.

An append-only log of fixed records in shared memory (OPEN, CLOSE, BASE, ORPHAN, ENDED), and dicts beside it for speed.  A record is 40
bytes and then a seal word (mark and crc32c) whose store makes it count; the seal of the *next* record is zeroed before that, so that the
log always ends at a zero seal and old records of an earlier lap can never follow.  A kill leaves a record or its absence.  An OPEN that is
absent was not answered, it is executed again; one that is there is found by its request's unique and gives the same handle.

There are two halves.  When the log holds more closed records than open ones (plus a slack), or is full, the open ones are copied to the
other half, behind a BASE record with the next handle, and one store of the generation word makes that half the log (generation & 1).
So handles are never reused in a mount, not even the highest one that was closed before a compaction.

OPEN carries the epoch of the session; a session that replaces another opens again, in the log, what goes on under it (`renew`).  What keeps
an older epoch lost its session and answers EIO until closed, in this worker and in every successor (`take_over`).

ORPHAN names an inode without names whose last handle was closed: a request that nobody waits for ends it, and ENDED says that it is
answered.  A worker that dies in between leaves ORPHAN to its successor, who asks again (`orphans`).

Rejected: a table with a slot per handle (its free list would have to be recovered, and handles would be reused).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from crc32c import crc32c

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FormatTooNew, FsError
from awsomefsd.base.limits import OPEN_FILES_MAX

MAGIC = b"awsmopen"
VERSION = 1
KIND_FILE, KIND_DIRECTORY = 0, 1
RECORD_BYTES = 48
SLACK_RECORDS = 1024  # closed records that do not yet make a compaction worth while

OPEN, CLOSE, BASE, ORPHAN, ENDED = 1, 2, 3, 4, 5
LOST = shm.U64  # an epoch that no session has
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
        self._orphans: dict[int, None] = {}  # in the order of their last closes
        self.epoch = 0  # of the session that new handles belong to
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

    def open(self, ino: int, flags: int, unique: int, kind: int | None = None) -> int:
        """A handle; the same one again for a `unique` (not 0) that has opened already.  O_DIRECTORY in `flags` makes it KIND_DIRECTORY.

        Raises FsError(ENFILE) at files_max.
        """
        if kind is None:
            kind = KIND_DIRECTORY if flags & os.O_DIRECTORY else KIND_FILE
        with self._lock:
            known = self._uniques.get(unique)
            if known is not None:
                return known
            self._check_room()
            fh, epoch = self._next_fh, self.epoch
            self._next_fh = fh + 1
            self._append(_RECORD.pack(flags & shm.U32, OPEN, kind, 0, fh, ino, unique, epoch))
            self._places[fh] = self._used - 1
            self._remember(OpenFile(fh, ino, flags, kind, unique, epoch))
            return fh

    def check_room(self, unique: int) -> None:
        """Raises FsError(ENFILE) before a file is made that is to be opened, as `open` would, unless this request has opened already."""
        if unique not in self._uniques:
            self._check_room()

    def _check_room(self) -> None:
        if len(self._files) >= self.files_max:
            raise FsError(errno.ENFILE, f"{self.files_max} files are open in this mount")

    def renew(self, epoch: int, goes_on: Callable[[OpenFile], bool]) -> set[int]:
        """Another session: handles that go on belong to it, and those opened from now on.  Returns the others, which are lost."""
        with self._lock:
            self.epoch = epoch
            lost = set()
            for file in list(self._files.values()):
                if goes_on(file):
                    self._open_again(file, epoch)
                else:
                    lost.add(file.fh)
                    if file.epoch in (0, epoch):
                        self._open_again(file, LOST)
        return lost

    def lose(self, inos: set[int]) -> set[int]:
        """Marks the handles of these files lost, under this session: what was buffered is gone for them.  Returns them."""
        with self._lock:
            lost = [file for file in self._files.values() if file.ino in inos]
            for file in lost:
                if file.epoch != LOST:
                    self._open_again(file, LOST)
        return {file.fh for file in lost}

    def _open_again(self, file: OpenFile, epoch: int) -> None:
        fh, ino, flags, kind, unique, _ = file
        self._append(_RECORD.pack(flags & shm.U32, OPEN, kind, 0, fh, ino, unique, epoch))
        self._places[fh] = self._used - 1
        self._files[fh] = file._replace(epoch=epoch)

    def take_over(self, epoch: int) -> set[int]:
        """A worker begins under the session with this epoch: handles that are opened from now on belong to it.

        Returns the handles of another session, which are lost; those that never had one are nobody's loss.
        """
        with self._lock:
            self.epoch = epoch
            return {file.fh for file in self._files.values() if file.epoch and file.epoch != self.epoch}

    def orphaned(self, ino: int) -> None:
        """Its last handle is closed, and somebody is to be told."""
        with self._lock:
            if len(self._files) + len(self._orphans) >= self._records_max * 3 // 4:
                return  # it ends with the session at the latest
            self._orphans[ino] = None
            self._append(_RECORD.pack(0, ORPHAN, 0, 0, 0, ino, 0, 0))

    def orphan_ended(self, ino: int) -> None:
        """Told, and answered."""
        with self._lock:
            if ino in self._orphans:
                self._append(_RECORD.pack(0, ENDED, 0, 0, 0, ino, 0, 0))
                del self._orphans[ino]

    def orphans(self) -> list[int]:
        """Inodes of which nobody may have been told yet."""
        with self._lock:
            return list(self._orphans)

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
        if self._used >= self._records_max or self._used > 2 * (len(self._files) + len(self._orphans)) + SLACK_RECORDS:
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
        for ino in self._orphans:
            orphan = _RECORD.pack(0, ORPHAN, 0, 0, 0, ino, 0, 0)
            parts += [orphan, (_MARK | crc32c(orphan)).to_bytes(8, "little")]
        self._places = {fh: at for at, fh in enumerate(self._places, start=1)}
        self._used = 1 + len(self._places) + len(self._orphans)
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
                if fh in self._files:  # it goes on under another session
                    self._forget(fh)
                self._places[fh] = self._used
                self._remember(OpenFile(fh, ino, flags, kind, unique, epoch))
                self._next_fh = max(self._next_fh, fh + 1)
            elif type_ == CLOSE and fh in self._files:
                self._forget(fh)
            elif type_ == BASE:
                self._next_fh = max(self._next_fh, fh)
            elif type_ == ORPHAN:
                self._orphans[ino] = None
            elif type_ == ENDED:
                self._orphans.pop(ino, None)
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
