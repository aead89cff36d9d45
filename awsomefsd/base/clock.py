"""Clocks.  Pure modules never import this: the node that proposes a command stamps the time into it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from awsomefsd.base.limits import NS_PER_MS

# Without a frame of their own: every request reads them several times.
boot_ns: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)  # goes on during suspend and never jumps: for leases
wall_ns: Callable[[], int] = time.time_ns  # CLOCK_REALTIME, since 1970; only for stamps that people see


def common_moment(now_s: float, pause_ms: int) -> float:
    """Returns the next time after `now_s`, on the same clock, that is a multiple of the pause.

    Loops that sleep until then wake their process together, those of one pause and those of one and a multiple of it.
    """
    return (round(now_s * 1_000) // pause_ms + 1) * pause_ms / 1_000


class Clocks(NamedTuple):
    """The clocks that a part is handed; a test or the simulator hands in its own.  Each returns nanoseconds."""

    boot_ns: Callable[[], int] = boot_ns
    wall_ns: Callable[[], int] = wall_ns
    monotonic_ns: Callable[[], int] = time.monotonic_ns


class HybridClock:
    """A hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014), packed in 64 bits.

    The upper 48 bits are wall milliseconds, the lower 16 a logical counter.  Each value is larger than the one before, and larger than
    `last` (the newest stamp in the log).
    """

    __slots__ = ("_last", "_wall_ns")

    def __init__(self, last: int = 0, wall_ns: Callable[[], int] = wall_ns) -> None:
        self._last = last
        self._wall_ns = wall_ns

    def now(self, more: int = 0) -> int:
        """Returns the next stamp, larger than every one before; the `more` stamps right below it are the caller's too.

        Not thread-safe: the owner locks.
        """
        self._last = max(self._last + 1, (self._wall_ns() // NS_PER_MS) << 16) + more
        return self._last
