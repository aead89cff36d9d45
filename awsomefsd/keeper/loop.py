"""The keeper's event loop: one thread, one selector, timers, and sequences written as generators.

A sequence (mount, umount, …) is a generator that yields Promises; it runs to its next yield without interruption, so its
checks stay true until then.  An exception in a callback is logged and the loop goes on: a bug in one mount must not
take the descriptors of the others with it.

Anything that walks a path may hang for as long as some filesystem below that path does, perhaps on a mount whose dead
worker only this loop can replace.  So no such call is made here: `chore` runs it in a forked child, which keeps none of our
descriptors and is killed after a time limit.  Rejected: threads, because a thread that hangs in the kernel keeps the whole
process, and with it every descriptor, from ever going away.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import json
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from awsomefsd.keeper.wire import say

log = logging.getLogger("awsomefsd.keeper")

CHORE_RESULT_BYTES_MAX = 32 << 10  # less than a pipe holds, so a child never waits for us to read


class Promise:
    """A result that comes later, in the loop's thread.  The first of resolve and fail counts, later ones do nothing.

    `then` calls its callback when the result is there, at once if it is there already; never from another thread.
    """

    __slots__ = ("_callbacks", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None
        self._callbacks: list[Callable[[Promise], None]] = []

    def resolve(self, value: Any = None) -> None:
        self._finish(value, None)

    def fail(self, error: Exception) -> None:
        self._finish(None, error)

    def then(self, callback: Callable[[Promise], None]) -> None:
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def _finish(self, value: Any, error: Exception | None) -> None:
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


Sequence_ = Generator[Promise, Any, Any]


class Timer:
    """A callback that the loop calls once, at a moment of time.monotonic(); a cancelled one is never called."""

    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[], None] | None) -> None:
        self.at = at
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Loop:
    """Readers, timers, sequences and chores of one thread, which alone may call the methods.  None of them but `run` blocks."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._running = True
        self.chores = 0  # children that have not ended

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls `callback` from the loop whenever `fd` can be read; a descriptor has at most one."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def unwatch(self, fd: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def later(self, delay_ms: float, callback: Callable[[], None]) -> Timer:
        """Calls `callback` from the loop after `delay_ms`, unless the returned timer is cancelled before."""
        timer = Timer(time.monotonic() + delay_ms / 1000, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def sleep(self, delay_ms: float) -> Promise:
        """Returns a promise that resolves after `delay_ms`."""
        promise = Promise()
        self.later(delay_ms, promise.resolve)
        return promise

    def within(self, promise: Promise, limit_ms: float, what: str) -> Promise:
        """Returns a promise of the same result, or of a TimeoutError after `limit_ms`."""
        bounded = Promise()
        timer = self.later(limit_ms, lambda: bounded.fail(TimeoutError(errno.ETIMEDOUT, f"{what} took more than {limit_ms:.0f} ms")))

        def settle(source: Promise) -> None:
            timer.cancel()
            bounded.fail(source.error) if source.error else bounded.resolve(source.value)

        promise.then(settle)
        return bounded

    def start(self, sequence: Sequence_) -> Promise:
        """Runs a sequence up to its first wait, and returns the promise of its return value or of the exception that ended it."""
        promise = Promise()
        self._step(sequence, promise, None)
        return promise

    def _step(self, sequence: Sequence_, promise: Promise, settled: Promise | None) -> None:
        try:
            if settled is None:
                awaited = next(sequence)
            elif settled.error is not None:
                awaited = sequence.throw(settled.error)
            else:
                awaited = sequence.send(settled.value)
        except StopIteration as end:
            promise.resolve(end.value)
        except Exception as error:
            promise.fail(error)
        else:
            # Resumed from the loop, never inside the call that settled the promise: that code must not be interrupted by this one.
            awaited.then(lambda source: self._soon(lambda: self._step(sequence, promise, source)))

    def _soon(self, callback: Callable[[], None]) -> None:
        self.later(0, callback)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Serves readers and timers until `stop`; blocks.  An exception of a callback is logged."""
        while self._running:
            for key, _ in self._selector.select(self._timeout_s()):
                # A callback before may have unwatched this one, and its number may name another file by now.
                if self._selector.get_map().get(key.fd) is key:
                    self._guarded(key.data)
            now = time.monotonic()
            while self._timers and self._timers[0].at <= now:
                callback = heapq.heappop(self._timers).callback
                if callback is not None:
                    self._guarded(callback)

    def _timeout_s(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].at - time.monotonic()) if self._timers else None

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("callback failed")

    def chore(self, work: Callable[[], Any], limit_ms: float, what: str, keep: Sequence[int] = ()) -> Promise:
        """Runs `work` in a forked child, and returns the promise of its result, which has to be JSON.

        The promise fails with the OSError of `work`, or with TimeoutError after `limit_ms`.  In the child only the descriptors `keep` stay
        open.
        """
        out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pid = os.fork()
        if pid == 0:
            _in_child(work, into, keep)
        os.close(into)
        pidfd = os.pidfd_open(pid)
        result = Promise()
        self.chores += 1

        def ended() -> None:
            self.unwatch(pidfd)
            os.waitpid(pid, 0)
            os.close(pidfd)
            self.chores -= 1
            _settle(result, _drain(out), what)
            os.close(out)

        def overdue() -> None:
            if not result.done:
                say(log, logging.WARNING, "chore overdue", what=what, child=pid, limit_ms=limit_ms)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                result.fail(TimeoutError(errno.ETIMEDOUT, f"{what} did not return within {limit_ms:.0f} ms"))

        self.watch(pidfd, ended)
        timer = self.later(limit_ms, overdue)
        result.then(lambda _: timer.cancel())
        return result


def _in_child(work: Callable[[], Any], into: int, keep: Sequence[int]) -> None:
    """Runs `work` in the child and never returns.  A child that hangs must not keep the keeper's lock, sockets or FUSE descriptors."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        first = 3
        for fd in sorted({into, *keep}):
            os.closerange(first, fd)
            first = fd + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        try:
            answer = {"value": work()}
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}
        except Exception as error:
            answer = {"errno": errno.EIO, "error": f"{type(error).__name__}: {error}"}
        os.write(into, json.dumps(answer).encode()[:CHORE_RESULT_BYTES_MAX])
        code = 0
    finally:
        os._exit(code)


def _drain(fd: int) -> bytes:
    try:
        return os.read(fd, CHORE_RESULT_BYTES_MAX)
    except BlockingIOError:
        return b""


def _settle(result: Promise, payload: bytes, what: str) -> None:
    try:
        answer = json.loads(payload)
    except ValueError:
        result.fail(OSError(errno.EIO, f"{what}: the child that did it died"))
        return
    if "error" in answer:
        result.fail(OSError(answer["errno"], answer["error"]))
    else:
        result.resolve(answer["value"])
