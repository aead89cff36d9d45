"""Inodes that sessions take from each other: when leases stop, for how long, and how quickly they come back."""

from __future__ import annotations

import pytest

from awsomefsd.base.limits import CONTEST_FORGET_MS, CONTEST_INODES_MAX, CONTEST_QUIET_MS, CONTEST_QUIET_MS_MAX, CONTEST_RECALLS
from awsomefsd.base.types import LEASE_READ, LEASE_WRITE
from awsomefsd.meta.server.leases.contention import Contention

KEY = (1, 2)
MS = 1_000_000
START = 10**15


@pytest.fixture
def made():
    contests = Contention()
    for number in range(CONTEST_RECALLS):
        assert not contests.pause_ms(KEY, 1, LEASE_WRITE, START + number * MS)
        contests.note_recall(KEY, START + number * MS)
    return contests


NOW = START + (CONTEST_RECALLS - 1) * MS


def test_several_recalls_within_a_short_time_stop_leases(made):
    assert made.count_contested(NOW) == made.begun == 1
    for mount in (1, 2):
        for mode in (LEASE_READ, LEASE_WRITE):
            assert made.pause_ms(KEY, mount, mode, NOW) == CONTEST_QUIET_MS
    assert not made.pause_ms((1, 3), 1, LEASE_WRITE, NOW), "others are not concerned"


def test_recalls_of_one_moment_count_once_and_slow_ones_never():
    contests = Contention()
    for _ in range(10):
        contests.note_recall(KEY, START)
    for number in range(1, 10):
        contests.note_recall(KEY, START + number * 1_500 * MS)
    assert not contests.count_contested(START + 15_000 * MS)


def test_who_is_alone_with_it_again_gets_it_back_after_one_quiet_while(made):
    later = NOW + CONTEST_QUIET_MS * MS
    for step in range(10):
        made.note_use(KEY, 1, LEASE_WRITE, NOW + step * CONTEST_QUIET_MS * MS // 9)
    assert not made.pause_ms(KEY, 1, LEASE_WRITE, later)
    assert made.pause_ms(KEY, 2, LEASE_READ, later) == CONTEST_QUIET_MS, "another one has changed it now"


def test_readers_of_what_nobody_writes_any_more_have_leases_beside_each_other(made):
    later = NOW + CONTEST_QUIET_MS * MS
    for mount in (1, 2):
        made.note_use(KEY, mount, LEASE_READ, later - MS)
    assert not made.pause_ms(KEY, 1, LEASE_READ, later) and not made.pause_ms(KEY, 2, LEASE_READ, later)
    assert made.pause_ms(KEY, 1, LEASE_WRITE, later) == CONTEST_QUIET_MS - 1, "a write lease would be recalled by the other reader"


def test_while_two_go_on_neither_gets_one(made):
    for step in range(200):
        now = NOW + step * 50 * MS
        mount = 1 + step % 2
        made.note_use(KEY, mount, LEASE_WRITE, now)
        assert made.pause_ms(KEY, mount, LEASE_WRITE, now) > 0


def test_recalls_that_come_soon_double_the_while_up_to_a_bound_later_ones_halve_it(made):
    now, quiet = NOW, CONTEST_QUIET_MS
    for _ in range(8):
        now += quiet * MS
        assert not made.pause_ms(KEY, 1, LEASE_WRITE, now)
        made.note_recall(KEY, now)
        quiet = min(2 * quiet, CONTEST_QUIET_MS_MAX)
        assert made.pause_ms(KEY, 1, LEASE_WRITE, now) == quiet
    assert quiet == CONTEST_QUIET_MS_MAX
    while quiet > CONTEST_QUIET_MS:
        now += 2 * quiet * MS
        made.note_recall(KEY, now)
        quiet //= 2
        assert made.pause_ms(KEY, 1, LEASE_WRITE, now) == quiet
    now += 2 * quiet * MS
    made.note_recall(KEY, now)
    assert not made.pause_ms(KEY, 1, LEASE_WRITE, now) and not made.count_contested(now)


def test_a_contest_is_forgotten(made):
    later = NOW + (CONTEST_FORGET_MS + 1) * MS
    assert not made.count_contested(later)
    made.note_recall(KEY, later)
    assert not made.pause_ms(KEY, 1, LEASE_WRITE, later), "it begins anew"


def test_who_looks_a_few_times_a_second_does_not_make_it_contested():
    contests = Contention()
    for number in range(100):
        contests.note_recall(KEY, START + number * 200 * MS)
    assert not contests.begun


def test_memory_is_bounded(made):
    for number in range(CONTEST_INODES_MAX):
        made.note_recall((2, number), NOW + number)
    assert len(made._inodes) == CONTEST_INODES_MAX and not made.count_contested(NOW)
