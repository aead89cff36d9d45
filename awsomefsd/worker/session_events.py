"""Tells the parts of a mount what its metadata client hears of the session."""

from __future__ import annotations

from awsomefsd.base.wait import Signal
from awsomefsd.meta.client.leases import SessionLeases
from awsomefsd.vfs.session.evicted_node import Removal
from awsomefsd.vfs.session.mount_session import ServedMount, SessionKeeper, SessionLease

# A session that holds its volume alone uses no older state than its own last change, and readers compare identities: no freed segment has
# to wait for it before it is leased again.
SEEN_ALL = (1 << 62) - 1


class MountEvents:
    """Implements meta.client's SessionEvents.

    Until `begin` no session is opened in the place of the first one: it is just being opened, or it is not decided what goes on under it.
    `ended_early` ends when it is lost, or the node removed, before that.
    """

    def __init__(
        self, lease: SessionLease, vfs: ServedMount, sessions: SessionKeeper, removal: Removal, leases: SessionLeases | None
    ) -> None:
        self._lease = lease
        self._vfs = vfs
        self._sessions = sessions
        self._removal = removal
        self._leases = leases
        self._begun = self._lost = False
        self.ended_early = Signal()

    def begin(self) -> None:
        """The first session is open, and what a predecessor has left is known to whoever replaces it."""
        self._begun = True
        if self._lost:
            self._sessions.lost()

    def renewed(self) -> None:
        self._lease.announce()

    def fenced(self) -> None:
        self._vfs.fenced()

    def lost(self) -> None:
        self._lost = True
        if self._begun:
            self._sessions.lost()
        else:
            self.ended_early.fire()

    def removed(self, reason: str) -> None:
        if self._begun:  # it is told again
            self._removal.begin(reason)
        else:
            self.ended_early.fire()

    def greeted(self, term: int) -> None:
        if self._leases is not None:
            self._leases.greeted(term)

    def seen_index(self) -> int:
        return SEEN_ALL
