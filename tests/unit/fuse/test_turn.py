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


def test_a_read_that_was_awaited_keeps_the_turn(turns: ReadingTurns, turn: Turn) -> None:
    turn.end_read(turn.begin_read(came_at_once=False))
    assert turn.mine and turns.kept is None


def test_a_read_that_others_may_wait_behind_hands_it_on(turns: ReadingTurns, turn: Turn) -> None:
    turn.begin_read(came_at_once=True)
    assert not turn.mine and not turns.lock.locked()


def test_reads_of_a_slow_device_hand_it_on_until_one_is_quick(turns: ReadingTurns, turn: Turn) -> None:
    turn.end_read(turn.begin_read(came_at_once=False) - 2 * QUICK_NS)
    turn.take()
    began = turn.begin_read(came_at_once=False)
    assert not turn.mine, "the READ before it was slow"
    turn.end_read(began)
    turn.take()
    turn.begin_read(came_at_once=False)
    assert turn.mine


def test_a_read_whose_device_does_not_answer_loses_it(turns: ReadingTurns, turn: Turn) -> None:
    other = Turn(turns)
    began = turn.begin_read(came_at_once=False)
    turns.look(began + KEPT_NS_MAX - 1)
    assert turn.mine
    turns.look(began + KEPT_NS_MAX)
    assert not turn.mine
    other.take()
    turns.look(began + 2 * KEPT_NS_MAX)
    turn.end_read(began)
    turn.give()
    assert other.mine and turns.lock.locked(), "it is given once"


def test_the_watching_thread_hands_it_on_until_the_last_reader_has_left(
    turns: ReadingTurns, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.fuse.turn.LOOK_S", 0.01)
    turns.watch(2)
    turns.leave()  # the other one goes on
    turn.begin_read(came_at_once=False)
    turns.kept = turn, time.monotonic_ns() - KEPT_NS_MAX
    Turn(turns).take()  # returns when the other has lost it
    turns.leave()
