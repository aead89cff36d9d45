"""Notifications make the kernel forget: INVAL_INODE and INC_EPOCH, sent from a thread of their own.

A notification may wait for locks that are held until we answer a request (INVAL_INODE for reads and dirty mmap pages of the range), so no
thread that reads or answers requests may send one.  INC_EPOCH takes no lock and makes all cached names invalid at once; kernels before 7.44
answer EINVAL, which is remembered.  INVAL_ENTRY of single names cannot be sent: it waits for the lock of the parent directory, so two nodes
that wait for it while they owe an answer wait for each other for ever, and it detaches what is mounted below the name.

A direct write that waits for its pages to go (`drop_pages`) holds one of the requests that the kernel sends in the background, and the READ
that holds a page locked may have to wait for one.  So no more than PAGE_DROPS_WAITING_MAX wait: well below the kernel's limit.  The ranges
of the others become one for each inode, which no overflow takes: nobody else would ever drop these pages.  Those that wait go first, but
never more than PAGE_DROPS_WAITING_MAX in a row, because direct writes may follow each other without end.

The queue is bounded.  When it overflows, one INC_EPOCH replaces the dropped notifications of names; for other pages, and for names where
there is no INC_EPOCH, only the timeouts protect then, and `dropped` counts them.  This thread never sends RESEND: takeover.py sends it
before anything reads.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from awsomefsd.base.limits import SESSION_SELF_FENCE_MS
from awsomefsd.fuse import abi
from awsomefsd.fuse.negotiate import BACKGROUND_REQUESTS_MAX

log = logging.getLogger("awsomefsd.fuse")

QUEUED_MAX = 4096
PAGE_DROPS_WAITING_MAX = BACKGROUND_REQUESTS_MAX * 3 // 4
_INC_EPOCH = abi.pack_notify(abi.Notify.INC_EPOCH)
_NOT_CACHED = frozenset((errno.ENOENT, errno.ENOTDIR))
_ENDED = frozenset((errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF))


class Notifier:
    """The queue and the thread of one mount.  Any thread may queue; queueing never blocks.

    `close` sends nothing more; it does not wait for a notification that waits in the kernel.
    """

    def __init__(self, fd: int, nested: Callable[[], bool] = bool, *, nameless: bool = False) -> None:
        """Starts the thread.  `nested()` is true while something is mounted on a directory of this mount: INC_EPOCH would unmount it.

        `nameless`: the kernel never gets a name with a time that has to be kept, so there is none to wait for.
        """
        self._fd = fd
        self.nested = nested
        self._nameless = nameless
        self.has_epoch = True  # until the kernel says no
        self._changed = threading.Condition()
        self._queue: deque[bytes | list[int] | int] = deque()  # an inode: what `_late` has of it
        self._late: dict[int, tuple[int, int]] = {}  # inode → start and end (below 0: all) of pages that nobody waits for
        self._drops: deque[tuple[bytes, Callable[[], None]]] = deque()  # they go before the queue
        self._drops_waiting = 0  # with the one that is being sent
        self._drops_in_a_row = 0
        self._sending = False
        self._closed = False
        self.dropped = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)
        self._thread.start()

    def invalidate_inode(self, ino: int, offset: int = 0, length: int = 0) -> None:
        """Queues attributes, and cached pages from `offset` on (`length` 0: all of them; `offset` below 0: attributes only)."""
        self._put(abi.pack_inval_inode(ino, offset, length))

    def drop_pages(self, ino: int, offset: int, length: int, then: Callable[[], None] | None) -> None:
        """As `invalidate_inode`; calls `then`, on the thread of this object, once the kernel has no page of the range from before.

        Where too many wait, or after `close`, `then` is called at once, on the calling thread.
        """
        with self._changed:
            waits = then is not None and not self._closed and self._drops_waiting < PAGE_DROPS_WAITING_MAX
            if waits:
                assert then is not None
                self._drops_waiting += 1
                self._drops.append((abi.pack_inval_inode(ino, offset, length), then))
            elif not self._closed:
                self._drop_late(ino, offset, offset + length if length else -1)
            self._changed.notify_all()
        if then is not None and not waits:
            then()

    def _drop_late(self, ino: int, start: int, end: int) -> None:
        known = self._late.get(ino)
        if known is None:
            self._queue.append(ino)
        else:
            start, end = min(start, known[0]), -1 if min(end, known[1]) < 0 else max(end, known[1])
        self._late[ino] = start, end

    def invalidate_all(self, inos: list[int]) -> None:
        """Makes the kernel forget all names, and the attributes of `inos`, and queues their pages, after a session was lost.

        On return no name and no attribute from before is used any more.  Pages cannot be waited for: INVAL_INODE waits for reads, which
        wait for the session; the opens that follow drop them (vfs/state/page_cache.py).  Blocks for SESSION_SELF_FENCE_MS where only time
        ends names.
        """
        forgotten = self.forget_names()
        for ino in inos:
            self.forget_attributes(ino)
        self._put(inos)
        if not forgotten:
            time.sleep(SESSION_SELF_FENCE_MS / 1_000)

    # --- at once, on the calling thread: these take no lock that is held while a request waits for its answer ---------------------
    def forget_attributes(self, ino: int) -> None:
        """Makes the kernel forget attributes and ACLs, but no pages; answers to earlier requests that arrive later do not count either."""
        self._send(abi.pack_inval_inode(ino, -1, 0))

    def forget_names(self) -> bool:
        """Makes the kernel forget every name with a time; returns False where only time ends them."""
        if self.has_epoch and self.nested():
            return self._nameless
        if self.has_epoch:
            self._send(_INC_EPOCH)
        return True

    def forget_told(self, inos: list[int], pages: bool) -> None:
        """Makes the kernel forget all names, and the attributes of `inos`; `pages`: queues their pages too.

        Names stay for the time that they were told for where the kernel has no INC_EPOCH, or it would unmount.
        """
        self.forget_names()
        for ino in inos:
            self.forget_attributes(ino)
        if pages:
            self._put(inos)

    def forget_pages(self, ino: int) -> None:
        """Makes the kernel forget attributes and all pages.

        Blocks for reads that are not answered and for writes of mapped pages: call it on a thread of its own only.
        """
        self._send(abi.pack_inval_inode(ino, 0, 0))

    def flushed(self, timeout_s: float | None = None) -> bool:
        """Waits until everything queued was sent, and returns False after `timeout_s`; for background threads only."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._queue or self._drops or self._sending), timeout_s)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._late.clear()
            self._changed.notify_all()

    def _put(self, message: bytes | list[int]) -> None:
        with self._changed:
            if len(self._queue) >= QUEUED_MAX:
                self.dropped += len(self._queue) - len(self._late)
                self._queue = deque(self._late)
                if self.has_epoch and not self.nested():
                    self._queue.append(_INC_EPOCH)
                else:
                    log.warning("too many notifications for the kernel: %d dropped, timeouts remain", self.dropped)
            self._queue.append(message)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._sending = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._drops or self._closed)
                if self._closed and not self._drops:
                    return
                message, then = self._next()
                self._sending = True
            if isinstance(message, bytes):
                self._send(message)
            else:
                for ino in message:
                    self._send(abi.pack_inval_inode(ino, 0, 0))
            if then is not None:
                self._dropped(then)

    def _next(self) -> tuple[bytes | list[int], Callable[[], None] | None]:
        """Takes the next notification, with what is called behind it."""
        if self._drops and (not self._queue or self._drops_in_a_row < PAGE_DROPS_WAITING_MAX):
            self._drops_in_a_row += 1
            return self._drops.popleft()
        self._drops_in_a_row = 0
        message = self._queue.popleft()
        if isinstance(message, int):
            start, end = self._late.pop(message)
            message = abi.pack_inval_inode(message, start, max(0, end - start))
        return message, None

    def _dropped(self, then: Callable[[], None]) -> None:
        with self._changed:
            self._drops_waiting -= 1
        try:
            then()
        except Exception:
            log.exception("what waited for pages to go has failed")

    def _send(self, message: bytes) -> None:
        try:
            os.write(self._fd, message)
        except OSError as err:
            if err.errno in _NOT_CACHED:
                return
            self.failed += 1
            if err.errno in _ENDED:
                self.close()
            elif err.errno == errno.EINVAL and message == _INC_EPOCH:
                self.has_epoch = False
            else:
                log.error("the kernel refused a notification: %s", err)
