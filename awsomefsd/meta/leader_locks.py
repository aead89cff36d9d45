"""Which waiting locks may be proposed now, and which would wait for themselves.  waiting.py keeps them, deadlock.py has the search."""

from __future__ import annotations

import errno
from collections.abc import Callable, Container
from typing import Any

from awsomefsd.meta.deadlock import Owner, closes_circle
from awsomefsd.meta.messages import Cancel, Failed
from awsomefsd.meta.waiting import Key, LockWaiters, Origin, Waiter
from awsomefsd.types import Lock


class LockDesk:
    """`locks_in_the_way` looks at the applied state, `enter` puts a waiter's command into the batch, `full` says that it takes no more."""

    def __init__(
        self,
        waiters: LockWaiters,
        locks_in_the_way: Callable[[int, Any], list[Lock]],
        enter: Callable[[Waiter], None],
        full: Callable[[], bool],
    ) -> None:
        self._waiters = waiters
        self._locks_in_the_way = locks_in_the_way
        self._enter = enter
        self._full = full
        self.deadlocks = 0  # waits that ended with EDEADLK

    def retry(self, busy: Container[Key]) -> None:
        """Put at most one grantable waiter of each inode into the (empty) batch: what is tested here is what it will be applied to.

        So a `busy` inode, with a SetLock that is not applied yet, has to wait for it.
        """
        for waiters in self._waiters.take_retries(busy):
            for waiter in waiters:
                if self._full():
                    self._waiters.unlocked(waiter.key)
                elif not (blockers := self._blockers(waiter)):
                    self._enter(waiter)
                    self._waiters.remove(waiter.origin.mount, waiter.body.unique)
                    self._waiters.unlocked(waiter.key)  # the next one in the next round
                else:
                    self._end_deadlock(waiter, blockers)
                    continue
                break

    def _blockers(self, waiter: Waiter) -> list[Owner]:
        """Who is in its way; nobody too if there is another error to be had: applying it says which."""
        return [(lock.session, lock.owner) for lock in self._locks_in_the_way(waiter.body.session, waiter.command)]

    def _end_deadlock(self, waiter: Waiter, blockers: list[Owner]) -> None:
        """Looked for whenever a waiter is tried in vain: when it comes, and when a lock it might have got went to another."""
        if not waiter.in_graph:
            return
        waiting = any(self._waiters.of_owner(owner) for owner in blockers)
        if waiting and closes_circle(waiter, lambda each: each.owner, self._blockers, self._waiters.of_owner):
            self.deadlocks += 1
            self.end(waiter, Failed(errno.EDEADLK, "its owner would wait for itself"))
        else:
            self._waiters.enter_graph(waiter)

    def end(self, waiter: Waiter, reply: Failed) -> None:
        self._waiters.remove(waiter.origin.mount, waiter.body.unique)
        waiter.origin.answer(waiter.call, reply)

    def cancel(self, origin: Origin, call: int, body: Cancel, size: int) -> None:
        waiter = self._waiters.remove(origin.mount, body.unique)
        if waiter is not None:
            waiter.origin.answer(waiter.call, Failed(errno.EINTR))
