"""Threads of a simulated worker: production code runs unchanged, one thread at a time, in an order that the seed decides.

What takes turns (the shipper, the recalls) takes them as events of the world.  What blocks somewhere inside is a Strand: a thread of the
machine that runs only while the event loop waits for it (`resume`), up to where production code would block; there it hands back.  What
wakes it is an event of the world, of this life of the worker.  A worker that is killed takes its threads with it, in the middle of whatever
they wait for.
"""

from __future__ import annotations

import threading as real_threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from awsomefsd.base.wait import Task
from tests.sim import shims
from tests.sim.world import SECOND

_running: list[Any] = [None]  # the mount whose code runs
_strand: list[Any] = [None]  # the thread of it; None: the event loop itself
FIRST_LOOK_NS = 1_000


class Killed(BaseException):
    """The worker of this thread is gone."""


@contextmanager
def worker(mount: Any) -> Iterator[None]:
    """A scope in which code of this mount's worker runs, with its clock."""
    before, _running[0] = _running[0], mount
    try:
        with shims.running(mount.host.clock):
            yield
    finally:
        _running[0] = before


class Strand:
    """Stands for threading.Thread."""

    def __init__(self, target: Callable[..., None], name: str = "", daemon: bool = False, args: tuple[Any, ...] = ()) -> None:
        self._target, self._args, self.name = target, args, name
        self._mount = _running[0]
        self._world = self._mount.world
        self._go, self._back = real_threading.Semaphore(0), real_threading.Semaphore(0)
        self._error: BaseException | None = None
        self._killed = False
        self._waits = 0  # how often it has blocked
        self.done = False
        self._thread = real_threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._mount.strands.append(self)
        self._thread.start()
        self.wake()

    def join(self, timeout: float | None = None) -> None:
        assert self.done, "nothing in a simulated worker waits for a thread to end"

    def wake(self, after_ns: int = FIRST_LOOK_NS) -> None:
        """It looks again whether it has to wait, unless it has looked since."""
        self._world.after(after_ns, self._wake, self._waits, owner=self._mount)

    def _wake(self, waits: int) -> None:
        if waits == self._waits:
            self.resume()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                self._target(*self._args)
        except Killed:
            pass
        except BaseException as err:
            self._error = err
        self.done = True
        self._back.release()

    def resume(self) -> None:
        """Runs it until it blocks again; a stopped worker's goes on when the worker does."""
        mount = self._mount
        if self.done:
            return
        if not self._killed and self._world.now_ns < mount.paused_until_ns:
            self._world.at(mount.paused_until_ns, self.resume, owner=mount)
            return
        with worker(mount):
            before, _strand[0] = _strand[0], self
            try:
                self._go.release()
                self._back.acquire()
            finally:
                _strand[0] = before
        if self._error is not None:
            error, self._error = self._error, None
            mount.strand_failed(error)

    def block(self) -> None:
        """Called by itself: the event loop goes on until somebody resumes it."""
        self._back.release()
        self._go.acquire()
        self._waits += 1
        if self._killed:
            raise Killed

    def kill(self) -> None:
        if not self.done and _strand[0] is not self:
            self._killed = True
            self.resume()


def here() -> Strand:
    strand = _strand[0]
    assert strand is not None, "production code blocks on a thread that must not"
    found: Strand = strand
    return found


class Turning:
    """Stands for the thread of a shipper: it takes a turn when something was posted or is due.  Its loop takes no decisions of its own."""

    def __init__(self, target: Callable[..., None], name: str = "", daemon: bool = False) -> None:
        self._shipper: Any = target.__self__  # type: ignore[attr-defined]
        self._mount, self._due = _running[0], -1

    def start(self) -> None:
        self._shipper._changed.told = self.wake
        self.wake()

    def wake(self, after_ns: int = FIRST_LOOK_NS) -> None:
        when = self._mount.world.now_ns + after_ns
        if self._due < self._mount.world.now_ns or when < self._due:
            self._due = when
            self._mount.world.after(after_ns, self._turn, when, owner=self._mount)

    def _turn(self, when: int) -> None:
        if when == self._due:
            self._due = -1
            self._mount.enter(self._take_turn)

    def _take_turn(self) -> None:
        shipper = self._shipper
        shipper._turn()
        pause_s = 0 if shipper._posted else shipper._pause_s()
        shipper._sleeping = pause_s is None
        if pause_s is not None:
            self.wake(int(pause_s * SECOND) + FIRST_LOOK_NS)


class Condition:
    """Of a Turning.  Nobody else runs in a turn, so it needs no lock."""

    def __init__(self) -> None:
        self.told: Callable[[], None] = lambda: None

    def __enter__(self) -> Condition:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def notify(self) -> None:
        self.told()


class Recalling:
    """Stands for the thread of recalls: one item after the other, a moment after it was put."""

    def __init__(self, target: Callable[..., None], name: str = "", daemon: bool = False) -> None:
        self._recalls: Any = target.__self__  # type: ignore[attr-defined]

    def start(self) -> None:
        self._recalls._queue._items.do = self._recalls._do


class SimpleQueue:
    """Of a Recalling."""

    def __init__(self) -> None:
        self._mount = _running[0]
        self.do: Callable[[Any], None] = lambda item: None

    def put(self, item: Any) -> None:
        self._mount.world.after(FIRST_LOOK_NS, self._mount.enter, lambda: self.do(item), owner=self._mount)


def block_on(steps_or_wait: Any, timeout_s: float | None = None) -> Any:
    """As base/wait.py's, on a simulated thread."""
    strand, outcome = here(), []

    def finish(value: Any, error: BaseException | None) -> None:
        outcome.append((value, error))
        strand.wake()

    if hasattr(steps_or_wait, "send"):
        Task(steps_or_wait, finish).start()
    else:
        steps_or_wait.start(finish)
    while not outcome:
        strand.block()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def sleep(seconds: float) -> None:
    strand = here()
    until = strand._world.now_ns + int(seconds * SECOND)
    while strand._world.now_ns < until:
        strand.wake(until - strand._world.now_ns)
        strand.block()


_LOCKS = {name: getattr(real_threading, name) for name in ("RLock", "Lock", "get_ident")}
OF_SHIPPER = SimpleNamespace(Thread=Turning, Condition=Condition, **_LOCKS)
OF_RECALLS = SimpleNamespace(Thread=Recalling, current_thread=lambda: None, **_LOCKS)
QUEUE = SimpleNamespace(SimpleQueue=SimpleQueue)
