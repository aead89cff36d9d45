"""The hybrid clock hands out stamps that only grow."""

from __future__ import annotations

from awsomefsd.base.clock import HybridClock


def test_several_stamps_are_handed_out_at_once() -> None:
    """The stamps right below the one that is returned belong to the records of one entry."""
    clock = HybridClock(0, lambda: 5_000_000)
    first, last, after = clock.now(), clock.now(3), clock.now()
    assert (last - first, after - last) == (4, 1)
