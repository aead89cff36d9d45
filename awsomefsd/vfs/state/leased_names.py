"""A mount that shares its volume remembers names, attributes, listings, xattrs, link targets, each under a read lease on its inode.

Nothing here is believed by itself.  What is kept carries the number of the lease's grant (attributes, names) or its stamp (the rest), and
is used only while that very grant is held, the session's fence is ahead, and no change of this mount is under way there
(meta/client/lease_cache.py).
So a recall, a lost session or a pause need not reach this memory to end its validity; that it is dropped then is for the room.

Answers are taken up on the one thread that receives them, in the leader's order.  Therefore one that comes while the lease is held was
computed under it, and the outcome of an own change, which names all attributes that it moved, is entered like any other answer: attributes
and names outlive the changes of this mount, but for those that were sent more than once (meta/client/lease_cache.py).  Listings, xattrs and
targets do not: the stamp is another one after each change.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from awsomefsd.base.limits import DENTRIES_CACHED_MAX, INODES_CACHED_MAX, MEMOS_CACHED_MAX
from awsomefsd.base.types import Attr, Dirent
from awsomefsd.meta.client.leases import LeaseView
from awsomefsd.vfs.state.freshness import Modes
from awsomefsd.vfs.state.names import ABSENT, Directory, NameCache


class LeasedNames(NameCache):
    """The policy of a shared mount that caches.  Single dict operations, as in Names."""

    def __init__(self, leases: LeaseView, modes: Modes) -> None:
        super().__init__()
        self._leases = leases
        self._modes = modes
        self._kept: dict[int, tuple[int, Attr]] = {}  # inode → grant, attributes
        self._listings: dict[int, tuple[int, list[Dirent]]] = {}  # directory → stamp, all entries in order of their cookies
        self._listed = 0
        self._memos: dict[tuple[int, bytes], tuple[int, Any]] = {}  # (inode, what) → stamp, value

    def __len__(self) -> int:
        return len(self._kept)

    # --- attributes ---------------------------------------------------------------------------------------------------------------
    def attr(self, ino: int) -> Attr | None:
        kept = self._kept.get(ino)
        return kept[1] if kept is not None and self._leases.serves(ino, kept[0]) else None

    def put(self, attr: Attr) -> None:
        self._modes.note(attr)
        grant = self._leases.keeps(attr.ino)
        if not grant:
            self._kept.pop(attr.ino, None)
            return
        self._kept[attr.ino] = (grant, attr)
        bound = INODES_CACHED_MAX * self._share
        if len(self._kept) > bound:
            for ino in list(self._kept)[: len(self._kept) - int(bound * 15 / 16)]:
                self._kept.pop(ino, None)

    def drop(self, ino: int) -> None:
        self._kept.pop(ino, None)
        listing = self._listings.pop(ino, None)
        if listing is not None:
            self._listed -= len(listing[1])
        super().drop(ino)

    def clear(self) -> None:
        self._kept.clear()
        self._listings.clear()
        self._memos.clear()
        self._listed = 0
        super().clear()

    def inode_numbers(self) -> list[int]:
        return list(self._kept)

    # --- directories ----------------------------------------------------------------------------------------------------------------
    def find(self, parent: int, name: bytes) -> int | None:
        directory = self._directories.get(parent)
        if directory is None or not self._leases.serves(parent, directory.grant):
            return None
        return directory.names.get(name, ABSENT if directory.complete else None)

    def directory(self, ino: int, *, complete: bool = False) -> Directory:
        """One that is not remembered where no lease is held.  `complete`: the lease came with the answer that made it."""
        grant = self._leases.keeps(ino)
        if not grant:
            return Directory(complete=False)
        known = self._directories.get(ino)
        if known is not None and known.grant != grant:
            self._name_count -= len(known.names)
            self._directories.pop(ino, None)
        directory = super().directory(ino, complete=complete)
        directory.grant = grant
        return directory

    def listing(self, ino: int, offset: int) -> list[Dirent] | None:
        """The entries behind a cookie; None: not known."""
        kept = self._listings.get(ino)
        if kept is None or not kept[0] or self._leases.stamp(ino) != kept[0]:
            return None
        entries = kept[1]
        return entries[bisect_right(entries, offset, key=lambda entry: entry.cookie) :]

    def keep_listing(self, ino: int, stamp: int, entries: list[Dirent]) -> None:
        """All entries, as they were under that stamp, without attributes."""
        old = self._listings.pop(ino, None)
        self._listed += len(entries) - (0 if old is None else len(old[1]))
        self._listings[ino] = (stamp, entries)
        if self._listed > DENTRIES_CACHED_MAX * self._share:
            self._forget_listings()

    def _forget_listings(self) -> None:
        """The oldest.  Other threads drop some meanwhile."""
        for ino in list(self._listings):
            if self._listed <= DENTRIES_CACHED_MAX * self._share:
                return
            oldest = self._listings.pop(ino, None)
            self._listed -= 0 if oldest is None else len(oldest[1])

    # --- xattrs and link targets ------------------------------------------------------------------------------------------------------
    def memo(self, ino: int, what: bytes) -> Any:
        """Returns what `keep_memo` was told, None if nothing is known."""
        kept = self._memos.get((ino, what))
        return None if kept is None or not kept[0] or self._leases.stamp(ino) != kept[0] else kept[1]

    def keep_memo(self, ino: int, what: bytes, value: Any) -> None:
        stamp = self._leases.stamp(ino)
        if stamp:
            self._memos[ino, what] = (stamp, value)
            if len(self._memos) > MEMOS_CACHED_MAX * self._share:
                for key in list(self._memos)[: MEMOS_CACHED_MAX // 16]:
                    self._memos.pop(key, None)
