"""The change stream: following it, and what comes."""

from __future__ import annotations

from awsomefsd.meta.api.messages.base import Message


class Follow(Message, tag=26):
    """Entries with index > `after`, at most `count`; waits up to `wait_ms` for the first."""

    after: int
    count: int
    wait_ms: int


class Changes(Message, tag=21):
    """Encoded entries in order, `first_kept` the oldest index still in the log, `last` the newest applied."""

    entries: list[bytes]
    first_kept: int
    last: int
