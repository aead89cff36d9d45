"""A mount of a snapshot asks as of it, and changes nothing: the client of the metadata service, seen through that."""

from __future__ import annotations

import errno
from typing import Any

from msgspec.structs import replace

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import Signal, Wait
from awsomefsd.meta.api.commands import SetLock
from awsomefsd.meta.api.messages import GetAttr, GetLayout, GetParent, GetXattr, ListXattr, Lookup, ReadDir, ReadLink
from awsomefsd.meta.client.metadata import Metadata

AS_OF = frozenset({Lookup, GetAttr, ReadDir, ReadLink, GetParent, GetXattr, ListXattr, GetLayout})  # what is different in each snapshot


class SnapshotMetadata:
    """Implements Metadata.  `at`: the number of the snapshot."""

    def __init__(self, client: Metadata, at: int) -> None:
        self._client = client
        self._at = at

    def ask(self, body: Any) -> Wait:
        return self._client.ask(replace(body, at=self._at) if type(body) in AS_OF else body)

    def propose(self, command: Any, unique: int, token: tuple[int, int] | None = None) -> Wait:
        """Ends with EROFS.  The kernel refuses changes of a read-only mount; what it lets through, and we want ourselves, comes here."""
        return _refused()

    def session_token(self) -> tuple[int, int]:
        return self._client.session_token()

    def ack(self, unique: int) -> None:
        self._client.ack(unique)

    def ack_inherited(self, unique: int) -> None:
        self._client.ack_inherited(unique)

    def wait_lock(self, command: SetLock, unique: int, no_deadlock: bool = False) -> Wait:
        return _refused()

    def cancel(self, unique: int) -> None:
        self._client.cancel(unique)


def _refused() -> Signal:
    refused = Signal()
    refused.fire(None, FsError(errno.EROFS, "a snapshot is never changed"))
    return refused
