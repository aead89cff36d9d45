"""The word that a service manager with a watchdog waits for (WatchdogSec= of systemd), said by whoever does the work.

The metadata thread feeds it, once a turn: a daemon whose admin API answers while its log stands still is dead to every mount, and a thread
that only feeds would hide that.  The interval is the manager's (WATCHDOG_USEC); a quarter of it passes between two words, and an idle
metadata thread turns more often than that.  Before READY=1 nothing is expected, so a long replay at the start needs no words.

A daemon that has no metadata thread (it waits for a cluster, or its node carries no metadata) is fed by its event loop: `keep_fed`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from awsomefsd.base.sockets import notify_systemd

_WORDS_AN_INTERVAL = 4
LOOK_S = 0.05


class Watchdog:
    """`feed` costs a look at the clock where nothing is due, and nothing where nobody watches."""

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._interval_ns = _interval_us() * 1000 // _WORDS_AN_INTERVAL
        self._due_ns = 0

    @property
    def watched(self) -> bool:
        return self._interval_ns > 0

    def feed(self) -> None:
        if not self._interval_ns:
            return
        now = self._monotonic_ns()
        if now >= self._due_ns:
            self._due_ns = now + self._interval_ns
            notify_systemd("WATCHDOG=1")


async def keep_fed(idle: Callable[[], bool]) -> None:
    """While `idle` there is no metadata thread that could.  Ends at once where nobody watches."""
    import trio  # not before the metadata serves (daemon/metadata_core.py)

    watchdog = Watchdog()
    while watchdog.watched:
        if idle():
            watchdog.feed()
        await trio.sleep(LOOK_S)


def _interval_us() -> int:
    """What the manager asks of this very process; 0: nothing."""
    meant_for = os.environ.get("WATCHDOG_PID", "")
    interval = os.environ.get("WATCHDOG_USEC", "")
    if not interval.isdecimal() or (meant_for and meant_for != str(os.getpid())):
        return 0
    return int(interval)
