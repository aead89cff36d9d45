"""A recall makes a mount call its handlers in a fixed order, for one recall after the other, on a thread of their own.

The leases put recalls into a RecallQueue as they come; RecallThread takes them out.  Both are given the queue, so the handlers may be built
from the leases that they serve, and are all there when the thread begins.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from awsomefsd.meta.client.held_leases import RecallHandler
from awsomefsd.meta.client.leases import Shown

Done = Callable[[], None]
Answer = Callable[["Shown | None"], None]

log = logging.getLogger("awsomefsd.leases")


class _Look(NamedTuple):
    ino: int
    answer: Answer


_Item = tuple[int, int, Done] | _Look | Callable[[], None] | None


class RecallQueue:
    """Recalls in the order in which they came.  Any thread may put; one takes."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()

    def put(self, ino: int, mode: int, done: Done) -> None:
        """A lease is to be given up but for `mode` (LEASE_NONE, LEASE_READ); `done` is called once after the last handler."""
        self._items.put((ino, mode, done))

    def look(self, ino: int, answer: Answer) -> None:
        """`answer` is to be called with what this mount shows of a file that it writes."""
        self._items.put(_Look(ino, answer))

    def call(self, work: Callable[[], None]) -> None:
        """Call `work` on the thread of the recalls, after what was put before."""
        self._items.put(work)

    def end(self) -> None:
        """Nothing that is put after this is taken."""
        self._items.put(None)

    def take(self) -> _Item:
        """The next one; blocks until there is one.  None after `end`."""
        return self._items.get()


class RecallThread:
    """Hands each recall of a queue to `handlers`, in their order.

    Each handler gets (inode, what may stay, done) on the thread "recalls".  It calls `done` once when it has finished, then or later, on
    any thread; only then the next one is called.  After the last handler the recall is answered.

    `shown` returns what this mount shows of a file, on the same thread; None if it is not known just now.
    """

    def __init__(self, recalls: RecallQueue, handlers: Sequence[RecallHandler], shown: Callable[[int], Shown | None]) -> None:
        self._queue = recalls
        self._shown = shown
        self._handlers = tuple(handlers)
        self._thread = threading.Thread(target=self._run, name="recalls", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for the handler that is being called, not for recalls whose handlers have not called `done`."""
        self._queue.end()
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.take()) is not None:
            try:
                self._do(item)
            except Exception:
                log.exception("a recall cannot be answered; the leader will end this session")

    def _do(self, item: _Look | tuple[int, int, Done] | Callable[[], None]) -> None:
        if isinstance(item, _Look):
            item.answer(self._shown_of(item.ino))
        elif isinstance(item, tuple):
            self._handle(*item, 0)
        else:
            item()

    def _shown_of(self, ino: int) -> Shown | None:
        """None where our own code fails: the leader then recalls the lease.  No answer at all would end this session."""
        try:
            return self._shown(ino)
        except Exception:
            log.exception("what is shown of inode %d cannot be told to others; its lease will be recalled", ino)
            return None

    def _handle(self, ino: int, mode: int, done: Done, number: int) -> None:
        if number == len(self._handlers):
            done()
        else:
            self._handlers[number](ino, mode, partial(self._go_on, ino, mode, done, number + 1))

    def _go_on(self, ino: int, mode: int, done: Done, number: int) -> None:
        """A handler has finished, perhaps on the thread that receives answers.  The next one may wait for the kernel: not there."""
        if number == len(self._handlers) or threading.current_thread() is self._thread:
            self._handle(ino, mode, done, number)
        else:
            self._queue.call(partial(self._handle, ino, mode, done, number))
