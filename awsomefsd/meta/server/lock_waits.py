"""Proposes waiting locks that are free now, and ends those that would wait for themselves.

waiters.py keeps the waiters, deadlock.py has the search.
"""

from __future__ import annotations

import errno
from collections.abc import Container

from awsomefsd.meta.api.messages import Cancel, Failed
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.server.deadlock import Owner, closes_circle
from awsomefsd.meta.server.proposals import BatchProposer
from awsomefsd.meta.server.read_index import Reads
from awsomefsd.meta.server.request import Request
from awsomefsd.meta.server.waiters import Key, LockWaiters, Waiter


class LockWaits:
    """Used by the metadata thread only.  Tests the waiters against the applied state of `replica`, proposes those whose lock is free."""

    def __init__(self, waiters: LockWaiters, replica: Replica, proposer: BatchProposer, reads: Reads) -> None:
        self._waiters = waiters
        self._replica = replica
        self._proposer = proposer
        self._reads = reads
        self.deadlocks = 0  # waits that ended with EDEADLK

    def retry(self, busy: Container[Key]) -> None:
        """Puts at most one grantable waiter of each inode into the (empty) batch: what is tested here is what it will be applied to.

        So a `busy` inode, with a SetLock that is not applied yet, has to wait for it.
        """
        for waiters in self._waiters.take_retries(busy):
            for waiter in waiters:
                if self._proposer.is_full or self._reads.is_full:
                    self._waiters.mark_unlocked(waiter.key)
                elif not (blockers := self._blockers(waiter)):
                    self._proposer.enter(waiter.request._replace(size=0), waiter.body)
                    self._waiters.remove(waiter.origin.mount, waiter.body.unique)
                    self._waiters.mark_unlocked(waiter.key)  # the next one in the next round
                else:
                    self._end_deadlock(waiter, blockers)
                    continue
                break

    def _blockers(self, waiter: Waiter) -> list[Owner]:
        """Returns the owners in its way.  Nobody, too, if the command will be refused for another reason: applying it says which."""
        locks = self._replica.machine.conflicting_locks(waiter.body.session, waiter.command)
        return [(lock.session, lock.owner) for lock in locks]

    def _end_deadlock(self, waiter: Waiter, blockers: list[Owner]) -> None:
        """Ends a waiter that closes a circle with EDEADLK.

        Looked for whenever it is tried in vain: when it comes, and when a lock it might have got went to another.
        """
        if not waiter.in_graph:
            return
        waiting = any(self._waiters.of_owner(owner) for owner in blockers)
        if waiting and closes_circle(waiter, lambda each: each.owner, self._blockers, self._waiters.of_owner):
            self.deadlocks += 1
            self.end(waiter, Failed(errno.EDEADLK, "the owner would wait for itself (deadlock)"))
        else:
            self._waiters.enter_graph(waiter)

    def end(self, waiter: Waiter, reply: Failed) -> None:
        self._waiters.remove(waiter.origin.mount, waiter.body.unique)
        waiter.request.answer(reply)

    def cancel(self, request: Request[Cancel]) -> None:
        waiter = self._waiters.remove(request.origin.mount, request.body.unique)
        if waiter is not None:
            waiter.request.answer(Failed(errno.EINTR))
