"""The question of a mount for rows of what it holds, and its answer.

Keys and rows are those of the state store (meta/state/keys.py, docs/FORMAT.md), of four kinds: inodes, dentries, cookies, xattrs.
"""

from __future__ import annotations

from awsomefsd.meta.api.messages.base import Message


class GetRows(Message, tag=171):
    """Rows of the volume that a session serves: those under `keys`, and those of `group` behind the key `after` (b"": from the first).

    A group is a key up to the inode it is of; b"" asks for none.  Answered by FoundRows; Failed(EAGAIN) while another session writes one of
    the inodes under its lease, Failed(ESTALE) for a session that has ended.
    """

    session: int
    epoch: int
    volume: int
    keys: list[bytes]
    group: bytes = b""
    after: bytes = b""


class FoundRows(Message, tag=171):
    """(key, sealed row), None where there is no row: what was asked for in that order, and the inodes that dentries among it lead to.

    The answer is bounded, and has at least one row of what there is: keys that are not in it are asked again.  `more`: the group goes on.
    """

    rows: list[tuple[bytes, bytes | None]]
    more: bool = False
