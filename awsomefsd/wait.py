"""Operations that may wait are generators; what they wait for is a Wait.  No thread is held while one waits.

A generator yields a Wait; `Task` starts it and goes on when its `resume` is called, on whichever thread ends the wait.  So the thread that
receives an answer from the metadata service also writes the reply to the kernel: one hop, as with blocking threads, but a thread that
reads requests never stops for one of them (DESIGN section 6: "No request waits in a reader thread").
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any, Protocol

Resume = Callable[[Any, BaseException | None], None]


class Wait(Protocol):
    def start(self, resume: Resume) -> None:
        """Begin; call ``resume(value, None)`` or ``resume(None, error)`` exactly once, now or later, on any thread."""


Op = Generator[Wait, Any, Any]
Finish = Callable[[Any, BaseException | None], None]


class Task:
    """Drives one Op to its end; then `finish(value, None)` or `finish(None, error)` is called once, on the thread that ended it."""

    __slots__ = ("_finish", "_op")

    def __init__(self, op: Op, finish: Finish) -> None:
        self._op = op
        self._finish = finish

    def start(self) -> None:
        self._step(None, None)

    def _step(self, value: Any, error: BaseException | None) -> None:
        try:
            wait = self._op.send(value) if error is None else self._op.throw(error)
        except StopIteration as stop:
            self._finish(stop.value, None)
        except Exception as err:
            self._finish(None, err)
        else:
            wait.start(self._step)


def was_repeated(asked: Wait) -> bool:
    """Of a proposal, when it is answered: it was sent more than once.  The answer may be the outcome of the first copy, kept since."""
    return bool(getattr(asked, "repeated", False))


class Signal:
    """A Wait that many may await and one ends: `fire` resumes all, once; later starters resume at once with the same outcome."""

    __slots__ = ("_done", "_error", "_lock", "_value", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Resume] = []
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def start(self, resume: Resume) -> None:
        with self._lock:
            if not self._done:
                self._waiting.append(resume)
                return
        resume(self._value, self._error)

    def fire(self, value: Any = None, error: BaseException | None = None) -> None:
        with self._lock:
            if self._done:
                return
            self._done, self._value, self._error = True, value, error
            waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume(value, error)


def block_on(op_or_wait: Any, timeout_s: float | None = None) -> Any:
    """Run an Op or a Wait to its end on this thread (tests, background threads; never a reader thread).

    Raises what it raised, TimeoutError after `timeout_s`.
    """
    event = threading.Event()
    outcome: list[Any] = []

    def finish(value: Any, error: BaseException | None) -> None:
        outcome.extend((value, error))
        event.set()

    if hasattr(op_or_wait, "send"):
        Task(op_or_wait, finish).start()
    else:
        op_or_wait.start(finish)
    if not event.wait(timeout_s):
        raise TimeoutError(f"no end within {timeout_s} s")
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
