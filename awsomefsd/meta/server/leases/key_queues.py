"""Queues requests for an inode until leases on it are given back, and until what is proposed on it is decided.  Pure.

Each key has a queue, in order of arrival.  A key is *busy* while a proposal that changes something under it is on its way to the log: no
lease on it is granted meanwhile.  A queue is woken as a whole, and its requests are handled again from the beginning.

Questions that wait for a look at what the writer shows (lease_recalls.py) are no queue: nobody waits behind them.  One that came after the
look was begun waits for the next, because its answer may be older than the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from awsomefsd.base.limits import LEASE_WAITERS_MAX, LEASE_WAITERS_PER_INODE_MAX, LEASE_WAITERS_PER_MOUNT_MAX
from awsomefsd.meta.server.request import AnyRequest
from awsomefsd.meta.server.shares import Shares
from awsomefsd.meta.server.waiters import Key


class KeyQueues:
    """Used by the metadata thread only; nothing blocks."""

    def __init__(self) -> None:
        self._busy: dict[Key, int] = {}  # with proposals that are not decided, and how many
        self._queues: dict[Key, list[AnyRequest]] = {}
        self._woken: dict[Key, None] = {}  # in the order in which they were
        self._looking: dict[Key, tuple[list[AnyRequest], list[AnyRequest]]] = {}  # those the open look is for, those that came since
        self._shares = Shares(LEASE_WAITERS_PER_MOUNT_MAX, LEASE_WAITERS_MAX)

    # --- proposals on their way -------------------------------------------------------------------------------------------------
    def is_busy(self, key: Key) -> bool:
        return key in self._busy

    def enter(self, keys: Iterable[Key]) -> None:
        """A proposal that changes something under these keys is on its way; `leave` follows, with the same keys."""
        for key in keys:
            self._busy[key] = self._busy.get(key, 0) + 1

    def leave(self, keys: Iterable[Key]) -> None:
        """That proposal is decided, or its outcome will not be known here.  Wakes the queue of each key that is not busy any more."""
        for key in keys:
            left = self._busy.get(key, 0) - 1
            if left > 0:
                self._busy[key] = left
            elif self._busy.pop(key, None) is not None:
                self.wake(key)

    # --- requests that wait -----------------------------------------------------------------------------------------------------
    def has_waiters(self, key: Key) -> bool:
        return key in self._queues

    def park(self, key: Key, request: AnyRequest) -> bool:
        """Queues the request.  False: too many wait for this key, of this mount, or in all."""
        if len(self._queues.get(key, ())) >= LEASE_WAITERS_PER_INODE_MAX or not self._shares.take(request.origin.mount):
            return False
        self._queues.setdefault(key, []).append(request)
        return True

    def park_looking(self, key: Key, request: AnyRequest, *, since: bool) -> bool:
        """Lets a question wait for a look; `since`: for the one behind the open one.  False: as `park`."""
        asked, later = self._looking.get(key, ([], []))
        if len(asked) + len(later) >= LEASE_WAITERS_PER_INODE_MAX or not self._shares.take(request.origin.mount):
            return False
        (later if since else asked).append(request)
        self._looking[key] = asked, later
        return True

    def take_looked(self, key: Key) -> tuple[list[AnyRequest], bool]:
        """Returns the questions that the look was for, which wait here no more; True: a look has to be begun for those that came since."""
        asked, later = self._looking.pop(key, ([], []))
        if later:
            self._looking[key] = later, []
        return self._left(asked), bool(later)

    def wake_looking(self, key: Key) -> None:
        """No look will be answered: those that wait for one are tried again with the next `take_woken`."""
        asked, later = self._looking.pop(key, ([], []))
        if asked or later:
            self._queues.setdefault(key, []).extend(asked + later)
            self._woken[key] = None

    def _left(self, requests: list[AnyRequest]) -> list[AnyRequest]:
        """Returns the requests, which wait here no more."""
        for request in requests:
            self._shares.give_back(request.origin.mount)
        return requests

    def wake(self, key: Key) -> None:
        """What waits for this key is tried again with the next `take_woken`."""
        if key in self._queues:
            self._woken[key] = None

    def wake_volume(self, volume: int) -> None:
        for key in [key for key in self._looking if key[0] == volume]:
            self.wake_looking(key)
        for key in self._queues:
            if key[0] == volume:
                self._woken[key] = None

    def take_woken(self) -> list[AnyRequest]:
        """Returns the requests to be tried again, in order of key and arrival; they wait here no more."""
        woken, self._woken = self._woken, {}
        return self._left([request for key in woken for request in self._queues.pop(key, ())])

    def take_all(self) -> list[AnyRequest]:
        """Returns all that wait, because the leadership ends; they wait here no more."""
        for key in list(self._looking):
            self.wake_looking(key)
        queues, self._queues, self._woken = self._queues, {}, {}
        return self._left([request for queue in queues.values() for request in queue])

    def keep_if(self, wanted: Callable[[AnyRequest], bool]) -> None:
        """Drops the requests that are not wanted any more; those behind them may go on."""

        def filtered(requests: list[AnyRequest]) -> list[AnyRequest]:
            self._left([request for request in requests if not wanted(request)])
            return [request for request in requests if wanted(request)]

        self._looking = {key: (filtered(asked), filtered(later)) for key, (asked, later) in self._looking.items()}
        for key, queue in list(self._queues.items()):
            kept = filtered(queue)
            if kept:
                self._queues[key] = kept
                self.wake(key)
            else:
                del self._queues[key]

    @property
    def waiting_count(self) -> int:
        return self._shares.count
