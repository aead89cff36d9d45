"""What the kernel may believe of a mount that shares its volume, and how that is taken back before a lease is given up.

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

INC_EPOCH unmounts what is mounted on a directory of the mount.  While there is such a thing (nested.py) names have timeout 0, negative ones
too, and a recall waits until the time of those told before is over: well within RECALL_MS.  Rejected: INVAL_ENTRY of single names, which
waits for the lock of their directory and unmounts what is on it as well.

*Pages* follow the attributes: read(2) asks for those when their time is over, and then keeps its pages if size and mtime are what they
were (AUTO_INVAL_DATA), which is not proof enough.  So it is known here under which stamp of the lease (lease_holder.py) all pages of an
inode were read; where that is not the present one, GETATTR waits for an INVAL_INODE of all pages that began after it came.  What is in the
page cache then was asked for after this read(2) began.  A timeout is given only if all READs since were under the present lease.

A recall invalidates the pages too, and is answered when that has ended, or after PAGES_MS: INVAL_INODE waits for READs, and for WRITEs of
mapped pages, and these may need what another node holds: two nodes that have one file's mapped pages dirty would wait for each other.  It
is not what makes read(2) right; it is for those that the kernel serves without asking for attributes, mappings and splice(2).

All that is of strict inodes.  Of others (modes.py) the kernel is told attributes and names for a fixed time, which no recall shortens, and
it keeps pages (loose_pages.py).

A successor does not know what its predecessor told: the leader does (GetReadLeases), within what it has granted.  Every inode's pages are
unknown then.  Rejected: a list in shared memory (one more format, for what the leader has anyway).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from awsomefsd.fuse.loose_pages import LoosePages
from awsomefsd.fuse.modes import Modes
from awsomefsd.fuse.names import Names
from awsomefsd.fuse.opens import OpenFile
from awsomefsd.limits import LEASES_PER_SESSION_MAX, PAGES_MS
from awsomefsd.meta.mount_leases import MountLeases
from awsomefsd.types import LEASE_NONE, Attr
from awsomefsd.wait import Resume

INC_EPOCH_MINOR = 44
# Off: INVAL_INODE while a GETATTR waits makes the kernel drop the attributes of that very answer, so its read(2) goes on with the old size.
KEEPS_PAGES = False
TOLD_MAX = 2 * LEASES_PER_SESSION_MAX
NAMES_LATE_S = 1.0  # a reply with a timeout may leave so much later than it was made
UNKNOWN = 0  # no stamp: pages of which nobody knows under what they were read


class Kernel(Protocol):
    has_epoch: bool

    def forget_attributes(self, ino: int) -> None: ...
    def forget_names(self) -> bool: ...
    def nested(self) -> bool: ...
    def forget_pages(self, ino: int) -> None: ...


class Threads(Protocol):
    def submit(self, work: Callable[[], None], /) -> Any: ...


class Pages:
    """Of one inode: under which stamp they were read, and who waits for their end."""

    __slots__ = ("next", "running", "since", "under")

    def __init__(self, under: int | None) -> None:
        self.under = under  # None: there are none
        self.since: int | None = None  # as `under`, of those read since the invalidation that is running
        self.running: list[Resume] = []
        self.next: list[Resume] = []


class _Refreshed:
    """A Wait for the end of an invalidation of an inode's pages that begins now or later."""

    __slots__ = ("_cache", "_ino")

    def __init__(self, cache: KernelCache, ino: int) -> None:
        self._cache = cache
        self._ino = ino

    def start(self, resume: Resume) -> None:
        self._cache.invalidate(self._ino, resume)


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


