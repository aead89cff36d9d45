"""The slots of requests, cut between any two stores."""

from __future__ import annotations

import struct

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt
from awsomefsd.fuse import slots
from awsomefsd.fuse.slots import DONE, EXECUTING, FREE, RECEIVED, SlotArea, required_bytes
from tests.rigs.shared_memory_cuts import cuts, record

PAYLOAD = 4096


def area(mem: bytearray | None = None, fresh: bool = False) -> SlotArea:
    return SlotArea(mem if mem is not None else bytearray(slots.required_bytes(2, PAYLOAD)), 2, PAYLOAD, fresh)


def request(unique: int, body: bytes) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), 16, unique, 1, 0, 0, 0, 0, 0) + body


def test_head_and_payload_are_one_request() -> None:
    mem = bytearray(slots.required_bytes(2, PAYLOAD))
    slot = area(mem, fresh=True)[1]
    raw = request(9, bytes(range(200)))
    assert len(slot.head) == 80 and len(slot.payload) == PAYLOAD
    slot.begin_read()
    slot.read_buffer[: len(raw)] = raw
    slot.received(len(raw))
    assert slot.request() == raw and slot.request() == bytes(slot.head) + bytes(slot.payload[: len(raw) - 80])
    assert (len(mem) - len(slot.payload)) % shm.PAGE_BYTES == 0
    assert area(mem).count == 2 and area(mem)[1].request() == raw and area(mem)[0].state == FREE


def test_slot_life_cut_anywhere() -> None:
    mem = bytearray(slots.required_bytes(2, PAYLOAD))
    slot = area(mem, fresh=True)[0]
    first, second = request(101, b"a" * 100), request(102, b"b" * 70)

    def observe(state: bytes) -> tuple[object, ...]:
        found = SlotArea(bytearray(state))[0]
        if found.state == FREE:
            return ("free",)
        if found.state == DONE:
            return ("done", found.reply())
        return ("executing" if found.state == EXECUTING else "received", bytes(found.request()))

    def run(action, *allowed: tuple[object, ...]) -> None:  # type: ignore[no-untyped-def]
        for state in cuts(record(mem, action)):
            assert observe(state) in allowed, (observe(state), allowed)

    def kernel(raw: bytes) -> None:
        slot.read_buffer[: len(raw)] = raw

    run(slot.begin_read, ("free",))
    kernel(first)
    assert observe(bytes(mem)) == ("received", first), "handed over, but the worker died before it could say so"
    run(lambda: slot.received(len(first)), ("received", first))
    run(slot.executing, ("received", first), ("executing", first))
    assert slot.add_death() == 1 and slot.add_death() == 2 and slot.state == EXECUTING and slot.length == len(first)
    run(lambda: slot.store_reply(b"R" * 90), ("executing", first), ("done", b"R" * 90))
    run(slot.begin_read, ("done", b"R" * 90), ("free",))
    kernel(second)
    assert observe(bytes(mem)) == ("received", second)
    run(lambda: slot.start(len(second)), ("received", second), ("executing", second))
    assert slot.deaths == 0
    assert not slot.store_reply(bytes(slots.SLOT_REPLY_BYTES_MAX + 1)) and observe(bytes(mem)) == ("executing", second)
    run(slot.free, ("executing", second), ("free",))


def test_a_death_of_a_request_whose_state_is_derived() -> None:
    slot = area(fresh=True)[0]
    slot.begin_read()
    raw = request(5, b"x" * 8)
    slot.read_buffer[: len(raw)] = raw
    assert slot.state == RECEIVED and slot.add_death() == 1
    assert slot.state == RECEIVED and slot.length == len(raw) and slot.request() == raw


def test_slot_damage_is_told() -> None:
    mem = bytearray(slots.required_bytes(1, PAYLOAD))
    slot = SlotArea(mem, 1, PAYLOAD, fresh=True)[0]
    slot.begin_read()
    slot.head[:4] = b"\xff" * 4
    with pytest.raises(Corrupt):
        slot.request()
    slot.store_reply(b"hello")
    mem[shm.PAGE_BYTES + 64] ^= 1
    with pytest.raises(Corrupt):
        slot.reply()
    with pytest.raises(Corrupt):
        SlotArea(bytearray(4096), 1, PAYLOAD)


def sealed(mem: bytearray, raw: bytes) -> slots.Slot:
    slot = SlotArea(mem, 1, PAYLOAD, fresh=True)[0]
    slot.begin_read()
    slot.read_buffer[: len(raw)] = raw
    slot.start(len(raw))
    slot.seal()
    return slot


def test_a_sealed_request_that_changes_is_known() -> None:
    mem = bytearray(slots.required_bytes(1, PAYLOAD))
    slot = sealed(mem, request(5, b"x" * 200))
    again = SlotArea(mem)[0]
    assert again.is_intact and again.unique == 5
    again.payload[3] ^= 1
    assert not again.is_intact and again.unique == 5, "the caller is known, and told"
    again.payload[3] ^= 1
    again.head[8] ^= 1  # the unique itself
    assert not again.is_intact and again.unique == 5
    slot.free()
    slot.read_buffer[:250] = bytes(250)
    slot.read_buffer[:56] = request(6, b"y" * 16)
    slot.start(56)
    assert slot.is_intact and slot.unique == 6, "of one that does not wait nothing is known"


@pytest.mark.parametrize("done", [False, True])
def test_a_slot_whose_freeing_is_cut_short_is_not_damaged(done: bool) -> None:
    """Word after word; and what is read into it next is another request, to which no seal belongs."""
    mem = bytearray(slots.required_bytes(1, PAYLOAD))
    slot = sealed(mem, request(5, b"x"))
    if done:
        slot.store_reply(b"reply")
    for state in cuts(record(mem, slot.free)):
        found = SlotArea(bytearray(state))[0]
        if found.state != FREE:
            assert found.is_intact and found.unique == 5 and found.state == (DONE if done else EXECUTING)
            continue
        found.begin_read()
        raw = request(7, b"z" * 30)
        found.read_buffer[: len(raw)] = raw
        assert found.state == RECEIVED and found.is_intact and found.unique == 7


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
