"""A store has secrets that the cluster keeps: the keys that it is asked with, and the key that its segments are sealed with.  Pure.

It is a row of the metadata, beside the key of the certificate authority, and travels in entries of the log.  There it is *veiled*:

    nonce (16 bytes, random) | body XOR SHAKE-256(nonce);   body: crc32c u32 LE (of the rest) | version u8 | msgpack array of the fields

That hides it from nobody who has the row.  It is there because a copy of the metadata that leaves a node has its secrets overwritten
wherever their bytes stand (meta/state/redaction.py, decision 133): a secret that people chose, such as `minioadmin`, may be the name of a
volume as well, and the copy would be destroyed with it.  A veiled one is like nothing else.  And whoever searches a disk, a core dump or a
log for the words of a secret does not find it.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import Any

import msgspec
from crc32c import crc32c
from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.tier.credentials import Credentials

NONCE_BYTES = 16
KEY_BYTES = 32
VERSION = 1
_CRC = struct.Struct("<I")


class StoreSecret(Struct, frozen=True):
    """`keys` None: none are kept.  `segments_key`: KEY_BYTES, b"" where segments are not sealed; `key_id` is its number, from 1."""

    keys: Credentials | None = None
    segments_key: bytes = b""
    key_id: int = 0

    def __repr__(self) -> str:
        return "StoreSecret(…)"


def new_key() -> bytes:
    """Returns a key for the segments of a store."""
    return secrets.token_bytes(KEY_BYTES)


def veil(secret: StoreSecret, nonce: bytes | None = None) -> bytes:
    """Returns a secret as rows and commands have it; b"" for one with nothing in it.  `nonce`: for tests; each veil has its own."""
    if secret == StoreSecret():
        return b""
    nonce = secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce
    keys = (secret.keys.key_id, secret.keys.secret, secret.keys.token) if secret.keys is not None else None
    body = bytes((VERSION,)) + msgspec.msgpack.encode([keys, secret.segments_key, secret.key_id])
    return nonce + _masked(nonce, _CRC.pack(crc32c(body)) + body)


def unveil(raw: bytes) -> StoreSecret:
    """Returns the secret in a row or command.  Raises Corrupt for what is none, FormatTooNew for one of a later version."""
    if not raw:
        return StoreSecret()
    plain = _masked(raw[:NONCE_BYTES], raw[NONCE_BYTES:])
    body = plain[_CRC.size :]
    if not body or (crc32c(body),) != _CRC.unpack_from(plain) or not body[0]:
        raise Corrupt("the secret of a store is damaged")
    if body[0] > VERSION:
        raise FormatTooNew(f"the secret of a store: version {body[0]} is newer than this build knows ({VERSION}); upgrade this node")
    try:
        keys, segments_key, key_id = _FIELDS.decode(body[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Corrupt("the secret of a store does not decode") from None
    if len(segments_key) not in (0, KEY_BYTES) or key_id < 0:
        raise Corrupt("the secret of a store has no key that can be one")
    return StoreSecret(Credentials(*keys) if keys is not None else None, segments_key, key_id)


def _masked(nonce: bytes, text: bytes) -> bytes:
    mask = hashlib.shake_256(b"awsomefs store secret 1\0" + nonce).digest(len(text))
    return (int.from_bytes(text, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(text), "big")


_FIELDS: Any = msgspec.msgpack.Decoder(tuple[tuple[str, str, str] | None, bytes, int])
