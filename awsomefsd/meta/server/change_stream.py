"""Reads the log as an ordered stream of changes from a cursor, for replication, audit and `log follow`.

A cursor is the index of the last entry a reader is done with.  Entries come in index order, each once, only when applied.  The log keeps
what registered readers have not passed (RegisterReader, AdvanceReader); whoever reads without being registered may find a gap, and learns
it as `StreamGap`, never as a stream that skips.
"""

from __future__ import annotations

from awsomefsd.base.errors import Corrupt, Error
from awsomefsd.base.limits import RPC_FRAME_BYTES_MAX
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.api.messages import Changes
from awsomefsd.meta.state.redaction import hidden
from awsomefsd.meta.voter.ports import Consensus
from awsomefsd.meta.voter.single_voter import decode

CHANGES_PER_REPLY_MAX = 512
CHANGES_BYTES_MAX = RPC_FRAME_BYTES_MAX // 4  # the last entry of a page may be an ENTRY_BYTES_MAX more
FOLLOW_WAIT_MS_MAX = 60_000


class StreamGap(Error):
    """Entries behind this cursor are dropped, or it is behind the newest one: the reader must take a full copy and start from there."""

    status = "OUT_OF_RANGE"

    def __init__(self, cursor: int, first_kept: int, last: int) -> None:
        kept = f"the newest is {last}" if cursor > last else f"the oldest kept is {first_kept}"
        super().__init__(f"entries after {cursor} were asked for, {kept}: the reader must resynchronise")
        self.cursor = cursor
        self.first_kept = first_kept


def page(log: Consensus, after: int, count: int, applied: int) -> Changes:
    """Returns the applied entries after a cursor, at most `count`, for the service.  A gap has no entries; `first_kept` tells it."""
    first = log.first_index
    if after + 1 < first or after >= applied:
        return Changes([], first, applied)
    count = min(count, CHANGES_PER_REPLY_MAX, applied - after)
    return Changes([hidden(raw) for raw in log.read(after + 1, count, CHANGES_BYTES_MAX)], first, applied)


def changes(reply: Changes, after: int) -> list[Entry]:
    """Returns the entries of a reply to Follow(after), for the reader.

    Raises StreamGap if some are dropped (or the log was replaced by a shorter one), Corrupt for what cannot follow the cursor.
    """
    if after + 1 < reply.first_kept or after > reply.last:
        raise StreamGap(after, reply.first_kept, reply.last)
    entries = [decode(raw) for raw in reply.entries]
    for number, entry in enumerate(entries, after + 1):
        if entry.index != number:
            raise Corrupt(f"change stream: entry {entry.index} where {number} belongs")
    return entries
