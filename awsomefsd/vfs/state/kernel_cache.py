"""The kernel is told how long it may believe a mount that shares its volume, and that is taken back before a lease is given up.

The kernel is told a timeout in two kinds of replies only.

*Attributes: GETATTR.*  INVAL_INODE raises the inode's attr_version; the kernel ignores attributes from requests that it sent before.  So a
recall first marks the lease as leaving (no timeout from now on), then sends INVAL_INODE, then is answered: a reply that was made before
and is written later does not count.  The other replies that carry attributes are not protected so (SETATTR, and those that make an inode,
are applied whatever their version; a LOOKUP may bring an inode that the kernel did not have when it was told to forget it): timeout 0.

*Names: LOOKUP and READDIRPLUS, negative ones too.*  A name carries the epoch of the mount from before its request was sent, so INC_EPOCH
works in the same way.  It costs every name of the mount, and is sent only for directories of which a name was told.  On kernels that do not
have it (before 7.44) names have timeout 0.  When a reply is made, the directory counts as told first, then it is looked whether the
name still says so: whoever is recalled in between sends INC_EPOCH.

An own change needs the same for attributes: CREATE and its kind make the kernel forget those of the directory when they return, and a
GETATTR that was answered before and is written later would bring them back.

INC_EPOCH unmounts what is mounted on a directory of the mount.  While there is such a thing (fuse/nested_mounts.py) names have timeout 0,
negative ones too, and a recall waits until the time of those told before is over: well within RECALL_MS.  Rejected: INVAL_ENTRY of single
names, which waits for the lock of their directory and unmounts what is on it as well.

*Pages* of strict inodes the kernel does not keep: they are opened with direct I/O.  Rejected: pages that follow the attributes, dropped by
an INVAL_INODE before a GETATTR is answered.  INVAL_INODE while a GETATTR waits makes the kernel drop the attributes of that very answer, so
its read(2) goes on with the old size.  Mappings and sendfile(2) fill pages nevertheless.  A recall drops those, and is answered when they
are gone or PAGES_RECALL_MS are over: INVAL_INODE waits for READs, which may wait for the leader.  Not while a handle of this mount may
write: it would wait for dirty pages, which may wait for the lease.  What a READ fills without a lease, or while it leaves, goes as soon as
it is answered (vfs/ops/direct_writes.py).

All that is of strict inodes.  Of others (freshness.py) the kernel is told attributes and names for a fixed time, which no recall shortens,
and it keeps pages (page_cache.py).

A successor does not know what its predecessor told: the leader does (GetInherited), within what it has granted.  Rejected: a list in shared
memory (one more format, for what the leader has anyway).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from awsomefsd.base.consistency import is_loose
from awsomefsd.base.limits import LEASES_PER_SESSION_MAX, PAGES_RECALL_MS
from awsomefsd.base.types import LEASE_NONE, Attr
from awsomefsd.base.wait import Resume
from awsomefsd.meta.client.leases import LeaseView
from awsomefsd.vfs.state.freshness import Modes
from awsomefsd.vfs.state.names import NameCache
from awsomefsd.vfs.state.open_files import OpenFile
from awsomefsd.vfs.state.page_cache import LoosePages

INC_EPOCH_MINOR = 44
TOLD_MAX = 2 * LEASES_PER_SESSION_MAX
NAMES_LATE_S = 1.0  # a reply with a timeout may leave so much later than it was made


class Kernel(Protocol):
    has_epoch: bool

    def forget_attributes(self, ino: int) -> None: ...
    def forget_names(self) -> bool: ...
    def nested(self) -> bool: ...
    def forget_pages(self, ino: int) -> None: ...


class Threads(Protocol):
    def submit(self, work: Callable[[], None], /) -> Any: ...


class _Dropped:
    """A Wait for the kernel to have no page of a file from before."""

    __slots__ = ("_ino", "_kernel", "_threads")

    def __init__(self, kernel: Kernel, threads: Threads, ino: int) -> None:
        self._kernel = kernel
        self._threads = threads
        self._ino = ino

    def start(self, resume: Resume) -> None:
        self._threads.submit(partial(self._run, resume))

    def _run(self, resume: Resume) -> None:
        self._kernel.forget_pages(self._ino)
        resume(None, None)


class _PagesGone:
    """The end of a recall, once: when the kernel has no page of the file, or has not given them up in time."""

    def __init__(self, kernel: Kernel, ino: int, done: Callable[[], None]) -> None:
        self._kernel = kernel
        self._ino = ino
        self._done: Callable[[], None] | None = done
        self._lock = threading.Lock()

    def start(self, threads: Threads) -> None:
        timer = after(PAGES_RECALL_MS / 1_000, self._end)
        threads.submit(partial(self._run, timer))

    def _run(self, timer: threading.Timer) -> None:
        self._kernel.forget_pages(self._ino)
        timer.cancel()
        self._end()

    def _end(self) -> None:
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            done()


class KernelCache:
    def __init__(
        self, leases: LeaseView, names: NameCache, kernel: Kernel, threads: Threads, left_ns: Callable[[], int], minor: Callable[[], int],
        modes: Modes, inherited: Iterable[OpenFile] = (),
    ) -> None:  # fmt: skip
        """`threads`: several, for nothing else, because each may wait in the kernel; `minor` of the protocol, once it is agreed on;
        `inherited`: the handles that are open, at first those that a predecessor gave out."""
        self._leases = leases
        self._names = names
        self._kernel = kernel
        self._threads = threads
        self._left_ns = left_ns
        self._told: set[int] = set()  # inodes of which attributes were told with a timeout, since they last changed
        self._told_any = False  # they were too many to be counted
        self._names_until = 0.0  # when the time of all names that were told is over (monotonic)
        self._named: set[int] = set()  # directories of which names were, since the last INC_EPOCH
        self._naming = threading.Lock()  # guards those two: recalls come on several threads
        self._minor = minor
        self._modes = modes
        self._opens = inherited
        self.filled: set[int] = set()  # open inodes of which it may have pages: those of Caches
        self.loose = LoosePages(lambda ino: self._kernel.forget_attributes(ino), inherited)

    # --- what is promised ---------------------------------------------------------------------------------------------------------
    def attr_ttl_ns(self, attr: Attr) -> int:
        """The time (ns) for which the kernel may use what GETATTR says now."""
        ino = attr.ino
        lasting_ns = self._modes.attr_ns(attr)
        if lasting_ns and self.loose.written(ino):
            return 0
        if lasting_ns and self.loose.reading(ino):
            return 0 if self._leases.changing(ino) else lasting_ns
        self._told.add(ino)
        if len(self._told) > TOLD_MAX:
            self._told_any = True
            self._told.clear()
        if lasting_ns:
            return 0 if self._leases.changing(ino) else lasting_ns
        if self._names.attr(ino) != attr or self._leases.leaving(ino) or self.loose.opened_here(ino):
            return 0
        return max(self._left_ns(), 0)

    def name_ttl_ns(self, parent: int, name: bytes, ino: int) -> int:
        """The time (ns) for a name of a directory; ABSENT: for its not being there."""
        lasting_ns = self._modes.name_ns(parent)
        if lasting_ns:
            return 0 if self._leases.changing(parent) else lasting_ns
        if self._minor() < INC_EPOCH_MINOR or not self._kernel.has_epoch or self._kernel.nested():
            return 0
        with self._naming:
            self._named.add(parent)
            left_ns = max(self._left_ns(), 0)
            self._names_until = max(self._names_until, time.monotonic() + left_ns / 1e9 + NAMES_LATE_S)
            if len(self._named) > TOLD_MAX:
                self._forget_names()
                return 0
        if self._names.find(parent, name) != ino or self._leases.leaving(parent):
            return 0
        return left_ns

    # --- and taken back -------------------------------------------------------------------------------------------------------------
    def forget_for_recall(self, ino: int, mode: int, done: Callable[[], None]) -> None:
        """Handles a recall, on the thread of the recalls.  What was promised under a write lease stands under the read lease that stays."""
        if mode != LEASE_NONE:
            done()
            return
        with self._naming:
            left_s = 0.0 if ino not in self._named or self._forget_names() else self._names_until - time.monotonic()
        if left_s > 0:
            after(left_s, partial(self._forget, ino, done))
        else:
            self._forget(ino, done)

    def _forget_names(self) -> bool:
        """With the lock held: who adds one now tells it after this.  False: only time ends what was told, so it is remembered."""
        if not self._kernel.forget_names():
            return False
        self._named.clear()
        return True

    def _forget(self, ino: int, done: Callable[[], None]) -> None:
        loosely = self.reads_loosely(ino)
        self._told.discard(ino)
        if not loosely:
            self._kernel.forget_attributes(ino)
        self._names.drop(ino)
        if self.has_old_pages(ino):
            _PagesGone(self._kernel, ino, done).start(self._threads)
        else:
            done()

    def reads_loosely(self, ino: int) -> bool:
        """Somebody reads it through pages that need not be strict, so an INVAL_INODE may do harm (page_cache.py).

        The file says so now.  Where its attributes are not known, what it was opened as counts; of the handles that a successor inherits
        nobody says that, so what is usual here does.
        """
        if not self.loose.reading(ino):
            return False
        attr = self._names.attr(ino)
        if attr is None:
            return self.loose.opened_here(ino) or (is_loose(self._modes.default) and ino not in self._told)
        return self._modes.is_loose_file(attr)

    def has_old_pages(self, ino: int) -> bool:
        """Says of an inode whose lease goes, or is not had, whether pages have to be taken from the kernel, and can be."""
        if ino not in self.filled or self.reads_loosely(ino):
            return False
        return ino not in self._written()

    def old_pages(self) -> set[int]:
        """The inodes of which `has_old_pages` is true now."""
        return {ino for ino in self.filled.copy() - self._written() if not self.reads_loosely(ino)}

    def _written(self) -> set[int]:
        return {opened.ino for opened in self._opens if opened.flags & os.O_ACCMODE != os.O_RDONLY}

    def change(self, inos: list[int]) -> None:
        """This mount changes these: no timeout is given any more until that is decided, and what was given goes."""
        for ino in inos:
            if ino in self._told or self._told_any:
                self._told.discard(ino)
                self._kernel.forget_attributes(ino)

    def inherit(self, inos: list[int]) -> bool:
        """A predecessor held these, and may have told anything of them.  False: only time ends what it told of names."""
        for ino in inos:
            self._kernel.forget_attributes(ino)
        return self._kernel.forget_names()

    def known(self) -> list[int]:
        """Inodes of which the kernel may know something; for a session that was lost."""
        return sorted({*self._told, *self.loose.known(), *self.old_pages()})

    # --- pages ------------------------------------------------------------------------------------------------------------------------
    def dropped(self, ino: int) -> _Dropped:
        """All pages; for a file that need not be strict."""
        return _Dropped(self._kernel, self._threads, ino)

    def stale(self, attr: Attr) -> bool:
        """GETATTR is about to say this: whether pages have to be dropped before, because the kernel would keep them."""
        return self._modes.is_loose_file(attr) and self.loose.stale(attr)


def after(pause_s: float, call: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(pause_s, call)
    timer.daemon = True
    timer.start()
    return timer
