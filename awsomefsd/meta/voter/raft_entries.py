"""The form in the log of entries that Raft makes itself: commands like all others (commands.NoOp, commands.ChangeMembership).

A membership entry is recognised by its command, so nothing beside the payload has to be kept.  The test runs for every entry that enters a
log; decoding all would cost more than all the rest, so entries without the two bytes that such a command must contain are passed over.
What merely happens to contain them is decoded and found to be something else.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.raft.membership import Membership

_MARK = c.entry_encode(c.ChangeMembership(Membership()))[:2]  # array of so many fields, tag
Stamp = Callable[[], tuple[int, int]]


class RaftEntries:
    """Implements meta/raft/types.EntryCodec.  `stamp` gives (hybrid time, wall time in ns) for what this node proposes."""

    def __init__(self, stamp: Stamp, site: int) -> None:
        self._stamp = stamp
        self._site = site

    def noop(self, index: int, term: int) -> bytes:
        return self._encode(index, term, c.NoOp())

    def membership(self, index: int, term: int, membership: Membership) -> bytes:
        return self._encode(index, term, c.ChangeMembership(membership))

    def _encode(self, index: int, term: int, command: c.AnyCommand) -> bytes:
        stamp, time_ns = self._stamp()
        return c.entry_encode(c.Entry(index, term, command.since, 0, self._site, stamp, time_ns, 0, HOST_UNIQUE, 0, 0, [], command))

    def membership_of(self, payload: bytes) -> Membership | None:
        if _MARK not in payload:
            return None
        try:
            command = c.entry_decode(payload).command
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise Corrupt(f"log entry: {err}") from err
        return command.membership if isinstance(command, c.ChangeMembership) else None
