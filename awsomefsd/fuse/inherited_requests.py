"""Requests in memory that outlives the worker: the common port of a slot and a park entry, and the requests that a successor inherits.

*The unique that the kernel expects.* FUSE_NOTIFY_RESEND changes the id of every request that was read and not answered: bit 63 is set, the
reply must carry it, and the old id is unknown (ENOENT) from then on.  So the reply to a request that a predecessor read may have to carry
either, depending on whether that or an earlier successor has sent RESEND; `InheritedRequests.send` tries both.  And while RESEND has been
sent and the resent requests are not all read again, the kernel takes neither (it has the request queued for reading): then the reply is
kept until its request is read again (`claim`), and its memory, with state DONE, is not freed before: should this worker die too, its
successor finds the reply.

A request that is read again while its first execution still waits is dropped: that execution answers it.
Without HAS_RESEND nothing of this exists: the id in the request is the one to answer.

*Nobody waits any more.*  A caller that is killed is answered EINTR by the predecessor, or the kernel takes its request out of the queue,
and the worker that is then executing it has no way to know.  The kernel does not take the outcome, and a handle in it is nobody's:
`unwanted`.  That is certain of what was executed here, since the reply is stored before it is sent and there was none.  A reply that was
stored may have been taken before the death: its handle stays, whoever has it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from awsomefsd.base.types import RESEND_BIT
from awsomefsd.fuse import abi
from awsomefsd.fuse.encode import Reply

UNIQUE_MASK = RESEND_BIT - 1


class RequestMemory(Protocol):
    """A slot or a park entry that holds a request."""

    @property
    def unique(self) -> int:
        """The unique of the request, without RESEND_BIT."""

    @property
    def state(self) -> int:
        """FREE, RECEIVED, EXECUTING or DONE."""

    @property
    def is_intact(self) -> bool:
        """False if the request fails its checksum: then it is answered EIO and never executed."""

    @property
    def deaths(self) -> int:
        """The number of workers that died while the request was executing."""

    def add_death(self) -> int:
        """Counts one more death, and returns the new count."""

    def store_reply(self, reply: bytes) -> bool:
        """Stores the reply, and makes the state DONE; returns False (nothing stored) for one that is too long."""

    def reply(self) -> bytes:
        """Returns the stored reply.  Raises Corrupt if it fails its checksum."""

    def free(self) -> None:
        """Frees the memory; its views must not be used afterwards."""

    def request(self) -> memoryview:
        """Returns the whole request, header first, valid until `free`."""


class InheritedRequests:
    """Requests read by a predecessor and not known to be answered, by unique without RESEND_BIT.

    `add` belongs to the takeover's thread; any thread may call the others.  `write` sends a reply, and returns False where the kernel does
    not know the unique.  `unwanted` is told the outcome of a request that was executed here and that nobody waits for; no lock is held.
    """

    def __init__(self, write: Callable[[int, Reply], bool], unwanted: Callable[[Any], None]) -> None:
        self._write = write
        self._unwanted = unwanted
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._unclaimed: dict[int, tuple[Reply, RequestMemory, Any]] = {}
        self._resent = True  # requests may be queued in the kernel to be read again

    @property
    def is_over(self) -> bool:
        """True when no request is left and none can be resent."""
        return not (self._resent or self._open or self._unclaimed)

    def add(self, unique: int) -> None:
        self._open.add(unique)

    def send(self, held: RequestMemory, unique: int, reply: Reply, outcome: Any = None) -> bool:
        """Answers the request and returns True if `unique` is one of these; frees `held`, now or when the reply is claimed.

        `outcome`: what was executed here gave; None of a stored reply.
        """
        if unique not in self._open:
            return False
        with self._lock:
            self._open.discard(unique)
            taken = any(self._write(wire, readdressed(reply, wire)) for wire in (unique, unique | RESEND_BIT))
            if not taken and self._resent:
                self._unclaimed[unique] = (b"".join(reply) if isinstance(reply, list) else reply, held, outcome)
                return True
        if not taken:
            self._unwanted(outcome)
        held.free()
        return True

    def claim(self, wire: int) -> bool:
        """Takes a resent request that was read; returns True if it needs no execution, because it is answered here or still waits."""
        unique = wire & UNIQUE_MASK
        with self._lock:
            if unique in self._open:
                return True
            found = self._unclaimed.pop(unique, None)
            if found is None:
                return False
            reply, held, outcome = found
            taken = self._write(wire, readdressed(reply, wire))
        if not taken:
            self._unwanted(outcome)
        held.free()
        return True

    def moved(self, held: RequestMemory, to: RequestMemory) -> None:
        """Notes that a kept reply was copied from `held`, which is freed, to `to`, which is DONE."""
        with self._lock:
            for unique, (reply, kept, outcome) in self._unclaimed.items():
                if kept is held:
                    self._unclaimed[unique] = (reply, to, outcome)

    def drained(self) -> None:
        """Notes that every resent request was read, and frees the unclaimed ones: nobody waits for them, or they were answered before."""
        with self._lock:
            self._resent = False
            unclaimed, self._unclaimed = self._unclaimed, {}
        for _, held, outcome in unclaimed.values():
            self._unwanted(outcome)
            held.free()


def readdressed(reply: Reply, unique: int) -> Reply:
    """Returns the same reply with another unique."""
    if isinstance(reply, list):
        return [abi.with_unique(reply[0], unique), *reply[1:]]
    return abi.with_unique(reply, unique)
