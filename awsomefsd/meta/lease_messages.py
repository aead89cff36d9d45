"""What a successor worker asks about leases; part of messages.py."""

from __future__ import annotations

from awsomefsd.meta.message import Message


class GetInherited(Message, tag=140):
    """Of the worker that has just taken its session over: Inodes(on which its predecessor held leases).

    ENODATA where the leader began since, and knows none.
    """

    session: int
    epoch: int


class ReturnLeases(Message, tag=150):
    """Write leases, by inode and epoch, under which nothing is held back: from now on the session only reads under them.

    Of a session that asks for none of them again before it has said this, on the same connections.
    """

    session: int
    epoch: int
    leases: list[tuple[int, int]]
