"""Renews a worker's session on a thread of its own; session_lease.py has the rules.

The lease is counted on CLOCK_BOOTTIME, which goes on while the process is stopped and while the machine sleeps, and which nobody sets.  It
stands still only while a hypervisor pauses the whole machine.  That shows when CLOCK_REALTIME is set afterwards, so whenever the two
clocks have moved apart by more than a correction of the clock does, the lease is not trusted until it is renewed.  Somebody who sets the
clock costs his mounts one renewal.  Until the clock is set, or a renewal is due, such a pause is not seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.limits import CLOCK_JUMP_MS_MAX, NS_PER_MS, SESSION_RENEW_MS, SESSION_SELF_FENCE_MS
from awsomefsd.base.wait import Resume
from awsomefsd.meta.api.messages import Renew, Reply
from awsomefsd.meta.client.session_lease import Event, RenewalTimer

_JUMP_NS = CLOCK_JUMP_MS_MAX * NS_PER_MS


class Submitter(Protocol):
    """The part of the client that sends renewals.  Any thread may call; nothing blocks."""

    session: int
    epoch: int

    def seen_index(self) -> int: ...

    def submit(self, body: Renew, resume: Resume) -> None: ...


class SessionRenewer:
    """`run` is a thread of its own; any thread may call the rest, and nothing else blocks.  `notify` is called with no lock held."""

    def __init__(
        self,
        client: Submitter,
        boot_ns: Callable[[], int],
        notify: Callable[[Event], None],
        *,
        wall_ns: Callable[[], int],
        renew_ms: int = SESSION_RENEW_MS,
        fence_ms: int = SESSION_SELF_FENCE_MS,
    ) -> None:
        self._client = client
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self._apart_ns = wall_ns() - boot_ns()  # the two clocks, when they were compared last
        self.jumps = 0
        self._notify = notify
        self._core = RenewalTimer(renew_ms, fence_ms)
        self._changed = threading.Condition()  # guards the core
        self._stopped = False

    def begin(self, since_ns: int) -> None:
        with self._changed:
            self._core.begin(since_ns)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._core.end()
            self._changed.notify_all()

    def stop(self) -> None:
        """Lets `run` return."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def left_ns(self) -> int:
        now_ns = self._boot_ns()
        if not -_JUMP_NS < self._wall_ns() - now_ns - self._apart_ns < _JUMP_NS:
            self._distrust()
        return self._core.left_ns(now_ns)

    def _distrust(self) -> None:
        with self._changed:
            now_ns = self._boot_ns()
            apart_ns = self._wall_ns() - now_ns
            if abs(apart_ns - self._apart_ns) < _JUMP_NS:
                return  # another thread has seen it
            self._apart_ns = apart_ns
            self.jumps += 1
            self._core.distrust(now_ns)
            self._changed.notify_all()

    def _compare_clocks(self) -> None:
        """Sees a jump although nobody asks for the lease, and follows slow corrections, which are none."""
        self.left_ns()
        self._apart_ns = self._wall_ns() - self._boot_ns()

    def doubt(self) -> None:
        """Renews at once: a proposal was refused as of an ended session, or the connection is new."""
        with self._changed:
            self._core.doubt()
            self._changed.notify_all()

    wake = doubt

    def run(self) -> None:
        while not self._stopped:
            self._compare_clocks()
            with self._changed:
                now = self._boot_ns()
                due = self._core.poll(now)
                sent_ns = self._core.sending_ns(now)
                if due is None and not self._stopped:
                    next_ns = self._core.due_ns()
                    self._changed.wait(None if next_ns is None else max(next_ns - now, 0) / 1e9)
            if due == "fenced":
                self._notify("fenced")
            elif due == "renew":
                self._renew(sent_ns)

    def _renew(self, sent_ns: int) -> None:
        client = self._client
        session = client.session

        def answered(reply: Reply | None, error: BaseException | None) -> None:
            with self._changed:
                event = self._core.take_answer(sent_ns, error, client.session == session, self._boot_ns())
                self._changed.notify_all()
            if event is not None:
                self._notify(event)

        client.submit(Renew(session, client.epoch, client.seen_index()), answered)
