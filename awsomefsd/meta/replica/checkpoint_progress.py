"""Three numbers and a wish that the metadata thread and the writer of checkpoints share, each written by one side only.

`durable`: up to which entry a checkpoint on a device and its tail hold the log.  A freed segment is leased again only when that holds its
freeing: a node that is rebuilt from the device alone must not find foreign bytes in places that its state still names.  UNKNOWN until the
writer has looked (nothing that was freed is safe); OFF where there are no checkpoints (everything is).
`hold`: while `holding`, the journal keeps what comes after it, for the tail; not without bound, since a device that fails must not fill
the journal's disk: the next checkpoint then begins again.
`stored`: the entry that the store on this node's disk ends with.  A copy of the store has at least that.

`applied`: the entry that was applied last.  A writer whose tail has them all sleeps until that changes (`rest`): an idle node writes
nothing, and asks nothing.

With several voters each node has its own: only the one that leads is asked for `durable`, and only its checkpoints grow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from awsomefsd.base.limits import CHECKPOINT_HOLD_ENTRIES_MAX

OFF, UNKNOWN = -1, 0


class CheckpointProgress:
    """Plain attributes, read by two threads without a lock: one that is read a moment late is only lower than it could be."""

    def __init__(self, durable: int = OFF) -> None:
        self.durable = durable
        self.hold = 0
        self.stored = 0
        self.holding = False
        self.wanted = threading.Event()
        self.applied = 0
        self.rested_ns = 0  # when the writer last left its rest, monotonic: until then nothing was missing
        self.resting = False
        self._moved = threading.Event()

    def note_applied(self, applied: int) -> None:
        """The state has the entries up to this one.  The metadata thread calls it."""
        self.applied = applied
        if self.resting:
            self.resting, self.rested_ns = False, time.monotonic_ns()
            self._moved.set()

    def wake(self) -> None:
        """Ends a `rest`, and the writer's pause, after a change of whether it is to write, or where.  Any thread."""
        self.wanted.set()
        self._moved.set()

    def rest(self, seen: int, still: Callable[[], bool]) -> None:
        """Blocks the writer until an entry is applied that is not entry `seen`, or somebody calls `wake`; not at all unless `still()`.

        Returns early now and then, which is harmless.
        """
        self._moved.clear()
        self.resting = True
        if self.applied == seen and not self.wanted.is_set() and still():
            self._moved.wait()
            if self.resting:
                self.rested_ns = time.monotonic_ns()
        self.resting = False

    def safe_index(self, applied: int) -> int:
        """Segments freed by entries up to this one may be leased again.

        Somebody wants segments, so the tail is written at once if it is behind.
        """
        durable = self.durable
        if durable == OFF:
            return applied
        if durable < applied:
            self.wanted.set()
        return durable

    def kept_from(self, applied: int) -> int:
        """The journal may drop entries up to this one."""
        if not self.holding or applied - self.hold > CHECKPOINT_HOLD_ENTRIES_MAX:
            return applied
        return self.hold
