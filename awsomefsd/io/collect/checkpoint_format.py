"""The bytes of checkpoints: what an area of segments holds (docs/FORMAT.md, "Checkpoint areas").  Pure.

An area is a list of segments of one device.  Each begins with a header block that tells which area, and which part of it, it is; so an area
is found by reading the first block of every segment, without any state.  The rest of the segments, one after another, is filled with
records, each at a block:

    SNAPSHOT …  TAIL(END)  SNAPSHOT …  COMPLETE  TAIL … TAIL(END)  TAIL(END) …

SNAPSHOT pieces are a compressed copy of the store, COMPLETE says its length and hash; TAIL pieces are compressed batches of journal
entries, the last piece of a batch has END.  From version 2 on, batches may stand between the pieces of the copy: what was committed while a
large copy was written need not wait in the journal.  Entries that the copy has already may be among them.

Checksums are seeded with the area's random id, so that what an earlier area left in the same segments is never taken for a record of this
one.  The walk ends at the first block that is not the next record: a torn write is nothing but the end.  A copy without COMPLETE is no
checkpoint.
"""

from __future__ import annotations

import struct

from crc32c import crc32c
from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import BLOCK_BYTES, CHECKPOINT_RECORD_BYTES_MAX
from awsomefsd.io.device.checksum import Bytes

MAGIC = b"awsmArea"
RECORD_MAGIC = b"awCk"
VERSION = 2
WITHOUT_EARLY_TAIL = 1  # a version: all batches come after COMPLETE
SNAPSHOT, COMPLETE, TAIL = 1, 2, 3
END = 1  # flag of a record: the last piece
SEVERAL = 1  # flag of an area: its state was one of several voters'
_RECORD_VERSION = 1
RECORD_HEADER_BYTES = 64

_AREA = struct.Struct("<8sII16s16s16s16sQQIIQQQq")
_RECORD = struct.Struct("<4sBBHQIIQQqII")
_COMPLETE = struct.Struct("<QQ16s")
_CRC = struct.Struct("<I")
_CRC_AT = BLOCK_BYTES - 4
_RECORD_CRC_AT = RECORD_HEADER_BYTES - 4
assert _RECORD.size + 8 == RECORD_HEADER_BYTES


class AreaHeader(Struct, frozen=True):
    """The first block of every segment of an area.  `place`: its position in the area.  `number` grows with each area of a cluster."""

    cluster: bytes
    device: bytes
    node: bytes
    area: bytes
    segment: int
    incarnation: int
    place: int
    number: int
    term: int
    index: int  # the journal's end when the area was begun
    created_ns: int
    version: int = VERSION
    segment_bytes: int = 0
    flags: int = 0


def pack_area(header: AreaHeader) -> bytes:
    h = header
    body = _AREA.pack(
        MAGIC, h.version, h.flags, h.cluster, h.device, h.node, h.area, h.segment, h.incarnation, h.place, h.segment_bytes, h.number,
        h.term, h.index, h.created_ns,
    ).ljust(_CRC_AT, b"\0")  # fmt: skip
    return body + _CRC.pack(crc32c(body))


def unpack_area(raw: Bytes) -> AreaHeader | None:
    """Returns the header in a block, or None for a block that is no whole header of an area.  Raises FormatTooNew."""
    view = memoryview(raw)[:BLOCK_BYTES]
    if len(view) < BLOCK_BYTES or bytes(view[:8]) != MAGIC or _CRC.unpack_from(view, _CRC_AT)[0] != crc32c(view[:_CRC_AT]):
        return None
    (_, version, flags, cluster, device, node, area, segment, incarnation, place, segment_bytes, number, term, index, created) = (
        _AREA.unpack_from(view)
    )
    if version > VERSION:
        raise FormatTooNew(f"checkpoint version {version} is newer than this build knows ({VERSION}); upgrade this node")
    if flags & ~SEVERAL:
        raise FormatTooNew(f"a checkpoint has flags {flags:#x} that this build does not know; upgrade this node")
    return AreaHeader(cluster, device, node, area, segment, incarnation, place, number, term, index, created, version, segment_bytes, flags)


