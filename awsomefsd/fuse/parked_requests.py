"""Parked requests: those that wait (for the leader, a lock, room) are copied here, so that their slot is free for the next one.

This is an allocator in shared memory that a successor can read.  The area is a row of blocks, each with its size and a checksum of place
and size in its first word and its state in the second; a zero first word ends the row.  Every structural step is one store:

* a new block at the end: zero the word behind it, state FREE, then its first word;
* a split of a free block: the header of its second part, then the smaller size of the first;
* a merge of free neighbours: the larger size of the first (inner headers mean nothing from then on).

A request is parked by copying it, then storing ``state EXECUTING | deaths | length`` in the state word; before that store the block is
free, after it the request is whole.  The slot is freed afterwards, so a kill in between leaves the request in both: the successor prefers
the parked one (same unique).  The copy carries its checksum: a request that a successor finds damaged is answered EIO.  A block that says
FREE and has a length is damaged too: `free` clears all of the state word.  A request of which only a wait for the kernel is left has a
mark; builds before do not know it, and execute that request again.  A reply is stored as in slots: bytes, length and checksum, then
DONE.  Replies above PARK_REPLY_BYTES_MAX are not stored; those (readdir, listxattr, readlink, read) are of requests that change nothing
and are executed again.

Free lists are this process's memory, rebuilt by walking the row.  Sizes are powers of two up to 64 KiB and multiples of 64 KiB above.  When
a request finds no room, free neighbours are merged; when an arena is empty it starts again and gives its pages back.  The last
`recall_bytes` are an arena of their own, for requests other than WRITEs: neither use nor fragments of the rest can take it, so lookups,
unlocks and what a recall waits for go on however many writes wait.

The memfd has its largest size from the start and is sparse (see shm): "growing" is touching pages.
"""

from __future__ import annotations

import struct
import threading

from crc32c import crc32c

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import KIB, MIB, PARK_BYTES_MAX, PARK_RECALL_BYTES
from awsomefsd.base.types import RESEND_BIT
from awsomefsd.fuse.slots import DEATHS_MAX, DONE, EXECUTING, FREE

MAGIC = b"awsmpark"
VERSION = 1
PARK_REPLY_BYTES_MAX = 512
BLOCK_BYTES_MIN = KIB
KEEP_BYTES = MIB + 128 * KIB  # pages of an empty arena that are not given back: one of the largest writes
REQUEST_BYTES_MIN = 40  # fuse_in_header

_HEADER_BYTES = 64
_MARK = 0x5041_524B  # upper half of a block's first word in an area of an older build; today it is a checksum of place and size
_CHECKED = 1  # third parameter of the area: its marks are checksums
_PLACE = struct.Struct("<QI")
_SIZE, _STATE, _UNIQUE, _ORDER, _SUM, _REPLY, _WAITS = range(7)  # words of a block
_WAITS_ONLY = 0x5741_4954 << 32  # with the order: builds before left in that word whatever was there
_DEATHS_SHIFT, _LENGTH_SHIFT = 8, 32
_UNIQUE_OF_REQUEST = struct.Struct("<Q")


def required_bytes(capacity: int = PARK_BYTES_MAX) -> int:
    """Returns the size of the memfd for `capacity` bytes of blocks."""
    return shm.PAGE_BYTES + shm.round_up(capacity, shm.PAGE_BYTES)


def block_bytes(request_bytes: int) -> int:
    """Returns the size of the block that a request takes."""
    need = _HEADER_BYTES + request_bytes + PARK_REPLY_BYTES_MAX
    if need <= 64 * KIB:
        return max(BLOCK_BYTES_MIN, 1 << (need - 1).bit_length())
    return shm.round_up(need, 64 * KIB)


def _unique(request: bytes | memoryview) -> int:
    return int(_UNIQUE_OF_REQUEST.unpack_from(request, 8)[0]) & ~RESEND_BIT


