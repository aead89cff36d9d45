"""What a successor worker asks about leases; part of messages.py."""

from __future__ import annotations

from awsomefsd.meta.message import Message


class GetInherited(Message, tag=140):
    """Of the worker that has just taken its session over: Inodes(on which its predecessor held leases).

    ENODATA where the leader began since, and knows none.
    """

    session: int
    epoch: int
