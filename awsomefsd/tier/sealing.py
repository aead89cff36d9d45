"""Seals of objects: AES-256-GCM with keys out of the two secrets of a store.  Pure, but for the nonces of the log, which are drawn.

A sealed segment is cut into pieces of PIECE_BYTES (the last may be shorter), each with a tag behind it.  Its key is HKDF-SHA256 of the
segments' secret with era, segment and incarnation; the nonce is the number of the piece.  A name has one content for ever, so a key and a
nonce never meet two plaintexts.  The length of all pieces is associated data: an object that was cut at the end of a piece does not open.
Where a range lies is arithmetic, so a read opens only the pieces it needs.

Parts of the log are sealed always, with the other secret: they hold names, inline files and the cluster's private keys.  Their nonces are
random, because nobody can promise that what died half sent is never sent again with other bytes.  One key an era, so fewer than 2^32 of
them, which at one a second is 136 years.  Header and name of the object are associated data: a part in another's place does not open.
"""

from __future__ import annotations

import secrets
import struct
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from awsomefsd.base.errors import Corrupt
from awsomefsd.io.device.checksum import Bytes
from awsomefsd.tier.names import SegmentName
from awsomefsd.tier.object_format import (
    LOG_HEADER_BYTES,
    NONCE_BYTES,
    PIECE_BYTES,
    TAG_BYTES,
    LogHeader,
    pack_log_header,
    stored_bytes,
    unpack_log_header,
)

SECRET_BYTES = 32
_SEGMENT_CONTEXT = b"awsomefs-object/1 segment\0"
_LOG_CONTEXT = b"awsomefs-object/1 log\0"
_IDENTITY = struct.Struct("<16sQQ")
_U64 = struct.Struct("<Q")


class SegmentSeal:
    """Seals and opens the pieces of one segment with `plain_bytes` in all.  Its key is in no `repr`.  Threads may share it."""

    def __init__(self, secret: bytes, name: SegmentName, plain_bytes: int) -> None:
        assert len(secret) == SECRET_BYTES and plain_bytes
        context = _SEGMENT_CONTEXT + _IDENTITY.pack(name.era.bytes, name.segment, name.incarnation)
        self._aead = AESGCM(HKDF(SHA256(), SECRET_BYTES, salt=None, info=context).derive(secret))
        self._name = name
        self._plain_bytes = plain_bytes
        self._associated = _U64.pack(plain_bytes)

    def seal(self, plain: memoryview, into: memoryview) -> int:
        """Writes all pieces of `plain` into `into`, which must not overlap it; returns how many bytes that were."""
        assert len(plain) == self._plain_bytes
        at = 0
        for number, start in enumerate(range(0, len(plain), PIECE_BYTES)):
            piece = plain[start : start + PIECE_BYTES]
            sealed = into[at : at + len(piece) + TAG_BYTES]
            self._aead.encrypt_into(self._nonce(number), piece, self._associated, sealed)
            at += len(sealed)
        return at

    def stored_range(self, start: int, length: int) -> tuple[int, int]:
        """Returns first byte and length of the pieces, as stored, that hold `length` plain bytes from `start` on."""
        assert start >= 0 and length > 0 and start + length <= self._plain_bytes
        first, last = start // PIECE_BYTES, (start + length - 1) // PIECE_BYTES
        begin = first * (PIECE_BYTES + TAG_BYTES)
        plain = min((last + 1) * PIECE_BYTES, self._plain_bytes) - first * PIECE_BYTES
        return begin, stored_bytes(plain, PIECE_BYTES)

    def open(self, stored: Bytes, start: int, length: int) -> bytes:
        """Returns `length` plain bytes from `start` on; `stored` is what lies in `stored_range` of them.

        Raises Corrupt if a piece is not the one that was sealed there.
        """
        first = start // PIECE_BYTES
        view, plain = memoryview(stored), bytearray()
        for offset in range(0, len(view), PIECE_BYTES + TAG_BYTES):
            number = first + offset // (PIECE_BYTES + TAG_BYTES)
            try:
                plain += self._aead.decrypt(self._nonce(number), view[offset : offset + PIECE_BYTES + TAG_BYTES], self._associated)
            except (InvalidTag, ValueError):
                raise Corrupt(f"object {self._name}: piece {number} does not open; it is damaged, or the store's key is another") from None
        skipped = start - first * PIECE_BYTES
        if len(plain) < skipped + length:
            raise Corrupt(f"object {self._name}: fewer bytes than were asked for")
        return bytes(plain[skipped : skipped + length])

    def _nonce(self, number: int) -> bytes:
        return number.to_bytes(NONCE_BYTES, "little")


class LogSeal:
    """Seals and opens parts of the log of one era.  Its key is in no `repr`.  Threads may share it."""

    def __init__(self, secret: bytes, cluster: UUID, era: UUID, key_id: int = 0) -> None:
        assert len(secret) == SECRET_BYTES
        self._aead = AESGCM(HKDF(SHA256(), SECRET_BYTES, salt=None, info=_LOG_CONTEXT + era.bytes).derive(secret))
        self._cluster, self._era, self._key_id = cluster, era, key_id

    def seal(self, name: str, kind: int, body: Bytes) -> bytes:
        """Returns the object `name`: header, sealed body, tag.  Twice the same gives two different ones."""
        header = pack_log_header(LogHeader(self._cluster, self._era, kind, self._key_id, nonce := secrets.token_bytes(NONCE_BYTES)))
        return header + self._aead.encrypt(nonce, body, header + name.encode())

    def open(self, name: str, raw: Bytes) -> tuple[int, bytes]:
        """Returns kind and body of the object `name`.  Raises Corrupt if it is not that object as it was sealed; FormatTooNew."""
        view = memoryview(raw)
        header = unpack_log_header(view[:LOG_HEADER_BYTES])
        if (header.cluster, header.era) != (self._cluster, self._era):
            raise Corrupt(f"object {name}: it is of cluster {header.cluster} and era {header.era}")
        if header.key_id != self._key_id:
            raise Corrupt(f"object {name}: sealed with key {header.key_id}, and this is key {self._key_id}")
        try:
            return header.kind, self._aead.decrypt(header.nonce, view[LOG_HEADER_BYTES:], bytes(view[:LOG_HEADER_BYTES]) + name.encode())
        except (InvalidTag, ValueError):
            raise Corrupt(f"object {name}: it does not open; it is damaged, or the store's key is another") from None
