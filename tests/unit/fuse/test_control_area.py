"""The control area, cut between any two stores."""

from __future__ import annotations

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.types import BACKGROUND_BIT
from awsomefsd.fuse.control_area import BACKGROUND_BLOCK, CONTROL_BYTES, ControlArea, ControlState, Negotiated, Suspect
from tests.rigs.shared_memory_cuts import cuts, record


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
