"""The answers of the daemon, asked for by the admin API and kept for a moment, so that many readers of a page cost the daemon one question.

One question is asked at a time, and beside it the log is read by one; each has an end.  So a daemon that hangs holds two threads, and those
that wait for them give up.  The connection is made anew for each page, so a daemon that was restarted is simply there again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from awsomefsd.admin.client import AdminClient
from awsomefsd.admin.events import EventNames, event_of
from awsomefsd.base.errors import Unavailable

FRESH_S = 1.0
ANSWER_S = 8.0
ACT_S = 20.0  # less than a connection to the page has (server.py)
EVENTS_MAX = 500
ENTRIES_MAX = 20_000  # of the log, from its end, that the first look for events reads


class Readings:
    """The daemon as the pages read it; any thread may call.  `connect` raises what AdminClient does; so do all methods."""

    def __init__(self, connect: Callable[[], AdminClient], clock: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._clock = clock
        self._asking = threading.Lock()  # held by the thread that asks
        self._acting = threading.Lock()  # by the one that has something done
        self._following = threading.Lock()  # by the one that reads the log; guards what is known of events
        self._kept: dict[str, tuple[float, Any]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._cluster = ""  # whose events they are
        self._cursor = 0

    def ask(self, rpc: str) -> Any:
        """Returns the answer to an RPC without fields, FRESH_S old at most.  Blocks up to twice ANSWER_S."""
        with _turn(self._asking):
            return self._ask(rpc)

    def events(self) -> tuple[list[dict[str, Any]], bool]:
        """Returns (the newest events (admin/events.py), the newest first, EVENTS_MAX at most; whether the whole log was read).

        Blocks likewise.  A log that is not read within ANSWER_S is read further the next time.
        """
        status = self.ask("GetStatus")
        with _turn(self._following):
            if status.cluster != self._cluster:
                self._events.clear()
                self._cursor, self._cluster = 0, status.cluster
            newest = int(dict(status.figures).get("last_index", 0))
            before, whole = self._cursor, True
            try:
                self._read_on(max(self._cursor, newest - ENTRIES_MAX, 0))
            except Unavailable:
                if self._cursor == before:
                    raise
                whole = False
            return list(reversed(self._events)), whole

    def act(self, rpc: str, fields: dict[str, Any]) -> None:
        """Has the daemon do something; what is asked next is asked anew.  Blocks up to ACT_S, and as long for an action before it."""
        with _turn(self._acting):
            try:
                with self._connect() as client:
                    client.call(rpc, timeout_s=ACT_S, **fields)
            finally:
                self._kept.clear()

    def _read_on(self, after: int) -> None:
        with self._connect() as client:
            names = EventNames(client, ANSWER_S)
            for change in client.follow(timeout_s=ANSWER_S, after=after):
                event = event_of(change, names)
                self._cursor = change.index
                if event is not None:
                    self._events.append(event)

    def _ask(self, rpc: str) -> Any:
        at, kept = self._kept.get(rpc, (0.0, None))
        if kept is None or self._clock() - at > FRESH_S:
            with self._connect() as client:
                kept = client.call(rpc, timeout_s=ANSWER_S)
            self._kept[rpc] = self._clock(), kept
        return kept


@contextmanager
def _turn(lock: threading.Lock) -> Iterator[None]:
    """Holds a lock.  Raises Unavailable if another thread has it for too long."""
    if not lock.acquire(timeout=ANSWER_S):
        raise Unavailable(f"the daemon has not answered an earlier question for {ANSWER_S:.0f} s")
    try:
        yield
    finally:
        lock.release()
