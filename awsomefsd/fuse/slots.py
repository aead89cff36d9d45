"""Slots hold the requests that were read, in memory that outlives the worker.

A reader thread reads each request with one readv(2) straight into its slot.  The slot's state word goes

    FREE -> RECEIVED -> EXECUTING -> DONE -> FREE

and every step is one 8-byte store (state, deaths and request length share the word), so a kill leaves the old or the new step.

*The gap between the kernel and us.*  The kernel hands a request over inside readv(2); a worker killed right after it had no time to
store RECEIVED.  Therefore `begin_read` zeroes the first word of the head (length and opcode of fuse_in_header) before each readv: a
state FREE with a nonzero head means that the kernel handed over a request, and its own length field tells its size.  The system call
is not interrupted half way once a request was dequeued, so a nonzero head is a whole request.  `state` derives RECEIVED from that.

*Order when a slot is freed.*  Head first, then the state.  The other way round a kill in between would show FREE with the head of a
request that was answered long ago, and it would be executed again after its result was acknowledged.  With this order the gap shows
EXECUTING (or RECEIVED) with a zero head, read as FREE, or DONE with a zero head: its reply is sent again and the kernel refuses it
with ENOENT, harmless.

*DONE carries the reply*, copied first, then length and checksum (one word), then the state; so an answer that may have reached the
application is never computed a second time.  Replies above SLOT_REPLY_BYTES_MAX (read, readdir) are not stored: those requests change
nothing and are executed again.

*The seal.*  A request that waits in its slot (parked_requests.py copies most of them away) is sealed when the wait begins: its checksum and
its unique.  A request that fails its seal, later or in a successor, is answered EIO and never executed.  A request that is executed at once
has no seal: between readv and the answer lie microseconds, and a checksum of each would cost every request.  When a slot is freed the seal
is cleared first of all: without its head an answered request would pass for a damaged one.

Layout of a slot: page 0 and 1 hold state word (0), reply word (8), seal word (16), unique of the sealed request (24), reply (64..), and at
the end of page 1 the 80 bytes of the head; payload follows on the next page.  Head and payload are adjacent, so a request is one
contiguous view, and 80 = fuse_in_header + fuse_write_in, so that the payload of a WRITE is page-aligned.
"""

from __future__ import annotations

from collections.abc import Iterator

from crc32c import crc32c

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import FUSE_HEADER_BYTES_MAX, FUSE_SLOTS, FUSE_WRITE_BYTES_MAX, SLOT_REPLY_BYTES_MAX
from awsomefsd.base.types import RESEND_BIT

MAGIC = b"awsmslot"
VERSION = 1
HEAD_BYTES = 80
HEAD_BYTES_MIN = 40  # fuse_in_header
PAYLOAD_BYTES = FUSE_WRITE_BYTES_MAX + FUSE_HEADER_BYTES_MAX

FREE, RECEIVED, EXECUTING, DONE = range(4)

_FRONT_BYTES = 2 * shm.PAGE_BYTES
_REPLY_AT = 64
_HEAD_AT = _FRONT_BYTES - HEAD_BYTES
_SEAL, _UNIQUE = 2, 3  # words of a slot
_SEALED = 0x5345_414C  # upper half of a seal
_DEATHS_SHIFT, _LENGTH_SHIFT = 8, 32
DEATHS_MAX = (1 << 24) - 1

assert _REPLY_AT + SLOT_REPLY_BYTES_MAX <= _HEAD_AT
assert FREE == 0, "untouched memory is a free slot"


def required_bytes(count: int = FUSE_SLOTS, payload_bytes: int = PAYLOAD_BYTES) -> int:
    """Returns the size of the memfd that holds `count` slots."""
    return shm.PAGE_BYTES + count * (_FRONT_BYTES + shm.round_up(payload_bytes, shm.PAGE_BYTES))


