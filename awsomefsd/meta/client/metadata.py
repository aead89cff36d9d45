"""What the parts of a mount ask of the metadata service: the seam between meta/client and what stands on it."""

from __future__ import annotations

from typing import Any, Protocol

from awsomefsd.base.wait import Wait
from awsomefsd.meta.api.commands import SetLock


class Metadata(Protocol):
    """The client of the metadata service.  Any thread may call; no method blocks.

    A Wait ends on the thread that receives answers, which must not block: with the reply, or with FsError where the service refused, or
    with the Error that ended the client.
    """

    def ask(self, body: Any) -> Wait:
        """A question that changes nothing (meta/api/messages); it is asked again while there is no leader."""

    def propose(self, command: Any, unique: int, token: tuple[int, int] | None = None) -> Wait:
        """A change (meta/api/commands) under the request id `unique`, which makes one entry at most however often it is sent.

        With `token` it is for that session or none (ESTALE once it has ended), else for the one that there is when it starts.
        """

    def session_token(self) -> tuple[int, int]:
        """Session and epoch as they are now, for `propose`."""

    def ack(self, unique: int) -> None:
        """The result of this request is not needed any more; said with a later proposal."""

    def ack_inherited(self, unique: int) -> None:
        """The same for a request that a predecessor may have proposed."""

    def wait_lock(self, command: SetLock, unique: int, no_deadlock: bool = False) -> Wait:
        """As `propose`, answered when the lock is granted; FsError: EINTR after `cancel(unique)`, EDEADLK."""

    def cancel(self, unique: int) -> None:
        """End the wait_lock of that id, if it still waits."""
