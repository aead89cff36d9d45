"""Simulated time: one heap of events, dice for each purpose, and a hash over everything that happened.

Nothing in a run looks at the machine's clock, dice, threads or hash order: the seed decides all, and two runs of a seed have equal traces.
Dice are apart from each other (one stream a name), so that a fault more in the network does not change what the workload asks for.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any
from zlib import crc32

MS = 1_000_000
SECOND = 1_000_000_000
TAIL_LINES = 400
EVENTS_MAX = 500_000  # to begin with, and for each simulated second so many more (700 are usual)
EVENTS_A_SECOND_MAX = 10_000


class Broken(AssertionError):
    """An invariant does not hold, or production code raised what it must not."""


class World:
    """The event loop of a run.  `owner` of an event, if given, has a `life` that counts its deaths: events of an earlier life are void."""

    def __init__(self, seed: int, *, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.now_ns = 0
        self.events = 0
        self.digest = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._heap: list[tuple[int, int, Any, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._dice: dict[str, random.Random] = {}
        self._trace = trace
        self.counts: dict[str, int] = {}

    def dice(self, name: str) -> random.Random:
        """Seeded with text, which random hashes itself: the same under every PYTHONHASHSEED."""
        found = self._dice.get(name)
        if found is None:
            found = self._dice[name] = random.Random(f"{self.seed}/{name}")
        return found

    def at(self, when_ns: int, call: Callable[..., None], *arguments: Any, owner: Any = None) -> None:
        self._number += 1
        life = owner.life if owner is not None else 0
        heapq.heappush(self._heap, (max(int(when_ns), self.now_ns), self._number, owner, life, call, arguments))

    def after(self, delay_ns: float, call: Callable[..., None], *arguments: Any, owner: Any = None) -> None:
        self.at(self.now_ns + int(delay_ns), call, *arguments, owner=owner)

    def run(self, until_ns: int, done: Callable[[], bool] | None = None) -> bool:
        """Until that time, or (True) until `done`, looked at after each event."""
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            when, _, owner, life, call, arguments = heapq.heappop(heap)
            if owner is not None and owner.life != life:
                continue
            self.now_ns = when
            self.events += 1
            if self.events > EVENTS_MAX + when // SECOND * EVENTS_A_SECOND_MAX:
                raise self.broken(f"{self.events} events, and no end: the newest is {call} {arguments}"[:400])
            call(*arguments)
            if done is not None and done():
                return True
        self.now_ns = max(self.now_ns, until_ns)
        return False

    def say(self, text: str) -> None:
        """A line of the trace; its hash is the run's identity."""
        line = f"{self.now_ns / SECOND:11.6f} {text}"
        self.digest = crc32(line.encode(), self.digest)
        self.tail.append(line)
        if self._trace is not None:
            self._trace(line)

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def broken(self, text: str) -> Broken:
        self.say(f"BROKEN {text}")
        return Broken(f"at {self.now_ns / SECOND:.6f} s: {text}")
