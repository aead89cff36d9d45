"""Questions about names, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import Attr, Dirent
from awsomefsd.meta.api.messages.base import Message
from awsomefsd.meta.api.messages.leases import Leased


class Lookup(Message, tag=10):
    """Found, or Failed(ENOENT).  `buffered` as in GetAttr."""

    volume: int
    parent: int
    name: bytes
    buffered: bool = False
    at: int = 0  # a snapshot; 0: the head


class ReadDir(Message, tag=12):
    """Entries with cookie > `after`, in cookie order, at most `count`; with attributes if `plus`.  "." and ".." are not among them."""

    volume: int
    ino: int
    after: int
    count: int
    plus: bool
    at: int = 0  # a snapshot; 0: the head


class ReadLink(Message, tag=13):
    volume: int
    ino: int
    at: int = 0  # a snapshot; 0: the head


class GetParent(Message, tag=28):
    """Attr of the parent of a directory, for ".."."""

    volume: int
    ino: int
    at: int = 0  # a snapshot; 0: the head


class Found(Message, tag=4):
    """An inode; `parent` where the directory changed with it; `created` for Create; `leased`: with the lease it asked for."""

    attr: Attr
    parent: Attr | None = None
    created: bool = False
    leased: Leased | None = None


class Removed(Message, tag=5):
    """Answers Unlink and Rmdir: the inode as it is now (nlink 0: gone, or an orphan if it was pinned)."""

    attr: Attr
    parent: Attr


class Renamed(Message, tag=6):
    """`replaced` is the inode that lost the new name (or, with EXCHANGE, the other one), `whiteout` what stands under the old name now."""

    attr: Attr
    replaced: Attr | None
    parent: Attr
    new_parent: Attr
    whiteout: Attr | None = None


class Entries(Message, tag=11):
    """A page of a directory; `end` if nothing follows.

    `newest`: no entry that is made from now on has a cookie up to this one; 0 from a service that does not say.
    """

    entries: list[Dirent]
    end: bool
    newest: int = 0
