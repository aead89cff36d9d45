"""Pages of strict files on kernels that map no file which is open for direct I/O (before Linux 6.6, FUSE 7.39).

There a file can be mapped with MAP_SHARED only through a handle whose reads and writes all go through the kernel's pages.  A file gets such
a handle if nobody else writes it when it is opened: its attributes are known under a lease.  All other handles stay with direct I/O (and
without MAP_SHARED): of files that others write at that moment, and those with O_DIRECT, and with O_APPEND, because the kernel lays appended
bytes among its pages at the size that it knows.

*read(2) is as true as with direct I/O.*  While a file has such a handle its attributes are told with no time at all, so each read(2) asks
for them first, and the kernel drops the pages where size or mtime are others.  Where only the ctime moved (utimensat(2), a clock that is
behind) the pages are dropped before the answer (`stale`); so they are where the kernel has taken an mtime with SETATTR's answer, which
drops no pages.  Each open drops them too.  Writes go through to us at once, so pages are dirty by mappings only.

*Attributes are not made invalid while such a handle is open*, unless the answer says what the kernel has anyway: it would ignore a GETATTR
that is on its way, and the read(2) that had asked would go on with an older size (decision 77).  That is why pages that a recall takes back
go only when no GETATTR was asked or answered for QUIET_S, behind the recall's answer.  Who reads all the time drops them by reading.
Rejected: a recall that waits for pages; the kernel first writes those that mappings made dirty, and such a write may wait for the recall.

Left: the kernel ignores a GETATTR also beside a write(2) of this node to the same file, so a read(2) beside it may end at an older size
while another node makes the file longer.

A successor knows no answers of opens: it takes every handle for one with pages.  Bounded by the open files.  Thread-safe.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable

from awsomefsd.base.types import Attr
from awsomefsd.vfs.state.open_files import KIND_FILE, OpenFile
from awsomefsd.vfs.state.page_cache import Version, version_of

QUIET_S = 1.0  # an answer may be taken so much later than it was made
_DIRECT = os.O_DIRECT | os.O_APPEND


class _File:
    __slots__ = ("asked_s", "handles", "shown", "waits")

    def __init__(self) -> None:
        self.handles: set[int] = set()
        self.shown: Version | None = None  # what the kernel was told last; without a ctime if its pages may be older
        self.asked_s = 0.0  # when a GETATTR came or was answered (monotonic)
        self.waits = False  # its pages are to be dropped when it is quiet


class MappedPages:
    """`needed()` says whether this kernel maps only what it reads and writes through pages.  `forget_attributes` must not wait."""

    def __init__(
        self, forget_attributes: Callable[[int], None], needed: Callable[[], bool] = bool, inherited: Iterable[OpenFile] = ()
    ) -> None:
        self._forget_attributes = forget_attributes
        self._needed = needed
        self._lock = threading.Lock()
        self._files: dict[int, _File] = {}
        for opened in inherited:
            if opened.kind == KIND_FILE and needed():
                self._files.setdefault(opened.ino, _File()).handles.add(opened.fh)

    def opened(self, ino: int, fh: int, flags: int, *, leased: bool) -> bool:
        """An open says whether it goes through pages: its answer has to drop those that are there."""
        if not leased or flags & _DIRECT or not self._needed():
            return False
        with self._lock:
            file = self._files.get(ino)
            if file is None:
                file = self._files[ino] = _File()
                self._forget_attributes(ino)  # what was told until now was told with a time
            file.handles.add(fh)
        return True

    def closed(self, ino: int, fh: int) -> None:
        if ino in self._files:
            with self._lock:
                file = self._files.get(ino)
                if file is not None:
                    file.handles.discard(fh)
                    if not file.handles:
                        del self._files[ino]

    def open(self, ino: int) -> bool:
        """Somebody has it open through pages."""
        return ino in self._files

    def beside(self, ino: int, fh: int) -> bool:
        """This handle is for direct I/O, while somebody else has the file open through pages."""
        file = self._files.get(ino)
        return file is not None and fh not in file.handles

    def known(self) -> list[int]:
        with self._lock:
            return list(self._files)

    # --- attributes ----------------------------------------------------------------------------------------------------------------
    def asked(self, ino: int) -> None:
        """A GETATTR came, or is about to be answered."""
        file = self._files.get(ino)
        if file is not None:
            file.asked_s = time.monotonic()

    def stale(self, attr: Attr) -> bool:
        """Says of a GETATTR whether the kernel would keep pages by these attributes that it should not."""
        file = self._files.get(attr.ino)
        if file is None:
            return False
        with self._lock:
            before, file.shown = file.shown, version_of(attr)
            return before is not None and before[0] != attr.ctime_ns and before[1:] == (attr.mtime_ns, attr.size)

    def mtime_taken(self, attr: Attr) -> None:
        """The kernel takes size and mtime with an answer that drops no pages (SETATTR)."""
        file = self._files.get(attr.ino)
        if file is not None:
            with self._lock:
                file.shown = (0, attr.mtime_ns, attr.size)

    # --- pages that are taken back ---------------------------------------------------------------------------------------------------
    def begin_drop(self, ino: int) -> float | None:
        """Pages are to be dropped: returns the time (s) after which to call `quiet_in`; None: nobody has any, or one waits already."""
        with self._lock:
            file = self._files.get(ino)
            if file is None or file.waits:
                return None
            file.waits = True
            return _left_s(file)

    def quiet_in(self, ino: int) -> float | None:
        """Returns 0.0 if the pages are to be dropped now, the time (s) after which to ask again, or None: nobody has them any more."""
        with self._lock:
            file = self._files.get(ino)
            if file is None:
                return None
            left_s = _left_s(file)
            file.waits = left_s > 0
            return left_s


def _left_s(file: _File) -> float:
    return max(0.0, file.asked_s + QUIET_S - time.monotonic())
