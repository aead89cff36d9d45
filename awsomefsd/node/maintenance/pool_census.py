"""The needs of a pool are counted by the daemon of the leader, page by page, for everybody: a count reads every row of them.

The leader keeps the last whole count in memory and shows it with the pool (GetPool), so that thirty nodes that watch ask for one small
answer each.  Counting goes on where it was at the last look, and takes a small share of the time; a pool without needs costs one question.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.meta.api.messages.pools import CountNeeds, NeedsCounted, PoolCensus, ReportCensus

SHARE = 20  # one part in so many of the time is spent on counting, which the leader's metadata thread answers
LOOK_S = 5.0  # between two counts
TELL_S = 2.0  # between two reports while copies are under way


class Count:
    """A count that is under way, or the last whole one."""

    def __init__(self) -> None:
        self.needs: list[int] = []
        self.lost = self.since_ms = 0
        self.next = (0, 0)

    def add(self, page: NeedsCounted) -> bool:
        """Adds a page; returns whether that was the last one."""
        self.needs = [a + b for a, b in zip(self.needs or [0] * len(page.needs), page.needs, strict=True)]
        self.lost += page.lost
        if page.since_ms:
            self.since_ms = min(self.since_ms or page.since_ms, page.since_ms)
        self.next = page.next
        return page.next[0] < 0


class PoolCounting:
    """One thread calls.  `healing` returns what is known of the copies, in a census without a count."""

    def __init__(
        self, ask: Callable[[Any], Any], node: str, healing: Callable[[], PoolCensus], now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._ask, self._node, self._healing, self._now_ns = ask, node, healing, now_ns
        self._begun = Count()
        self._whole: Count | None = None
        self._applied = self._wanted = -1  # how far the log was when the last count began, and at the last look
        self._not_before_ns = self._tell_ns = 0
        self._told: PoolCensus | None = None

    @property
    def waits(self) -> bool:
        """True: a count is not at its end, or rows may have changed since it began."""
        return self._begun.next != (0, 0) or self._wanted != self._applied

    def rest(self) -> None:
        """Forgets everything: this node does not lead any more."""
        self._begun, self._whole, self._told = Count(), None, None
        self._applied = self._wanted = -1
        self._not_before_ns = self._tell_ns = 0

    def turn(self, applied: int) -> None:
        """Counts a page if it is time for that, and tells what is new.  `applied`: how far the log is.  Blocks; raises Error."""
        began, self._wanted = self._now_ns(), applied
        if began >= self._not_before_ns and self.waits:
            if self._begun.next == (0, 0):
                self._applied = applied
            ended = self._begun.add(self._ask(CountNeeds(*self._begun.next)))
            pause_ns = SHARE * (self._now_ns() - began)
            if ended:
                self._whole, self._begun = self._begun, Count()
                pause_ns = max(pause_ns, int(LOOK_S * 1_000 * NS_PER_MS))
            self._not_before_ns = self._now_ns() + pause_ns
        self._tell()

    def _tell(self) -> None:
        if self._whole is None or self._now_ns() < self._tell_ns:
            return
        healing, count = self._healing(), self._whole
        census = PoolCensus(
            count.needs, count.lost, count.since_ms, healing.asleep, healing.why, healing.copies, healing.bytes_per_s, healing.idle_ms,
            healing.left_alone, healing.standing,
        )  # fmt: skip
        if census != self._told:
            self._ask(ReportCensus(self._node, census))
            self._told, self._tell_ns = census, self._now_ns() + int(TELL_S * 1_000 * NS_PER_MS)
