"""The control area and the slots, cut between any two stores."""

from __future__ import annotations

import os
import struct

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.types import BACKGROUND_BIT
from awsomefsd.fuse import slots
from awsomefsd.fuse.control_area import BACKGROUND_BLOCK, CONTROL_BYTES, ControlArea, ControlState, Negotiated, Suspect
from awsomefsd.fuse.slots import DONE, EXECUTING, FREE, RECEIVED, SlotArea
from tests.rigs.shared_memory_cuts import cuts, record

PAYLOAD = 4096


def test_a_memfd_can_neither_shrink_nor_grow() -> None:
    fd = shm.create_memfd("test", 5000)
    try:
        assert os.fstat(fd).st_size == 8192
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 12288)
        mem = shm.map_memfd(fd)
        mem[4095], mem[4096] = 6, 7
        shm.prefault(mem, 0, 8192)
        locked = shm.map_memfd(fd, lock=True)
        assert mem[4096] == 7 and locked[4096] == 7
        shm.release_pages(mem, 100, 8092)  # only the whole page inside
        assert mem[4095] == 6 and mem[4096] in (0, 7) and len(mem) == 8192  # 7 where the other mapping could lock it
        del locked
        shm.release_pages(mem, 0, 8192)
    finally:
        os.close(fd)


def test_control_formatting_may_stop_anywhere() -> None:
    mem = bytearray(CONTROL_BYTES)
    for state in cuts(record(mem, lambda: ControlArea(mem, fresh=True))):
        control = ControlArea(bytearray(state))
        assert control.state == ControlState() and control.counters() == {}
        assert control.next_background_unique() == 1 | BACKGROUND_BIT


def test_control_formatting_again_may_stop_anywhere() -> None:
    mem = bytearray(CONTROL_BYTES)
    control = ControlArea(mem, fresh=True)
    control.update(mount=5, session=6)
    control.counter("reads").add(3)
    old = control.state
    for state in cuts(record(mem, lambda: ControlArea(mem, fresh=True))):
        assert ControlArea(bytearray(state)).state in (old, ControlState())
    assert ControlArea(mem).state == ControlState() and ControlArea(mem).counters() == {}


def test_control_update_is_old_or_new() -> None:
    mem = bytearray(CONTROL_BYTES)
    control = ControlArea(mem, fresh=True)
    assert control.formatted
    control.update(mount=1 << 62, dirty_log=77, volume=3, negotiated=Negotiated(45, 1 << 40, 1 << 20, 1 << 17, 12))
    for step in range(4):  # both copies, more than once
        old = control.state
        changes = {"session": step + 1, "epoch": step + 9, "suspects": [Suspect(step, 1, 16)] * (step * 3)}
        tape = record(mem, lambda changes=changes: control.update(**changes))
        seen = {ControlArea(bytearray(state)).state.epoch for state in cuts(tape)}
        for state in cuts(tape):
            assert ControlArea(bytearray(state)).state in (old, control.state)
        assert seen == {old.epoch, step + 9}
    again = ControlArea(mem)
    assert not again.formatted and again.state == control.state
    assert again.state.negotiated is not None and again.state.negotiated.flags == 1 << 40


def test_background_uniques_are_never_used_twice() -> None:
    mem = bytearray(CONTROL_BYTES)
    control = ControlArea(mem, fresh=True)
    given: set[int] = set()
    for _ in range(3):
        returned: list[int] = []
        tape = record(mem, lambda returned=returned: returned.append(control.next_background_unique()))
        for state in cuts(tape):
            successor = ControlArea(bytearray(state))
            assert not {successor.next_background_unique() for _ in range(3)} & given, "an id that was returned before the kill"
        given |= {*returned, *(control.next_background_unique() for _ in range(BACKGROUND_BLOCK))}
    assert len(given) == 3 + 3 * BACKGROUND_BLOCK and all(value & BACKGROUND_BIT for value in given)
    assert ControlArea(mem).next_background_unique() > max(given)


def test_counters_survive_and_appear_whole() -> None:
    mem = bytearray(CONTROL_BYTES)
    control = ControlArea(mem, fresh=True)
    control.counter("fuse_requests").add(5)
    tape = record(mem, lambda: control.counter("replayed_replies").add(2))
    for state in cuts(tape):
        found = ControlArea(bytearray(state)).counters()
        assert found in ({"fuse_requests": 5}, {"fuse_requests": 5, "replayed_replies": 0}, {"fuse_requests": 5, "replayed_replies": 2})
    again = ControlArea(mem)
    again.counter("fuse_requests").add()
    assert control.counter("fuse_requests").value == 6 and again.counter("replayed_replies").value == 2


def test_a_newer_version_is_refused_and_damage_is_told() -> None:
    mem = bytearray(CONTROL_BYTES)
    ControlArea(mem, fresh=True)
    view = memoryview(mem)
    shm.write_header(view, b"awsmctl\x00", 2, (0, 0, 0))
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        ControlArea(mem)
    mem[0] ^= 1
    with pytest.raises(Corrupt, match="checksum"):
        ControlArea(mem)
    with pytest.raises(Corrupt):
        ControlArea(bytearray(100))


# --- slots -------------------------------------------------------------------------------------------------------------------


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
