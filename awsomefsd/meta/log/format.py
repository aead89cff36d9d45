"""The bytes of a journal file: one header block, then records, then zeros.  Pure; docs/FORMAT.md is the page for people.

File header (HEADER_BYTES, padded with zeros)::

    magic 8s "AWSMJRNL" | version u16 | 2x | compat u32 | ro_compat u32 | incompat u32 | cluster uuid 16s | node uuid 16s
    | incarnation 16s | number u64 | first index u64 | previous term u64 | flags u32 | crc32c u32 of all before

The previous term is that of entry (first index - 1).  Flag RESET: the files before this one are void, for a snapshot of the state up to
that entry took their place.  Version 1 has neither field: it was written by single voters only, whose entries are all of term 1.

Record (RECORD_BYTES, then the payload, padded with zeros to 8 bytes)::

    length u32 | kind u8 | 3x | index u64 | term u64 | synced u32 | payload crc32c u32 | 4x | header crc32c u32

The header's checksum is seeded with the file header's checksum (so with incarnation and number) and with the record's offset: a record of
another file, of another incarnation or at another place is no record.  It covers the payload's checksum, so the payload needs no seed.

`synced` is the offset up to which the file was durable when the record was written.  It decides what a bad record is.  All records of one
batch are one write, and a power cut may keep the later pages of it and lose the earlier ones; so "something valid follows" alone does not
prove damage.  A valid record behind the bad one whose `synced` lies beyond the bad one does: the place was synced, and it was
acknowledged.  (Chained checksums were rejected: behind a bad record nothing could be checked, and damage would look like a torn write.)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crc32c import crc32c
from msgspec import Struct

from awsomefsd.base.codec import Bytes
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import JOURNAL_RECORD_BYTES_MAX

MAGIC = b"AWSMJRNL"
VERSION = 2
RESET = 1  # flag of a file
INCOMPAT_KNOWN = 0  # incompatible feature bits this build understands
RO_COMPAT_KNOWN = 0  # feature bits without which a journal can be read, and not written
HEADER_BYTES = 4096
ENTRY, HARD_STATE, TRUNCATE = 1, 2, 3

_HEADER_1 = struct.Struct("<8sH2xIII16s16s16sQQ")
_HEADER = struct.Struct("<8sH2xIII16s16s16sQQQI")
_CRC = struct.Struct("<I")
_ZEROS = bytes(64 << 10)
_RECORD = struct.Struct("<IB3xQQII4x")
_OFFSET = struct.Struct("<Q")
RECORD_BYTES = _RECORD.size + _CRC.size
_ALIGN = 8
_PADDING = [bytes(-length % _ALIGN) for length in range(_ALIGN)]


class FileHeader(NamedTuple):
    """The header of a journal file: the journal it belongs to, and where its entries start.  The `*_compat` fields are feature bits."""

    cluster: bytes
    node: bytes
    incarnation: bytes
    number: int
    first_index: int
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    previous_term: int = 0
    flags: int = 0


class Record(Struct, gc=False):
    """A valid record; `end` is where the next one starts.

    HARD_STATE: term, and the vote as payload.  TRUNCATE: entries > index go, and term is that of the entry which is now the last.
    """

    kind: int
    index: int
    term: int
    payload: bytes
    synced: int
    end: int


def pack_header(header: FileHeader) -> tuple[bytes, int]:
    """Returns the header block of HEADER_BYTES, and the seed of the file's records."""
    fields = _HEADER.pack(
        MAGIC,
        VERSION,
        header.compat,
        header.ro_compat,
        header.incompat,
        header.cluster,
        header.node,
        header.incarnation,
        header.number,
        header.first_index,
        header.previous_term,
        header.flags,
    )
    seed = crc32c(fields)
    return (fields + _CRC.pack(seed)).ljust(HEADER_BYTES, b"\0"), seed