class Slot:
    """One slot.  Owned by one thread at a time; `read_buffer` is head and payload in one, for readv(2)."""

    __slots__ = ("_head_words", "_reply", "_words", "head", "index", "payload", "read_buffer")

    def __init__(self, index: int, view: memoryview) -> None:
        self.index = index
        self._words = shm.words(view[:64])
        self._reply = view[_REPLY_AT : _REPLY_AT + SLOT_REPLY_BYTES_MAX]
        self.head = view[_HEAD_AT:_FRONT_BYTES]
        self._head_words = shm.words(self.head)
        self.payload = view[_FRONT_BYTES:]
        self.read_buffer = view[_HEAD_AT:]

    def begin_read(self) -> None:
        """Makes the slot ready for readv; the request that it held is over."""
        words = self._words
        words[_SEAL] = 0
        self._head_words[0] = 0
        words[0] = FREE

    free = begin_read  # both mean that the content is not needed any more

    def received(self, length: int) -> None:
        """Notes that readv returned `length` bytes."""
        self._words[0] = RECEIVED | length << _LENGTH_SHIFT

    def executing(self) -> None:
        """Marks the request as executing; a derived RECEIVED (the worker died in the gap) gets the length of its header here."""
        word = self._words[0]
        self._words[0] = EXECUTING | (word & ~0xFF if word & 0xFF else self.length << _LENGTH_SHIFT)

    def start(self, length: int) -> None:
        """Stores RECEIVED and EXECUTING in one word, for a thread that executes the request at once."""
        self._words[0] = EXECUTING | length << _LENGTH_SHIFT

    def seal(self) -> None:
        """Seals the request, which waits from now on."""
        words, request = self._words, self.request()
        words[_UNIQUE] = self._head_unique
        words[_SEAL] = crc32c(request) | _SEALED << 32

    @property
    def is_intact(self) -> bool:
        """True if the request is as it was sealed, or has no seal.  Otherwise it is answered EIO."""
        seal = self._words[_SEAL]
        return not seal or (seal >> 32 == _SEALED and self._passes(seal) and self._head_unique == self._words[_UNIQUE])

    @property
    def unique(self) -> int:
        """The unique of the request; where that is damaged, the one in the seal."""
        seal = self._words[_SEAL]
        return self._head_unique if not seal or self._passes(seal) else int(self._words[_UNIQUE])

    @property
    def _head_unique(self) -> int:
        return int(self._head_words[1]) & ~RESEND_BIT

    def _passes(self, seal: int) -> bool:
        length = self._words[0] >> _LENGTH_SHIFT
        return HEAD_BYTES_MIN <= length <= len(self.read_buffer) and crc32c(self.read_buffer[:length]) == seal & shm.U32

    def store_reply(self, reply: bytes) -> bool:
        """Stores the reply, before it is written to the kernel; returns False (nothing stored) above SLOT_REPLY_BYTES_MAX."""
        length = len(reply)
        if length > SLOT_REPLY_BYTES_MAX:
            return False
        words = self._words
        self._reply[:length] = reply
        words[1] = length | crc32c(reply) << 32
        words[0] = DONE | words[0] & ~0xFF
        return True

    def reply(self) -> bytes:
        """Returns the stored reply of a DONE slot.  Raises Corrupt when it fails its checksum."""
        length, checksum = self._words[1] & shm.U32, self._words[1] >> 32
        if length > SLOT_REPLY_BYTES_MAX or crc32c(self._reply[:length]) != checksum:
            raise Corrupt(f"slot {self.index}: stored reply fails its checksum")
        return bytes(self._reply[:length])

    @property
    def state(self) -> int:
        """The state a successor acts on (see the theory above).  Raises Corrupt for a damaged state word."""
        state = self._words[0] & 0xFF
        if state > DONE:
            raise Corrupt(f"slot {self.index}: state {state}")
        if state == DONE:
            return DONE
        if self._head_words[0] == 0:
            return FREE
        return state or RECEIVED

    @property
    def length(self) -> int:
        """The bytes of the request: from readv, or from the fuse header if the worker died before it stored them.  Raises Corrupt."""
        word = self._words[0]
        length = word >> _LENGTH_SHIFT if word & 0xFF else self._head_words[0] & shm.U32
        if length > len(self.read_buffer):
            raise Corrupt(f"slot {self.index}: request of {length} bytes")
        return int(length)

    def request(self) -> memoryview:
        """The whole request; valid until the slot is freed."""
        return self.read_buffer[: self.length]

    @property
    def deaths(self) -> int:
        """The number of workers that died while this request was executing."""
        return int(self._words[0] >> _DEATHS_SHIFT & DEATHS_MAX)

    def add_death(self) -> int:
        """Counts one more death of an executing request, and returns the new count."""
        if self._words[0] & 0xFF == FREE:
            self._words[0] = RECEIVED | self.length << _LENGTH_SHIFT  # make the derived state real, or the count would make it FREE again
        if self.deaths < DEATHS_MAX:  # never carry into the length
            self._words[0] += 1 << _DEATHS_SHIFT
        return self.deaths


class SlotArea:
    """All slots of a mount.  An area that exists keeps its own count and payload size, whatever this build would choose.

    The constructor raises Corrupt for an area that is damaged or too small, FormatTooNew for one of a newer build.
    """

    def __init__(self, mem: shm.Mem, count: int = FUSE_SLOTS, payload_bytes: int = PAYLOAD_BYTES, fresh: bool = False) -> None:
        self._mem = mem
        view = shm.bytes_view(mem)
        found = shm.read_header(view, MAGIC, VERSION, "slot area") if not fresh else None
        self.formatted = found is None
        if found is not None:
            count, payload_bytes, _ = found
        payload_bytes = shm.round_up(payload_bytes, shm.PAGE_BYTES)
        self.count, self.payload_bytes = count, payload_bytes
        self._bytes = required_bytes(count, payload_bytes)
        if len(view) < self._bytes:
            raise Corrupt(f"slot area of {len(view)} bytes, {self._bytes} wanted for {count} slots")
        stride = _FRONT_BYTES + payload_bytes
        starts = [shm.PAGE_BYTES + index * stride for index in range(count)]
        self.slots = [Slot(index, view[start : start + stride]) for index, start in enumerate(starts)]
        if self.formatted:
            shm.clear_header(view)
            for slot in self.slots:
                slot.free()
            shm.write_header(view, MAGIC, VERSION, (count, payload_bytes, 0))

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Slot:
        return self.slots[index]

    def prefault(self) -> None:
        """Touches every page: a fault while the kernel copies a request into a slot would fail that request with EIO.

        Locking is done by mapping with shm.map_memfd(fd, lock=True).
        """
        shm.prefault(self._mem, 0, self._bytes)
