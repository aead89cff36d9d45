"""The digest of a state: the sum, modulo 2^128, of the hashes of all (key, value) pairs.  Pure.

A sum does not depend on the order, so it is kept up with every update: minus the old pair, plus the new one.  Two voters that applied the
same entries hold the same rows, so equal digests at equal applied indexes.  A row that changed by itself (LMDB has no page checksums) shows
when it is next written, for then another old pair is taken away than was added.  A hash of the whole store was rejected: reading it all
takes seconds, and it would have to stand still for them.  The hash is not cryptographic: damage and bugs are not adversaries.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_128_intdigest

DIGEST_BYTES = 16
_MASK = (1 << 8 * DIGEST_BYTES) - 1


def pair_hash(key: bytes, value: bytes) -> int:
    """Returns the hash of one row.  The key's length is the seed, so it counts where the key ends."""
    result: int = xxh3_128_intdigest(key + value, len(key))
    return result


def digest_of(pairs: Iterable[tuple[bytes, bytes]]) -> int:
    return sum(pair_hash(key, value) for key, value in pairs) & _MASK


def pack_digest(digest: int) -> bytes:
    return (digest & _MASK).to_bytes(DIGEST_BYTES, "big")


def unpack_digest(raw: bytes) -> int:
    return int.from_bytes(raw, "big")
