"""Checksums of blocks: they depend on the frame's identity and name the block that is bad."""

from __future__ import annotations

import random

from awsomefsd.base.limits import BLOCK_BYTES
from awsomefsd.io.device.checksum import block_checksums, first_mismatch, seed_of


def test_checksums_depend_on_identity_and_name_the_bad_block(seed: int) -> None:
    data = bytearray(random.Random(seed).randbytes(3 * BLOCK_BYTES + 7))
    own = seed_of(1, 2, 3)
    table = block_checksums(data, own)
    assert len(table) == 4
    assert first_mismatch(data, table, own) == -1
    assert first_mismatch(data, table, seed_of(1, 3, 3)) == 0
    data[2 * BLOCK_BYTES] ^= 1
    assert first_mismatch(data, table, own) == 2
