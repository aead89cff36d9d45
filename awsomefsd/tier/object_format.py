"""The fixed parts of objects: the marker of a prefix, an era, the trailer of a segment, the header of a sealed part of the log.  Pure.

    marker, 64 bytes    0 magic "awsomefs"  8 version u32  12 incompat u32  16 cluster  32 created ns i64  40 zeros  60 crc
    era, 128 bytes      0 magic "awEr"  4 version u8  5 zeros  8 number u64  16 cluster  32 era  48 era before (zeros: none)
                       64 tenure u64  72 index u64  80 created ns i64  88 zeros  124 crc
    trailer, 128 bytes  0 magic "awOb"  4 version u8  5 codec u8  6 flags u16  8 cluster  24 era  40 segment  48 incarnation  56 data end
                       64 footer offset (u64 each)  72 footer bytes  76 piece bytes (0: none)  80 key id (u32 each)  84 zeros
                       88 time ns i64  96 xxh3-128 of all bytes of the object before the trailer  112 zeros  124 crc
    log header, 64      0 magic "awLg"  4 version u8  5 kind u8  6 flags u16  8 cluster  24 era  40 key id u32  44 nonce, 12 bytes
                       56 zeros  60 crc; then the sealed body and its tag

Little-endian; each crc is crc32c of all before it in its part; clusters and eras are UUIDs of 16 bytes.  Magic, version and crc keep their
places in every later version, so a newer object is told from a broken one.

The hash of a trailer is of the bytes as they are stored.  That of the plain bytes was rejected: of a sealed object it would tell whoever
reads the bucket whether a segment holds what he guesses, and nobody could check a sealed object without its key.
"""

from __future__ import annotations

import struct
from uuid import UUID

from crc32c import crc32c
from msgspec import Struct
from xxhash import xxh3_128

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import BLOCK_BYTES, KIB
from awsomefsd.io.device.checksum import Bytes

MARKER_BYTES = 64
ERA_BYTES = TRAILER_BYTES = 128
LOG_HEADER_BYTES = 64
NONCE_BYTES, TAG_BYTES = 12, 16
VERSION = 1
PLAIN, SEALED = 0, 1  # codecs of a segment
PIECE_BYTES = 256 * KIB  # plain bytes of a sealed piece
# kinds of parts of the log: of a checkpoint; a tenure begins; a batch of entries; a checkpoint is complete
PIECE, TENURE, BATCH, COMPLETE = LOG_KINDS = (1, 2, 3, 4)

_MARKER = struct.Struct("<8sII16sq20sI")
_ERA = struct.Struct("<4sB3sQ16s16s16sQQq36sI")
_TRAILER = struct.Struct("<4sBBH16s16sQQQQIIIIq16s12sI")
_LOG = struct.Struct("<4sBBH16s16sI12s4sI")
_MARKER_MAGIC, _ERA_MAGIC, _TRAILER_MAGIC, _LOG_MAGIC = b"awsomefs", b"awEr", b"awOb", b"awLg"
_NO_ERA = UUID(int=0)
assert (_MARKER.size, _ERA.size, _TRAILER.size, _LOG.size) == (MARKER_BYTES, ERA_BYTES, TRAILER_BYTES, LOG_HEADER_BYTES)


class Marker(Struct, frozen=True):
    """What lies at the prefix of a store."""

    cluster: UUID
    created_ns: int


class Era(Struct, frozen=True):
    """A life of the cluster in this store.  `before`, `tenure`, `index`: what it was rebuilt from; None and zeros of one that was not."""

    number: int
    cluster: UUID
    era: UUID
    before: UUID | None
    tenure: int
    index: int
    created_ns: int


class Trailer(Struct, frozen=True):
    """What an object says of the segment in it.  `footer_offset` counts plain bytes, as `data_end` does."""

    cluster: UUID
    era: UUID
    segment: int
    incarnation: int
    data_end: int
    footer_offset: int
    footer_bytes: int
    time_ns: int
    digest: bytes
    codec: int = PLAIN
    piece_bytes: int = 0
    key_id: int = 0

    @property
    def plain_bytes(self) -> int:
        return self.footer_offset + self.footer_bytes

    @property
    def object_bytes(self) -> int:
        return stored_bytes(self.plain_bytes, self.piece_bytes) + TRAILER_BYTES


class LogHeader(Struct, frozen=True):
    """What stands in the clear before a sealed part of the log."""

    cluster: UUID
    era: UUID
    kind: int
    key_id: int
    nonce: bytes


