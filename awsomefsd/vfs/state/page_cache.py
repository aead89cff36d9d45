"""Pages in the kernel of files that need not be strict (base/consistency.py): when an open may use those that are there.

A file's version is (ctime, mtime, size); each change moves its ctime forward, so equal versions mean equal bytes.  Known of a file is the
version as of which its pages were last dropped: all that the kernel has was read since, so it is that version or a newer one.

*Open for reading*, with attributes that are true at that moment (asked, or under a lease).  Another version, or one that is not known (a
successor): the kernel is made to forget the attributes, before the answer, and drops the pages with the answer (CachePolicy.DROP).  The
same version: the pages stay.  The kernel drops them when it takes the answer, so until something came through that handle (`used`) others
that open drop them too.

Direct I/O instead, which asks each time and so is as strict as any, in three cases.  Of handles that write.  While the file is open here
for writing: what is written moves its version all the time.  And while another handle reads through pages of another version.

Attributes are forgotten at such an open too: fstat(2) and SEEK_END ask.  But the kernel ignores the answer of a GETATTR that is on its way
then, and the read(2) that had asked goes on with an older size (decision 77), perhaps one from before its own open.  So while others read
that is done only if they were told something since their opens; if not, the kernel asks anyway.  (Left: two changes and two opens within
the time from an answer to its being taken.)

*Attributes* are told with a fixed timeout (none while the file is open here for writing), and no recall makes the kernel forget those, for
the same reason.  When its time is over read(2) asks again, and the kernel drops the pages where size or mtime are others.  They may be the
same after utimensat(2), and another leader's clock may be behind: `stale` finds that by the ctime, and the pages are dropped before the
answer (its attributes are ignored then, but size and mtime are those that the kernel has).

A successor knows nothing of versions, and takes every handle that reads for one with pages.  Memory is bounded: of what is forgotten here
the next open drops the pages.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

from awsomefsd.base.limits import LOOSE_FILES_MAX
from awsomefsd.base.types import Attr
from awsomefsd.vfs.api.context import CachePolicy
from awsomefsd.vfs.state.open_files import KIND_FILE, OpenFile

Version = tuple[int, int, int]
_ODD = os.O_ACCMODE | os.O_DIRECT | os.O_TRUNC


def version_of(attr: Attr) -> Version:
    return attr.ctime_ns, attr.mtime_ns, attr.size


class WholePages:
    """Pages of a mount that has its volume alone: they stay from open to open, unless another mount may have had the volume since.

    After that the next open of each file drops them, until something came through such a handle: the kernel has taken its answer then.  A
    successor does not know what its predecessor had still to drop.  Thread-safe.
    """

    def __init__(self, *, doubted: bool) -> None:
        self._lock = threading.Lock()
        self._doubted = doubted
        self._dropped: set[int] = set()  # inodes of which the kernel has no older pages
        self._opened: dict[int, int] = {}  # handles whose open drops the pages, and nothing has come through yet → inode

    def doubt(self) -> None:
        """Another mount had the volume: the kernel may have older pages of any file."""
        with self._lock:
            self._doubted = True
            self._dropped.clear()
            self._opened.clear()

    def opened(self, ino: int, fh: int, *, made: bool) -> bool:
        """Returns whether the pages may stay for this open.  `made`: by this very request."""
        if not self._doubted:
            return True
        with self._lock:
            if made:
                self._add(ino)
            if ino in self._dropped:
                return True
            self._opened[fh] = ino
            return False

    def used(self, fh: int) -> None:
        """Something comes through the handle: its open is over."""
        if fh in self._opened:
            with self._lock:
                ino = self._opened.pop(fh, 0)
                if ino:
                    self._add(ino)

    def closed(self, fh: int) -> None:
        """Perhaps of an open whose answer the kernel never got: that is no proof."""
        self._opened.pop(fh, None)

    def _add(self, ino: int) -> None:
        if len(self._dropped) >= LOOSE_FILES_MAX:
            self._dropped.clear()
        self._dropped.add(ino)


class _File:
    __slots__ = ("mtime_ns", "proved", "readers", "shown", "version", "writers")

    def __init__(self) -> None:
        self.version: Version | None = None  # of the newest open that dropped the pages; None: not known
        self.proved = False  # it did: the kernel has taken the answer
        self.readers: set[int] = set()  # handles that may have pages
        self.writers: set[int] = set()
        self.shown: Version | None = None  # of the newest GETATTR
        self.mtime_ns = 0  # the newest of all that were shown


class LoosePages:
    """Thread-safe.  `forget_attributes` must not wait."""

    def __init__(self, forget_attributes: Callable[[int], None], inherited: Iterable[OpenFile] = ()) -> None:
        self._forget_attributes = forget_attributes
        self._lock = threading.Lock()
        self._files: dict[int, _File] = {}
        self._inherited: set[int] = set()  # handles of which it is not known what they were opened as
        for opened in inherited:
            if opened.kind == KIND_FILE:
                self._handles(self._file(opened.ino), opened.flags).add(opened.fh)
                self._inherited.add(opened.fh)

    def _file(self, ino: int) -> _File:
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = _File()
        return file

    @staticmethod
    def _handles(file: _File, flags: int) -> set[int]:
        return file.readers if flags & os.O_ACCMODE == os.O_RDONLY else file.writers

    def opened(self, attr: Attr, fh: int, flags: int) -> CachePolicy | None:
        """The cache policy of an open with attributes that are true now; None: direct I/O."""
        version = version_of(attr)
        with self._lock:
            file = self._file(attr.ino)
            if flags & os.O_ACCMODE != os.O_RDONLY:
                file.writers.add(fh)
            if flags & _ODD or file.writers or (file.readers and file.version != version):
                self._refresh(attr.ino, file, version)
                return None
            if file.version != version:
                self._forget_attributes(attr.ino)
                file.version, file.proved, file.shown = version, False, None
                file.mtime_ns = max(file.mtime_ns, attr.mtime_ns)
            file.readers.add(fh)
            self._bound()
            return CachePolicy.KEEP if file.proved else CachePolicy.DROP

    def _refresh(self, ino: int, file: _File, version: Version) -> None:
        """What was told before this open does not count any more; while others read only if something was told since their opens."""
        if not file.readers or file.shown not in (None, version):
            self._forget_attributes(ino)
            file.shown = None

    def used(self, ino: int, fh: int) -> None:
        """Something came through the handle: its open is over."""
        file = self._files.get(ino)
        if file is not None and not file.proved and fh in file.readers:
            file.proved = file.version is not None

    def closed(self, ino: int, fh: int) -> None:
        """Perhaps of an open whose answer the kernel never got (its caller was killed, or told ETIMEDOUT): that is no proof."""
        file = self._files.get(ino)
        if file is None:
            return
        with self._lock:
            file.readers.discard(fh)
            file.writers.discard(fh)
            self._inherited.discard(fh)
            if file.version is None and not file.readers and not file.writers and self._files.get(ino) is file:
                del self._files[ino]

    def stale(self, attr: Attr) -> bool:
        """Says of a GETATTR whether the kernel may keep pages by these attributes that it should not; they have to go before the answer."""
        with self._lock:
            file = self._files.get(attr.ino)
            if file is None or not file.readers:
                return False  # the next open looks
            version = version_of(attr)
            before, newest = file.shown or file.version, file.mtime_ns
            file.shown, file.mtime_ns = version, max(newest, attr.mtime_ns)
            return before is None or (before[0] != version[0] and attr.mtime_ns <= newest)

    def reading(self, ino: int) -> bool:
        """Somebody reads it through pages: what is on its way to the kernel of its attributes must count there."""
        file = self._files.get(ino)
        return file is not None and bool(file.readers)

    def opened_here(self, ino: int) -> bool:
        """As `reading`, by a handle that this worker has given out for that: no inherited one."""
        file = self._files.get(ino)
        if file is None:
            return False
        with self._lock:
            return not file.readers <= self._inherited

    def written(self, ino: int) -> bool:
        """It is open here for writing: where its end is must be asked each time."""
        file = self._files.get(ino)
        return file is not None and bool(file.writers)

    def known(self) -> list[int]:
        with self._lock:
            return list(self._files)

    def _bound(self) -> None:
        """Forget the oldest files that nobody reads here."""
        if len(self._files) <= LOOSE_FILES_MAX:
            return
        for ino, file in list(self._files.items())[: LOOSE_FILES_MAX // 16]:
            if not file.readers and not file.writers:
                del self._files[ino]
