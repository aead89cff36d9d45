"""Keys and seals of the records between two nodes: AES-256-GCM, a key for each direction, out of what both drew.

Inside a TLS 1.3 handshake (`handshake.py`) each side sends 32 random bytes.  HKDF-SHA256 makes both keys of these 64, with the UUIDs of
both nodes as context.  TLS keeps the random bytes secret and proves who sent them; they never travel outside it.

The nonce is the number of the record in its direction, and is not sent.  So a record that is repeated, left out, moved, or shortened does
not open, as one that was altered does not.  The header is associated data.  No nonce is used twice: the count belongs to the key, never
goes back, and a key is not used for more than RECORDS_MAX records or SEGMENT_CONNECTION_MS_MAX (NIST SP 800-38D bounds neither so low; who
cannot read a key for ever has less to gain from it).
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from awsomefsd.base.errors import ProtocolError
from awsomefsd.io.device.checksum import Bytes

RANDOM_BYTES = 32
KEY_BYTES = 32
TAG_BYTES = 16
RECORDS_MAX = 1 << 32  # in one direction of one connection
_CONTEXT = b"awsomefs-segment/1 keys\0"


class Keys(NamedTuple):
    """The keys of one connection, as one side uses them.  They are never logged: `repr` hides them."""

    sending: bytes
    receiving: bytes

    def __repr__(self) -> str:
        return "Keys(…)"


def draw() -> bytes:
    return secrets.token_bytes(RANDOM_BYTES)


def keys_of(dialler_random: bytes, acceptor_random: bytes, dialler: str, acceptor: str, *, dialled: bool) -> Keys:
    """Returns the keys of one side: of the one that dialled, or of the other.  `dialler`, `acceptor`: the UUIDs of their nodes."""
    assert len(dialler_random) == len(acceptor_random) == RANDOM_BYTES
    context = _CONTEXT + dialler.encode() + b"\0" + acceptor.encode()
    both = HKDF(SHA256(), 2 * KEY_BYTES, salt=None, info=context).derive(dialler_random + acceptor_random)
    there, back = both[:KEY_BYTES], both[KEY_BYTES:]
    return Keys(there, back) if dialled else Keys(back, there)


class Seal:
    """One direction of a connection: it seals, or opens, records in their order.  One thread at a time."""

    def __init__(self, key: bytes, records_max: int = RECORDS_MAX) -> None:
        self._aead = AESGCM(key)
        self._records_max = records_max
        self.records = 0

    def seal(self, header: bytes, body: Bytes, into: memoryview | None = None) -> Bytes:
        """Returns body and tag, sealed; in `into`, which must not overlap the body, if there is room given.

        Raises ConnectionResetError when the key has been used for all the records it may be used for.
        """
        nonce = self._next()
        if into is None:
            return self._aead.encrypt(nonce, body, header)
        sealed = into[: len(body) + TAG_BYTES]
        self._aead.encrypt_into(nonce, body, header, sealed)
        return sealed

    def open(self, header: bytes, sealed: Bytes, into: memoryview) -> None:
        """Writes the body into `into`, which has its length.  Raises ProtocolError if this is not the record that was sent next.

        After that `into` has bytes that nobody vouches for.
        """
        assert len(into) == len(sealed) - TAG_BYTES
        nonce = self._next()
        try:
            if len(into):
                self._aead.decrypt_into(nonce, sealed, header, into)
            else:
                self._aead.decrypt(nonce, sealed, header)
        except InvalidTag:
            raise ProtocolError("a record does not open: altered, repeated, left out or not sent by this peer") from None

    def _next(self) -> bytes:
        if self.records >= self._records_max:
            raise ConnectionResetError("this connection has carried as many records as it may")
        nonce = self.records.to_bytes(12, "big")
        self.records += 1
        return nonce