def stored_bytes(plain_bytes: int, piece_bytes: int) -> int:
    """Returns what so many plain bytes take up in an object, in pieces with a tag each; `piece_bytes` 0: they lie there as they are."""
    return plain_bytes + (TAG_BYTES * -(-plain_bytes // piece_bytes) if piece_bytes else 0)


def digest_of(stored: Bytes) -> bytes:
    """Returns the hash that the trailer has of all bytes before it."""
    return xxh3_128(stored).digest()


def pack_marker(marker: Marker) -> bytes:
    return _closed(_MARKER.pack(_MARKER_MAGIC, VERSION, 0, marker.cluster.bytes, marker.created_ns, b"", 0))


def unpack_marker(raw: Bytes) -> Marker:
    """Raises Corrupt for what is no marker, FormatTooNew for a later version or an unknown incompatible bit."""
    _magic, version, incompat, cluster, created_ns, _zeros, _crc = _opened(raw, _MARKER, _MARKER_MAGIC, "marker")
    if version > VERSION or incompat:
        raise FormatTooNew(f"the store's marker has version {version} and bits {incompat:#x}; upgrade this node")
    return Marker(UUID(bytes=cluster), created_ns)


def pack_era(era: Era) -> bytes:
    before = (era.before or _NO_ERA).bytes
    return _closed(
        _ERA.pack(
            _ERA_MAGIC, VERSION, b"", era.number, era.cluster.bytes, era.era.bytes, before, era.tenure, era.index, era.created_ns, b"", 0
        )
    )  # fmt: skip


def unpack_era(raw: Bytes) -> Era:
    """Raises Corrupt for what is no era, FormatTooNew for a later version."""
    fields = _opened(raw, _ERA, _ERA_MAGIC, "era")
    _, version, _, number, cluster, era, before, tenure, index, created_ns, _, _ = fields
    _check_version(version, "era")
    if not number or era == _NO_ERA.bytes:
        raise Corrupt("era: without number or identity")
    rebuilt_from = None if before == _NO_ERA.bytes else UUID(bytes=before)
    return Era(number, UUID(bytes=cluster), UUID(bytes=era), rebuilt_from, tenure, index, created_ns)


def pack_trailer(trailer: Trailer) -> bytes:
    return _closed(
        _TRAILER.pack(
            _TRAILER_MAGIC, VERSION, trailer.codec, 0, trailer.cluster.bytes, trailer.era.bytes, trailer.segment, trailer.incarnation,
            trailer.data_end, trailer.footer_offset, trailer.footer_bytes, trailer.piece_bytes, trailer.key_id, 0, trailer.time_ns,
            trailer.digest, b"", 0,
        )
    )  # fmt: skip


def unpack_trailer(raw: Bytes) -> Trailer:
    """Returns the trailer in the last TRAILER_BYTES of an object.

    Raises Corrupt for what is none, or names impossible lengths; FormatTooNew for a later version or codec, or a flag that is not known.
    """
    (_, version, codec, flags, cluster, era, segment, incarnation, data_end, footer_offset, footer_bytes, piece_bytes, key_id, _, time_ns,
     digest, _, _) = _opened(raw, _TRAILER, _TRAILER_MAGIC, "trailer of an object")  # fmt: skip
    _check_version(version, "trailer of an object")
    if flags or codec > SEALED:
        raise FormatTooNew(f"trailer of an object: flags {flags:#x} or codec {codec} is not known to this build; upgrade this node")
    padded = -(-data_end // BLOCK_BYTES) * BLOCK_BYTES
    possible = footer_offset == padded and footer_bytes and footer_bytes % BLOCK_BYTES == 0
    if not possible or piece_bytes != (PIECE_BYTES if codec == SEALED else 0):
        raise Corrupt(f"trailer of segment {segment}: impossible lengths")
    return Trailer(
        UUID(bytes=cluster), UUID(bytes=era), segment, incarnation, data_end, footer_offset, footer_bytes, time_ns, digest, codec,
        piece_bytes, key_id,
    )  # fmt: skip


def pack_log_header(header: LogHeader) -> bytes:
    assert len(header.nonce) == NONCE_BYTES
    return _closed(
        _LOG.pack(_LOG_MAGIC, VERSION, header.kind, 0, header.cluster.bytes, header.era.bytes, header.key_id, header.nonce, b"", 0)
    )  # fmt: skip


def unpack_log_header(raw: Bytes) -> LogHeader:
    """Raises Corrupt for what is none, FormatTooNew for a later version, kind or flag."""
    _, version, kind, flags, cluster, era, key_id, nonce, _, _ = _opened(raw, _LOG, _LOG_MAGIC, "part of the log")
    _check_version(version, "part of the log")
    if flags or kind not in LOG_KINDS:
        raise FormatTooNew(f"part of the log: flags {flags:#x} or kind {kind} is not known to this build; upgrade this node")
    return LogHeader(UUID(bytes=cluster), UUID(bytes=era), kind, key_id, nonce)


def _closed(raw: bytes) -> bytes:
    return raw[:-4] + struct.pack("<I", crc32c(raw[:-4]))


def _opened(raw: Bytes, layout: struct.Struct, magic: bytes, what: str) -> tuple:  # type: ignore[type-arg]
    if len(raw) != layout.size or bytes(raw[: len(magic)]) != magic:
        raise Corrupt(f"{what}: not there, or something else")
    fields = layout.unpack(raw)
    if crc32c(memoryview(raw)[:-4]) != fields[-1]:
        raise Corrupt(f"{what}: checksum mismatch")
    return fields


def _check_version(version: int, what: str) -> None:
    if version > VERSION:
        raise FormatTooNew(f"{what}: version {version} is newer than this build knows ({VERSION}); upgrade this node")