class Arena:
    """The blocks between two offsets of the area.  The caller locks."""

    __slots__ = ("_checked", "_free", "_frontier", "_mem", "_words", "end", "free_bytes", "live", "start")

    def __init__(self, mem: shm.Mem, words: memoryview, start: int, end: int, checked: bool) -> None:
        self._mem = mem
        self._words = words
        self._checked = checked
        self.start, self.end = start, end
        self._free: dict[int, list[int]] = {}
        self._frontier = start  # where the row ends
        self.free_bytes = 0  # in free blocks
        self.live: dict[int, int] = {}  # offset to size of the blocks in use

    def format(self) -> None:
        if self.start < self.end:
            self._words[self.start // 8] = 0

    def load(self) -> None:
        """Reads the row after a restart: blocks whose state word is not FREE are live (also damaged ones: FREE with a length).

        Raises Corrupt for a damaged header of a block.
        """
        for at, size in self._row():
            if self._words[at // 8 + _STATE] != FREE:
                self.live[at] = size
        self._rebuild()

    def allocate(self, size: int) -> int | None:
        """Returns the offset of a block of at least `size`, now live; None if there is no room."""
        at = self._take(size)
        if at is None and self.free_bytes >= size:
            self._merge()
            at = self._take(size)
        return at

    def release(self, at: int) -> None:
        """Makes a block usable again; its state is FREE in shared memory."""
        size = self.live.pop(at)
        if self.live:
            self._free.setdefault(size, []).append(at)
            self.free_bytes += size
            return
        self._words[self.start // 8] = 0
        shm.release_pages(self._mem, self.start + KEEP_BYTES, max(self._frontier - self.start - KEEP_BYTES, 0))
        self._frontier, self.free_bytes = self.start, 0
        self._free.clear()

    def _first_word(self, at: int, size: int) -> int:
        return size | (crc32c(_PLACE.pack(at, size)) if self._checked else _MARK) << 32

    def _take(self, size: int) -> int | None:
        words = self._words
        exact = self._free.get(size)
        if exact:
            at = exact.pop()
            self.free_bytes -= size
            self.live[at] = size
            return at
        at = self._frontier
        if at + size <= self.end:
            if at + size < self.end:
                words[(at + size) // 8] = 0
            words[at // 8 + _STATE] = FREE
            words[at // 8] = self._first_word(at, size)
            self._frontier = at + size
            self.live[at] = size
            return at
        larger = min((have for have, places in self._free.items() if have > size and places), default=0)
        return self._split(larger, size) if larger else None

    def _split(self, have: int, size: int) -> int:
        at = self._free[have].pop()
        self.free_bytes -= have
        rest = have - size
        if rest >= BLOCK_BYTES_MIN:
            self._words[(at + size) // 8 + _STATE] = FREE
            self._words[(at + size) // 8] = self._first_word(at + size, rest)
            self._words[at // 8] = self._first_word(at, size)
            self._free.setdefault(rest, []).append(at + size)
            self.free_bytes += rest
            have = size
        self.live[at] = have
        return at

    def _merge(self) -> None:
        """Makes one block of each run of free neighbours, and ends the row before a free run at its end."""
        run_at = run_bytes = 0
        for at, size in list(self._row()):
            if at in self.live:
                run_bytes = 0
            elif run_bytes:
                run_bytes += size
                self._words[run_at // 8] = self._first_word(run_at, run_bytes)
            else:
                run_at, run_bytes = at, size
        if run_bytes:
            self._words[run_at // 8] = 0
        self._rebuild()

    def _rebuild(self) -> None:
        self._free.clear()
        self.free_bytes = 0
        self._frontier = self.start
        for at, size in self._row():
            self._frontier = at + size
            if at not in self.live:
                self._free.setdefault(size, []).append(at)
                self.free_bytes += size

    def _row(self) -> list[tuple[int, int]]:
        """Returns (offset, size) of every block, free or live.  Raises Corrupt."""
        blocks = []
        at = self.start
        while at < self.end and (word := self._words[at // 8]):
            size = word & shm.U32
            if word != self._first_word(at, size) or size < BLOCK_BYTES_MIN or size % _HEADER_BYTES or at + size > self.end:
                raise Corrupt(f"park area: block at {at} has the header {word:#x}")
            blocks.append((at, size))
            at += size
        return blocks


class ParkEntry:
    """One parked request.  Its views are valid until `free`."""

    __slots__ = ("_area", "_arena", "_at", "_view", "_words", "order", "size", "unique")

    def __init__(self, area: ParkArea, arena: Arena, at: int, size: int) -> None:
        self._area, self._arena, self._at = area, arena, at
        self.size = size
        self._view = area.view[at : at + size]
        self._words = shm.words(self._view[:_HEADER_BYTES])
        self.unique: int = self._words[_UNIQUE]
        self.order: int = self._words[_ORDER]

    def believe(self) -> None:
        """Settles the unique after a restart: where the two differ, the one in a request that passes its checksum is right."""
        if REQUEST_BYTES_MIN <= self.length <= self.size - _HEADER_BYTES and crc32c(self.request()) == self._words[_SUM]:
            self.unique = _unique(self.request())

    @property
    def state(self) -> int:
        """EXECUTING, DONE, or FREE after `free`."""
        return int(self._words[_STATE] & 0xFF)

    @property
    def length(self) -> int:
        return int(self._words[_STATE] >> _LENGTH_SHIFT)

    @property
    def is_intact(self) -> bool:
        """True if the request passes its checksum.  Otherwise it is answered EIO: only its unique can be used."""
        words, request = self._words, self.request()
        fits = REQUEST_BYTES_MIN <= self.length <= self.size - _HEADER_BYTES - PARK_REPLY_BYTES_MAX
        sound = fits and self.state in (EXECUTING, DONE)
        return sound and _unique(request) == words[_UNIQUE] and crc32c(request) == words[_SUM]

    def request(self) -> memoryview:
        """The whole request, as it was read from the kernel."""
        return self._view[_HEADER_BYTES : _HEADER_BYTES + self.length]

    def store_reply(self, reply: bytes) -> bool:
        """Stores the reply, before it is written to the kernel; returns False (nothing stored) above PARK_REPLY_BYTES_MAX."""
        length = len(reply)
        if length > PARK_REPLY_BYTES_MAX:
            return False
        start = self.size - PARK_REPLY_BYTES_MAX
        self._view[start : start + length] = reply
        self._words[_REPLY] = length | crc32c(reply) << 32
        self._words[_STATE] = DONE | self._words[_STATE] & ~0xFF
        return True

    def reply(self) -> bytes:
        """Returns the stored reply of a DONE entry.  Raises Corrupt when it fails its checksum."""
        length, checksum = self._words[_REPLY] & shm.U32, self._words[_REPLY] >> 32
        start = self.size - PARK_REPLY_BYTES_MAX
        if length > PARK_REPLY_BYTES_MAX or crc32c(self._view[start : start + length]) != checksum:
            raise Corrupt(f"parked request {self.unique}: stored reply fails its checksum")
        return bytes(self._view[start : start + length])

    @property
    def waits_only(self) -> bool:
        """True if the request is carried out but for a wait for the kernel."""
        return bool(self._words[_WAITS] == _WAITS_ONLY ^ self.order)

    def note_waits_only(self) -> None:
        """Notes that only a wait for the kernel is left."""
        self._words[_WAITS] = _WAITS_ONLY ^ self.order

    @property
    def deaths(self) -> int:
        """The number of workers that died while this request was executing."""
        return int(self._words[_STATE] >> _DEATHS_SHIFT & DEATHS_MAX)

    def add_death(self) -> int:
        """Counts one more death, and returns the new count."""
        if self.deaths < DEATHS_MAX:
            self._words[_STATE] += 1 << _DEATHS_SHIFT
        return self.deaths

    def free(self) -> None:
        """Frees the entry once the kernel has the reply; called once."""
        self._words[_STATE] = FREE
        self._area.release(self._arena, self._at)


class ParkArea:
    """All parked requests of a mount.  Thread-safe; nothing blocks.

    The constructor raises Corrupt for an area that is damaged or too small, FormatTooNew for one of a newer build.
    """

    def __init__(self, mem: shm.Mem, fresh: bool = False, *, recall_bytes: int = PARK_RECALL_BYTES) -> None:
        self.view = shm.bytes_view(mem)
        self._words = shm.words(self.view)
        self._lock = threading.Lock()
        end = len(self.view) // shm.PAGE_BYTES * shm.PAGE_BYTES
        found = shm.read_header(self.view, MAGIC, VERSION, "park area") if not fresh else None
        self.formatted = found is None
        checked = _CHECKED
        if found is not None:
            end, recall_bytes, checked = found
        if not shm.PAGE_BYTES <= end - recall_bytes <= end <= len(self.view):
            raise Corrupt(f"park area: {len(self.view)} bytes, {recall_bytes} kept from WRITEs")
        middle = end - shm.round_up(recall_bytes, shm.PAGE_BYTES)
        spans = ((shm.PAGE_BYTES, middle), (middle, end))
        self._arenas = tuple(Arena(mem, self._words, *span, checked == _CHECKED) for span in spans)
        self._order = 1
        if self.formatted:
            shm.clear_header(self.view)
            for arena in self._arenas:
                arena.format()
            shm.write_header(self.view, MAGIC, VERSION, (end, recall_bytes, _CHECKED))
        for arena in self._arenas:
            arena.load()
        self._order = max((entry.order for entry in self._entries()), default=0) + 1
        if self._order >> 62:
            raise Corrupt(f"park area: order {self._order:#x}")

    def park(self, request: bytes | memoryview, *, reserve: bool = False) -> ParkEntry | None:
        """Stores a copy of `request` in the state EXECUTING, and returns its entry; None: no room now.

        `reserve`: it may use the part that is kept from WRITEs.

        Raises ValueError for a request that this area can never hold.
        """
        length = len(request)
        assert length >= REQUEST_BYTES_MIN, f"{length} bytes are no FUSE request"
        checksum = crc32c(request)
        size = block_bytes(length)
        with self._lock:
            arena = self._arenas[0]
            at = arena.allocate(size)
            if at is None and reserve:
                arena = self._arenas[1]
                at = arena.allocate(size)
            if at is None:
                if size > self._arenas[0].end - self._arenas[0].start:
                    raise ValueError(f"a request of {length} bytes never fits the park area")
                return None
            size = arena.live[at]
            order = self._order
            self._order = order + 1
        view, words, word = self.view, self._words, at // 8
        view[at + _HEADER_BYTES : at + _HEADER_BYTES + length] = request
        words[word + _UNIQUE] = _unique(request)
        words[word + _ORDER] = order
        words[word + _SUM] = checksum
        words[word + _WAITS] = 0
        words[word + _STATE] = EXECUTING | length << _LENGTH_SHIFT
        return ParkEntry(self, arena, at, size)

    def entries(self) -> list[ParkEntry]:
        """Returns the parked requests in the order in which they were parked (recovery); check `is_intact` before executing one."""
        return sorted(self._entries(), key=lambda entry: entry.order)

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks in use."""
        with self._lock:
            return sum(sum(arena.live.values()) for arena in self._arenas)

    def __len__(self) -> int:
        return sum(len(arena.live) for arena in self._arenas)

    def release(self, arena: Arena, at: int) -> None:
        """Frees a block, for ParkEntry.free."""
        with self._lock:
            arena.release(at)

    def _entries(self) -> list[ParkEntry]:
        with self._lock:
            live = [(arena, at, size) for arena in self._arenas for at, size in arena.live.items()]
        entries = [ParkEntry(self, arena, at, size) for arena, at, size in live]
        for entry in entries:
            entry.believe()
        return entries
