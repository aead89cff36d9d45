"""Direct writes beside pages of the same file: nothing that the kernel keeps is older than a write that was answered.

The kernel drops the pages of a direct write's range before it sends the WRITE, and after the reply only where the program waits in
write(2).  Of asynchronous I/O, and of files that it opened with FOPEN_DIRECT_IO and maps, it does not do the second.  A page that was read
in between would keep the old bytes for ever.  So the notification goes out when the bytes are stored, and the WRITE is answered when it has
returned (decision 175).

It may wait in the kernel for a READ of the range that is not answered yet, or for the writing of a mapped page.  Both need a reader, so
only requests wait that hold none (KernelWait).  Both may need one of the requests that the kernel sends in the background, so not all of
these wait (fuse/notify.py).  Where a write is answered without waiting, the notification is under way: a reader may see the old bytes until
it has arrived.

The writing of a mapped page may need room in the dirty log, so the record of a write that waits does not hold it up.  A successor that
finds no record any more must not write the bytes again: somebody may have read them, and written others over them since.  So it is noted
with the request that only the wait is left (decision 200).  A write that failed may be tried again.  An append would be put behind itself,
so it does not wait: the kernel sends no append asynchronously.

Files that nobody reads through pages pay nothing: `Caches.filled` has the open inodes of which a READ or WRITE went through pages since the
first open.  After the last close none is under way, and what was filled before is dropped before the next WRITE is sent.

On shared mounts a READ that fills pages needs a lease that is held from before the bytes are looked at until they are answered, and is
not being recalled: then the recall takes the pages (kernel_cache.py).  Else a notification takes them at once, which waits in the kernel
for the answer.

Nor is it done for files of a shared mount that are read through pages: the kernel would ignore attributes that are on their way to it, and
their readers are promised only what was there at their open (page_cache.py).

fallocate(2) and copy_file_range(2) need nothing: the kernel drops the pages of their ranges behind the reply, whoever asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from awsomefsd.base.errors import Error
from awsomefsd.base.wait import GENERATORS, KernelWait, Steps, keeping
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.writing import WRITE_CACHE
from awsomefsd.vfs.state.mount_state import MountState

WRITE_LOCKOWNER = 1 << 1  # only a write that does not go through pages has one


class DirectWrites:
    """`read` and `write` of a Filesystem, over those that are given."""

    def __init__(self, mount: MountState, read: Callable[..., Any], write: Callable[..., Any]) -> None:
        self._mount = mount
        self._caches = mount.caches
        self._filled = mount.caches.filled
        self._read = read
        self._write = write

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> Any:
        if not ctx.fills_pages:
            return self._read(ctx, ino, fh, offset, size)
        self._filled.add(ino)  # before the bytes are looked at
        if self._caches.kernel is None:  # nobody else changes the file
            return self._read(ctx, ino, fh, offset, size)
        grant = self._grant(ino)
        pieces = self._read(ctx, ino, fh, offset, size)
        if type(pieces) in GENERATORS:
            return self._filling(pieces, ino, grant, offset, size)
        self._fills(ino, grant, offset, size)
        return pieces

    def _grant(self, ino: int) -> int:
        """The lease under which pages may stay, because its recall will take them; 0: none is held, or it leaves."""
        leases = self._caches.leases
        return 0 if leases is None or leases.leaving(ino) else leases.grant(ino)

    def _filling(self, steps: Steps, ino: int, grant: int, offset: int, size: int) -> Steps:
        pieces = yield from steps
        self._fills(ino, grant, offset, size)
        return pieces

    def _fills(self, ino: int, grant: int, offset: int, size: int) -> None:
        """The kernel is about to get these pages.  Where no lease was held all along, no recall takes them.

        The notification waits in the kernel for the answer that is about to leave.
        """
        kernel = self._caches.kernel
        if kernel is None or (grant and self._grant(ino) == grant):
            return
        if kernel.has_old_pages(ino):
            self._caches.drop_pages(ino, offset, size, None)

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Any:
        if not (write_flags & WRITE_LOCKOWNER or ctx.open_flags & os.O_DIRECT) or write_flags & WRITE_CACHE:
            self._filled.add(ino)
            return self._write(ctx, ino, fh, offset, data, write_flags)
        length = len(data)
        if ctx.waits_only:
            return keeping(data, self._dropped(length, ctx, ino, offset, length))
        written = self._write(ctx, ino, fh, offset, data, write_flags)
        if type(written) in GENERATORS:
            return self._written(written, ctx, ino, offset, length)
        return keeping(data, self._dropped(written, ctx, ino, offset, length)) if self._has_pages(ino) else written

    def _has_pages(self, ino: int) -> bool:
        """Says whether the kernel may have pages of the file that a notification has to take from it."""
        if ino not in self._filled:
            return False
        kernel = self._caches.kernel
        return kernel is None or not kernel.reads_loosely(ino)

    def _written(self, steps: Steps, ctx: Context, ino: int, offset: int, length: int) -> Steps:
        """One that fails may have stored its bytes."""
        failed: Error | None = None
        written = 0
        try:
            written = yield from steps
        except Error as err:
            failed = err
        if self._has_pages(ino):
            yield from self._dropped(0, ctx, ino, offset, length, failed=failed is not None)
        if failed is not None:
            raise failed
        return written

    def _dropped(self, written: int, ctx: Context, ino: int, offset: int, length: int, *, failed: bool = False) -> Steps:
        """The kernel has no page of this range from before; returns `written`."""
        if ctx.open_flags & os.O_APPEND:
            self._caches.drop_pages(ino, 0, 0, None)
            return written
        noted = partial(self._mount.buffered.dirty.answered, ctx.unique)
        yield KernelWait(partial(self._caches.drop_pages, ino, offset, length), noted, is_last=not failed)
        return written
