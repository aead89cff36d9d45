"""A ring of operation records in shared memory: the mechanics that the dirty log (dirty_log.py) and the op log (op_log.py) have in common.

*Positions* are virtual: they only grow, and position modulo capacity is the place.  Two words say what is in the ring: ``tail <= head``;
every record between them has a whole header, nothing outside them means anything.

A record is stored in this order: sequence word, header with its checksum in the state RESERVED, then the head word, which publishes the
record; then payload, then one store of the last word, ``state DIRTY | payload checksum``.  Crash windows:

* before the head word: there is no record; its sequence number is skipped.
* RESERVED: the request was not answered, and its slot executes again.  The header tells how far to skip, so a slow copy cannot hide a later
  record that is already acknowledged.  A successor makes it ABANDONED, not CLEAN: it must never pass for an operation that was carried out.
* DIRTY: the worker that serves the mount then goes on with it.

A record becomes CLEAN by one store, and the tail passes clean records in order by one store.

When all is clean, the next record starts at the beginning of the ring (tail moves first, then head; tail > head reads as empty): the
same warm pages are used again and an idle mount stays small.  Records are contiguous; one that does not fit before the end of the ring
is preceded by a PAD.  Payloads from ALIGN_FROM_BYTES on start on a page, so that O_DIRECT can write straight from the ring.

Sequences are never used twice in a log, not even when the ring was clean and wrapped: the next one has a word of its own, in the area of
the dirty log.  Both rings of a mount draw from it, so that one order covers names and data.

What memory has damaged is told, and never skipped silently: a header that fails its checksum becomes a placeholder up to the next whole
one, and a state word that was not written by us counts as DIRTY, so that the checksum of the payload decides.

Rejected: one checksum over everything, stored last (a record being copied would end the scan before acknowledged later ones); scanning
for the end of the log instead of a head word (payload is user data, it may look like a header).
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Container
from typing import NamedTuple

from crc32c import crc32c

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import MIB

RECORD_VERSION, RECORD_VERSION_LEASE, RECORD_VERSION_OP = 1, 2, 3
ALIGN_FROM_BYTES = 64 * 1024
HEADER_BYTES = 128  # of a record; also the unit of positions
RECORD_MAGIC = 0x4459
RELEASE_STEP_BYTES = 2 * MIB

KIND_PAD, KIND_WRITE, KIND_OP = 0, 1, 2
RESERVED, DIRTY, CLEAN, ABANDONED, ASIDE = range(5)  # the tail passes CLEAN and ABANDONED; ASIDE: of the op log only

_TAIL, _HEAD, _SEQUENCE = 8, 9, 10  # words of page 0
# magic, kind, version, generation | sequence | position | ino | offset | unique | time_ns | length, payload delta | span; then the crc
_HEADER = struct.Struct("<HBBIQQQQQqIII")
TIME_NS_MIN, TIME_NS_MAX = -(1 << 63), (1 << 63) - 1  # of a record: the years 1677 to 2262
_SUM = struct.Struct("<I")
_SUMMED_BYTES = _HEADER.size
_STATE_WORD = 9  # of a record: state, payload checksum
_LEASE = struct.Struct("<QQQ")  # version 2, behind the state word: epoch of the session, of the lease, changes known; then the crc
_LEASE_AT = (_STATE_WORD + 1) * 8
_NOTHING = memoryview(b"")

assert _SUMMED_BYTES + _SUM.size == _STATE_WORD * 8 and _LEASE_AT + _LEASE.size + _SUM.size <= HEADER_BYTES


class RingArea(NamedTuple):
    """What tells the rings of a mount apart."""

    name: str  # in messages
    magic: bytes
    version: int  # that a fresh area gets
    version_max: int  # of the area, that this build reads
    kind: int  # of its records, beside PAD
    record_version_max: int


class LeaseToken(NamedTuple):
    """The fencing token of a record: the write lease under which it was buffered; all 0: the mount has its volume for itself."""

    session: int = 0  # its epoch
    lease: int = 0  # epoch
    known: int = 0  # changes of the file that were known with it


ALONE = LeaseToken()


def required_bytes(capacity: int) -> int:
    """Returns the size of the memfd for a ring of `capacity` bytes."""
    return shm.PAGE_BYTES + shm.round_up(capacity, shm.PAGE_BYTES)


class Sequences:
    """The sequence word of a mount.  Thread-safe; its lock is taken inside that of a ring, never around one."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._lock = threading.Lock()
        self._next = int(words[_SEQUENCE])
        if self._next >> 62:
            raise Corrupt(f"dirty log: sequence {self._next}")

    def take(self) -> int:
        """Returns the next sequence; once it is in shared memory, no successor gives it out again."""
        with self._lock:
            sequence = self._next
            self._next = self._words[_SEQUENCE] = sequence + 1
        return sequence

    def pass_over(self, sequence: int) -> None:
        """Never gives out this sequence, nor one below it: a record has it."""
        with self._lock:
            self._next = max(self._next, sequence + 1)

    @property
    def last(self) -> int:
        """The newest sequence that was given out; 0 before the first."""
        return self._next - 1


