"""How often the threads of a process wake up: what an idle process costs, whatever the machine does besides."""

from __future__ import annotations

import os
import time

SPAN_S = 5.0


def _sleeps(pid: int) -> dict[str, int]:
    """Returns how often each thread has gone to sleep by itself."""
    counts = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8") as file:
                rows = dict(row.split(":", 1) for row in file)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        counts[thread] = int(rows["voluntary_ctxt_switches"])
    return counts


def wake_ups_per_s(pid: int) -> float:
    """Counts for SPAN_S, all threads together."""
    before, began = _sleeps(pid), time.monotonic()
    time.sleep(SPAN_S)  # a rate needs a span
    after, took_s = _sleeps(pid), time.monotonic() - began
    return sum(count - before.get(thread, 0) for thread, count in after.items()) / took_s
