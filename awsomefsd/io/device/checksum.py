"""crc32c of each BLOCK_BYTES of a frame's stored bytes, seeded with the frame's identity.

The seed is the crc32c of (segment, incarnation, sequence).  So a block that is intact but belongs elsewhere (a lost write that shows the
place's former content, a write that went astray) has a wrong checksum too, without storing the identity in every block.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from crc32c import crc32c

from awsomefsd.base.limits import BLOCK_BYTES

Bytes = bytes | bytearray | memoryview

_IDENTITY = struct.Struct("<QQQ")


def seed_of(segment: int, incarnation: int, sequence: int) -> int:
    return crc32c(_IDENTITY.pack(segment, incarnation, sequence))


def block_count(length: int) -> int:
    return -(-length // BLOCK_BYTES)


def block_checksums(data: Bytes, seed: int) -> list[int]:
    """Returns one checksum for each block of `data`; the last block may be short."""
    return [crc32c(data[start : start + BLOCK_BYTES], seed) for start in range(0, len(data), BLOCK_BYTES)]


def first_mismatch(data: Bytes, expected: Sequence[int], seed: int) -> int:
    """Returns the index of the first block whose checksum is not the expected one, -1 if all are right."""
    assert block_count(len(data)) == len(expected)
    if block_checksums(data, seed) == list(expected):
        return -1
    for index, checksum in enumerate(block_checksums(data, seed)):
        if checksum != expected[index]:
            return index
    return 0  # the memory changed between two reads of it: not to be trusted either
