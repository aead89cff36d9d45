"""Keeps requests that wait in the leader's memory: for a lock, and for the next entry of the log.  Pure.

A waiting lock is no entry; only its grant is.  So nothing is lost with this memory: a client that has no answer sends the request again,
under the same id, to whoever leads.  Waiters of an inode are tried in the order they came, but one that is in nobody's way passes those
that still wait (as in Linux).
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from awsomefsd.base.limits import LOCK_WAITERS_MAX, LOCK_WAITERS_PER_INODE_MAX, LOCK_WAITERS_PER_MOUNT_MAX, RPC_INFLIGHT_MAX
from awsomefsd.base.types import LOCK_POSIX
from awsomefsd.meta.api.commands import SetLock
from awsomefsd.meta.api.messages import Follow, WaitLock
from awsomefsd.meta.server.deadlock import Owner
from awsomefsd.meta.server.request import Origin, Request
from awsomefsd.meta.server.shares import Shares

FOLLOWERS_MAX = RPC_INFLIGHT_MAX

Key = tuple[int, int]  # volume, ino


class Waiter:
    """A WaitLock whose lock is not free yet."""

    __slots__ = ("command", "request")

    def __init__(self, request: Request[WaitLock], command: SetLock) -> None:
        self.request = request
        self.command = command

    @property
    def origin(self) -> Origin:
        return self.request.origin

    @property
    def body(self) -> WaitLock:
        return self.request.body

    @property
    def key(self) -> Key:
        return self.command.volume, self.command.ino

    @property
    def owner(self) -> Owner:
        return self.body.session, self.command.owner

    @property
    def in_graph(self) -> bool:
        """True: it may be part of a deadlock (deadlock.py)."""
        return self.command.kind == LOCK_POSIX and not self.body.no_deadlock


class LockWaiters:
    def __init__(self, per_inode_max: int = LOCK_WAITERS_PER_INODE_MAX) -> None:
        self._per_inode_max = per_inode_max
        self._shares = Shares(LOCK_WAITERS_PER_MOUNT_MAX, LOCK_WAITERS_MAX)
        self._by_key: dict[Key, dict[tuple[int, int], Waiter]] = {}
        self._by_id: dict[tuple[int, int], Waiter] = {}
        self._by_owner: dict[Owner, dict[tuple[int, int], Waiter]] = {}  # those in the graph of waits
        self._retry: dict[Key, None] = {}  # in the order in which the reasons came

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def to_retry(self) -> bool:
        return bool(self._retry)

    def park(self, waiter: Waiter) -> bool:
        """Lets a request wait.  False: too many wait for this inode, of this mount, or in all.

        The same request sent again takes its old place.
        """
        request = (waiter.origin.mount, waiter.body.unique)
        before = self._by_id.get(request)
        if before is not None and before.key != waiter.key:
            self.remove(*request)  # no client of ours sends that: the id waits once
            before = None
        crowded = len(self._by_key.get(waiter.key, ())) >= self._per_inode_max
        if before is None and (crowded or not self._shares.take(waiter.origin.mount)):
            return False
        waiters = self._by_key.setdefault(waiter.key, {})
        self._retry[waiter.key] = None
        self._leave_graph(request)
        waiters[request] = self._by_id[request] = waiter
        return True

    def enter_graph(self, waiter: Waiter) -> None:
        """Notes that a waiter was tried in vain and closes no circle: from now on others may wait for it in turn."""
        self._by_owner.setdefault(waiter.owner, {})[(waiter.origin.mount, waiter.body.unique)] = waiter

    def _leave_graph(self, request: tuple[int, int]) -> None:
        waiter = self._by_id.get(request)
        if waiter is not None and waiter.owner in self._by_owner:
            self._by_owner[waiter.owner].pop(request, None)
            if not self._by_owner[waiter.owner]:
                del self._by_owner[waiter.owner]

    def of_owner(self, owner: Owner) -> list[Waiter]:
        """Returns what this owner waits for, as far as it can be part of a deadlock."""
        return list(self._by_owner.get(owner, {}).values())

    def remove(self, mount: int, unique: int) -> Waiter | None:
        self._leave_graph((mount, unique))
        waiter = self._by_id.pop((mount, unique), None)
        if waiter is not None:
            self._shares.give_back(mount)
            waiters = self._by_key[waiter.key]
            del waiters[(mount, unique)]
            if not waiters:
                del self._by_key[waiter.key]
                self._retry.pop(waiter.key, None)
        return waiter

    def mark_unlocked(self, key: Key) -> None:
        """Marks the waiters of an inode to be tried: something in their way may be gone."""
        if key in self._by_key:
            self._retry[key] = None

    def mark_all_unlocked(self) -> None:
        self._retry.update(dict.fromkeys(self._by_key))

    def take_retries(self, busy: Container[Key] = ()) -> list[list[Waiter]]:
        """Returns, for each inode whose waiters are to be tried, those waiters in order.  Those of `busy` inodes stay to be tried."""
        keys = self._retry
        self._retry = {key: None for key in keys if key in busy}
        return [list(self._by_key[key].values()) for key in keys if key in self._by_key and key not in busy]

    def drop_origin(self, origin: Origin) -> None:
        """Forgets the waiters of a connection that is gone; its client asks again on the next one."""
        for waiter in [waiter for waiter in self._by_id.values() if waiter.origin is origin]:
            self.remove(origin.mount, waiter.body.unique)

    def take_all(self) -> list[Waiter]:
        """Returns all waiters; nobody waits here any more."""
        found = list(self._by_id.values())
        for waiter in found:
            self.remove(waiter.origin.mount, waiter.body.unique)
        return found

    def of_session(self, session: int) -> list[Waiter]:
        return [waiter for waiter in self._by_id.values() if waiter.body.session == session]


class Follower:
    """A Follow that waits for an entry with index > `after`."""

    __slots__ = ("after", "count", "deadline_ns", "request")

    def __init__(self, request: Request[Follow], count: int, deadline_ns: int) -> None:
        self.request = request
        self.after = request.body.after
        self.count = count
        self.deadline_ns = deadline_ns


class Followers:
    def __init__(self) -> None:
        self._waiting: list[Follower] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def park(self, follower: Follower) -> bool:
        if len(self._waiting) >= FOLLOWERS_MAX:
            return False
        self._waiting.append(follower)
        return True

    def take_due(self, applied: int, now_ns: int) -> Iterator[Follower]:
        """Yields the followers with something to read and those who have waited long enough; they wait here no more."""
        if self._waiting:
            due = [waiting for waiting in self._waiting if waiting.after < applied or waiting.deadline_ns <= now_ns]
            if due:
                gone = set(map(id, due))
                self._waiting = [waiting for waiting in self._waiting if id(waiting) not in gone]
            yield from due

    def take_all(self) -> list[Follower]:
        taken, self._waiting = self._waiting, []
        return taken

    def next_deadline_ns(self) -> int | None:
        return min((waiting.deadline_ns for waiting in self._waiting), default=None)

    def drop_origin(self, origin: Origin) -> None:
        self._waiting = [waiting for waiting in self._waiting if waiting.request.origin is not origin]
