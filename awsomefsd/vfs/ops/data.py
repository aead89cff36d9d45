"""Open files and their bytes: open, read, write, flush, fsync, release, and truncation, which must meet the dirty data in order.

What a volume needs that one mount has for itself (data_whole.py), that several share under leases (data_leased.py), or that they share
without (data_through.py), is a policy that is chosen once; each is put together from reading.py and writing.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, Protocol

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import GENERATORS, Steps, keeping
from awsomefsd.meta.api.commands import SET_KILL_SUIDGID, SET_SIZE, SetAttr
from awsomefsd.meta.api.messages import GetAttr, GetStatFs, StatFsReply
from awsomefsd.vfs.api.context import Context, Opened
from awsomefsd.vfs.ops.orphans import Orphans
from awsomefsd.vfs.ops.writing import setgid_lost, sync
from awsomefsd.vfs.state.mount_state import MountState

RELEASE_FLOCK_UNLOCK = 1 << 1


class DataPolicy(Protocol):
    """One way to read and write the bytes of files.  Results are as of the Filesystem (vfs/api): a value, or Steps where it has to wait."""

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> list[Any] | Steps: ...
    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Steps:
        """Steps that wait yield Payload(data) first: the caller may want its memory back."""

    def leave_inline(self, attr: Attr) -> Steps:
        """Inline data becomes extents, unless the file changes meanwhile: the caller looks again."""

    def set_size(self, attr: Attr, command: SetAttr, unique: int, fh: int | None = None) -> Steps:
        """Truncate or extend; returns the attributes that the machine told."""

    def closing(self, ino: int, fh: int) -> Steps | None:
        """close(2) of one descriptor: Steps if something has to be committed first."""


class DataOps:
    def __init__(
        self, mount: MountState, on_release: Callable[[int, int, int | None, int], Steps | None], policy: DataPolicy, orphans: Orphans
    ) -> None:
        """`on_release`: (ino, fh, flock owner, unique) -> Steps if locks have to be given up."""
        self._mount = mount
        self._on_release = on_release
        self._policy = policy
        self._orphans = orphans
        self.read = policy.read
        self.leave_inline, self.set_size = policy.leave_inline, policy.set_size

    # --- write -------------------------------------------------------------------------------------------------------------
    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Steps:
        """write(2).  One that is to be synchronous (O_DSYNC; O_SYNC has that bit) is committed before it is answered.

        The kernel sends an FSYNC behind a cached write only: after direct I/O the flag is all that comes.
        """
        written = self._policy.write(ctx, ino, fh, offset, data, write_flags)
        if not ctx.open_flags & os.O_DSYNC:
            return written
        return self._synced(ino, fh, written) if type(written) in GENERATORS else keeping(data, self._synced(ino, fh, written))

    def _synced(self, ino: int, fh: int, written: Any) -> Steps:
        length: int = (yield from written) if type(written) in GENERATORS else written
        yield from sync(self._mount, ino, fh)
        return length

    # --- open and close ----------------------------------------------------------------------------------------------------

    def open(self, ctx: Context, ino: int, flags: int) -> Opened | Steps:
        mount = self._mount
        if flags & os.O_ACCMODE != os.O_RDONLY and mount.read_only:
            raise FsError(errno.EROFS)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            mount.session.data_lost.discard(ino)
        attr = mount.caches.names.attr(ino)
        if flags & os.O_TRUNC or ino in mount.session.removing or attr is None or not attr.nlink:
            return self._open(ctx, ino, flags)
        fh = mount.session.opens.open(ino, flags, ctx.unique)
        if mount.caches.leases is not None and mount.caches.names.attr(ino) is None:  # recalled in between: its last name may have gone
            mount.session.opens.close(fh)
            return self._open(ctx, ino, flags)
        return Opened(fh, mount.cache_policy(mount.shown(attr), flags, fh))

    def _open(self, ctx: Context, ino: int, flags: int) -> Steps:
        mount = self._mount
        removing = mount.session.removing.get(ino)
        if removing is not None:
            yield removing
        attr = mount.caches.names.attr(ino)
        in_order = attr is None and mount.leader_answers and not flags & os.O_TRUNC
        if attr is None:
            attr = yield from mount.asked_attr_op(ino)
        if attr.nlink == 0 and not mount.session.opens.count(ino):
            raise FsError(errno.ENOENT)
        if flags & os.O_TRUNC and stat.S_ISREG(attr.mode):
            attr = yield from self.truncate_to_zero(ctx, attr, ctx.unique)
        fh = mount.session.opens.open(ino, flags, ctx.unique)
        if mount.caches.leases is not None and not in_order:
            yield from self._still_there(ino, fh)
        return Opened(fh, mount.cache_policy(mount.shown(attr), flags, fh))

    def _still_there(self, ino: int, fh: int) -> Steps:
        """The attributes may have been remembered, and their lease recalled before the handle was in the table.

        Not those that the leader told just now: the handle is in the table before a later answer is looked at (orphans.py).
        """
        mount = self._mount
        if mount.caches.names.attr(ino) is not None:
            return
        try:
            yield mount.metadata.ask(GetAttr(mount.volume, ino))
        except FsError:
            mount.session.opens.close(fh)
            raise

    def flush(self, ctx: Context, ino: int, fh: int, lock_owner: int) -> Steps | None:
        """close(2) of one descriptor.  Data stays dirty, except after a truncation to nothing: old or new content must survive a crash."""
        state = self._mount.buffered.files.get(ino)
        if state is not None and state.dirty and ino in self._mount.session.rewrites:
            return self._rewritten(ino, fh)
        return self._policy.closing(ino, fh)

    def _rewritten(self, ino: int, fh: int) -> Steps:
        rewrites = self._mount.session.rewrites
        rewrites.end(ino)
        try:
            yield from sync(self._mount, ino, fh)
        except BaseException:
            rewrites.begin(ino)
            raise

    def fsync(self, ctx: Context, ino: int, fh: int, datasync: bool) -> Steps | None:
        mount, session = self._mount, self._mount.session
        state = mount.buffered.files.get(ino)
        clean = (state is None or (not state.dirty and state.error is None)) and mount.names_synced() is None
        if clean and ino not in mount.losses_untold and fh not in session.failed_handles and fh not in session.late_errors:
            return None
        return sync(self._mount, ino, fh)

    def release(self, ctx: Context, ino: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> Steps | None:
        mount = self._mount
        mount.session.failed_handles.discard(fh)
        mount.handle_closed(ino, fh)
        unlock = self._on_release(ino, fh, lock_owner if release_flags & RELEASE_FLOCK_UNLOCK else None, ctx.unique)
        attr = mount.caches.names.attr(ino)
        if unlock is not None or (attr is None and not mount.session.opens.count(ino)):
            return self._release(ino, unlock)
        self.closed(attr)
        return None

    def _release(self, ino: int, unlock: Steps | None) -> Steps:
        """The attributes are not remembered, or there are locks to give up.

        These first, before anything is waited for: the kernel's next file may have the same owner of locks, and lock meanwhile.
        """
        failed: FsError | None = None
        try:
            if unlock is not None:
                yield from unlock
        except FsError as err:
            failed = err
        try:
            self.closed((yield from self._mount.attr_op(ino)))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
        if failed is not None:
            raise failed

    def closed(self, attr: Attr | None) -> None:
        """Perhaps that was the last handle of an inode without names."""
        mount = self._mount
        if attr is not None and attr.nlink == 0 and not mount.session.opens.count(attr.ino) and attr.ino not in mount.session.linking:
            self._orphans.release(attr.ino)

    # --- truncate ------------------------------------------------------------------------------------------------------------

    def truncate_to_zero(self, ctx: Context, attr: Attr, unique: int) -> Steps:
        mask = SET_SIZE | (SET_KILL_SUIDGID | setgid_lost(ctx, attr) if ctx.kill_suidgid else 0)
        before = None if self._mount.session.recovering else attr
        attr = yield from self._policy.set_size(attr, SetAttr(self._mount.volume, attr.ino, mask), unique)
        self._mount.caches.bytes_changed(before, attr)
        return attr

    def statfs(self, ctx: Context, ino: int) -> Steps:
        mount = self._mount
        unneeded = max(mount.buffered.reservation.left_bytes, 0)
        reply: StatFsReply = yield mount.metadata.ask(GetStatFs(mount.volume, mount.metadata.session_token()[0], unneeded))
        return reply.stat
