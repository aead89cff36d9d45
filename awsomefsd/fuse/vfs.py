"""The POSIX semantics of one mount, knowing no FUSE: handlers, tests and gateways drive it.

Every method returns its result, or an Op (wait.py) where it has to wait; it raises errors.Error with the errno of the system call.
A worker whose lease may have run out answers nothing from its caches: `served` lets such requests wait until the session is renewed or
replaced, so what the kernel is told was true within the lease.  A mount may ask for an error instead (giving_up.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from awsomefsd.errors import FsError
from awsomefsd.fuse.context import Context, Opened
from awsomefsd.fuse.generators import GENERATORS
from awsomefsd.fuse.giving_up import GivingUp, timed_out
from awsomefsd.fuse.mount_state import MountState
from awsomefsd.fuse.vfs_attributes import AttributeOps
from awsomefsd.fuse.vfs_data import DataOps, OnPool, Pool
from awsomefsd.fuse.vfs_leased import LeasedDataOps
from awsomefsd.fuse.vfs_locks import LockClient, LockOps
from awsomefsd.fuse.vfs_namespace import NamespaceOps
from awsomefsd.fuse.vfs_ranges import RangeOps
from awsomefsd.fuse.vfs_shared import SharedDataOps
from awsomefsd.io.write_through import WriteThrough
from awsomefsd.types import Attr
from awsomefsd.wait import Op

KERNEL_TTL_NS_MAX = 10_000_000_000


class Vfs:
    def __init__(self, mount: MountState, client: LockClient, pool: Pool, through: WriteThrough | None = None) -> None:
        """`through`: for a mount that shares its volume with other nodes."""
        self.mount = mount
        self._lease = mount.lease
        self._pool = pool
        self._giving_up = GivingUp(mount.lease.left_ns) if mount.lease.fails else None
        self.locks = LockOps(mount, client)
        on_release = self.locks.release_op
        self.sharing = None if through is None else shared_data(mount, pool, on_release, through)
        data = self.sharing or DataOps(mount, pool, on_release)
        names = NamespaceOps(mount, data)
        attributes = AttributeOps(mount, data)
        ranges = RangeOps(mount, data)
        self._data = data
        served = self._served
        self.lookup, self.readlink = served(names.lookup), served(names.readlink)
        self.mknod, self.mkdir, self.symlink = served(names.mknod), served(names.mkdir), served(names.symlink)
        self.create, self.tmpfile, self.link = served(names.create), served(names.tmpfile), served(names.link)
        self.unlink, self.rmdir, self.rename = served(names.unlink), served(names.rmdir), served(names.rename)
        self.opendir, self.readdir, self.releasedir = served(names.opendir), served(names.readdir), names.releasedir
        self.forget = names.forget
        self.getattr, self.setattr = served(attributes.getattr), served(attributes.setattr)
        self.getxattr, self.setxattr = served(attributes.getxattr), served(attributes.setxattr)
        self.listxattr, self.removexattr = served(attributes.listxattr), served(attributes.removexattr)
        self.open, self.read, self.write = served(data.open), served(data.read), served(data.write)
        self.fallocate, self.lseek, self.copy_file_range = served(ranges.fallocate), served(ranges.lseek), served(ranges.copy_file_range)
        self.fsync, self.release, self.statfs = served(data.fsync), data.release, served(data.statfs)
        self.getlk, self.setlk = served(self.locks.getlk), served(self.locks.setlk)
        self.interrupt = self.locks.interrupt
        self.fetch_layout = data.fetch_layout

    def flush(self, ctx: Context, ino: int, fh: int, lock_owner: int) -> Op | None:
        """close(2) of a descriptor: POSIX locks of this owner end, see DataOps.flush for the data."""
        unlock = self.locks.flush_op(ctx, ino, lock_owner)
        data = self._data.flush(ctx, ino, fh, lock_owner)
        op = _both(unlock, data) if unlock is not None and data is not None else unlock if unlock is not None else data
        if op is None or self._giving_up is None:
            return op
        return self._giving_up.bounded(ctx.unique, op, lambda _value, _error: self.mount.metadata.ack(ctx.unique))

    def fsyncdir(self, ctx: Context, ino: int, fh: int, datasync: bool) -> None:
        """Every change of a directory was in the journal before it was answered."""

    def ttl_ns(self) -> int:
        """How long the kernel may use what it is told now: never longer than the lease, and not at all where
        other nodes may change it."""
        if self.mount.shared:
            return 0
        return max(0, min(self._lease.left_ns(), KERNEL_TTL_NS_MAX))

    def attr_ttl_ns(self, attr: Attr) -> int:
        """For GETATTR, where leases make more possible."""
        kernel = self.mount.kernel
        return self.ttl_ns() if kernel is None else kernel.attr_ttl_ns(attr)

    def name_ttl_ns(self, parent: int, name: bytes, ino: int) -> int:
        """For LOOKUP and READDIRPLUS."""
        kernel = self.mount.kernel
        return self.ttl_ns() if kernel is None else kernel.name_ttl_ns(parent, name, ino)

    def tell_orphans(self) -> None:
        """A predecessor died before it could tell of a last close, or hear that it had."""
        for ino in self.mount.opens.orphans():
            self._data.tell_orphan(ino)

    def replied(self, unique: int) -> None:
        """The kernel has the reply of a request that may have made an entry: its result need not be kept any more."""
        if self._giving_up is not None and self._giving_up.goes_on(unique):
            return
        if self.mount.recovering:
            self.mount.metadata.ack_inherited(unique)
        else:
            self.mount.metadata.ack(unique)

    def destroy(self) -> None:
        """DESTROY is never sent on plain mounts; the worker flushes when the kernel has unmounted."""

    def fenced(self) -> None:
        """The lease has run out: with on-lease-loss=error everything under way is answered."""
        if self._giving_up is not None:
            for unique in self._giving_up.fenced():
                self.locks.interrupt(unique)

    def _ended_late(self, unique: int, value: Any, error: BaseException | None, synced: int) -> None:
        """A request that had been answered ETIMEDOUT; `synced`: the inode of an fsync."""
        mount = self.mount
        opened = value[-1] if isinstance(value, tuple) else value
        if isinstance(opened, Opened):  # nobody was given the handle
            file = mount.opens.get(opened.fh)
            if file is not None:
                mount.handle_closed(file.ino, opened.fh)
                self._data.closed(mount.names.attr(file.ino))
        state = mount.files.get(synced)
        if state is not None and isinstance(error, FsError) and error.errno != errno.ETIMEDOUT:
            with state.lock:
                state.error = state.error or error
        mount.metadata.ack(unique)

    def _served(self, method: Callable[..., Any]) -> Callable[..., Any]:
        left_ns = self._lease.left_ns
        giving_up = self._giving_up
        if giving_up is not None:
            return self._or_refused(method, giving_up)

        def served(*args: Any) -> Any:
            if left_ns() > 0:
                return method(*args)
            return self._when_renewed(method, args)

        return served

    def _or_refused(self, method: Callable[..., Any], giving_up: GivingUp) -> Callable[..., Any]:
        left_ns = self._lease.left_ns
        syncs = method == self._data.fsync

        def served(ctx: Context, *args: Any) -> Any:
            if left_ns() <= 0:
                raise self._lease.over or timed_out()
            # the slot of a request may be free before it ends
            result = method(ctx, *(memoryview(bytes(arg)) if type(arg) is memoryview else arg for arg in args))
            if type(result) not in GENERATORS:
                return result
            synced = args[0] if syncs else 0
            return giving_up.bounded(ctx.unique, result, lambda value, error: self._ended_late(ctx.unique, value, error, synced))

        return served

    def _when_renewed(self, method: Callable[..., Any], args: tuple[Any, ...]) -> Op:
        while (renewed := self._lease.renewed()) and self._lease.left_ns() <= 0:  # asked for first, or it may be missed
            yield renewed
            yield OnPool(self._pool)  # not on the thread that receives answers: a read that had to wait may wait for one, and for the disk
        result = method(*args)
        if type(result) in GENERATORS:
            result = yield from result
        return result


def shared_data(mount: MountState, pool: Pool, on_release: Any, through: WriteThrough) -> SharedDataOps:
    if mount.leases is not None:
        return LeasedDataOps(mount, pool, on_release, through, mount.leases)
    return SharedDataOps(mount, pool, on_release, through)


def _both(first: Op, second: Op) -> Op:
    yield from first
    yield from second