class RingRecord:
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

    @property
    def state(self) -> int:
        return self._state

    def __repr__(self) -> str:
        state = ("reserved", "dirty", "clean", "abandoned", "aside")[self._state]
        return f"Record({state} sequence={self.sequence} ino={self.ino} offset={self.offset} length={self.length})"


class RecordRing:
    """The ring of one area.  Its owner holds `lock` around every method but the constructor; no method waits.

    `fresh` formats the area; so does an area without header (a worker died while it formatted).  Otherwise `log_id` must be the id it
    was formatted with.  `recall_bytes` stay free for `recall=True`.  Without `sequences` the ring has the sequence word of the mount.
    The constructor raises Corrupt and FormatTooNew for an area that it cannot read.
    """

    def __init__(
        self, mem: shm.Mem, area: RingArea, log_id: int, fresh: bool, recall_bytes: int, limit_bytes_min: int,
        sequences: Sequences | None = None,
    ) -> None:  # fmt: skip
        self._mem = mem
        self.area = area
        self.view = shm.bytes_view(mem)
        self._words = shm.words(self.view)
        self.log_id = log_id
        self.capacity = (len(self.view) - shm.PAGE_BYTES) // shm.PAGE_BYTES * shm.PAGE_BYTES
        if self.capacity <= recall_bytes:
            raise Corrupt(f"{area.name}: {len(self.view)} bytes are too few")
        self._ring = self.view[shm.PAGE_BYTES : shm.PAGE_BYTES + self.capacity]
        self._ring_words = shm.words(self._ring)
        self._recall_bytes = recall_bytes
        self._limit_bytes_min = limit_bytes_min
        self._limit_bytes = self.capacity
        self._released = 0  # where a bound ring has given back the pages of what the tail has passed
        self.lock = threading.Lock()
        self._seed = crc32c(log_id.to_bytes(8, "little"))
        self.live: deque[RingRecord] = deque()  # tail to head, pads too
        self._touched = self.capacity  # the part of the ring, from its start, that may hold pages
        self.damaged: list[RingRecord] = []  # placeholders of headers that cannot be read; they are in `live`, too
        self.formatted = self._open(fresh)
        self.sequences = sequences or Sequences(self._words)
        self.tail, self.head = int(self._words[_TAIL]), int(self._words[_HEAD])
        self._walk()

    @property
    def used_bytes(self) -> int:
        """The bytes of the ring between tail and head."""
        return self.head - self.tail

    # --- append ------------------------------------------------------------------------------------------------------------

    def reserve(
        self, ino: int, offset: int, length: int, unique: int, time_ns: int, generation: int, recall: bool, token: LeaseToken = ALONE
    ) -> RingRecord | None:
        """Finds a place and publishes a header in the state RESERVED; returns None if there is no room now.

        Raises ValueError for a length that this ring can never hold, and struct.error for what no record can say.
        """
        if self.head == self.tail and self.head % self.capacity:
            self._restart()
        head = self.head
        place = head % self.capacity
        delta, span = _extent(place, length)
        pad = 0
        if place + span > self.capacity:
            pad = self.capacity - place
            delta, span = _extent(0, length)
        if head + pad + span - self.tail > self._limit_bytes - (0 if recall else self._recall_bytes):
            if span > self.capacity - self._recall_bytes:
                raise ValueError(f"{length} bytes never fit a {self.area.name} of {self.capacity}")
            return None
        sequence = self.sequences.take()
        filler = None
        if pad:
            filler = RingRecord(KIND_PAD, sequence, head, pad, _word_at(place), CLEAN)
            head += pad
            place = 0
        data = self._ring[place + delta : place + delta + length]
        record = RingRecord(
            self.area.kind, sequence, head, span, place // 8 + _STATE_WORD, RESERVED, data, ino, offset, length, unique, time_ns,
            generation, token,
        )  # fmt: skip
        header = self._header(record, delta)  # raises before anything has changed but the sequence, which is skipped
        if filler is not None:
            self._write_header(filler, *self._header(filler, HEADER_BYTES))
            self.live.append(filler)
        self._write_header(record, *header)
        self.live.append(record)
        self.head = self._words[_HEAD] = head + span  # pad and record exist from here on
        if self._touched < self.capacity:
            self._touched = max(self._touched, self.capacity if pad else head % self.capacity + span)
        return record

    def publish(self, record: RingRecord, checksum: int) -> None:
        """Makes a record DIRTY whose payload, with this checksum, is in place: from here on it survives this process."""
        record._state = DIRTY
        self._ring_words[record._word] = DIRTY | checksum << 32

    def _restart(self) -> None:
        """Continues at the start of the ring, whose pages are in memory already: all is clean."""
        start = shm.round_up(self.head, self.capacity)
        self.tail = self._words[_TAIL] = start
        self.head = self._words[_HEAD] = start

    def _header(self, record: RingRecord, delta: int) -> tuple[bytes, bytes]:
        """Returns what stands before the state word of a record, and what behind it.  Raises struct.error for what no record can say."""
        version = RECORD_VERSION_OP if record.kind == KIND_OP else RECORD_VERSION_LEASE if record.token.lease else RECORD_VERSION
        head = _HEADER.pack(
            RECORD_MAGIC, record.kind, version, record.generation, record.sequence, record.position, record.ino, record.offset,
            record.unique, record.time_ns, record.length, delta, record.span,
        )  # fmt: skip
        head += _SUM.pack(crc32c(head, self._seed))
        if version != RECORD_VERSION_LEASE:
            return head, b""
        lease = _LEASE.pack(*record.token)
        return head, lease + _SUM.pack(crc32c(lease, self._seed))

    def _write_header(self, record: RingRecord, head: bytes, lease: bytes) -> None:
        place = record.position % self.capacity
        self._ring_words[record._word] = record._state
        self._ring[place : place + len(head)] = head
        if lease:
            self._ring[place + _LEASE_AT : place + _LEASE_AT + len(lease)] = lease

    # --- the way out -------------------------------------------------------------------------------------------------------

    def set_state(self, record: RingRecord, state: int) -> None:
        """Stores the state of a record.  The placeholder of a damaged header becomes a PAD, so that no successor is told of it again."""
        record._state = state
        if record.kind == KIND_PAD:
            self._write_header(record, *self._header(record, HEADER_BYTES))
        else:
            self._ring_words[record._word] = state

    def is_whole(self, record: RingRecord) -> bool:
        """Returns whether the payload of a dirty record is the one that was written."""
        return crc32c(record.data) == self._ring_words[record._word] >> 32

    def advance(self, unanswered: Container[int] = ()) -> None:
        """Moves the tail over clean records; not over those of these requests."""
        live = self.live
        tail = self.tail
        while live and live[0]._state in (CLEAN, ABANDONED) and live[0].unique not in unanswered:
            record = live.popleft()
            tail = record.position + record.span
        if tail != self.tail:
            self.tail = self._words[_TAIL] = tail
            if self._limit_bytes < self.capacity:
                self._release_passed()

    def bound(self, limit_bytes: int) -> None:
        """Uses no more than `limit_bytes` of the ring from now on, or the least that it works with: pages that the tail passes are given
        back.
        """
        self._released = max(self._released, self.tail)
        self._limit_bytes = min(max(limit_bytes, self._limit_bytes_min), self.capacity)

    def _release_passed(self) -> None:
        """Gives back pages in large steps, since each costs a system call; none whose place is in use again."""
        start = max(self._released, self.head - self.capacity)
        if self.tail - start < RELEASE_STEP_BYTES:
            return
        self._released = self.tail
        first, length = start % self.capacity, self.tail - start
        for at, size in ((first, min(length, self.capacity - first)), (0, first + length - self.capacity)):
            if size > 0:
                shm.release_pages(self._mem, shm.PAGE_BYTES + at, size)

    def release_pages(self) -> bool:
        """Gives the memory of the ring back if it is wholly clean, and returns whether it was."""
        if self.head != self.tail:
            return False
        if self._touched:
            shm.release_pages(self._mem, shm.PAGE_BYTES, self._touched)
            self._touched = 0
        return True

    # --- after a crash -----------------------------------------------------------------------------------------------------

    def _open(self, fresh: bool) -> bool:
        """Checks or writes the header of the area; returns True if it was formatted."""
        name, magic = self.area.name, self.area.magic
        found = shm.read_header(self.view, magic, self.area.version_max, name) if not fresh else None
        if found is not None:
            if found != (self.log_id, self.capacity, 0):
                raise Corrupt(f"{name}: id {found[0]} of {found[1]} bytes, expected {self.log_id} of {self.capacity}")
            return False
        shm.clear_header(self.view)
        self._words[_TAIL] = self._words[_HEAD] = 0
        self._words[_SEQUENCE] = 1
        shm.write_header(self.view, magic, self.area.version, (self.log_id, self.capacity, 0))
        return True

    def _walk(self) -> None:
        """Reads the headers from tail to head.  A RESERVED record belongs to a dead worker and is abandoned."""
        if self.tail > self.head:  # died inside _restart
            self.head = self._words[_HEAD] = self.tail
        if self.head >> 62 or self.head - self.tail > self.capacity or (self.head | self.tail) % HEADER_BYTES:
            raise Corrupt(f"{self.area.name}: tail {self.tail} and head {self.head} of {self.capacity} bytes")
        position = self.tail
        while position < self.head:
            record = self._parse(position) or self._resync(position)
            if record._state == RESERVED:
                self.set_state(record, ABANDONED)
            self.sequences.pass_over(record.sequence)
            self.live.append(record)
            position += record.span

    def _parse(self, position: int) -> RingRecord | None:
        """Returns the record at this position, None if there is no whole header of ours."""
        place = position % self.capacity
        raw = self._ring[place : place + _SUMMED_BYTES + _SUM.size]
        if crc32c(raw[:_SUMMED_BYTES], self._seed) != _SUM.unpack_from(raw, _SUMMED_BYTES)[0]:
            return None
        fields = _HEADER.unpack_from(raw)
        magic, kind, version, generation, sequence, at, ino, offset, unique, time_ns, length, delta, span = fields
        if magic != RECORD_MAGIC or at != position:
            return None
        if version > self.area.record_version_max or kind not in (KIND_PAD, self.area.kind):
            raise FormatTooNew(f"{self.area.name}: record of version {version}, kind {kind}; upgrade this node")
        word = int(self._ring_words[_word_at(place)])
        state = DIRTY if word >> 32 else word  # no other state has a checksum beside it
        fits = HEADER_BYTES <= delta <= span and delta + length <= span and span % HEADER_BYTES == 0
        if state > (ASIDE if kind == KIND_OP else ABANDONED) or not fits or place + span > self.capacity or position + span > self.head:
            return None
        token = ALONE
        if version == RECORD_VERSION_LEASE:
            raw = self._ring[place + _LEASE_AT : place + _LEASE_AT + _LEASE.size + _SUM.size]
            if crc32c(raw[: _LEASE.size], self._seed) != _SUM.unpack_from(raw, _LEASE.size)[0]:
                return None
            token = LeaseToken(*_LEASE.unpack_from(raw))
        data = self._ring[place + delta : place + delta + length]
        return RingRecord(
            kind, sequence, position, span, _word_at(place), state, data, ino, offset, length, unique, time_ns, generation, token
        )

    def _resync(self, position: int) -> RingRecord:
        """Returns one placeholder for a damaged header, up to the next whole one, and adds it to `damaged`, so that later records are not
        lost too.
        """
        at = position + HEADER_BYTES
        while at < self.head and self._parse(at) is None:
            at += HEADER_BYTES
        gap = RingRecord(KIND_PAD, 0, position, at - position, _word_at(position % self.capacity), DIRTY)
        self.damaged.append(gap)
        return gap


def _word_at(place: int) -> int:
    """The index of the state word of the record whose header is at `place` in the ring."""
    return place // 8 + _STATE_WORD


def _extent(place: int, length: int) -> tuple[int, int]:
    """Returns (payload delta, span) of a record of `length` bytes whose header is at `place` in the ring."""
    if length < ALIGN_FROM_BYTES:
        return HEADER_BYTES, HEADER_BYTES + (length + HEADER_BYTES - 1) // HEADER_BYTES * HEADER_BYTES
    delta = shm.round_up(place + HEADER_BYTES, shm.PAGE_BYTES) - place
    return delta, shm.round_up(delta + length, HEADER_BYTES)
