"""A worker that died between readv(2) and its first store: the successor finds a head and no state."""

from __future__ import annotations

import struct

from awsomefsd.fuse.slots import EXECUTING, RECEIVED, SlotArea, required_bytes


def handed_over(length: int) -> SlotArea:
    memory = bytearray(required_bytes(1, 8192))
    area = SlotArea(memory, 1, 8192, fresh=True)
    area[0].begin_read()
    area[0].head[:8] = struct.pack("<II", length, 16)  # fuse_in_header: len, opcode, as the kernel leaves it
    return SlotArea(memory)


def test_a_request_keeps_its_length_when_it_starts_to_execute() -> None:
    slot = handed_over(200)[0]
    assert (slot.state, slot.length) == (RECEIVED, 200)
    slot.executing()
    assert (slot.state, slot.length, len(slot.request())) == (EXECUTING, 200, 200)


def test_a_stored_length_is_not_replaced_by_the_header() -> None:
    slot = handed_over(200)[0]
    slot.received(120)
    slot.executing()
    assert slot.length == 120
