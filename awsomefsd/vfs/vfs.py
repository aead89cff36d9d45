"""The POSIX semantics of one mount, knowing no FUSE: handlers, tests and gateways drive it.

Every method returns its result, or Steps (base/wait.py) where it has to wait; it raises errors.Error with the errno of the system call.
A worker whose session may have run out answers nothing from its caches: `served` lets such requests wait until the session is renewed or
replaced, so what the kernel is told was true within the session.  The fence is looked at again when there is an answer: what only asks is
asked again (`_answered`), a write is acknowledged when its session is good (vfs/ops/writing.py).  And it is looked at once more when the
kernel has the reply (`delivered`).  A mount may ask for an error instead (vfs/ops/lease_loss.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from awsomefsd.base.clock import boot_ns
from awsomefsd.base.errors import FsError
from awsomefsd.base.types import TRUNCATE_BIT, Attr
from awsomefsd.base.wait import GENERATORS, Payload, Steps, keeping
from awsomefsd.io.file.write_through import WriteThrough
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.vfs.api.context import Context, Opened
from awsomefsd.vfs.api.filesystem import Promise
from awsomefsd.vfs.ops.attributes import AttributeOps
from awsomefsd.vfs.ops.data import DataOps, DataPolicy
from awsomefsd.vfs.ops.data_leased import LeasedData
from awsomefsd.vfs.ops.data_through import WriteThroughData
from awsomefsd.vfs.ops.data_whole import WholeData
from awsomefsd.vfs.ops.direct_writes import DirectWrites
from awsomefsd.vfs.ops.lease_loss import GivingUp, timed_out
from awsomefsd.vfs.ops.locks import LockOps
from awsomefsd.vfs.ops.namespace import NamespaceOps
from awsomefsd.vfs.ops.orphans import SharedOrphans, WholeOrphans
from awsomefsd.vfs.ops.ranges import RangeOps
from awsomefsd.vfs.ops.reading import CurrentLayouts, IoThreads, KnownLayouts, OnIoThread, Reading
from awsomefsd.vfs.ops.writing import DirtyWrites, ThroughWrites
from awsomefsd.vfs.state.mount_state import MountState

KERNEL_TTL_NS_MAX = 10_000_000_000
LATE_NS = 1_000_000_000  # a reply may be so long on its way to the kernel: within what is left of a lease when its worker stops


class Vfs:
    def __init__(self, mount: MountState, client: Metadata, pool: IoThreads, through: WriteThrough | None = None) -> None:
        """`through`: for a mount that shares its volume with other nodes."""
        self.mount = mount
        self._session = mount.session.lease
        self._pool = pool
        self._giving_up = GivingUp(mount.session.lease.left_ns) if mount.session.lease.fails else None
        self.locks = LockOps(mount, client)
        on_release = self.locks.release_op
        known = KnownLayouts(mount)
        self.orphans = None if through is None else SharedOrphans(mount)
        self._orphans = self.orphans or WholeOrphans(mount)
        self.policy = data_policy(mount, pool, known, through)
        data = DataOps(mount, on_release, self.policy, self._orphans)
        names = NamespaceOps(mount, data, self._orphans)
        attributes = AttributeOps(mount, data)
        ranges = RangeOps(mount, data, known)
        self._data = data
        served, answered = self._served, self._answered
        self.lookup, self.readlink = answered(names.lookup), answered(names.readlink)
        self.mknod, self.mkdir, self.symlink = served(names.mknod), served(names.mkdir), served(names.symlink)
        self.create, self.tmpfile, self.link = served(names.create), served(names.tmpfile), served(names.link)
        self.unlink, self.rmdir, self.rename = served(names.unlink), served(names.rmdir), served(names.rename)
        self.opendir, self.readdir, self.releasedir = served(names.opendir), answered(names.readdir), names.releasedir
        self.forget = names.forget
        self.getattr, self.setattr = answered(attributes.getattr), served(attributes.setattr)
        self.getxattr, self.setxattr = answered(attributes.getxattr), served(attributes.setxattr)
        self.listxattr, self.removexattr = answered(attributes.listxattr), served(attributes.removexattr)
        direct = DirectWrites(mount, answered(data.read), served(data.write))
        self.open, self.read, self.write = served(data.open), direct.read, direct.write
        self.fallocate, self.lseek, self.copy_file_range = served(ranges.fallocate), answered(ranges.lseek), served(ranges.copy_file_range)
        self.fsync, self.release, self.statfs = served(data.fsync), data.release, served(data.statfs)
        self.getlk, self.setlk = served(self.locks.getlk), served(self.locks.setlk)
        self.interrupt = self.locks.interrupt
        self.fetch_layout = known.fetch

    def flush(self, ctx: Context, ino: int, fh: int, lock_owner: int) -> Steps | None:
        """close(2) of a descriptor: POSIX locks of this owner end, see DataOps.flush for the data."""
        unlock = self.locks.flush_op(ctx, ino, lock_owner)
        data = self._data.flush(ctx, ino, fh, lock_owner)
        op = _both(unlock, data) if unlock is not None and data is not None else unlock if unlock is not None else data
        if op is None or self._giving_up is None:
            return op
        return self._giving_up.bounded(ctx.unique, op, lambda value, error: self._ended_late(ctx.unique, value, error, ino))

    def fsyncdir(self, ctx: Context, ino: int, fh: int, datasync: bool) -> Steps | None:
        """Every change of a directory was in the journal before it was answered, unless this mount decides names by itself.

        A handle is lost with names that were put aside, and stays so for every successor: none of them knows whether somebody was told.
        """
        mount, names = self.mount, self.mount.names_synced()
        if mount.put_aside():
            mount.session.check_handle(fh)
        if names is None and ino not in mount.losses_untold:
            return None
        op = mount.await_names(names, ino)
        if self._giving_up is None:
            return op
        return self._giving_up.bounded(ctx.unique, op, lambda value, error: self._ended_late(ctx.unique, value, error, 0))

    def ttl_ns(self) -> int:
        """The time (ns) for which the kernel may use what it is told now: never longer than the lease, and not at all where
        other nodes may change it."""
        if self.mount.shared:
            return 0
        return max(0, min(self._session.left_ns(), KERNEL_TTL_NS_MAX))

    def attr_ttl_ns(self, attr: Attr) -> int:
        """The time (ns) for GETATTR, where leases make more possible."""
        kernel = self.mount.caches.kernel
        return self.ttl_ns() if kernel is None else kernel.attr_ttl_ns(attr)

    def name_ttl_ns(self, parent: int, name: bytes, ino: int) -> int:
        """The time (ns) for LOOKUP and READDIRPLUS."""
        kernel = self.mount.caches.kernel
        return self.ttl_ns() if kernel is None else kernel.name_ttl_ns(parent, name, ino)

    def promise(self) -> Promise:
        return self._session.stamp(), boot_ns()

    def delivered(self, promise: Promise, ctx: Context, value: Any, *, pages: bool) -> None:
        """A timeout that the kernel was told counts from when it has the reply, and what it keeps of a reply it keeps from then on."""
        stamp, since_ns = promise
        if stamp and stamp == self._session.stamp() and boot_ns() - since_ns <= LATE_NS:
            return
        made = value[0] if isinstance(value, tuple) else value
        inos = {ctx.nodeid, made.ino} if isinstance(made, Attr) else {ctx.nodeid}
        if ctx.parent and not isinstance(made, Attr) and made is not None:  # a listing, which may be used up
            inos.update(self.mount.caches.names.inode_numbers())
        self.mount.caches.told_too_late(sorted(inos), pages=pages)

    def tell_orphans(self) -> None:
        """A predecessor died before it could tell of a last close, or hear that it had."""
        for ino in self.mount.session.opens.orphans():
            self._orphans.tell(ino)

    def replied(self, unique: int) -> None:
        """The kernel has the reply of a request that may have made an entry or a record: neither need be found by its id any more."""
        self.mount.buffered.dirty.answered(unique)
        if self._giving_up is not None and self._giving_up.goes_on(unique):
            return
        self._acknowledge(unique)

    def _acknowledge(self, unique: int) -> None:
        metadata = self.mount.metadata
        acknowledge = metadata.ack_inherited if self.mount.session.recovering else metadata.ack
        acknowledge(unique)
        acknowledge(unique | TRUNCATE_BIT)

    def destroy(self) -> None:
        """DESTROY is never sent on plain mounts; the worker flushes when the kernel has unmounted."""

    def fenced(self) -> None:
        """The lease has run out, or is held: with on-lease-loss=error what waits for it and everything under way is answered."""
        self._session.lost()
        if self._giving_up is not None:
            for unique in self._giving_up.fenced():
                self.locks.interrupt(unique)

    def may_give_up(self, *, names: bool) -> bool:
        return not names or self.mount.shared or self.mount.caches.can_forget_names()

    def abandoned(self, value: Any) -> None:
        opened = value[-1] if isinstance(value, tuple) else value
        if isinstance(opened, Opened):  # nobody was given the handle
            file = self.mount.session.opens.get(opened.fh)
            if file is not None:
                self.mount.handle_closed(file.ino, opened.fh)
                self._data.closed(self.mount.caches.names.attr(file.ino))

    def _ended_late(self, unique: int, value: Any, error: BaseException | None, synced: int) -> None:
        """A request that had been answered ETIMEDOUT; `synced`: the inode that it was to flush, whose next fsync is told of a failure."""
        mount = self.mount
        self.abandoned(value)
        state = mount.buffered.files.get(synced)
        if state is not None and isinstance(error, FsError) and error.errno != errno.ETIMEDOUT:
            with state.lock:
                state.error = state.error or error
        mount.buffered.dirty.answered(unique)  # it may have made its record after the answer
        self._acknowledge(unique)

    def _served(self, method: Callable[..., Any]) -> Callable[..., Any]:
        left_ns = self._session.left_ns
        giving_up = self._giving_up
        if giving_up is not None:
            return self._or_refused(method, giving_up)

        def served(*args: Any) -> Any:
            if left_ns() > 0:
                return method(*args)
            return self._when_renewed(method, args)

        return served

    def _or_refused(self, method: Callable[..., Any], giving_up: GivingUp, *, asks: bool = False) -> Callable[..., Any]:
        stamp_now = self._session.stamp
        syncs, writes = method == self._data.fsync, method == self._data.write

        def served(ctx: Context, *args: Any) -> Any:
            stamp = stamp_now()
            if not stamp:
                raise self._session.over or timed_out()
            # it may go on when its request has been answered: with bytes of its own
            result = method(ctx, *(memoryview(bytes(arg)) if type(arg) is memoryview else arg for arg in args))
            if type(result) not in GENERATORS:
                if asks and stamp_now() != stamp:
                    raise self._session.over or timed_out()
                return result
            synced = args[0] if syncs or (writes and ctx.open_flags & os.O_DSYNC) else 0
            result = giving_up.bounded(ctx.unique, result, lambda value, error: self._ended_late(ctx.unique, value, error, synced))
            for arg in args:
                if type(arg) is memoryview:
                    result = keeping(arg, result)
            return result

        return served

    def _answered(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """For what only asks: if the lease has run out, or a session was replaced, before there is an answer, it is asked again."""
        stamp_now = self._session.stamp
        if self._giving_up is not None:
            return self._or_refused(method, self._giving_up, asks=True)

        def answered(*args: Any) -> Any:
            stamp = stamp_now()
            if not stamp:
                return self._asked_again(method, args, 0, None)
            try:
                result = method(*args)
            except FsError:
                if stamp_now() == stamp:
                    raise
                return self._asked_again(method, args, 0, None)
            if type(result) in GENERATORS or stamp_now() != stamp:
                return self._asked_again(method, args, stamp, result)
            return result

        return answered

    def _asked_again(self, method: Callable[..., Any], args: tuple[Any, ...], stamp: int, result: Any) -> Steps:
        """`result`: as of the time of `stamp`, perhaps Steps; for stamp 0 there is none."""
        session = self._session
        while True:
            failed: FsError | None = None
            if stamp:
                try:
                    if type(result) in GENERATORS:
                        result = yield from result
                except FsError as err:
                    failed = err
                if session.stamp() == stamp:
                    if failed is not None:
                        raise failed
                    return result
            while (renewed := session.renewed()) and not (stamp := session.stamp()):  # asked for first, or it may be missed
                yield renewed
                yield OnIoThread(self._pool)  # see _when_renewed
            try:
                result = method(*args)
            except FsError:
                if session.stamp() == stamp:
                    raise
                stamp = 0

    def _when_renewed(self, method: Callable[..., Any], args: tuple[Any, ...]) -> Steps:
        for at, arg in enumerate(args):
            if type(arg) is memoryview:
                kept = yield Payload(arg)
                args = (*args[:at], kept, *args[at + 1 :])
        while (renewed := self._session.renewed()) and self._session.left_ns() <= 0:  # asked for first, or it may be missed
            yield renewed
            # Not on the thread that receives answers: a read that had to wait may wait for one, and for the disk.
            yield OnIoThread(self._pool)
        result = method(*args)
        if type(result) in GENERATORS:
            result = yield from result
        return result


def data_policy(mount: MountState, pool: IoThreads, known: KnownLayouts, through: WriteThrough | None) -> DataPolicy:
    """Returns the policy for the bytes of this mount's files; `through`: of a volume that is shared."""
    remembered, dirty = Reading(mount.buffered.files, pool, known), DirtyWrites(mount)
    if through is None:
        return WholeData(mount, remembered, dirty)
    layouts, writes = CurrentLayouts(mount), ThroughWrites(mount, through)
    current = Reading(mount.buffered.files, pool, layouts)
    if mount.caches.leases is None:
        return WriteThroughData(mount, current, writes)
    return LeasedData(mount, mount.caches.leases, remembered, current, layouts, dirty, writes)


def _both(first: Steps, second: Steps) -> Steps:
    yield from first
    yield from second
