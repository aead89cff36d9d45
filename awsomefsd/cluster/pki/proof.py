"""The proof with which two holders of a founding token show the secret to each other, before any certificate can be trusted (pure).

They speak TLS 1.3 without verification, so the other end may be a relay.  The proof is an HMAC over everything both sides
know of the conversation: both nonces, the certificate that the listener presented *as each side saw it*, both node names, the hash of the
CA that each proposes or has, and the hash of the key that the dialling side will ask a certificate for.  A relay has to present a
certificate of its own to the dialling side; then the two sides' transcripts differ, and so do the HMACs: it cannot put in its key, and
cannot pass on what it hears.  Either side proves in its own direction, with its own key, so nothing can be sent back to where it came from.

The secret has 256 bits, so an HMAC gives nothing to search for.  The keys are derived (HKDF, RFC 5869); the cluster keeps them, not the
secret (`verifier`), for the nodes that come later.  The dialling side has no certificate in TLS: Python's ssl cannot ask for one that it
is not to verify.  Its key is in the transcript instead, and what it sends can only be read by the holder of the listener's key.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

KEY_BYTES = 32
NONCE_BYTES = 32
VERIFIER_BYTES = 2 * KEY_BYTES
_SALT = b"awsomefs founding token 1"


class Transcript(msgspec.Struct, frozen=True, array_like=True):
    """The facts that the proofs cover.  Hashes are SHA-256, in hex."""

    token: str  # its id
    dialling: str  # node UUIDs
    listening: str
    nonce_dialling: bytes
    nonce_listening: bytes
    certificate: str  # that the listening side presented, DER
    ca_dialling: str
    ca_listening: str
    key: str  # public half, of the dialling side
    formed: bool  # the listening side is in the cluster


def derive(secret: bytes, what: str, length: int = KEY_BYTES) -> bytes:
    """Returns `length` bytes derived from the secret for one purpose: HKDF-SHA256, one block."""
    assert length <= KEY_BYTES
    extracted = hmac.digest(_SALT, secret, "sha256")
    return hmac.digest(extracted, what.encode() + b"\x01", "sha256")[:length]


def verifier(secret: bytes) -> bytes:
    """Returns the keys of both directions: enough to prove and to check, and nothing of the secret itself."""
    return derive(secret, "dialling") + derive(secret, "listening")


def of_dialling(keys: bytes, transcript: Transcript) -> bytes:
    return _proof(keys[:KEY_BYTES], b"dialling", transcript)


def of_listening(keys: bytes, transcript: Transcript) -> bytes:
    return _proof(keys[KEY_BYTES:], b"listening", transcript)


def _proof(key: bytes, direction: bytes, transcript: Transcript) -> bytes:
    assert len(key) == KEY_BYTES
    return hmac.digest(key, direction + b"\0" + msgspec.msgpack.encode(transcript), "sha256")


def same(one: bytes, other: bytes) -> bool:
    """Compares two values in constant time."""
    return hmac.compare_digest(one, other)


def hex_hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
