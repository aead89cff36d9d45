"""The parts of a mount that hear from the metadata client what becomes of the session."""

from __future__ import annotations

from typing import Protocol

from awsomefsd.meta.client.lease_cache import MountLeases
from awsomefsd.vfs.session.evicted_node import Removal
from awsomefsd.vfs.session.mount_session import SessionKeeper, SessionLease

# A session that holds its volume alone uses no older state than its own last change, and readers compare identities: no freed segment has
# to wait for it before it is leased again.
SEEN_ALL = (1 << 62) - 1


class MountParts(Protocol):
    lease: SessionLease
    sessions: SessionKeeper
    removal: Removal
    leases: MountLeases | None


class MountEvents:
    """Implements meta.client's SessionEvents.  `parts` are complete before the client starts, so before the first event.

    Until `begin` nobody hears of a loss or a removal: the first session is just being opened, and no other may be opened beside it.
    """

    def __init__(self, parts: MountParts) -> None:
        self._parts = parts
        self._begun = False

    def begin(self) -> None:
        """The first session is open."""
        self._begun = True

    def renewed(self) -> None:
        self._parts.lease.announce()

    def fenced(self) -> None:
        self._parts.lease.lost()

    def lost(self) -> None:
        if self._begun:
            self._parts.sessions.lost()

    def removed(self, reason: str) -> None:
        if self._begun:
            self._parts.removal.begin(reason)

    def greeted(self, term: int) -> None:
        if self._parts.leases is not None:
            self._parts.leases.greeted(term)

    def seen_index(self) -> int:
        return SEEN_ALL
