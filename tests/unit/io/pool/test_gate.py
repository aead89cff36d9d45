"""The gate: rights that end for ever, and what flushes prove.

A state machine compares it with a disk that loses what it could not flush.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from awsomefsd.base.errors import FsError
from awsomefsd.io.pool.gate import Bay, Flush, Gate

ROOM = 10
BAY, OTHER, ELSEWHERE = Bay(1, 0), Bay(1, 1), Bay(2, 0)


def stale(call: Callable[[], object], why: str = "\\w") -> None:
    with pytest.raises(FsError, match=why) as err:
        call()
    assert err.value.errno == errno.ESTALE


def append(gate: Gate, bay: Bay, offset: int, length: int = 1, connection: int = 1, segment: int = 7, *, failed: bool = False) -> None:
    gate.begin_append(bay, segment, 1, connection, offset, length, ROOM)
    gate.end_append(bay, failed=failed)


def opened(*bays: Bay) -> Gate:
    gate = Gate()
    for bay in bays or (BAY,):
        gate.open(bay, 7, 1, 1)
    return gate


def flush(gate: Gate, device: int = 1, *, failed: bool = False) -> None:
    gate.end_flush(gate.begin_flush(device), failed=failed)


def test_only_the_holder_appends_and_only_at_the_end() -> None:
    gate = opened()
    append(gate, BAY, 0, 2)
    stale(lambda: append(gate, BAY, 2, connection=2), "not opened")
    stale(lambda: append(gate, BAY, 2, segment=8), "not opened")
    stale(lambda: append(gate, OTHER, 0), "not opened")
    append(gate, BAY, 2)
    stale(lambda: append(gate, BAY, 2), "the end is 3")
    stale(lambda: append(gate, BAY, 3), "out of order")


def test_an_append_beyond_the_room_closes_the_bay() -> None:
    gate = opened()
    append(gate, BAY, 0, ROOM - 1)
    stale(lambda: append(gate, BAY, ROOM - 1, 2))
    stale(lambda: append(gate, BAY, ROOM - 1, 1))


@pytest.mark.parametrize("end", ["failed write", "lost connection", "close", "another holder", "trim", "sync beyond"])
def test_what_ends_the_right_ends_it_for_ever(end: str) -> None:
    gate = opened()
    append(gate, BAY, 0)
    if end == "failed write":
        stale(lambda: append(gate, BAY, 1, failed=True), "a write failed")
    elif end == "lost connection":
        assert gate.lose(1) == [BAY] and gate.lose(1) == []
    elif end == "close":
        assert gate.close(BAY, 7, 1, 1) == gate.close(BAY, 7, 1, 1) == 0
    elif end == "another holder":
        gate.open(BAY, 8, 1, 2)
    elif end == "trim":
        gate.forget(BAY, 7)
    else:
        stale(lambda: gate.is_durable(BAY, 7, 1, 1, 2))
    stale(lambda: append(gate, BAY, 1))
    if end not in ("another holder", "trim"):
        stale(lambda: gate.open(BAY, 7, 1, 3), "opened for this segment before")
    append(gate, BAY, 0, connection=2, segment=8) if end == "another holder" else gate.open(BAY, 8, 1, 2)


def test_a_flush_covers_what_was_written_when_it_began() -> None:
    gate = opened()
    append(gate, BAY, 0)
    under_way = gate.begin_flush(1)
    append(gate, BAY, 1)
    gate.end_flush(under_way, failed=False)
    assert gate.is_durable(BAY, 7, 1, 1, 1) and not gate.is_durable(BAY, 7, 1, 1, 2)
    flush(gate, 2)
    assert not gate.is_durable(BAY, 7, 1, 1, 2), "another device"
    flush(gate)
    assert gate.is_durable(BAY, 7, 1, 1, 2)


def test_a_flush_of_an_earlier_holder_says_nothing_of_a_later_one() -> None:
    gate = opened()
    append(gate, BAY, 0, 5)
    under_way = gate.begin_flush(1)
    gate.open(BAY, 8, 1, 2)
    append(gate, BAY, 0, 1, 2, 8)
    gate.end_flush(under_way, failed=False)
    assert not gate.is_durable(BAY, 8, 1, 2, 1)


def test_a_failed_flush_closes_what_it_may_have_lost_and_later_ones_forgive_nothing() -> None:
    gate = opened(BAY, OTHER, ELSEWHERE, Bay(1, 2), Bay(1, 3))
    for bay in (BAY, OTHER, ELSEWHERE):
        append(gate, bay, 0)
    flush(gate)
    for bay in (BAY, ELSEWHERE):
        append(gate, bay, 1)
    gate.begin_append(Bay(1, 2), 7, 1, 1, 0, 1, ROOM)  # under way
    flush(gate, failed=True)
    stale(lambda: gate.end_append(Bay(1, 2), failed=False), "flush of the device failed")
    flush(gate)
    assert gate.is_durable(BAY, 7, 1, 1, 1), "what an earlier flush proved stays"
    stale(lambda: gate.is_durable(BAY, 7, 1, 1, 2), "durable up to 1 of 2")
    stale(lambda: append(gate, BAY, 2))
    assert gate.close(BAY, 7, 1, 1) == 1
    append(gate, OTHER, 1)  # it had nothing since the last good flush
    append(gate, ELSEWHERE, 2)
    append(gate, Bay(1, 3), 0)


def test_what_the_leader_says_of_a_bay_can_be_read_and_not_appended_to() -> None:
    gate = Gate()
    assert gate.held(BAY) is None
    gate.learn(BAY, 7, 1, 5)
    held = gate.held(BAY)
    assert held is not None and held[:3] == (7, 1, 5)
    stale(lambda: append(gate, BAY, 5))
    stale(lambda: gate.open(BAY, 7, 1, 1), "before")
    gate.open(BAY, 7, 2, 1)
    after = gate.held(BAY)
    assert after is not None and after.version > held.version


# --- against a disk that loses -------------------------------------------------------------------------------------------------
class Disk:
    """Two bays of a device: for each the bytes on the medium and those in its cache.  A flush that fails loses the cache, once."""

    def __init__(self) -> None:
        self.medium: dict[Bay, list[tuple[int, int]]] = {BAY: [], OTHER: []}  # (segment, number of the append) at each offset
        self.cache: dict[Bay, dict[int, tuple[int, int]]] = {BAY: {}, OTHER: {}}

    def write(self, bay: Bay, at: int, what: tuple[int, int]) -> None:
        self.cache[bay][at] = what

    def flush(self, *, failed: bool, of: dict[Bay, dict[int, tuple[int, int]]]) -> None:
        for bay, bytes_ in of.items():
            for at, what in bytes_.items():
                if self.cache[bay].get(at) == what:
                    del self.cache[bay][at]
                    if not failed:
                        self.medium[bay] += [(0, 0)] * (at + 1 - len(self.medium[bay]))
                        self.medium[bay][at] = what


def test_a_device_that_is_given_up_closes_its_bays_for_ever() -> None:
    gate = opened(BAY, OTHER, ELSEWHERE)
    append(gate, BAY, 0)
    gate.close_device(1)
    for bay in (BAY, OTHER):
        stale(lambda bay=bay: append(gate, bay, 0), "given up")
        stale(lambda bay=bay: gate.open(bay, 7, 1, 2))
    stale(lambda: gate.is_durable(BAY, 7, 1, 1, 1), "given up")
    append(gate, ELSEWHERE, 0)
    gate.open(BAY, 8, 1, 2)
    append(gate, BAY, 0, segment=8, connection=2)


class Compared(RuleBasedStateMachine):
    """Connections open, append and sync; flushes end well or badly; what is called durable is on the medium."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.disk = Gate(), Disk()
        self.open_: dict[Bay, tuple[int, int]] = {}  # (segment, connection) that opened last
        self.content: dict[Bay, list[tuple[int, int]]] = {BAY: [], OTHER: []}  # appends that counted, of the present holder
        self.segments = self.appends = 0
        self.flushing: tuple[Flush, dict[Bay, dict[int, tuple[int, int]]]] | None = None
        self.writing: Bay | None = None
        self.ended: set[int] = set()

    bays = st.sampled_from([BAY, OTHER])
    seldom = st.integers(0, 5)

    @rule(bay=bays, connection=st.integers(1, 2), chance=seldom)
    def open(self, bay: Bay, connection: int, chance: int) -> None:
        if self.writing == bay or (bay in self.open_ and self.open_[bay][0] not in self.ended and chance):
            return  # the server awaits a write that is under way
        self.segments += 1
        self.gate.open(bay, self.segments, 1, connection)
        self.open_[bay], self.content[bay] = (self.segments, connection), []
        self.disk.medium[bay] = []

    @rule(bay=bays, skew=st.integers(0, 20), length=st.integers(1, 3))
    def begin(self, bay: Bay, skew: int, length: int) -> None:
        if self.writing is not None or bay not in self.open_:
            return
        segment, connection = self.open_[bay]
        at = len(self.content[bay]) + (skew == 20)
        try:
            self.gate.begin_append(bay, segment, 1, connection, at, length, 100)
        except FsError:
            self.ended.add(segment) if skew == 20 else None
            return
        assert segment not in self.ended, "an append after the right had ended"
        self.writing, self.appends = bay, self.appends + 1
        self.under_way = [(segment, self.appends)] * length
        for index, what in enumerate(self.under_way):
            self.disk.write(bay, at + index, what)

    @precondition(lambda self: self.writing is not None)
    @rule(failed=st.sampled_from([False] * 9 + [True]))
    def end(self, failed: bool) -> None:
        assert self.writing is not None
        bay, self.writing = self.writing, None
        try:
            self.gate.end_append(bay, failed=failed)
        except FsError:
            self.ended.add(self.open_[bay][0])
            return
        assert not failed
        self.content[bay] += self.under_way

    @rule(connection=st.integers(1, 2), chance=seldom)
    def lose(self, connection: int, chance: int) -> None:
        if chance:
            return
        for bay in self.gate.lose(connection):
            self.ended.add(self.open_[bay][0])

    @precondition(lambda self: self.flushing is None)
    @rule()
    def begin_flush(self) -> None:
        self.flushing = (self.gate.begin_flush(1), {bay: dict(cache) for bay, cache in self.disk.cache.items()})

    @precondition(lambda self: self.flushing is not None)
    @rule(failed=st.booleans())
    def end_flush(self, failed: bool) -> None:
        assert self.flushing is not None
        (under_way, of), self.flushing = self.flushing, None
        if failed:  # the kernel may have tried, and lost, what came meanwhile too
            of = {bay: dict(cache) for bay, cache in self.disk.cache.items()}
        self.disk.flush(failed=failed, of=of)
        self.gate.end_flush(under_way, failed=failed)

    @invariant()
    def what_is_durable_is_there(self) -> None:
        for bay, (segment, connection) in self.open_.items():
            if self.writing == bay:
                continue
            for end in range(len(self.content[bay]), 0, -1):
                try:
                    durable = self.gate.is_durable(bay, segment, 1, connection, end)
                except FsError:
                    continue
                if durable:
                    assert self.disk.medium[bay][:end] == self.content[bay][:end]
                    break


TestCompared = Compared.TestCase
TestCompared.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
