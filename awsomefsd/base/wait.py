"""Operations that may wait are generators, which yield a Wait.  No thread is held while one waits.

A generator yields a Wait; `Task` starts it and goes on when its `resume` is called, on whichever thread ends the wait.  So the thread that
receives an answer from the metadata service also writes the reply to the kernel: one hop, as with blocking threads, but a thread that
reads requests never stops for one of them: no request waits in a reader thread.

GENERATORS are the types of generators: Python's own, and in a compiled program also that of compiled code, which is another type.  Ask
`type(value) in GENERATORS`, never compare with types.GeneratorType: in the compiled program handlers are compiled and the functions that
they call may be bytecode, so both kinds occur.  The compiler mends isinstance(), but not `type(value) is`, which is quicker and stands
where every request passes.  So this module is compiled there too (packaging/binary/bytecode_plugin.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from types import GeneratorType
from typing import Any, Protocol

Resume = Callable[[Any, BaseException | None], None]
_own = threading.local()


def begin_reading_requests() -> None:
    """Says that this thread reads requests of the kernel, until it ends.

    There are few of them: as many requests to one silent node would stop the mount.  So what waits for another node asserts `may_wait`.
    """
    _own.reads_requests = True


def may_wait() -> bool:
    """Returns True on a thread that may wait for another node."""
    return not getattr(_own, "reads_requests", False)


class MustWait(Exception):
    """What was asked for has to wait for another node, and this thread may not: another one has to do it."""


class Wait(Protocol):
    """An event that Steps can wait for."""

    def start(self, resume: Resume) -> None:
        """Begins, and calls ``resume(value, None)`` or ``resume(None, error)`` exactly once, now or later, on any thread; never blocks."""


def _one() -> Iterator[None]:
    yield


GENERATORS: frozenset[type] = frozenset({GeneratorType, type(_one())})
Steps = Generator[Wait, Any, Any]
Finish = Callable[[Any, BaseException | None], None]


class Payload:
    """A Wait for the bytes of a request, to be kept for as long as its operation goes on: ``data = yield Payload(data)``.

    An operation that is going to wait yields it first.  Who drives the operation may replace `data` by a copy before it calls `start`, and
    use the memory of the first bytes again; else they are the same bytes.
    """

    __slots__ = ("data",)

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def start(self, resume: Resume) -> None:
        resume(self.data, None)


class Prompt:
    """A Wait that may have nothing to wait for.

    Who drives an operation may call `attempt` once, before `start`: the operation then goes on with its request where it is, as if it had
    not waited at all.
    """

    __slots__ = ()

    def attempt(self, resume: Resume) -> bool:
        """Ends on the calling thread if nothing has to be waited for: calls `resume` and returns True.  False: `start` it."""
        raise NotImplementedError

    def start(self, resume: Resume) -> None:
        raise NotImplementedError


class Promptly:
    """Runs Steps on the calling thread for as long as what they wait for ends at once.

    `wait` is what is to be waited for then.  None: they have ended, with `value` or with `error`.
    """

    __slots__ = ("_steps", "error", "value", "wait")

    def __init__(self, steps: Steps, wait: Prompt) -> None:
        """`wait`: what the steps wait for now."""
        self._steps = steps
        self.wait: Wait | None = wait
        self.value: Any = None
        self.error: Exception | None = None
        while isinstance(self.wait, Prompt) and self.wait.attempt(self._resume):
            pass

    def _resume(self, value: Any, error: BaseException | None) -> None:
        try:
            self.wait = self._steps.send(value) if error is None else self._steps.throw(error)
        except StopIteration as stop:
            self.wait, self.value = None, stop.value
        except Exception as err:
            self.wait, self.error = None, err


class KernelWait:
    """A Wait for the kernel, which may need our readers before it is over.

    An operation whose request holds a reader does not wait: who drives it calls `begin_only` and lets it go on.

    `is_last`: only this wait is left of an operation that succeeds.  Then who drives it notes that with the request, before `start`; a
    successor repeats the wait alone (Context.waits_only).
    """

    __slots__ = ("_begin", "_noted", "is_last")

    def __init__(self, begin: Callable[[Callable[[], None] | None], None], noted: Callable[[], None], *, is_last: bool) -> None:
        """`begin(then)` never blocks, and calls `then` (None: nobody waits) exactly once when it is over, on any thread.

        `noted` is called before it begins, where somebody waits.
        """
        self._begin = begin
        self._noted = noted
        self.is_last = is_last

    def start(self, resume: Resume) -> None:
        self._noted()
        self._begin(lambda: resume(None, None))

    def begin_only(self) -> None:
        self._begin(None)


def keeping(data: memoryview, steps: Steps) -> Steps:
    """Runs `steps` that need the bytes of their request no more, so that its memory is free while they wait."""
    yield Payload(data)
    return (yield from steps)


class Task:
    """Drives Steps to their end; then it calls `finish(value, None)` or `finish(None, error)` once, on the thread that ended them.

    `start` runs the steps on the calling thread up to their first wait; each part after a wait runs on the thread that ends that wait.
    """

    __slots__ = ("_finish", "_steps")

    def __init__(self, steps: Steps, finish: Finish) -> None:
        self._steps = steps
        self._finish = finish

    def start(self) -> None:
        self._step(None, None)

    def _step(self, value: Any, error: BaseException | None) -> None:
        try:
            wait = self._steps.send(value) if error is None else self._steps.throw(error)
        except StopIteration as stop:
            self._finish(stop.value, None)
        except Exception as err:
            self._finish(None, err)
        else:
            wait.start(self._step)


def was_repeated(asked: Wait) -> bool:
    """Returns True for an answered proposal that was sent more than once: its answer may be the kept result of the first copy."""
    return bool(getattr(asked, "repeated", False))


class Signal:
    """A Wait that many may await and one ends.  Thread-safe.

    `fire` resumes all of them on the calling thread, and later calls of it do nothing; what starts after it resumes at once with the same
    outcome.
    """

    __slots__ = ("_done", "_error", "_lock", "_value", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Resume] = []
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self._done

    def start(self, resume: Resume) -> None:
        with self._lock:
            if not self._done:
                self._waiting.append(resume)
                return
        resume(self._value, self._error)

    def fire(self, value: Any = None, error: BaseException | None = None) -> None:
        """Ends the wait with a value or an error."""
        with self._lock:
            if self._done:
                return
            self._done, self._value, self._error = True, value, error
            waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume(value, error)


def nothing() -> None:
    """Is called before what may block, for who may block at any time."""


class Errand(Signal):
    """A Signal whose work the one who waits may do.

    Who drives an operation on a thread that may block calls `claim` before `start`, and then `run` on that thread.  The work of one that
    nobody claims is left to whom it belongs.
    """

    __slots__ = ("_do", "_leave", "_mine")

    def __init__(self, do: Callable[[Callable[[], None]], None], leave: Callable[[], None]) -> None:
        """`do(blocks)` does the work, or leaves it to somebody; it calls `blocks`, perhaps often, before it does what may block.

        `leave` asks for it to be done elsewhere, and does not block.
        """
        super().__init__()
        self._do = do
        self._leave = leave
        self._mine = False

    def claim(self) -> None:
        self._mine = True

    def start(self, resume: Resume) -> None:
        super().start(resume)
        if not self._mine and not self.done:
            self._leave()

    def run(self, blocks: Callable[[], None] = nothing) -> None:
        """Does the work of one that was claimed; calls `blocks` before anything that may block."""
        if not self.done:
            self._do(blocks)


def block_on(steps_or_wait: Any, timeout_s: float | None = None) -> Any:
    """Runs Steps or a Wait to their end and returns their value.  Blocks: for tests and background threads, never for a reader thread.

    Raises what they raised, or TimeoutError after `timeout_s`; the operation itself goes on then.
    """
    event = threading.Event()
    outcome: list[Any] = []

    def finish(value: Any, error: BaseException | None) -> None:
        outcome.extend((value, error))
        event.set()

    if hasattr(steps_or_wait, "send"):
        Task(steps_or_wait, finish).start()
    else:
        steps_or_wait.start(finish)
    if not event.wait(timeout_s):
        raise TimeoutError(f"no end within {timeout_s} s")
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
