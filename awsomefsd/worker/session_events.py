"""Tells the parts of a mount what its metadata client hears of the session."""

from __future__ import annotations

from awsomefsd.meta.client.leases import SessionLeases
from awsomefsd.vfs.session.evicted_node import Removal
from awsomefsd.vfs.session.mount_session import ServedMount, SessionKeeper, SessionLease

# A session that holds its volume alone uses no older state than its own last change, and readers compare identities: no freed segment has
# to wait for it before it is leased again.
SEEN_ALL = (1 << 62) - 1


class MountEvents:
    """Implements meta.client's SessionEvents.

    Until `begin` nobody hears of a loss or a removal: the first session is just being opened, and no other may be opened beside it.
    """

    def __init__(
        self, lease: SessionLease, vfs: ServedMount, sessions: SessionKeeper, removal: Removal, leases: SessionLeases | None
    ) -> None:
        self._lease = lease
        self._vfs = vfs
        self._sessions = sessions
        self._removal = removal
        self._leases = leases
        self._begun = False

    def begin(self) -> None:
        """The first session is open."""
        self._begun = True

    def renewed(self) -> None:
        self._lease.announce()

    def fenced(self) -> None:
        self._vfs.fenced()

    def lost(self) -> None:
        if self._begun:
            self._sessions.lost()

    def removed(self, reason: str) -> None:
        if self._begun:
            self._removal.begin(reason)

    def greeted(self, term: int) -> None:
        if self._leases is not None:
            self._leases.greeted(term)

    def seen_index(self) -> int:
        return SEEN_ALL
