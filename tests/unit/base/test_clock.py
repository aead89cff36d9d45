"""The hybrid clock hands out stamps that only grow."""

from __future__ import annotations

import random

from awsomefsd.base.clock import HybridClock, common_moment


def test_several_stamps_are_handed_out_at_once() -> None:
    """The stamps right below the one that is returned belong to the records of one entry."""
    clock = HybridClock(0, lambda: 5_000_000)
    first, last, after = clock.now(), clock.now(3), clock.now()
    assert (last - first, after - last) == (4, 1)


def test_loops_whose_pauses_are_multiples_wake_at_the_same_moments(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(1_000):
        now, pause_ms = dice.uniform(0, 1e6), dice.randrange(1, 60_000)
        short, long = common_moment(now, pause_ms), common_moment(now, 3 * pause_ms)
        assert now - 0.001 < short <= now + pause_ms / 1_000 + 0.001 and short <= long
        assert common_moment(short, pause_ms) > short, "woken then, it does not wake again at once"
        while short < long:
            short = common_moment(short, pause_ms)
        assert short == long