def unpack_header(raw: Bytes, what: str, *, writing: bool = True) -> tuple[FileHeader, int]:
    """Returns the header, and the seed of the file's records.

    Raises Corrupt, or FormatTooNew for a version or an incompatible feature of a later build; with `writing` also for a feature that
    this build would break by writing to the journal, or by removing files of it.
    """
    if len(raw) < HEADER_BYTES or bytes(raw[:8]) != MAGIC:
        raise Corrupt(f"{what}: not a journal file")
    first = int.from_bytes(raw[8:10], "little") == 1
    layout = _HEADER_1 if first else _HEADER  # a later version keeps version 2's place of the checksum
    (seed,) = _CRC.unpack_from(raw, layout.size)
    if crc32c(bytes(raw[: layout.size])) != seed:
        raise Corrupt(f"{what}: checksum of the file header does not match")
    _, version, compat, ro_compat, incompat, cluster, node, incarnation, number, first_index, *rest = layout.unpack_from(raw)
    if version > VERSION or incompat & ~INCOMPAT_KNOWN:
        raise FormatTooNew(f"{what}: format version {version}, features {incompat:#x}: written by a newer build; upgrade this node")
    if writing and ro_compat & ~RO_COMPAT_KNOWN:
        raise FormatTooNew(f"{what}: features {ro_compat:#x} of a newer build, which this build must not write beside; upgrade this node")
    previous_term, flags = rest or (int(first_index > 1), 0)
    return FileHeader(cluster, node, incarnation, number, first_index, compat, ro_compat, incompat, previous_term, flags), seed


def record_bytes(payload_bytes: int) -> int:
    """Returns the bytes that a record with such a payload takes in the file."""
    return RECORD_BYTES + payload_bytes + -payload_bytes % _ALIGN


def pack_record(seed: int, offset: int, synced: int, kind: int, index: int, term: int, payload: bytes) -> bytes:
    """Returns the record's bytes, for the place `offset` in its file; `synced`: the file is durable up to there."""
    fields = _RECORD.pack(len(payload), kind, index, term, synced, crc32c(payload))
    return fields + _CRC.pack(crc32c(fields, crc32c(_OFFSET.pack(offset), seed))) + payload + _PADDING[len(payload) % _ALIGN]


def unpack_record(raw: Bytes, position: int, seed: int, offset: int) -> Record | None:
    """Returns the record at `position` of `raw`, which is `offset` in the file; None if there is no valid one.

    `end` of the record is a position in `raw`.
    """
    body = position + RECORD_BYTES
    if len(raw) < body:
        return None
    length, kind, index, term, synced, payload_crc = _RECORD.unpack_from(raw, position)
    if not ENTRY <= kind <= TRUNCATE or length > JOURNAL_RECORD_BYTES_MAX or len(raw) < body + length:
        return None
    view = memoryview(raw)
    (header_crc,) = _CRC.unpack_from(raw, body - _CRC.size)
    if crc32c(view[position : body - _CRC.size], crc32c(_OFFSET.pack(offset), seed)) != header_crc:
        return None
    payload = bytes(view[body : body + length])
    if crc32c(payload) != payload_crc:
        return None
    return Record(kind, index, term, payload, synced, position + record_bytes(length))


def without_zeros(raw: Bytes, start: int) -> bytes:
    """Returns `raw` from `start` on, without the zeros at its end.

    Whole pieces of them are compared, which is some ten times as fast as rstrip.
    """
    end = len(raw)
    while end - start >= len(_ZEROS) and raw[end - len(_ZEROS) : end] == _ZEROS:
        end -= len(_ZEROS)
    return bytes(raw[start:end]).rstrip(b"\0")


def proof_of_damage(raw: Bytes, bad: int, seed: int) -> int | None:
    """Returns the offset of a valid record behind the bad one at `bad` that was written after the bad one's place was durable.

    None: the bad one is a torn write.
    """
    end = len(without_zeros(raw, bad)) + bad
    for position in range(bad + _ALIGN, end, _ALIGN):
        if not ENTRY <= raw[position + 4] <= TRUNCATE if position + RECORD_BYTES <= len(raw) else True:
            continue
        record = unpack_record(raw, position, seed, position)
        if record is not None and record.synced > bad:
            return position
    return None
