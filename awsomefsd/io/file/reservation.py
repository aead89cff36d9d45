"""Space and quota promised to this worker ahead of need, so that write(2) itself knows whether there is room.

A write takes its worst case (headers, padding, footer share) from what is left; without enough, the worker asks the leader for a batch,
and only the leader's no becomes ENOSPC or EDQUOT, at write(2), never later.  What a flush did not need goes back to what is left.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.errors import FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import RESERVE_BATCH_BYTES
from awsomefsd.base.wait import Steps
from awsomefsd.meta.api.commands import Draw, Reserve
from awsomefsd.meta.api.messages import Reserved
from awsomefsd.meta.client.metadata import Metadata


class Uniques(Protocol):
    def next_background_unique(self) -> int: ...


class Reservation:
    """The bytes that this worker may still promise.  Thread-safe.

    `take` never waits; methods that return Steps wait for the service, and raise its Error.
    """

    def __init__(self, volume: int, proposer: Metadata, uniques: Uniques) -> None:
        self._volume = volume
        self._proposer = proposer
        self._uniques = uniques
        self._lock = threading.Lock()
        self._left = 0

    @property
    def left_bytes(self) -> int:
        return self._left

    def set_left(self, left_bytes: int) -> None:
        """Sets what is left after a takeover: what the leader has reserved, less what recovered records need (may be negative)."""
        with self._lock:
            self._left = left_bytes

    def take(self, need_bytes: int) -> bool:
        """Takes `need_bytes` if so many are left; returns whether they were."""
        with self._lock:
            if self._left < need_bytes:
                return False
            self._left -= need_bytes
            return True

    def spend(self, need_bytes: int, store: Callable[[], bool]) -> bool:
        """Takes `need_bytes` for what `store` makes; they come back if it makes nothing (False) or raises."""
        if not self.take(need_bytes):
            return False
        stored = False
        try:
            stored = store()
        finally:
            if not stored:
                self.give_back(need_bytes)
        return stored

    def give_back(self, unused_bytes: int) -> None:
        with self._lock:
            self._left += unused_bytes

    def refill(self, need_bytes: int) -> Steps:
        """Asks for a batch, at least what `need_bytes` lacks.  Raises FsError(ENOSPC or EDQUOT)."""
        with self._lock:
            lacking = max(need_bytes - self._left, 1)
        hit("reservation.grant.before")
        reply = yield from self._propose(Reserve(self._volume, max(RESERVE_BATCH_BYTES, lacking), lacking))
        hit("reservation.grant.after")
        self.give_back(reply.bytes)

    def draw(self, ino: int, offset: int, length: int, need_bytes: int) -> Steps:
        """Takes `need_bytes` out of space that was allocated to this range, for the caller.  Raises FsError(ENOSPC) if not all of it is."""
        yield from self._propose(Draw(self._volume, ino, offset, length, need_bytes))

    def return_all(self) -> Steps:
        """Gives back what is not needed now, for a use other than writes.  If the session has ended, it was given back already."""
        with self._lock:
            unused, self._left = max(self._left, 0), min(self._left, 0)
        if not unused:
            return
        try:
            yield from self._propose(Reserve(self._volume, -unused, 0))
        except FsError as err:
            if err.errno != errno.ESTALE:
                raise

    def _propose(self, command: Reserve | Draw) -> Steps:
        unique = self._uniques.next_background_unique()
        try:
            reply = yield self._proposer.propose(command, unique)
        finally:
            self._proposer.ack(unique)
        if not isinstance(reply, Reserved):
            raise FsError(5, f"unexpected answer to {command!r}: {reply!r}")
        return reply
