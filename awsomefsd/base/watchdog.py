"""The watchdog of a service manager (WatchdogSec= of systemd) is fed by the thread that does the work.

The metadata thread feeds it, once a turn: a daemon whose admin API answers while its log stands still is dead to every mount, and a thread
that only feeds would hide that.  The interval is the manager's (WATCHDOG_USEC); a quarter of it passes between two messages, and an idle
metadata thread turns more often than that.  Before READY=1 the manager expects nothing, so a long replay at the start needs no messages.

A daemon that has no metadata thread (it waits for a cluster, or its node carries no metadata) is fed by its event loop: `keep_fed`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from awsomefsd.base.sockets import notify_systemd

_WORDS_AN_INTERVAL = 4
_LOOKS_AN_INTERVAL = 8


class Watchdog:
    """Feeds the manager's watchdog.  One thread uses it; `feed` costs one reading of the clock while nothing is due."""

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._interval_ns = _interval_us() * 1000 // _WORDS_AN_INTERVAL
        self._due_ns = 0

    @property
    def look_s(self) -> float:
        """How often `feed` is to be called, at least, by whoever does nothing else that would do it."""
        return self._interval_ns * _WORDS_AN_INTERVAL / _LOOKS_AN_INTERVAL / 1e9

    @property
    def watched(self) -> bool:
        """True if a service manager watches this process."""
        return self._interval_ns > 0

    def feed(self) -> None:
        if not self._interval_ns:
            return
        now = self._monotonic_ns()
        if now >= self._due_ns:
            self._due_ns = now + self._interval_ns
            notify_systemd("WATCHDOG=1")


async def keep_fed(idle: Callable[[], bool]) -> None:
    """Feeds the watchdog from the event loop for as long as `idle()` is true, that is while no metadata thread could do it.

    Returns at once where no service manager watches this process; otherwise it runs until it is cancelled.
    """
    import trio  # not before the metadata serves (daemon/metadata_core.py)

    watchdog = Watchdog()
    while watchdog.watched:
        if idle():
            watchdog.feed()
        await trio.sleep(watchdog.look_s)


def _interval_us() -> int:
    """Returns the interval that the manager asks of this very process; 0 for none."""
    meant_for = os.environ.get("WATCHDOG_PID", "")
    interval = os.environ.get("WATCHDOG_USEC", "")
    if not interval.isdecimal() or (meant_for and meant_for != str(os.getpid())):
        return 0
    return int(interval)
