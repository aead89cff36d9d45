"""Which reader is in readv(2): the turn is kept for quick READs, handed on for slow ones, and given once."""

from __future__ import annotations

import time

import pytest

from awsomefsd.fuse.turn import KEPT_NS_MAX, QUICK_NS, ReadingTurns, Turn


@pytest.fixture
def turns() -> ReadingTurns:
    return ReadingTurns()


@pytest.fixture
def turn(turns: ReadingTurns) -> Turn:
    turn = Turn(turns)
    turn.take()
    return turn


HOUR_NS = 3_600 * 10**9  # nothing that happens to this thread takes as long


def came(turn: Turn, *, at_once: bool = False, ago_ns: int = -HOUR_NS) -> int:
    """A READ came then, or is still to come: one whose time cannot be over.  Returns when (ns, monotonic)."""
    turn.came(time.monotonic_ns() + (HOUR_NS if at_once else -HOUR_NS))
    turn._came_ns -= ago_ns
    turn.begin_read()
    return turn._came_ns


def test_a_read_that_was_awaited_keeps_the_turn(turns: ReadingTurns, turn: Turn) -> None:
    came(turn)
    turn.end_read()
    assert turn.mine and turns.kept is None


def test_a_read_that_others_may_wait_behind_hands_it_on(turns: ReadingTurns, turn: Turn) -> None:
    came(turn, at_once=True)
    assert not turn.mine and not turns.lock.locked()


def test_reads_of_a_slow_device_hand_it_on_until_one_is_quick(turns: ReadingTurns, turn: Turn) -> None:
    came(turn, ago_ns=2 * QUICK_NS)
    turn.end_read()
    turn.take()
    came(turn)
    assert not turn.mine, "the READ before it was slow"
    turn.end_read()
    turn.take()
    came(turn)
    assert turn.mine


def test_a_read_whose_device_does_not_answer_loses_it(turns: ReadingTurns, turn: Turn) -> None:
    other = Turn(turns)
    began = came(turn)
    turns.look(began + KEPT_NS_MAX - 1)
    assert turn.mine
    turns.look(began + KEPT_NS_MAX)
    assert not turn.mine
    other.take()
    turns.look(began + 2 * KEPT_NS_MAX)
    turn.end_read()
    turn.give()
    assert other.mine and turns.lock.locked(), "it is given once"


def test_the_watching_thread_hands_it_on_until_the_last_reader_has_left(
    turns: ReadingTurns, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.fuse.turn.LOOK_S", 0.01)
    turns.watch(2)
    turns.leave()  # the other one goes on
    came(turn, ago_ns=KEPT_NS_MAX)
    other = Turn(turns)
    other.take()  # returns when it has been handed on
    assert other.mine and not turn.mine
    turns.leave()
