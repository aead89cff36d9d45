"""Renews a worker's session on a thread of its own, and says when the session may not serve any more.

The lease counts from *before* the sending of the newest acknowledged renewal, on CLOCK_BOOTTIME, and ends at SESSION_SELF_FENCE_MS: long
before the leader ends the session.  A renewal that was sent again after a reconnect still counts from its first sending.  A session that
fenced itself and was not ended resumes with the next acknowledged renewal; one that the leader has ended is lost for good.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Literal, Protocol

from awsomefsd.errors import FsError
from awsomefsd.limits import SESSION_RENEW_MS, SESSION_SELF_FENCE_MS
from awsomefsd.meta.messages import Renew, Reply
from awsomefsd.wait import Resume

_MS = 1_000_000


Event = Literal["fenced", "renewed", "lost"]


class Submitter(Protocol):
    """What is used of the client."""

    session: int
    epoch: int
    seen_index: Callable[[], int]

    def submit(self, body: Renew, resume: Resume) -> None: ...


class LeaseKeeper:
    """`run` is the thread; all else from any thread.  `notify` is called with no lock held."""

    def __init__(
        self,
        client: Submitter,
        boot_ns: Callable[[], int],
        notify: Callable[[Event], None],
        *,
        renew_ms: int = SESSION_RENEW_MS,
        fence_ms: int = SESSION_SELF_FENCE_MS,
    ) -> None:
        self._client = client
        self._boot_ns = boot_ns
        self._notify = notify
        self._renew_ns = renew_ms * _MS
        self._fence_ns = fence_ms * _MS
        self._changed = threading.Condition()
        self._live = self._stopped = False
        self._since_ns = 0  # the lease counts from here
        self._next_ns = 0  # when to renew
        self._asked = False  # a renewal is outstanding
        self._fenced = False

    def begin(self, since_ns: int) -> None:
        with self._changed:
            self._live, self._fenced, self._since_ns = True, False, since_ns
            self._next_ns = since_ns + self._renew_ns
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._live = False
            self._changed.notify_all()

    def stop(self) -> None:
        """`run` returns."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def left_ns(self) -> int:
        left = self._since_ns + self._fence_ns - self._boot_ns()
        return left if left > 0 and self._live else 0

    def doubt(self) -> None:
        """A proposal was refused as of an ended session: ask at once."""
        with self._changed:
            self._next_ns = 0
            self._changed.notify_all()

    wake = doubt

    def run(self) -> None:
        while not self._stopped:
            call: Event | None = None
            renew = False
            with self._changed:
                now = self._boot_ns()
                if self._live and not self._fenced and now >= self._since_ns + self._fence_ns:
                    self._fenced = True
                    call = "fenced"
                elif self._live and not self._asked and now >= self._next_ns:
                    self._asked = renew = True
                    self._next_ns = now + self._renew_ns
                else:
                    self._changed.wait(self._pause_s(now))
            if call is not None:
                self._notify(call)
            if renew:
                self._renew(now)

    def _pause_s(self, now: int) -> float | None:
        if not self._live:
            return None
        times = [] if self._fenced else [self._since_ns + self._fence_ns]
        if not self._asked:
            times.append(self._next_ns)
        return max(min(times) - now, 0) / 1e9 if times else None

    def _renew(self, sent_ns: int) -> None:
        client = self._client
        session = client.session

        def renewed(reply: Reply | None, error: BaseException | None) -> None:
            call: Event | None = None
            with self._changed:
                self._asked = False
                if self._live and client.session == session:
                    if error is None:
                        self._since_ns = max(self._since_ns, sent_ns)
                        if self.left_ns():
                            self._fenced, call = False, "renewed"
                    elif isinstance(error, FsError) and error.errno == errno.ESTALE:
                        self._live, call = False, "lost"
                self._changed.notify_all()
            if call is not None:
                self._notify(call)

        client.submit(Renew(session, client.epoch, client.seen_index()), renewed)
