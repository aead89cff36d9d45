"""A caller that is being killed does not wait for its request: it is answered EINTR, and the request goes on without it.

The kernel sends one INTERRUPT, at the caller's first signal, whatever that is.  Only a fatal one ends a system call on a file: a handler of
SIGALRM, with or without SA_RESTART, runs when the answer is there, as on a local disk.  So the caller's pending signals are looked at, and
looked at again as long as the request waits: it may be killed later, and no second INTERRUPT tells of that.

A caller whose request changes bytes waits all the same, until the request has ended: a WRITE, a truncation (by path, or by open(2) with
O_TRUNC), fallocate, copy_file_range, and a rename, which decides which bytes have a name.  Its locks end with it; the next program could
sync other bytes before such a request does its work (Session._give_up).

The request keeps its memory and its id until it has ended, so a change that was proposed is settled, here or by a successor, and its result
is acknowledged.  What it gives to nobody is taken back (Filesystem.abandoned).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.caller_credentials import is_being_killed

LOOK_S = 0.25


class WaitingRequest(Protocol):
    ctx: Context

    @property
    def is_over(self) -> bool: ...


R = TypeVar("R", bound=WaitingRequest)


class KilledCallers(Generic[R]):
    """Thread-safe.  `answer(request)` answers EINTR, and returns False where the kernel does not take that; it must not block."""

    def __init__(self, answer: Callable[[R], bool]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._signalled: list[R] = []  # with callers that got a signal and may be killed later
        self._looking = False

    def signalled(self, request: R) -> None:
        """The caller got a signal.  Answers at once if that kills it, else starts to look again and again, on a thread of its own."""
        if self._is_done(request):
            return
        with self._lock:
            self._signalled.append(request)
            starts, self._looking = not self._looking, True
        if starts:
            threading.Thread(target=self._look, name="killed-callers", daemon=True).start()

    def _is_done(self, request: R) -> bool:
        return request.is_over or (is_being_killed(request.ctx.pid) and self._answer(request))

    def _look(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(LOOK_S)
            with self._lock:
                looked = list(self._signalled)
            done = {id(request) for request in looked if self._is_done(request)}
            with self._lock:
                self._signalled = [request for request in self._signalled if id(request) not in done]
                if not self._signalled:
                    self._looking = False
                    return
