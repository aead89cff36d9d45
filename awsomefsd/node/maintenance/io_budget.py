"""The share of a node's devices that upkeep may use: one budget for collection, scrub and checks of damage together.

So much a second, and never more than half of the time: what was read or copied is charged with its bytes at the rate, or with twice the
time that it took, whichever is more.  Charges of several threads queue up behind each other, so two of them get half each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

DEBT_S_MAX = 2.0  # one that must not wait (collection while space is low) delays the others by no more than this


class IoBudget:
    """Any thread.  `spend` does not block."""

    def __init__(self, bytes_per_s: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._free_s = 0.0

    def spend(self, count: int, began_s: float) -> float:
        """Charges `count` bytes that were read or copied since `began_s`; returns the seconds for which the caller has to rest now."""
        with self._lock:
            now = self._now_s()
            cost = max(count / self._bytes_per_s, 2 * (now - began_s))
            self._free_s = min(max(self._free_s, began_s) + cost, now + DEBT_S_MAX)
            return max(self._free_s - now, 0.0)
