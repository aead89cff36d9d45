"""The header of a record on a connection to a segment server: 64 bytes, followed by at most BODY_BYTES_MAX of body.  Pure.

    offset  0  magic "awSg"      4  kind u8         5  flags u8      6  errno u16     8  call u32      12  body bytes u32
           16  segment u64      24  incarnation u64
           32  device u32       36  index u32      40  offset u64   48  value u64    56  reserved u64, zero  (little-endian throughout)

The header has no checksum of its own: between nodes it is the associated data of the seal (`link.py`), and on one machine it does not leave
the kernel.  So it is looked at before it is authenticated, and what is done on the strength of it alone is bounded here: each kind says
which fields it uses, all others are zero, and how long its body may be.  An answer has the kind of its request with ANSWER set; its errno
is not zero if the request failed, and then its body is the reason, in words.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from msgspec import Struct

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import BLOCK_BYTES, SEGMENT_BODY_BYTES_MAX, SEGMENT_GREETING_BYTES_MAX, SEGMENT_REASON_BYTES_MAX
from awsomefsd.io.device.checksum import Bytes

MAGIC = b"awSg"
HEADER_BYTES = 64
ANSWER = 0x40
ENDS_ONLY = 1  # flag of Verify: the first and the last frame only
_HEADER = struct.Struct("<4sBBHIIQQIIQQQ")
assert _HEADER.size == HEADER_BYTES


class Kind(IntEnum):
    """What a record is.  9 is kept for Code."""

    HELLO = 1
    OPEN = 2
    APPEND = 3
    SYNC = 4
    CLOSE = 5
    READ = 6
    VERIFY = 7
    COPY = 8
    TRIM = 10
    WELCOME = HELLO | ANSWER
    OPENED = OPEN | ANSWER
    APPENDED = APPEND | ANSWER  # an Append is answered only if it failed
    SYNCED = SYNC | ANSWER
    CLOSED = CLOSE | ANSWER
    BYTES = READ | ANSWER
    VERIFIED = VERIFY | ANSWER
    COPIED = COPY | ANSWER
    TRIMMED = TRIM | ANSWER


class BulkRecord(Struct, frozen=True, gc=False):
    """The content of a header.  `device`, `index`: the bay; `offset` and `value`: as the kind says, in bytes unless it says otherwise."""

    kind: Kind
    call: int = 0
    segment: int = 0
    incarnation: int = 0
    device: int = 0
    index: int = 0
    offset: int = 0
    value: int = 0
    flags: int = 0
    errno: int = 0
    body_bytes: int = 0

    @property
    def is_answer(self) -> bool:
        return bool(self.kind & ANSWER)


class _Shape(Struct, frozen=True, gc=False):
    """What a record of a kind may have: names of fields besides kind and call, bytes of its body, flags."""

    fields: tuple[str, ...]
    body_bytes_max: int = 0
    flags: int = 0


_BAY = ("device", "index")
_HELD = ("segment", "incarnation", *_BAY)  # of what the bay is said to hold
SHAPES: dict[Kind, _Shape] = {
    Kind.HELLO: _Shape((), SEGMENT_GREETING_BYTES_MAX),
    Kind.OPEN: _Shape(_HELD),
    Kind.APPEND: _Shape((*_HELD, "offset"), SEGMENT_BODY_BYTES_MAX),
    Kind.SYNC: _Shape((*_HELD, "offset")),  # up to `offset`
    Kind.CLOSE: _Shape((*_HELD, "offset")),
    Kind.READ: _Shape((*_HELD, "offset", "value")),  # `value` bytes
    Kind.VERIFY: _Shape((*_HELD, "offset", "value"), 0, ENDS_ONLY),  # up to `offset`; `value`: where the footer begins, 0 without one
    Kind.COPY: _Shape((*_HELD, "offset", "value"), SEGMENT_GREETING_BYTES_MAX),  # the same; the bay is the one that is written
    Kind.TRIM: _Shape((*_HELD, "value")),  # `value`: the index of the entry that made the bay stale
    Kind.WELCOME: _Shape((), SEGMENT_GREETING_BYTES_MAX),
    Kind.OPENED: _Shape((*_HELD, "value")),  # `value`: bytes that the medium writes as one
    Kind.APPENDED: _Shape((*_HELD, "offset")),
    Kind.SYNCED: _Shape((*_HELD, "offset")),  # durable up to `offset`
    Kind.CLOSED: _Shape((*_HELD, "offset")),
    Kind.BYTES: _Shape((*_HELD, "offset"), SEGMENT_BODY_BYTES_MAX),
    Kind.VERIFIED: _Shape(_HELD, SEGMENT_GREETING_BYTES_MAX),
    Kind.COPIED: _Shape((*_HELD, "offset"), SEGMENT_GREETING_BYTES_MAX),  # copied so far
    Kind.TRIMMED: _Shape((*_HELD, "value")),
}
_FIELDS = ("segment", "incarnation", "device", "index", "offset", "value")
_KINDS = {int(kind): kind for kind in Kind}
_UNUSED = {kind: tuple(name for name in _FIELDS if name not in shape.fields) for kind, shape in SHAPES.items()}


def pack(record: BulkRecord) -> bytes:
    """Returns the 64 bytes of a header."""
    return _HEADER.pack(
        MAGIC, record.kind, record.flags, record.errno, record.call, record.body_bytes, record.segment, record.incarnation,
        record.device, record.index, record.offset, record.value, 0,
    )  # fmt: skip


def unpack(raw: Bytes) -> BulkRecord:
    """Returns the record whose header `raw` is.  Raises ProtocolError for what no sender of ours can have sent."""
    if len(raw) != HEADER_BYTES:
        raise ProtocolError(f"header of {len(raw)} bytes")
    magic, number, flags, errno, call, body, segment, incarnation, device, index, offset, value, reserved = _HEADER.unpack(raw)
    kind = _KINDS.get(number)
    if magic != MAGIC or kind is None or reserved:
        raise ProtocolError("not the header of a record")
    record = BulkRecord(kind, call, segment, incarnation, device, index, offset, value, flags, errno, body)
    _check(record)
    return record


def _check(record: BulkRecord) -> None:
    kind, shape = record.kind, SHAPES[record.kind]
    if record.errno and not record.is_answer:
        raise ProtocolError(f"{kind.name} with an error")
    if record.flags & ~shape.flags or any(getattr(record, name) for name in _UNUSED[kind]):
        raise ProtocolError(f"{kind.name} with fields that it has not")
    if record.body_bytes > (SEGMENT_REASON_BYTES_MAX if record.errno else shape.body_bytes_max):
        raise ProtocolError(f"{kind.name} with a body of {record.body_bytes} bytes")
    if kind is Kind.APPEND and (not record.body_bytes or record.body_bytes % BLOCK_BYTES or record.offset % BLOCK_BYTES):
        raise ProtocolError(f"APPEND of {record.body_bytes} bytes at {record.offset} is not whole blocks")
    if kind in (Kind.VERIFY, Kind.COPY) and (record.offset % BLOCK_BYTES or record.value % BLOCK_BYTES or record.value > record.offset):
        raise ProtocolError(f"{kind.name} up to {record.offset} with a footer at {record.value} is not of whole blocks")
    if kind is Kind.READ and not 0 < record.value <= SEGMENT_BODY_BYTES_MAX:
        raise ProtocolError(f"READ of {record.value} bytes")