class CheckpointRecord(Struct, frozen=True):
    """One record.

    `first`, `last`: entries of the batch (TAIL); `last`: the entry that the copy ends with (COMPLETE).  `term`: of `last`.
    """

    kind: int
    flags: int
    sequence: int
    first: int
    last: int
    term: int
    time_ns: int
    payload: bytes


def record_blocks(payload_bytes: int) -> int:
    return -(-(RECORD_HEADER_BYTES + payload_bytes) // BLOCK_BYTES)


def pack_record(area: bytes, record: CheckpointRecord) -> bytes:
    """Returns the bytes of a record, padded to blocks."""
    r = record
    assert len(r.payload) <= CHECKPOINT_RECORD_BYTES_MAX
    seed = crc32c(area)
    fixed = _RECORD.pack(
        RECORD_MAGIC, _RECORD_VERSION, r.kind, r.flags, r.sequence, len(r.payload), r.term, r.first, r.last, r.time_ns,
        crc32c(r.payload, seed), 0,
    )  # fmt: skip
    head = fixed.ljust(_RECORD_CRC_AT, b"\0")
    return (head + _CRC.pack(crc32c(head, seed)) + r.payload).ljust(record_blocks(len(r.payload)) * BLOCK_BYTES, b"\0")


def unpack_record(area: bytes, raw: Bytes, sequence: int) -> CheckpointRecord | None:
    """Returns the record at the start of `raw` if it is the one with this sequence, whole; else None.

    Raises FormatTooNew for one of a later build: it is no end, and what follows it must not be taken for lost.
    """
    view = memoryview(raw)
    if len(view) < RECORD_HEADER_BYTES:
        return None
    seed = crc32c(area)
    if _CRC.unpack_from(view, _RECORD_CRC_AT)[0] != crc32c(view[:_RECORD_CRC_AT], seed):
        return None
    magic, version, kind, flags, found, length, term, first, last, time_ns, crc, _ = _RECORD.unpack_from(view)
    if magic == RECORD_MAGIC and found == sequence and (version > _RECORD_VERSION or flags & ~END or kind > TAIL):
        raise FormatTooNew(f"a checkpoint has a record of version {version}, kind {kind}, flags {flags:#x}; upgrade this node")
    if magic != RECORD_MAGIC or version != _RECORD_VERSION or found != sequence or length > CHECKPOINT_RECORD_BYTES_MAX:
        return None
    payload = view[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + length]
    if len(payload) != length or crc32c(payload, seed) != crc:
        return None
    return CheckpointRecord(kind, flags, found, first, last, term, time_ns, bytes(payload))


def pack_complete(raw_bytes: int, stored_bytes: int, digest: bytes) -> bytes:
    return _COMPLETE.pack(raw_bytes, stored_bytes, digest)


def unpack_complete(payload: bytes) -> tuple[int, int, bytes]:
    """Returns (bytes of the copy, bytes of its pieces, xxh3-128 of the copy).  Raises Corrupt."""
    if len(payload) != _COMPLETE.size:
        raise Corrupt("checkpoint: its last record has the wrong length")
    raw_bytes, stored_bytes, digest = _COMPLETE.unpack(payload)
    return raw_bytes, stored_bytes, digest


def pack_entries(entries: list[bytes]) -> bytes:
    return b"".join(len(entry).to_bytes(4, "little") + entry for entry in entries)


def unpack_entries(raw: Bytes) -> list[bytes]:
    """Returns the entries of a batch.  Raises Corrupt."""
    view, at, entries = memoryview(raw), 0, []
    while at < len(view):
        length = int.from_bytes(view[at : at + 4], "little")
        entry = bytes(view[at + 4 : at + 4 + length])
        if len(entry) != length or not length:
            raise Corrupt("checkpoint: a batch of entries is cut")
        entries.append(entry)
        at += 4 + length
    return entries