class KernelCache:
    def __init__(
        self, leases: MountLeases, names: Names, kernel: Kernel, threads: Threads, left_ns: Callable[[], int], minor: Callable[[], int],
        modes: Modes, inherited: Iterable[OpenFile] = (),
    ) -> None:  # fmt: skip
        """`threads`: several, for nothing else, because each may wait in the kernel; `minor` of the protocol, once it is agreed on;
        `inherited`: handles that a predecessor gave out."""
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
        self._pages: dict[int, Pages] = {}
        self._lock = threading.Lock()  # guards the pages
        self._inherited = False  # pages of a predecessor may be there
        self._minor = minor
        self._modes = modes
        self.loose = LoosePages(lambda ino: self._kernel.forget_attributes(ino), inherited)
        leases.launderers.append(self.launder)

    # --- what is promised ---------------------------------------------------------------------------------------------------------
    def attr_ttl_ns(self, attr: Attr) -> int:
        """How long the kernel may use what GETATTR says now."""
        ino = attr.ino
        lasting_ns = self._modes.attr_ns(attr)
        if lasting_ns and self.loose.written(ino):
            return 0
        if lasting_ns and self.loose.reading(ino):
            return 0 if self._leases.holder.changing(ino) else lasting_ns
        self._told.add(ino)
        if len(self._told) > TOLD_MAX:
            self._told_any = True
            self._told.clear()
        if lasting_ns:
            return 0 if self._leases.holder.changing(ino) else lasting_ns
        if self._names.attr(ino) != attr or self._leases.holder.leaving(ino) or not self.clean(ino):
            return 0
        return max(self._left_ns(), 0)

    def name_ttl_ns(self, parent: int, name: bytes, ino: int) -> int:
        """The same for a name of a directory; ABSENT: for its not being there."""
        lasting_ns = self._modes.name_ns(parent)
        if lasting_ns:
            return 0 if self._leases.holder.changing(parent) else lasting_ns
        if self._minor() < INC_EPOCH_MINOR or not self._kernel.has_epoch or self._kernel.nested():
            return 0
        with self._naming:
            self._named.add(parent)
            left_ns = max(self._left_ns(), 0)
            self._names_until = max(self._names_until, time.monotonic() + left_ns / 1e9 + NAMES_LATE_S)
            if len(self._named) > TOLD_MAX:
                self._forget_names()
                return 0
        if self._names.find(parent, name) != ino or self._leases.holder.leaving(parent):
            return 0
        return left_ns

    # --- and taken back -------------------------------------------------------------------------------------------------------------
    def launder(self, ino: int, mode: int, done: Callable[[], None]) -> None:
        """Of a recall, on the launder thread.  What was promised under a write lease stands under the read lease that stays."""
        if mode != LEASE_NONE:
            done()
            return
        with self._naming:
            left_s = 0.0 if ino not in self._named or self._forget_names() else self._names_until - time.monotonic()
        if left_s > 0:
            after(left_s, partial(self._launder, ino, done))
        else:
            self._launder(ino, done)

    def _forget_names(self) -> bool:
        """With the lock held: who adds one now tells it after this.  False: only time ends what was told, so it is remembered."""
        if not self._kernel.forget_names():
            return False
        self._named.clear()
        return True

    def _launder(self, ino: int, done: Callable[[], None]) -> None:
        self._told.discard(ino)
        if not self.loose.reading(ino):
            self._kernel.forget_attributes(ino)
        self._names.drop(ino)
        with self._lock:
            there = ino in self._pages
        if not there:
            done()
            return
        once = _Once(done)
        timer = after(PAGES_MS / 1_000, once)

        def ended(_value: Any, _error: BaseException | None) -> None:
            timer.cancel()
            once()

        self.invalidate(ino, ended)

    def change(self, inos: list[int]) -> None:
        """This mount changes these: no timeout is given any more until that is decided, and what was given goes."""
        for ino in inos:
            if ino in self._told or self._told_any:
                self._told.discard(ino)
                self._kernel.forget_attributes(ino)

    def inherit(self, inos: list[int]) -> bool:
        """A predecessor held these, and may have told anything of them.  False: only time ends what it told of names."""
        self._inherited = True
        for ino in inos:
            self._kernel.forget_attributes(ino)
        return self._kernel.forget_names()

    def known(self) -> list[int]:
        """Inodes of which the kernel may know something; for a session that was lost."""
        with self._lock:
            return sorted({*self._told, *self._pages, *self.loose.known()})

    # --- pages ------------------------------------------------------------------------------------------------------------------------
    def clean(self, ino: int) -> bool:
        """Whether all pages that the kernel has, if any, are those of the present lease."""
        if not KEEPS_PAGES:
            return True
        with self._lock:
            pages = self._pages.get(ino)
            if pages is None:
                return not self._inherited
            return not pages.running and (pages.under is None or (pages.under > 0 and pages.under == self._leases.holder.stamp(ino)))

    def dropped(self, ino: int) -> _Dropped:
        """All pages; for a file that need not be strict."""
        return _Dropped(self._kernel, self._threads, ino)

    def stale(self, attr: Attr) -> bool:
        """GETATTR is about to say this: whether pages have to be dropped before, because the kernel would keep them."""
        return self._modes.is_loose_file(attr) and self.loose.stale(attr)

    def was_read(self, ino: int, stamp: int) -> None:
        """Before a READ is answered, from what was known under that stamp (0: under no lease)."""
        if not KEEPS_PAGES:
            return
        if stamp and self._leases.holder.stamp(ino) != stamp:
            stamp = UNKNOWN
        with self._lock:
            if len(self._pages) > TOLD_MAX:
                self._inherited = True  # nothing is known of those that are forgotten here
                self._pages = {one: kept for one, kept in self._pages.items() if kept.running}
            pages = self._pages.get(ino)
            if pages is None:
                pages = self._pages[ino] = Pages(UNKNOWN if self._inherited else None)
            pages.under = _both(pages.under, stamp)
            pages.since = _both(pages.since, stamp)

    def refreshed(self, ino: int) -> _Refreshed:
        return _Refreshed(self, ino)

    def invalidate(self, ino: int, resume: Resume) -> None:
        """All pages; `resume` when the kernel has done what was asked after this call."""
        with self._lock:
            pages = self._pages.get(ino)
            if pages is None:
                pages = self._pages[ino] = Pages(UNKNOWN if self._inherited else None)
            if pages.running:
                pages.next.append(resume)
                return
            self._begin(ino, pages, [resume])

    def _begin(self, ino: int, pages: Pages, waiting: list[Resume]) -> None:
        """With the lock held."""
        pages.running, pages.since = waiting, None
        self._threads.submit(partial(self._run, ino, pages))

    def _run(self, ino: int, pages: Pages) -> None:
        self._kernel.forget_pages(ino)
        with self._lock:
            ended, waiting = pages.running, pages.next
            pages.under, pages.running, pages.next = pages.since, [], []
            if waiting:
                self._begin(ino, pages, waiting)
            elif pages.under is None and not self._inherited and self._pages.get(ino) is pages:
                del self._pages[ino]
        for resume in ended:
            resume(None, None)


def _both(one: int | None, other: int) -> int:
    return other if one is None or one == other else UNKNOWN


def after(pause_s: float, call: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(pause_s, call)
    timer.daemon = True
    timer.start()
    return timer


class _Once:
    def __init__(self, call: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._call: Callable[[], None] | None = call

    def __call__(self) -> None:
        with self._lock:
            call, self._call = self._call, None
        if call is not None:
            call()
