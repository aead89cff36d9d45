"""A worker remembers names and attributes while its session holds the volume.

Everything the service has answered stays true until this worker itself changes it, so a lookup of a remembered name, or of a name that a
completely known directory does not have, costs no request.  Answers are taken up on the one thread that receives them, in the order in
which the service executed them: that order is what makes the cache right.  All bounds are base/limits.py's; eviction loses speed, never
truth.
"""

from __future__ import annotations

from typing import Any

from awsomefsd.base.limits import DENTRIES_CACHED_MAX, DIRECTORY_LISTED_ENTRIES_MAX, INODES_CACHED_MAX
from awsomefsd.base.types import Attr, Dirent

ABSENT = 0


class Directory:
    """Remembered names of one directory; `complete`: a name that is not here does not exist."""

    __slots__ = ("asking", "complete", "grant", "listed", "misses", "names")

    def __init__(self, *, complete: bool) -> None:
        self.names: dict[bytes, int] = {}
        self.complete = complete
        self.grant = 0  # of the lease under which it is remembered, where there are leases
        # vfs/ops/negative_lookups.py: questions for names that are not here, the last cookie known, a listing under way
        self.misses, self.listed, self.asking = 0, 0, False


class NameCache:
    """Bounded caches.  Single dict operations only, so readers on other threads need no lock."""

    def __init__(self) -> None:
        self._share = 1.0
        self._attrs: dict[int, Attr] = {}
        self._directories: dict[int, Directory] = {}
        self._name_count = 0

    def __len__(self) -> int:
        return len(self._attrs)

    def attr(self, ino: int) -> Attr | None:
        return self._attrs.get(ino)

    def put(self, attr: Attr) -> None:
        attrs = self._attrs
        attrs[attr.ino] = attr
        if len(attrs) > INODES_CACHED_MAX * self._share:
            self._evict_attrs(len(attrs) - int(INODES_CACHED_MAX * self._share * 15 / 16))

    def _evict_attrs(self, count: int) -> None:
        for ino in list(self._attrs)[:count]:  # oldest first: dicts keep the order of insertion
            self._attrs.pop(ino, None)

    def bound(self, share: float) -> None:
        """So much of the bounds holds from now on; what is over it goes with what comes next.  Any thread."""
        self._share = share

    def drop(self, ino: int) -> None:
        self._attrs.pop(ino, None)
        directory = self._directories.pop(ino, None)
        if directory is not None:
            self._name_count -= len(directory.names)

    def clear(self) -> None:
        self._attrs.clear()
        self._directories.clear()
        self._name_count = 0

    def inode_numbers(self) -> list[int]:
        return list(self._attrs)

    # --- what only leases make cheap to keep ---------------------------------------------------------------------------------
    def listing(self, ino: int, offset: int) -> list[Dirent] | None:
        return None

    def keep_listing(self, ino: int, stamp: int, entries: list[Dirent]) -> None:
        pass

    def memo(self, ino: int, what: bytes) -> Any:
        return None

    def keep_memo(self, ino: int, what: bytes, value: Any) -> None:
        pass

    # --- directories -----------------------------------------------------------------------------------------------------

    def find(self, parent: int, name: bytes) -> int | None:
        """The inode number, ABSENT if the name is known not to exist, None if it is not known."""
        directory = self._directories.get(parent)
        if directory is None:
            return None
        return directory.names.get(name, ABSENT if directory.complete else None)

    def directory(self, ino: int, *, complete: bool = False) -> Directory:
        """The remembered directory, begun now if need be; `complete` is for one that was just created."""
        directory = self._directories.get(ino)
        if directory is None:
            if self._name_count > DENTRIES_CACHED_MAX * self._share:
                self._evict()
            directory = self._directories[ino] = Directory(complete=complete)
        return directory

    def enter(self, parent: int, name: bytes, ino: int) -> None:
        """The name exists (or, with ABSENT, does not)."""
        directory = self.directory(parent)
        if ino == ABSENT and directory.complete:
            self._name_count -= directory.names.pop(name, None) is not None
            return
        if name not in directory.names:
            self._name_count += 1
            if len(directory.names) >= DIRECTORY_LISTED_ENTRIES_MAX and self._name_count > DENTRIES_CACHED_MAX * self._share:
                self._evict()
                directory = self.directory(parent)
        directory.names[name] = ino

    def _evict(self) -> None:
        """Forget the oldest directories until half of the bound is free."""
        for ino in list(self._directories):
            directory = self._directories.pop(ino, None)
            if directory is not None:
                self._name_count -= len(directory.names)
            if self._name_count <= DENTRIES_CACHED_MAX * self._share / 2:
                return


class UncachedNames(NameCache):
    """The names of a shared mount that caches nothing: what was learnt is used for no other operation."""

    def put(self, attr: Attr) -> None:
        pass

    def enter(self, parent: int, name: bytes, ino: int) -> None:
        pass

    def directory(self, ino: int, *, complete: bool = False) -> Directory:
        return Directory(complete=False)
