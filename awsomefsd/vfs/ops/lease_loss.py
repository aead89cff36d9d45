"""`on-lease-loss=error`: requests of a fenced mount are answered ETIMEDOUT instead of waiting for a new lease.

What comes while there is no lease is refused at once.  What was under way when the lease ran out is answered then, and goes on without
its caller: a change that was proposed cannot be called back, so its outcome is unknown to the program, as that of any request that timed
out.  What it needs beyond its answer is kept for it: a copy of the bytes (its slot is free again), and its id, which is given up only when
it has ended (else a repetition to a new leader would happen twice).  What nobody else would undo is undone: a handle that nobody has been
given is closed.  A lock that is granted so late is held until its file is closed, a lock wait is ended.  Nothing begins again under another
session (SessionLease.renewed fails).

A failed flush whose fsync, synchronous write or close had been answered ETIMEDOUT is told to the next fsync: `late` is called with every
such outcome.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import Signal, Steps, Task

Late = Callable[[Any, "BaseException | None"], None]


def timed_out() -> FsError:
    return FsError(errno.ETIMEDOUT, "the lease has run out, and no quorum renews it")


class GivingUp:
    """Thread-safe."""

    def __init__(self, left_ns: Callable[[], int]) -> None:
        self._left_ns = left_ns
        self._lock = threading.Lock()
        self._under_way: dict[int, Signal] = {}  # by unique
        self._given_up: set[int] = set()

    def bounded(self, unique: int, op: Steps, late: Late) -> Steps:
        """`op`, until the lease has run out; `late(value, error)` then says how it ended."""
        outcome = Signal()

        def ended(value: Any, error: BaseException | None) -> None:
            if type(value) is list:  # what was read lies in a buffer of this thread, and the answer may leave on another one
                value = [bytes(part) if type(part) is memoryview else part for part in value]
            with self._lock:
                self._under_way.pop(unique, None)
                answered = unique in self._given_up
                self._given_up.discard(unique)
            if answered:
                late(value, error)
            else:
                outcome.fire(value, error)

        with self._lock:
            self._under_way[unique] = outcome
        Task(op, ended).start()
        if self._left_ns() <= 0:  # nobody who looked before has seen this one
            self._give_up([unique])
        return (yield outcome)

    def fenced(self) -> list[int]:
        """The lease has run out; the uniques of those that were answered by this."""
        with self._lock:
            uniques = list(self._under_way)
        return self._give_up(uniques)

    def _give_up(self, uniques: list[int]) -> list[int]:
        with self._lock:
            answered = [(unique, signal) for unique in uniques if (signal := self._under_way.pop(unique, None)) is not None]
            self._given_up.update(unique for unique, _ in answered)
        for _, signal in answered:
            signal.fire(None, timed_out())
        return [unique for unique, _ in answered]

    def goes_on(self, unique: int) -> bool:
        """Answered, but not ended: its id is still needed."""
        with self._lock:
            return unique in self._given_up
