"""Defines what a metadata client tells its owner about the session and the connection."""

from __future__ import annotations

from typing import Protocol


class SessionEvents(Protocol):
    """Called on the client's own threads (the one that receives, the one that renews), with no lock held.

    No method may block: answers and renewals wait for it.  The first call comes after `MetaClient.start`; none comes after `close` returns.
    """

    def renewed(self) -> None:
        """A renewal was acknowledged and leaves some lease.  An exception is logged."""

    def fenced(self) -> None:
        """The lease ran out without a renewal; the session may still live at the leader.  An exception is logged."""

    def lost(self) -> None:
        """The leader has ended the session for good.  An exception is logged."""

    def removed(self, reason: str) -> None:
        """The cluster refuses this node as removed, so nobody will ever answer.  May be called again with each refused connection."""

    def greeted(self, term: int) -> None:
        """A leader of that term took the connection, and everything outstanding was sent to it again."""

    def seen_index(self) -> int:
        """Returns the index of a log entry: this process uses no state that is older.  Asked for each renewal."""


class IgnoredEvents(SessionEvents):
    """For a client without a session: nothing is done, and every state may still be in use."""

    def renewed(self) -> None:
        pass

    def fenced(self) -> None:
        pass

    def lost(self) -> None:
        pass

    def removed(self, reason: str) -> None:
        pass

    def greeted(self, term: int) -> None:
        pass

    def seen_index(self) -> int:
        return 0
