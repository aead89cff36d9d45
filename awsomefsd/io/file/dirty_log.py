"""The dirty log: the writes that write(2) acknowledged and no commit has made visible yet, in memory that outlives the worker.

A ring of operation records in shared memory.  *Positions* are virtual: they only grow, and position modulo capacity is the place.  Two
words say what is in the ring: ``tail <= head``; every record between them has a whole header, nothing outside them means anything.

Append, under the lock: sequence word, header with its checksum in the state RESERVED, then the head word, which publishes the record.
Outside the lock: payload, then one store of the last word, ``state DIRTY | payload checksum``, and the record counts.  Crash windows:

* before the head word: there is no record; its sequence number is skipped.
* RESERVED: write(2) was not answered and its slot executes again.  The header tells how far to skip, so a slow copy cannot hide a later
  record that is already acknowledged.  A successor makes it ABANDONED, not CLEAN: it must never pass for a write that was carried out
  when its request looks for it by `find_unique`.
* DIRTY: the worker that serves the mount then flushes it.

A record becomes CLEAN by one store, and the tail passes clean records in order by one store.  A kill between a commit and CLEAN makes a
successor flush the record again; the commit names log id and sequence, so the machine ignores what it has seen.  For that, sequences
are never used twice in a log, not even when the ring was clean and wrapped: the next one has a word of its own.

When all is clean, the next record starts at the beginning of the ring (tail moves first, then head; tail > head reads as empty): the
same warm pages are used again and an idle mount stays small.  Records are contiguous; one that does not fit before the end of the ring
is preceded by a PAD.  Payloads from ALIGN_FROM_BYTES on start on a page, so that O_DIRECT can write straight from the ring.

A write is carried out once, whoever dies.  The tail does not pass a record before `answered` was called for the request that made it,
although it may be clean long before: a successor that executes the request again finds the record by `find_unique`, and an append is not
put behind itself, nor over what another node has written since.  What is not answered is known to the worker that reads requests; its
successor names those that it found (`recover`).  So the tail waits for requests that are being executed, and these never wait for room:
they have their record.

On a volume that several nodes share, a record names the write lease under which it was buffered: the epoch of the session that had it, the
lease's epoch, and how many changes of the file were known with it (meta/machine/write_leases.py).  That is version 2 of a record: 28 bytes
behind the state word, with a checksum of their own, so that a build which knows version 1 only finds a whole header and refuses it by its
version.
The newest record of a file counts for all of its older ones: data that stays dirty under another lease gets an empty record that names it.

Rejected: one checksum over everything, stored last (a record being copied would end the scan before acknowledged later ones); scanning
for the end of the log instead of a head word (payload is user data, it may look like a header).
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from crc32c import crc32c

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import DIRTY_RECALL_BYTES, MIB

MAGIC = b"awsmdirt"
VERSION = 1  # of the area
RECORD_VERSION, RECORD_VERSION_LEASE = 1, 2
ALIGN_FROM_BYTES = 64 * 1024
HEADER_BYTES = 128  # of a record; also the unit of positions
RECORD_MAGIC = 0x4459
LIMIT_BYTES_MIN = DIRTY_RECALL_BYTES + 12 * MIB  # a few of the largest writes
RELEASE_STEP_BYTES = 2 * MIB

KIND_PAD, KIND_WRITE = 0, 1  # TRUNCATE, PUNCH and ATTRS come with a new VERSION
RESERVED, DIRTY, CLEAN, ABANDONED = range(4)  # the last two: the tail may pass

_TAIL, _HEAD, _SEQUENCE = 8, 9, 10  # words of page 0
# magic, kind, version, generation | sequence | position | ino | offset | unique | time_ns | length, payload delta | span; then the crc
_HEADER = struct.Struct("<HBBIQQQQQqIII")
TIME_NS_MIN, TIME_NS_MAX = -(1 << 63), (1 << 63) - 1  # of a record: the years 1677 to 2262
_SUM = struct.Struct("<I")
_SUMMED_BYTES = _HEADER.size
_STATE_WORD = 9  # of a record: state, payload checksum
_LEASE = struct.Struct("<QQQ")  # version 2, behind the state word: epoch of the session, of the lease, changes known; then the crc
_LEASE_AT = (_STATE_WORD + 1) * 8

assert _SUMMED_BYTES + _SUM.size == _STATE_WORD * 8 and _LEASE_AT + _LEASE.size + _SUM.size <= HEADER_BYTES


class LeaseToken(NamedTuple):
    """The fencing token of a record: the write lease under which it was buffered; all 0: the mount has its volume for itself."""

    session: int = 0  # its epoch
    lease: int = 0  # epoch
    known: int = 0  # changes of the file that were known with it


ALONE = LeaseToken()


def required_bytes(capacity: int) -> int:
    """Returns the size of the memfd for a ring of `capacity` bytes."""
    return shm.PAGE_BYTES + shm.round_up(capacity, shm.PAGE_BYTES)


class DirtyCorrupt(Corrupt):
    """A dirty record whose bytes are not those that were written.  ino is 0 if not even its header can be read."""

    def __init__(self, detail: str, record: DirtyRecord, sequence: int = 0, ino: int = 0, offset: int = 0, length: int = 0) -> None:
        super().__init__(f"dirty log: {detail} (sequence={sequence} ino={ino} offset={offset} length={length})")
        self.sequence, self.ino, self.offset, self.length = sequence, ino, offset, length
        self.record = record


_NOTHING = memoryview(b"")


class DirtyRecord:
    """One operation.  `data` may be read until the record is marked clean; later its place is used again.

    `word` is the index of its state word in the ring.  Only the log changes `state`.
    """

    __slots__ = (
        "_state", "_word", "data", "generation", "ino", "kind", "length", "offset", "position", "sequence", "span", "time_ns", "token",
        "unique",
    )  # fmt: skip

    def __init__(
        self,
        kind: int,
        sequence: int,
        position: int,
        span: int,
        word: int,
        state: int,
        data: memoryview = _NOTHING,
        ino: int = 0,
        offset: int = 0,
        length: int = 0,
        unique: int = 0,
        time_ns: int = 0,
        generation: int = 0,
        token: LeaseToken = ALONE,
    ) -> None:
        self.kind = kind
        self.sequence = sequence
        self.position = position
        self.span = span
        self.ino = ino
        self.offset = offset
        self.length = length
        self.unique = unique
        self.time_ns = time_ns
        self.generation = generation
        self.token = token
        self.data = data
        self._word = word
        self._state = state

    @property
    def is_dirty(self) -> bool:
        return self._state == DIRTY

    def __repr__(self) -> str:
        state = ("reserved", "dirty", "clean", "abandoned")[self._state]
        return f"Record({state} sequence={self.sequence} ino={self.ino} offset={self.offset} length={self.length})"


class DirtyLog:
    """The dirty log of one mount.  Thread-safe; no method waits.

    `fresh` formats the area; so does an area without header (a worker died while it formatted).  Otherwise `log_id` must be the id it
    was formatted with, and `recover` is to be called before the first append.  `recall_bytes` stay free for `recall=True`.
    The constructor raises Corrupt and FormatTooNew for an area that it cannot read.
    """

    def __init__(self, mem: shm.Mem, log_id: int, fresh: bool = False, *, recall_bytes: int = DIRTY_RECALL_BYTES) -> None:
        self._mem = mem
        self._view = shm.bytes_view(mem)
        self._words = shm.words(self._view)
        self.log_id = log_id
        self.capacity = (len(self._view) - shm.PAGE_BYTES) // shm.PAGE_BYTES * shm.PAGE_BYTES
        if self.capacity <= recall_bytes:
            raise Corrupt(f"dirty log: {len(self._view)} bytes are too few")
        self._ring = self._view[shm.PAGE_BYTES : shm.PAGE_BYTES + self.capacity]
        self._ring_words = shm.words(self._ring)
        self._recall_bytes = recall_bytes
        self._limit_bytes = self.capacity
        self._released = 0  # where a bound ring has given back the pages of what the tail has passed
        self._lock = threading.Lock()
        self._seed = 0
        self._live: deque[DirtyRecord] = deque()  # tail to head, pads too
        self._uniques: dict[int, DirtyRecord] | None = None
        self._unanswered: set[int] = set()  # requests that have a record and no answer yet: the tail does not pass theirs
        self._dirty_bytes = 0
        self._touched = self.capacity  # the part of the ring, from its start, that may hold pages
        self.lost: list[DirtyCorrupt] = []  # records whose header cannot be read
        self.corrupt: list[DirtyCorrupt] = []  # set by recover(): these and the ones whose payload fails its checksum
        self.formatted = self._open(fresh)
        self._tail, self._head, self._sequence = (self._words[at] for at in (_TAIL, _HEAD, _SEQUENCE))
        self._walk()

    # --- what is in it ---------------------------------------------------------------------------------------------------

    @property
    def dirty_bytes(self) -> int:
        """The payload bytes of dirty records."""
        return self._dirty_bytes

    @property
    def used_bytes(self) -> int:
        """The bytes of the ring between tail and head."""
        return self._head - self._tail

    @property
    def last_sequence(self) -> int:
        """The newest sequence that was given out; 0 before the first."""
        return self._sequence - 1

    def find_unique(self, unique: int) -> DirtyRecord | None:
        """Returns the record that this request made, if it is still known, else None; between recover and forget_uniques an index finds it.

        It may be clean, and then its `data` is not to be read.
        """
        with self._lock:
            if self._uniques is not None:
                return self._uniques.get(unique)
            return next((r for r in self._live if r.kind == KIND_WRITE and r.unique == unique and r._state in (DIRTY, CLEAN)), None)

    def forget_uniques(self) -> None:
        """Drops the index: recovery is over."""
        with self._lock:
            self._uniques = None

    # --- append ------------------------------------------------------------------------------------------------------------

    def append_write(
        self, ino: int, offset: int, data: memoryview | bytes, unique: int, time_ns: int, generation: int, *, recall: bool = False,
        token: LeaseToken = ALONE,
    ) -> DirtyRecord | None:  # fmt: skip
        """Stores a write and returns its record: from then on the bytes survive this process.  Returns None if there is no room now.

        A time beyond what a record can say becomes the nearest that it can.  Raises ValueError for data that this ring can never hold.
        """
        length = len(data)
        checksum = crc32c(data)
        time_ns = min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)
        with self._lock:
            record = self._reserve(KIND_WRITE, ino, offset, length, unique, time_ns, generation, recall, token)
        if record is None:
            return None
        try:
            record.data[:] = data
        except BaseException:  # RESERVED for ever would keep the tail where it is
            self.mark_clean((record,))
            raise
        with self._lock:
            record._state = DIRTY
            self._dirty_bytes += length
            self._ring_words[record._word] = DIRTY | checksum << 32
            if unique:
                self._unanswered.add(unique)
            if self._uniques is not None and unique:
                self._uniques.setdefault(unique, record)
        return record

    def _reserve(
        self, kind: int, ino: int, offset: int, length: int, unique: int, time_ns: int, generation: int, recall: bool,
        token: LeaseToken = ALONE,
    ) -> DirtyRecord | None:  # fmt: skip
        """Finds a place and publishes a header in the state RESERVED (called with the lock)."""
        if self._head == self._tail and self._head % self.capacity:
            self._restart()
        head = self._head
        place = head % self.capacity
        delta, span = _extent(place, length)
        pad = 0
        if place + span > self.capacity:
            pad = self.capacity - place
            delta, span = _extent(0, length)
        if head + pad + span - self._tail > self._limit_bytes - (0 if recall else self._recall_bytes):
            if span > self.capacity - self._recall_bytes:
                raise ValueError(f"{length} bytes never fit a dirty log of {self.capacity}")
            return None
        sequence = self._sequence
        filler = None
        if pad:
            filler = DirtyRecord(KIND_PAD, sequence, head, pad, _word_at(place), CLEAN)
            head += pad
            place = 0
        data = self._ring[place + delta : place + delta + length]
        record = DirtyRecord(
            kind, sequence, head, span, _word_at(place), RESERVED, data, ino, offset, length, unique, time_ns, generation, token
        )
        header = self._header(record, delta)  # raises before anything has changed
        self._sequence = self._words[_SEQUENCE] = sequence + 1
        if filler is not None:
            self._write_header(filler, *self._header(filler, HEADER_BYTES))
            self._live.append(filler)
        self._write_header(record, *header)
        self._live.append(record)
        self._head = self._words[_HEAD] = head + span  # pad and record exist from here on
        if self._touched < self.capacity:
            self._touched = max(self._touched, self.capacity if pad else head % self.capacity + span)
        return record

    def _restart(self) -> None:
        """Continues at the start of the ring, whose pages are in memory already: all is clean (called with the lock)."""
        start = shm.round_up(self._head, self.capacity)
        self._tail = self._words[_TAIL] = start
        self._head = self._words[_HEAD] = start

    def _header(self, record: DirtyRecord, delta: int) -> tuple[bytes, bytes]:
        """Returns what stands before the state word of a record, and what behind it.  Raises struct.error for what no record can say."""
        version = RECORD_VERSION_LEASE if record.token.lease else RECORD_VERSION
        head = _HEADER.pack(
            RECORD_MAGIC, record.kind, version, record.generation, record.sequence, record.position, record.ino, record.offset,
            record.unique, record.time_ns, record.length, delta, record.span,
        )  # fmt: skip
        head += _SUM.pack(crc32c(head, self._seed))
        if version < RECORD_VERSION_LEASE:
            return head, b""
        lease = _LEASE.pack(*record.token)
        return head, lease + _SUM.pack(crc32c(lease, self._seed))

    def _write_header(self, record: DirtyRecord, head: bytes, lease: bytes) -> None:
        place = record.position % self.capacity
        self._ring_words[record._word] = record._state
        self._ring[place : place + len(head)] = head
        if lease:
            self._ring[place + _LEASE_AT : place + _LEASE_AT + len(lease)] = lease

    # --- the way out -------------------------------------------------------------------------------------------------------

    def mark_clean(self, records: Iterable[DirtyRecord]) -> None:
        """Marks records that need not be flushed (again): committed, or cut off by a truncation.

        Their places may be used again at once.
        """
        with self._lock:
            for record in records:
                if record._state == DIRTY:
                    self._dirty_bytes -= record.length
                    self._set_state(record, CLEAN)
                elif record._state == RESERVED:
                    self._set_state(record, ABANDONED)
            self._advance()

    def answered(self, unique: int) -> None:
        """Notes that the answer of this request is sent, or stored for a successor to send: it is never executed again."""
        if unique not in self._unanswered:  # most requests make no record
            return
        with self._lock:
            self._unanswered.discard(unique)
            self._advance()

    def _set_state(self, record: DirtyRecord, state: int) -> None:
        record._state = state
        self._ring_words[record._word] = state

    def _advance(self) -> None:
        """Moves the tail over clean records whose requests are answered (called with the lock)."""
        live = self._live
        tail = self._tail
        while live and live[0]._state >= CLEAN and live[0].unique not in self._unanswered:
            record = live.popleft()
            tail = record.position + record.span
        if tail != self._tail:
            self._tail = self._words[_TAIL] = tail
            if self._limit_bytes < self.capacity:
                self._release_passed()

    def bound(self, limit_bytes: int) -> None:
        """Uses no more than `limit_bytes` of the ring from now on, at least LIMIT_BYTES_MIN: pages that the tail passes are given back."""
        with self._lock:
            self._released = max(self._released, self._tail)
            self._limit_bytes = min(max(limit_bytes, LIMIT_BYTES_MIN), self.capacity)

    def _release_passed(self) -> None:
        """Gives back pages in large steps, since each costs a system call (called with the lock); none whose place is in use again."""
        start = max(self._released, self._head - self.capacity)
        if self._tail - start < RELEASE_STEP_BYTES:
            return
        self._released = self._tail
        first, length = start % self.capacity, self._tail - start
        for at, size in ((first, min(length, self.capacity - first)), (0, first + length - self.capacity)):
            if size > 0:
                shm.release_pages(self._mem, shm.PAGE_BYTES + at, size)

    def release_pages(self) -> bool:
        """Gives the memory of the ring back if the log is wholly clean, and returns whether it was; for an idle mount."""
        with self._lock:
            if self._head != self._tail:
                return False
            if self._touched:
                shm.release_pages(self._mem, shm.PAGE_BYTES, self._touched)
                self._touched = 0
        return True

    # --- after a crash -----------------------------------------------------------------------------------------------------

    def recover(self, unanswered: Iterable[int] = ()) -> list[DirtyRecord]:
        """Returns the dirty records in the order of their sequence.  `unanswered`: requests that are going to be executed again.

        Those whose payload fails its checksum are left out and reported in `corrupt`.  They keep their place until they are marked clean
        (`error.record`), so that a successor finds them again if this worker dies before it has reported them.
        """
        whole: list[DirtyRecord] = []
        self.corrupt = list(self.lost)
        uniques: dict[int, DirtyRecord] = {}
        with self._lock:
            live = [record for record in self._live if record.kind == KIND_WRITE]
        for record in live:
            if record._state == DIRTY:
                if crc32c(record.data) != self._ring_words[record._word] >> 32:
                    r = record
                    self.corrupt.append(DirtyCorrupt("payload fails its checksum", r, r.sequence, r.ino, r.offset, r.length))
                    continue
                whole.append(record)
            if record.unique and record._state != ABANDONED:
                uniques.setdefault(record.unique, record)
        with self._lock:
            self._uniques = uniques
            self._unanswered = uniques.keys() & set(unanswered)
            self._advance()
        return whole

    def _open(self, fresh: bool) -> bool:
        """Checks or writes the header of the area; returns True if it was formatted."""
        self._seed = crc32c(self.log_id.to_bytes(8, "little"))
        found = shm.read_header(self._view, MAGIC, VERSION, "dirty log") if not fresh else None
        if found is not None:
            if found != (self.log_id, self.capacity, 0):
                raise Corrupt(f"dirty log: id {found[0]} of {found[1]} bytes, expected {self.log_id} of {self.capacity}")
            return False
        shm.clear_header(self._view)
        self._words[_TAIL] = self._words[_HEAD] = 0
        self._words[_SEQUENCE] = 1
        shm.write_header(self._view, MAGIC, VERSION, (self.log_id, self.capacity, 0))
        return True

    def _walk(self) -> None:
        """Reads the headers from tail to head.  A RESERVED record belongs to a dead worker and is abandoned."""
        if self._tail > self._head:  # died inside _restart
            self._head = self._words[_HEAD] = self._tail
        if self._sequence >> 62 or self._head >> 62 or self._head - self._tail > self.capacity or (self._head | self._tail) % HEADER_BYTES:
            raise Corrupt(f"dirty log: tail {self._tail} and head {self._head} of {self.capacity} bytes, sequence {self._sequence}")
        position = self._tail
        while position < self._head:
            record = self._parse(position) or self._resync(position)
            if record._state == RESERVED:
                self._set_state(record, ABANDONED)
            if record._state == DIRTY:
                self._dirty_bytes += record.length
            self._sequence = max(self._sequence, record.sequence + 1)
            self._live.append(record)
            position += record.span

    def _parse(self, position: int) -> DirtyRecord | None:
        """Returns the record at this position, None if there is no whole header of ours."""
        place = position % self.capacity
        raw = self._ring[place : place + _SUMMED_BYTES + _SUM.size]
        if crc32c(raw[:_SUMMED_BYTES], self._seed) != _SUM.unpack_from(raw, _SUMMED_BYTES)[0]:
            return None
        fields = _HEADER.unpack_from(raw)
        magic, kind, version, generation, sequence, at, ino, offset, unique, time_ns, length, delta, span = fields
        if magic != RECORD_MAGIC or at != position:
            return None
        if version > RECORD_VERSION_LEASE or kind not in (KIND_PAD, KIND_WRITE):
            raise FormatTooNew(f"dirty log: record of version {version}, kind {kind}; upgrade this node")
        state = self._ring_words[_word_at(place)] & shm.U32
        fits = HEADER_BYTES <= delta <= span and delta + length <= span and span % HEADER_BYTES == 0
        if state > ABANDONED or not fits or place + span > self.capacity or position + span > self._head:
            return None
        token = ALONE
        if version >= RECORD_VERSION_LEASE:
            raw = self._ring[place + _LEASE_AT : place + _LEASE_AT + _LEASE.size + _SUM.size]
            if crc32c(raw[: _LEASE.size], self._seed) != _SUM.unpack_from(raw, _LEASE.size)[0]:
                return None
            token = LeaseToken(*_LEASE.unpack_from(raw))
        data = self._ring[place + delta : place + delta + length]
        return DirtyRecord(
            kind, sequence, position, span, _word_at(place), state, data, ino, offset, length, unique, time_ns, generation, token
        )

    def _resync(self, position: int) -> DirtyRecord:
        """Returns one placeholder for a damaged header, up to the next whole one, and adds it to `lost`, so that later records are not lost
        too.
        """
        at = position + HEADER_BYTES
        while at < self._head and self._parse(at) is None:
            at += HEADER_BYTES
        gap = DirtyRecord(KIND_PAD, 0, position, at - position, _word_at(position % self.capacity), DIRTY)
        self.lost.append(DirtyCorrupt(f"record header damaged, {gap.span} bytes skipped", gap))
        return gap


def _word_at(place: int) -> int:
    """The index of the state word of the record whose header is at `place` in the ring."""
    return place // 8 + _STATE_WORD


def _extent(place: int, length: int) -> tuple[int, int]:
    """Returns (payload delta, span) of a record of `length` bytes whose header is at `place` in the ring."""
    delta = HEADER_BYTES
    if length >= ALIGN_FROM_BYTES:
        delta = shm.round_up(place + HEADER_BYTES, shm.PAGE_BYTES) - place
    return delta, shm.round_up(delta + length, HEADER_BYTES)
