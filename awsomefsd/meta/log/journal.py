"""The log on disk: append-only files, zero-written in advance, one pwrite and one fdatasync a batch.

Invariants.  Files are numbered without a gap; a file is created only after all of the one before is durable, so only the last one may
have a torn end.  Nothing is appended behind bytes that are not known: a torn end is overwritten with zeros before the first append.  Each
file begins with the hard state, so that dropping old files never drops term and vote.

A file is *written* with zeros, not only allocated: an fdatasync into unwritten blocks would also commit ext4's metadata.  The next file is
written on a background thread while the present one fills.

Crash windows.  Between the write of a batch and its sync: the batch may be there in part, and no request of it was answered; what is whole
at its front counts, the rest is torn (format.py says how damage is told from that).  Between the rename of a new file and the first sync in
it: an empty last file.  Between the rename of a file that resets the log and the end of the old files: recovery goes on removing them.  A
failed write or sync is final: the page cache may call a lost page clean, so a second fdatasync that succeeds proves nothing.  The process
dies and replays what the disk has.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from awsomefsd.base.errors import Corrupt, Error, Refused, Unavailable
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import JOURNAL_FILE_BYTES, MIB
from awsomefsd.meta.log import format as form
from awsomefsd.meta.log.disk import Disk, OsDisk
from awsomefsd.meta.log.terms import Terms

_SUFFIX = ".journal"
_SPARE = "spare"
_READ_BYTES = MIB
VOTE_BYTES_MAX = 128


def _name(number: int) -> str:
    return f"{number:012d}{_SUFFIX}"


class JournalFailed(Error):
    """A write or sync of the journal failed; this process must end and replay."""


class JournalFull(Unavailable):
    """The next file could not be prepared (disk full); nothing of the batch was written."""


class Dropped(Error):
    """The entry asked for is older than what the journal keeps."""


class _File:
    """One journal file: `offsets[i]` is where entry `first + i` starts."""

    __slots__ = ("end", "first", "number", "offsets", "path", "seed", "stated")

    def __init__(self, number: int, path: str, seed: int, first: int) -> None:
        self.number = number
        self.path = path
        self.seed = seed
        self.first = first
        self.end = form.HEADER_BYTES  # of its records; the last file's is in Journal._end
        self.offsets = array("I")
        self.stated = False  # holds a hard state

    def forget_after(self, index: int) -> None:
        del self.offsets[max(index + 1 - self.first, 0) :]
        self.first = min(self.first, index + 1)


class Journal:
    """The journal of one node.  Make one with `open`.

    One thread uses it (the metadata thread); only the preparation of the next file runs elsewhere.  Writes, syncs and reads block on the
    disk; after a failed one every call but `read` and `close` is an error of the caller.
    """

    def __init__(self, directory: str, disk: Disk, file_bytes: int, lock_fd: int) -> None:
        self._directory = directory
        self._disk = disk
        self._file_bytes = file_bytes
        self._lock_fd = lock_fd
        self._files: list[_File] = []
        self._fd = -1  # of the last file
        self._end = 0  # where the next record goes
        self._synced = 0  # up to here the last file is durable
        self._failed: BaseException | None = None
        self._spare: Callable[[], None] | None = None  # waits until the next file is prepared
        self._spare_error: BaseException | None = None
        self._closing = False
        self.cluster = self.node = self.incarnation = bytes(16)
        self.term = 0
        self.vote = b""
        self.last_index = 0
        self._terms = Terms(0, 0)
        self.torn = False  # recovery found a bad end that can be a torn write, or damage to the newest batch
        self.syncs = 0
        self.sync_ns = 0

    @classmethod
    def open(
        cls,
        directory: Path | str,
        cluster: bytes,
        node: bytes,
        *,
        create: bool,
        disk: Disk | None = None,
        file_bytes: int = JOURNAL_FILE_BYTES,
        incarnation: bytes = b"",
    ) -> Journal:
        """Recovers the journal, or (`create`, and no file there) begins one with a new incarnation.  Blocks for the whole of it.

        Raises Corrupt for damage and for a missing journal, FormatTooNew, Refused if another process has it or it is another cluster's,
        OSError.
        """
        directory = str(directory)
        disk = disk or OsDisk()
        try:
            self = cls(directory, disk, file_bytes, disk.lock(directory))
        except BlockingIOError as err:
            raise Refused(f"{directory}: another process uses this journal; stop it first") from err
        try:
            hit("journal.recover.before")
            self._recover(cluster, node, create, incarnation)
            hit("journal.recover.after")
        except BaseException:
            self.close()
            raise
        return self

    # --- recovery ------------------------------------------------------------------------------------------------------------
    def _recover(self, cluster: bytes, node: bytes, create: bool, incarnation: bytes) -> None:
        names = self._disk.names(self._directory)
        if _SPARE in names:
            self._disk.unlink(self._path(_SPARE))
        numbers = sorted(int(name[: -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX))
        if not numbers:
            if not create:
                raise Corrupt(
                    f"{self._directory}: the journal is gone, but its state store is there; restore the journal, or join as a new node"
                )
            self.cluster, self.node, self.incarnation = cluster, node, incarnation or os.urandom(16)
            self._prepare_spare()
            self._start_file(1, 0)
        elif numbers[-1] - numbers[0] != len(numbers) - 1:
            raise Corrupt(f"{self._directory}: a journal file between {numbers[0]} and {numbers[-1]} is missing")
        for number in self._remove_void(numbers):
            self._recover_file(number, cluster, node, number == numbers[-1])
        self._prepare_spare()

    def _remove_void(self, numbers: list[int]) -> list[int]:
        """Ends what a crash during `reset_to` left; returns the files that count."""
        for place in range(len(numbers) - 1, 0, -1):
            path = self._path(_name(numbers[place]))
            fd = self._disk.open(path, os.O_RDONLY)
            try:
                header, _ = form.unpack_header(self._disk.pread(fd, form.HEADER_BYTES, 0), path, writing=True)
            finally:
                self._disk.close(fd)
            if header.flags & form.RESET:
                self._unlink([self._path(_name(number)) for number in numbers[:place]])
                return numbers[place:]
        return numbers

    def _recover_file(self, number: int, cluster: bytes, node: bytes, newest: bool) -> None:
        path = self._path(_name(number))
        fd = self._disk.open(path, os.O_RDWR)
        try:
            raw = self._disk.pread(fd, self._disk.size(fd), 0)
            header, seed = form.unpack_header(raw, path, writing=True)
            self._check_identity(path, header, number, cluster, node)
            file = _File(number, path, seed, header.first_index)
            if not self._files:
                self._terms = Terms(header.first_index - 1, header.previous_term)
            self._files.append(file)
            self.last_index = header.first_index - 1
            file.end = end = self._walk(file, raw)
            self._check_tail(file, raw, end, newest)
            if newest:
                self._fd, self._end, self._synced = fd, end, end
                tail = len(form.without_zeros(raw, end))
                if tail:
                    self._write(bytes(tail), end)
                self._sync_file()  # what was read may never have been synced; it counts from now on
        finally:
            if self._fd != fd:
                self._disk.close(fd)

    def _check_identity(self, path: str, header: form.FileHeader, number: int, cluster: bytes, node: bytes) -> None:
        if header.cluster != cluster or header.node != node:
            raise Refused(f"{path}: belongs to cluster {header.cluster.hex()}, node {header.node.hex()}, not to this one")
        if header.number != number:
            raise Corrupt(f"{path}: says that it is file {header.number}")
        if self._files and (header.incarnation != self.incarnation or header.first_index != self.last_index + 1):
            raise Corrupt(f"{path}: begins with entry {header.first_index}, the file before ends with {self.last_index}")
        self.cluster, self.node, self.incarnation = cluster, node, header.incarnation

    def _walk(self, file: _File, raw: bytes) -> int:
        """Takes up the records; returns the offset behind the last valid one."""
        position = form.HEADER_BYTES
        offsets = file.offsets
        while (record := form.unpack_record(raw, position, file.seed, position)) is not None:
            if record.kind == form.ENTRY:
                if record.index != self.last_index + 1:
                    raise Corrupt(f"{file.path}: entry {record.index} at {position} follows entry {self.last_index}")
                offsets.append(position)
                self.last_index = record.index
                self._terms.append(record.index, record.term)
            elif record.kind == form.HARD_STATE:
                self.term, self.vote, file.stated = record.term, record.payload, True
            else:
                self._forget_after(record.index, record.term)
            position = record.end
        return position

    def _check_tail(self, file: _File, raw: bytes, end: int, newest: bool) -> None:
        if not form.without_zeros(raw, end):
            return
        if not newest:
            raise Corrupt(f"{file.path}: bad record at {end}, and a later file follows")
        proof = form.proof_of_damage(raw, end, file.seed)
        if proof is not None:
            raise Corrupt(f"{file.path}: bad record at {end}, which was durable when the record at {proof} was written")
        self.torn = True

    # --- files ---------------------------------------------------------------------------------------------------------------
    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _prepare_spare(self) -> None:
        self._spare = self._disk.beside(self._write_spare)

    def _write_spare(self) -> None:
        """Writes zeros, in pieces with a sync each: one sync of a whole file would delay the journal's own."""
        try:
            fd = self._disk.open(self._path(_SPARE), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                zeros = bytes(min(MIB, self._file_bytes))
                for offset in range(0, self._file_bytes, len(zeros)):
                    if self._closing:
                        return
                    self._disk.pwrite(fd, zeros[: self._file_bytes - offset], offset)
                    self._disk.fdatasync(fd)
            finally:
                self._disk.close(fd)
        except BaseException as err:
            self._spare_error = err

    def _take_spare(self) -> None:
        for attempt in (1, 2):
            assert self._spare is not None
            self._spare()
            if self._spare_error is None:
                return
            error, self._spare_error = self._spare_error, None
            self._prepare_spare()
            if attempt == 2:
                raise JournalFull(f"{self._directory}: no space for the next journal file: {error}") from error

    def _start_file(self, first: int, previous_term: int, flags: int = 0) -> None:
        """Makes the prepared file the last one; it exists only from the rename on, and then header and hard state are durable."""
        self._take_spare()
        number = self._files[-1].number + 1 if self._files else 1
        header = form.FileHeader(self.cluster, self.node, self.incarnation, number, first, previous_term=previous_term, flags=flags)
        block, seed = form.pack_header(header)
        state = form.pack_record(seed, form.HEADER_BYTES, form.HEADER_BYTES, form.HARD_STATE, 0, self.term, self.vote)
        path = self._path(_name(number))
        old = self._fd
        if self._files:
            self._files[-1].end = self._end
        try:
            fd = self._disk.open(self._path(_SPARE), os.O_RDWR)
        except OSError as err:  # no descriptor left: nothing has changed
            raise JournalFull(f"{self._directory}: the next journal file cannot be opened: {err}") from err
        try:
            self._disk.pwrite(fd, block + state, 0)
            self._disk.fdatasync(fd)
            hit("journal.file.before")
            self._disk.rename(self._path(_SPARE), path)
            hit("journal.file.named")
            self._disk.sync_directory(self._directory)
            hit("journal.file.after")
        except OSError as err:
            self._fail(err)
        self._files.append(_File(number, path, seed, first))
        self._files[-1].stated = True
        self._fd = fd
        self._end = self._synced = form.HEADER_BYTES + len(state)
        if old >= 0:
            self._disk.close(old)

    def _make_room(self, length: int) -> None:
        if self._end + length <= self._file_bytes:
            return
        state = form.record_bytes(len(self.vote))
        assert form.HEADER_BYTES + state + length <= self._file_bytes, "a batch fits a file"
        self.sync()
        self._start_file(self.last_index + 1, self._terms.of(self.last_index) or 0)
        self._prepare_spare()

    def _fail(self, err: BaseException) -> None:
        self._failed = err
        raise JournalFailed(f"{self._directory}: {err}") from err

    def _write(self, data: bytes, offset: int) -> None:
        try:
            self._disk.pwrite(self._fd, data, offset)
        except OSError as err:
            self._fail(err)

    def _put(self, kind: int, index: int, term: int, payload: bytes) -> None:
        file = self._files[-1]
        record = form.pack_record(file.seed, self._end, self._synced, kind, index, term, payload)
        self._write(record, self._end)
        self._end += len(record)
        file.stated = file.stated or kind == form.HARD_STATE

    # --- what the consensus uses ------------------------------------------------------------------------------------------
    @property
    def first_index(self) -> int:
        """The index of the oldest entry kept; last_index + 1 if there is none."""
        return self._files[0].first

    @property
    def size_bytes(self) -> int:
        """The bytes of all files, zeros included."""
        return len(self._files) * self._file_bytes

    @property
    def batch_bytes_max(self) -> int:
        """The bytes that the records of one `append` may take."""
        return self._file_bytes - form.HEADER_BYTES - form.record_bytes(VOTE_BYTES_MAX)

    def append(self, term: int, entries: Sequence[bytes]) -> None:
        """Writes entries last_index + 1, … of one term.  They count only after `sync`.

        Raises JournalFull (nothing was written, try again later) or JournalFailed.
        """
        assert self._failed is None, "a failed journal is not written again"
        self._make_room(sum(form.record_bytes(len(entry)) for entry in entries))
        file = self._files[-1]
        seed, synced, start = file.seed, self._synced, self._end
        end, index = start, self.last_index
        pieces = []
        places = array("I")
        for entry in entries:
            index += 1
            record = form.pack_record(seed, end, synced, form.ENTRY, index, term, entry)
            places.append(end)
            pieces.append(record)
            end += len(record)
        hit("journal.write.before")
        self._write(b"".join(pieces), start)
        hit("journal.write.after")
        file.offsets.extend(places)
        self._end, self.last_index = end, index
        self._terms.append(index, term)
        assert self._synced < self._end <= self._file_bytes and len(file.offsets) == index + 1 - file.first

    def sync(self) -> None:
        """Makes everything appended durable.  Raises JournalFailed, and then the journal cannot be used any more."""
        assert self._failed is None, "a failed journal is not written again"
        if self._synced != self._end:
            self._sync_file()

    def _sync_file(self) -> None:
        start = time.monotonic_ns()
        try:
            hit("journal.sync.before")
            self._disk.fdatasync(self._fd)
            hit("journal.sync.after")
        except OSError as err:
            self._fail(err)
        self._synced = self._end
        self.syncs += 1
        self.sync_ns += time.monotonic_ns() - start

    def set_hard_state(self, term: int, vote: bytes) -> None:
        """Stores term and vote, durable when this returns.  Raises JournalFull (nothing is changed) or JournalFailed."""
        assert term >= self.term and len(vote) <= VOTE_BYTES_MAX
        self._make_room(form.record_bytes(len(vote)))
        self._put(form.HARD_STATE, 0, term, vote)
        self.sync()
        self.term, self.vote = term, vote

    def term_of(self, index: int) -> int | None:
        """Returns the term of an entry that is kept, or of the one before the oldest; None for any other."""
        return self._terms.of(index)

    def truncate_after(self, index: int) -> None:
        """Removes entries > `index`, durably (a follower's that were never committed).

        Raises JournalFull (nothing is changed) or JournalFailed.
        """
        assert self.first_index - 1 <= index <= self.last_index
        self._make_room(form.RECORD_BYTES)
        term = self._terms.of(index)
        assert term is not None
        self._put(form.TRUNCATE, index, term, b"")
        self.sync()
        self._forget_after(index, term)

    def _forget_after(self, index: int, term: int) -> None:
        for file in self._files:
            file.forget_after(index)
        self.last_index = index
        assert self.first_index <= index + 1
        if index < self._terms.base:  # the first file begins behind it: the file before, which had it, is dropped
            self._terms = Terms(index, term)
        else:
            self._terms.truncate_after(index)

    def reset_to(self, index: int, term: int) -> None:
        """Removes all entries; the next one is `index` + 1: a state snapshot replaced the log up to `index`, which had `term`.

        After a crash it is the old log, whole, or the new one.  Term and vote stay.  Raises JournalFull (nothing is changed) or
        JournalFailed.
        """
        self.sync()
        self._start_file(index + 1, term, form.RESET)
        self._prepare_spare()
        old, self._files = self._files[:-1], self._files[-1:]
        self._terms = Terms(index, term)
        self.last_index = index
        self._unlink([file.path for file in old])

    def drop_before(self, index: int) -> None:
        """Removes whole files that have only entries < `index`; the last file stays.  Raises JournalFull or JournalFailed."""
        keep = 0
        while keep + 1 < len(self._files) and self._files[keep + 1].first <= index:
            keep += 1
        if not keep:
            return
        if not self._files[-1].stated:  # only after a crash between the start of a file and its first sync
            self._make_room(form.record_bytes(len(self.vote)))
            self._put(form.HARD_STATE, 0, self.term, self.vote)
        self.sync()
        hit("journal.drop.before")
        self._unlink([file.path for file in self._files[:keep]])
        hit("journal.drop.after")
        del self._files[:keep]
        self._terms.drop_before(self.first_index - 1)
        assert self.first_index <= index, "entries from `index` on are kept"

    def _unlink(self, paths: list[str]) -> None:
        try:
            for path in paths:  # oldest first: a crash in between leaves no gap
                self._disk.unlink(path)
            self._disk.sync_directory(self._directory)
        except OSError as err:
            self._fail(err)

    def read(self, index: int, count: int = 1 << 62, bytes_max: int = _READ_BYTES) -> list[bytes]:
        """Returns entries from `index` on: at most `count`, and about `bytes_max` bytes but at least one; [] behind the end.

        Raises Dropped for an entry before first_index, Corrupt for one that is not what was written, OSError.
        """
        if index < self.first_index:
            raise Dropped(f"entry {index} is not kept any more, the oldest is {self.first_index}")
        if index > self.last_index:
            return []
        file = next(file for file in reversed(self._files) if file.first <= index)
        start = index - file.first
        stop = min(start + count, len(file.offsets))
        begin = file.offsets[start]
        while stop - start > 1 and file.offsets[stop - 1] - begin > bytes_max:
            stop = start + max((stop - start) // 2, 1)
        end = file.offsets[stop] if stop < len(file.offsets) else (self._end if file is self._files[-1] else file.end)
        raw = self._read_range(file, begin, end)
        entries = []
        for number in range(start, stop):
            offset = file.offsets[number]
            record = form.unpack_record(raw, offset - begin, file.seed, offset)
            if record is None or record.index != file.first + number:
                raise Corrupt(f"{file.path}: bad record at {offset}, where entry {file.first + number} was written")
            entries.append(record.payload)
        return entries

    def _read_range(self, file: _File, begin: int, end: int) -> bytes:
        if file is self._files[-1]:
            return self._disk.pread(self._fd, end - begin, begin)
        fd = self._disk.open(file.path, os.O_RDONLY)
        try:
            return self._disk.pread(fd, end - begin, begin)
        finally:
            self._disk.close(fd)

    def close(self) -> None:
        """Closes the files.  Nothing is synced: what was acknowledged is durable already."""
        self._closing = True
        if self._spare is not None:
            self._spare()
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
        if self._lock_fd >= 0:
            self._disk.close(self._lock_fd)
            self._lock_fd = -1
