"""Which files hold something dirty: known at any time, and without a look at those that hold nothing."""

from __future__ import annotations

import errno
import random
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest

from awsomefsd.base.wait import block_on
from tests.unit.io.file.test_flusher_races import WAIT_S, Rig, attr, until

CLEAN = 200


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.service.gate.set()
    if made.flusher._thread.is_alive():
        made.flusher.stop()


class Overtaken(OrderedDict):  # type: ignore[type-arg]
    """Calls `between`, once, when a file was looked up and nothing is done with it yet."""

    between: Any = None

    def get(self, key: Any, default: Any = None) -> Any:
        found, between = super().get(key, default), self.between
        self.between = None
        if between is not None:
            between()
        return found


class Counted(OrderedDict):  # type: ignore[type-arg]
    """Whoever goes over all files is counted."""

    walks = 0

    def values(self) -> Any:
        self.walks += 1
        return super().values()


def dirty(rig: Rig) -> set[int]:
    return {state.ino for state in rig.files.dirty_states()}


def test_a_sync_looks_at_no_file_that_holds_nothing_dirty(rig: Rig) -> None:
    for ino in range(100, 100 + CLEAN):
        rig.files.state(attr(ino))
    rig.files._states = counted = Counted(rig.files._states)
    rig.start()
    for _ in range(3):
        rig.store(10)
        block_on(rig.flusher.flush(10), WAIT_S)
    rig.store(11)
    block_on(rig.flusher.flush_all(), WAIT_S)
    assert not dirty(rig)
    assert counted.walks == 0


def test_the_dirty_files_are_those_that_hold_records(rig: Rig, seed: int) -> None:
    """Stored, committed, refused as gone, dropped, truncated, forgotten, in any order."""
    dice = random.Random(seed)
    rig.start()
    for _ in range(300):
        ino, roll = dice.randrange(10, 16), dice.randrange(8)
        if roll < 4:
            rig.store(ino)
        elif roll == 4:
            block_on(rig.flusher.flush(ino), WAIT_S)
        elif roll == 5:
            if dice.random() < 0.5:
                rig.service.refuse[ino] = errno.ENOENT
            block_on(rig.flusher.flush_all(), WAIT_S)
            rig.service.refuse.clear()
        elif roll == 6:
            state = rig.files.get(ino)
            oldest = None if state is None else state.oldest()
            rig.files.discard(ino, up_to=None if oldest is None else oldest.sequence)
        else:
            rig.files.drop(ino)
            rig.files.forget_clean()
        assert dirty(rig) <= {state.ino for state in rig.files.every()}
    block_on(rig.flusher.flush_all(), WAIT_S)
    assert not rig.files._dirty and not any(state.dirty for state in rig.files.every())
    rig.store(10)
    assert dirty(rig) == {10}


def test_what_is_written_behind_records_that_were_put_aside_is_flushed(rig: Rig) -> None:
    """The answer for those comes late, when the file has another state: it takes nothing of that one."""
    old = rig.store(10)
    rig.service.gate.clear()
    rig.start()
    rig.flusher.kick()
    assert rig.service.arrived.wait(WAIT_S)
    rig.files.drop(10, in_flight=True)  # a conflict
    assert rig.store(10) is not old
    rig.service.gate.set()
    until(lambda: rig.flusher._proposed is None)
    block_on(rig.flusher.flush_all(), WAIT_S)
    assert not rig.dirty.dirty_bytes, "a flush of all, before an unmount, has left it out"


def test_a_truncation_that_meets_a_forgotten_state_hides_no_data_of_the_next_one(rig: Rig) -> None:
    rig.store(10)
    rig.files.discard(10)
    rig.files._states = Overtaken(rig.files._states)

    def between() -> None:
        rig.files.forget_clean()
        rig.store(10)

    rig.files._states.between = between
    rig.files.discard(10, up_to=0)
    assert dirty(rig) == {10} and rig.dirty.dirty_bytes
