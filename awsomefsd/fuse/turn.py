"""The turn to be in readv(2): one reader at a time, as long as its requests are short.

The kernel wakes waiting readers in turns, each on whatever processor it last ran, and that costs more than a lookup.  So a reader goes on
reading while it serves what never blocks, and lets the next one read before it does anything that may.

*A READ* is served with the turn kept when nobody waited behind it (readv(2) had to wait for it) and the READ before it was quick.  Handing
the turn on costs several futex calls and two switches, as much as a quick device takes.  On a device that is slow the turn is handed on.
So only a READ that turns out to be slow holds others up, and only until a thread of its own sees that and hands its turn on.

Two readers in readv(2) at a time are harmless, only dearer.  So nothing here has to be exact (decision 195).
"""

from __future__ import annotations

import threading
import time

AT_ONCE_NS = 20_000  # a readv that returns sooner found its request waiting; a wake-up takes longer
QUICK_NS = 5_000_000  # a READ from flash on a busy machine; a disk that turns takes longer
LOOK_S = 1.0
KEPT_NS_MAX = 500_000_000  # then the next look hands it on


class ReadingTurns:
    """What the readers of a session share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.quick = True  # the last READ was
        self.kept: tuple[Turn, int] | None = None  # by a READ that began then (ns, monotonic)
        self._ended = threading.Event()
        self._readers = 0
        self._leaving = threading.Lock()

    def watch(self, readers: int) -> None:
        """Starts the thread that looks for a READ that keeps the turn for too long, until so many readers have left."""
        self._readers = readers
        threading.Thread(target=self._watch, name="fuse-turn", daemon=True).start()

    def leave(self) -> None:
        """A reader has ended."""
        with self._leaving:
            self._readers -= 1
            if self._readers <= 0:
                self._ended.set()

    def look(self, now_ns: int) -> None:
        """Hands the turn on in the name of a reader whose READ takes too long."""
        kept = self.kept
        if kept is not None and now_ns - kept[1] >= KEPT_NS_MAX:
            self.quick = False
            kept[0].give()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            self.look(time.monotonic_ns())


class Turn:
    """One reader's side of it; `give` may be called by the watching thread too."""

    __slots__ = ("_at_once", "_came_ns", "_mine", "_turns")

    def __init__(self, turns: ReadingTurns) -> None:
        self._turns = turns
        self._came_ns, self._at_once = 0, False  # of the request that is served: when it came, and whether it had waited for a reader
        self._mine: list[None] = []  # one item while the turn is ours; whoever pops it releases the lock

    @property
    def mine(self) -> bool:
        return bool(self._mine)

    def take(self) -> None:
        if not self._mine:
            self._turns.lock.acquire()
            self._mine.append(None)

    def give(self) -> None:
        try:
            self._mine.pop()
        except IndexError:
            return
        self._turns.lock.release()

    def came(self, asked_ns: int) -> None:
        """readv(2), called at `asked_ns` (monotonic), has brought a request."""
        self._came_ns = time.monotonic_ns()
        self._at_once = self._came_ns - asked_ns < AT_ONCE_NS

    def begin_read(self) -> None:
        """The request is a READ: hands the turn on if others may wait behind it, or if it may be slow."""
        if self._at_once or not self._turns.quick:
            self.give()
        else:
            self._turns.kept = self, self._came_ns

    def end_read(self) -> None:
        """It was served."""
        self._turns.quick = time.monotonic_ns() - self._came_ns < QUICK_NS
        kept = self._turns.kept
        if kept is not None and kept[0] is self:
            self._turns.kept = None
