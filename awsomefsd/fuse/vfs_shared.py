"""Open files and their bytes where several nodes have the volume mounted at once, without any cache.

Whatever is asked is asked of the leader, whose answers are newer than all that was acknowledged before (ReadIndex); whatever is changed is
an entry before it is answered.  So "once an operation has returned on one node, every later operation on any node sees it" holds without
leases.  What that needs beside this class: names and attributes are not remembered (`Unremembered`), file states are made for one operation
and thrown away (MountState.file), the kernel is told to keep nothing (`MountState.fopen_flags`, `Vfs.ttl_ns`).

A file that loses its last name on one node may be open on another.  Nobody knows, so the machine keeps it for every such session, and each
gives up what it does not have open: at once where it removed the name itself, else when it asks (`release_unopened`).  An open asks for
the attributes, and answers arrive in the order of the log: one that was answered before the removal is in the table of open files before
the answer that tells of the removal is looked at.

A place that was freed and used again while it was read shows another identity (Corrupt): the layout is asked for again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import OrderedDict
from functools import partial
from itertools import islice
from typing import Any

from awsomefsd.errors import Fenced, FsError
from awsomefsd.fuse.context import Context
from awsomefsd.fuse.mount_state import MountState
from awsomefsd.fuse.names import Directory, Names
from awsomefsd.fuse.vfs_data import LAYOUT_PARTS_MAX, WRITE_KILL_SUIDGID, DataOps, OnPool, Pool, read_buffer
from awsomefsd.io.files import EXTENTS_CACHED_MAX, FILES_CACHED_MAX, LAYOUT_ALIGN_BYTES, LAYOUT_WINDOW_BYTES, FileState
from awsomefsd.io.write_through import Write, WriteThrough
from awsomefsd.limits import FILE_BYTES_MAX, INLINE_BYTES_MAX, ORPHANS_PER_ENTRY_MAX
from awsomefsd.meta.commands import ReleaseOrphan, SetAttr
from awsomefsd.meta.messages import Found, GetLayout, GetOrphans, Inodes, Layout
from awsomefsd.types import Attr
from awsomefsd.wait import Op

WRITE_CACHE = 1 << 0  # pages of a mapping, at their own place whatever the descriptor says
EXTENTS_COUNTED = EXTENTS_CACHED_MAX // 64  # a layout of more makes all of them be counted
LOOKS_MAX = 16  # at a layout that turned out to be old; nothing keeps freed places from being used again meanwhile


class Unremembered(Names):
    """The policy of caches of a shared mount: nothing that was learnt is used for another operation."""

    def put(self, attr: Attr) -> None:
        pass

    def enter(self, parent: int, name: bytes, ino: int) -> None:
        pass

    def directory(self, ino: int, *, complete: bool = False) -> Directory:
        return Directory(complete=False)


class SharedDataOps(DataOps):
    def __init__(self, mount: MountState, pool: Pool, on_release: Any, through: WriteThrough) -> None:
        super().__init__(mount, pool, on_release)
        self._through = through
        self._orphans: dict[int, None] = {}  # to be given up
        self._taking_orphans = threading.Lock()
        self._layouts: OrderedDict[int, tuple[int, FileState]] = OrderedDict()  # inode → stamp of its lease, what was told under it

    # --- read ----------------------------------------------------------------------------------------------------------------

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> list[Any] | Op:
        self._mount.check_handle(fh)
        stamp, state = self._kept(ino)
        if state is not None:
            buffer = read_buffer()[:size]
            length = self._mount.files.read_into(state, offset, buffer)
            if length >= 0:
                self._was_read(ino, stamp)
                return [buffer[:length]]
        return self._read(ino, fh, offset, size)

    def _read(self, ino: int, fh: int, offset: int, size: int) -> Op:
        for look in range(LOOKS_MAX):
            self._mount.cover(ino)
            stamp, state = yield from self._look(ino, offset, size)
            yield OnPool(self._pool)
            buffer = read_buffer()[:size]
            length = self._mount.files.read_into(state, offset, buffer, last_look=look == LOOKS_MAX - 1)
            if length >= 0:
                self._was_read(ino, stamp)
                return [buffer[:length]]
        raise FsError(errno.EIO, f"layout of inode {ino} did not settle")

    def _stamp(self, ino: int) -> int:
        """Of the lease under which something may be remembered now; 0: none."""
        leases = self._mount.leases
        return 0 if leases is None else leases.holder.stamp(ino)

    def _was_read(self, ino: int, stamp: int) -> None:
        if self._mount.kernel is not None:
            self._mount.kernel.was_read(ino, stamp)

    def _kept(self, ino: int) -> tuple[int, FileState | None]:
        stamp, state = self._layouts.get(ino, (0, None))
        return (stamp, state) if stamp and stamp == self._stamp(ino) else (0, None)

    def _keep(self, ino: int, stamp: int, state: FileState) -> None:
        layouts = self._layouts
        layouts[ino] = (stamp, state)
        layouts.move_to_end(ino)
        while len(layouts) > FILES_CACHED_MAX:
            layouts.popitem(last=False)
        if len(state.extents) > EXTENTS_COUNTED:
            while len(layouts) > 1 and sum(len(kept.extents) for _, kept in list(layouts.values())) > EXTENTS_CACHED_MAX:
                layouts.popitem(last=False)

    def _look(self, ino: int, offset: int, size: int) -> Op:
        """(stamp of the lease that covers it or 0, size and layout of this moment).

        Very many extents come in parts; without a lease each is of its own moment, and the size is that of the first.
        """
        end = offset + size
        stamp, state = self._kept(ino)
        at, until = offset, end
        if self._mount.leases is not None:
            at -= at % LAYOUT_ALIGN_BYTES
            until = max(at + LAYOUT_WINDOW_BYTES, end)
        for _ in range(LAYOUT_PARTS_MAX):
            if state is not None:
                if not state.needs_layout(offset, end):
                    return stamp, state
                if state.extents.knows(at, at) and at < state.extents.known_end:
                    at = state.extents.known_end
            reply = yield from self._part(ino, at, until)
            now = self._stamp(ino)
            if state is not None and stamp and now != stamp:  # others may be looking at what was true until now
                state, stamp = None, 0
                continue
            if state is None:
                state, stamp = FileState(Attr(ino, stat.S_IFREG, 1, 0, 0, 0, reply.size, 0, 0, 0, 0, 0, False, 0)), now
            elif now != stamp:
                stamp = 0
            state.learn_layout(at, reply.end, reply.extents, reply.inline)
            if stamp:
                self._keep(ino, stamp, state)
            if not state.needs_layout(offset, end):
                return stamp, state
            at = reply.end
        raise FsError(errno.EIO, f"layout of inode {ino} has no end")

    def _part(self, ino: int, at: int, until: int) -> Op:
        try:
            reply: Layout = yield self._mount.metadata.ask(GetLayout(self._mount.volume, ino, at, until))
        except FsError as err:
            if err.errno == errno.ENOENT:  # pins end with the session
                raise FsError(errno.EIO, f"inode {ino} is gone, with the session that had it open") from err
            raise
        self._mount.locations.learn(reply.segments)
        return reply

    # --- write ---------------------------------------------------------------------------------------------------------------

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> int | Op:
        append = ctx.open_flags & os.O_APPEND != 0 and not write_flags & WRITE_CACHE
        if not append and offset + len(data) > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        kill = write_flags & WRITE_KILL_SUIDGID != 0
        return self._write_through(fh, lambda: Write(ctx.unique, ino, offset, data, append=append, kill_suidgid=kill))

    def _write_through(self, fh: int | None, make: Any) -> Op:
        """Until it is decided, under whatever session: a write whose session ended is written again, under the same id.

        Each time for one session: while the write waited for the device another may have been opened, in which the handle's lock is lost.
        """
        mount = self._mount
        while True:
            under, renewed = mount.metadata.under(), mount.lease.renewed()
            if mount.lease.left_ns() <= 0:
                yield renewed  # a session that was just opened: what of the old one is lost is not decided yet
                continue
            mount.check_handle(fh)
            one: Write = make()
            one.under = under
            try:
                yield from self._decided(one)
                return len(one.data)
            except FsError as err:
                if err.errno == errno.EAGAIN and not one.inline:
                    yield from self._leave_inline(one.ino)
                    continue
                if err.errno == errno.ENOENT:
                    raise FsError(errno.EIO, f"inode {one.ino} is gone, with the session that had it open") from err
                if err.errno != errno.ESTALE:
                    raise
            except Fenced:
                pass
            yield mount.session_after(under)

    def _decided(self, one: Write) -> Op:
        mount = self._mount
        yield from self._reserve(one.space)
        if mount.leases is not None:
            mount.begin_change([one.ino])
            one.on_decided = self._learn_write
        try:
            yield self._through.write(one, mount.metadata)
        except FsError as err:
            if err.errno != errno.ESTALE:  # else it went with the session
                mount.reservation.give_back(one.space)
            raise
        finally:
            if one.on_decided is not None:  # the device failed: it was not proposed
                one.on_decided(one, None)

    def _learn_write(self, one: Write, value: Any) -> None:
        """The outcome, on the thread that receives answers."""
        one.on_decided = None
        assert self._mount.leases is not None
        self._mount.leases.changed([one.ino])
        if isinstance(value, Found):
            with self._mount.leases.doubting([one.ino]) if one.repeated else contextlib.nullcontext():
                self._mount.names.put(value.attr)

    def _reserve(self, need: int) -> Op:
        """Space for one write.  What was kept for allocated ranges is not drawn on."""
        reservation = self._mount.reservation
        while not reservation.take(need):
            yield from reservation.refill(need)

    def leave_inline(self, attr: Attr) -> Op:
        yield from self._leave_inline(attr.ino)

    def _leave_inline(self, ino: int) -> Op:
        """Another kind of mount has left inline data: it becomes an extent, unless it changes meanwhile (then the caller looks again)."""
        mount = self._mount
        reply: Layout = yield mount.metadata.ask(GetLayout(mount.volume, ino, 0, INLINE_BYTES_MAX))
        if not reply.inline:
            return
        base = reply.inline
        unique = mount.uniques.next_background_unique()
        try:
            yield from self._write_through(None, lambda: Write(unique, ino, 0, memoryview(base), inline=base))
        except FsError as err:
            if err.errno != errno.EAGAIN:
                raise
        finally:
            mount.metadata.ack(unique)

    # --- truncate ------------------------------------------------------------------------------------------------------------

    def set_size(self, attr: Attr, command: SetAttr, unique: int, fh: int | None = None) -> Op:
        if command.size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        command.log = command.sequence = 0  # no record is dirty that it could overtake
        reply: Found = yield self._mount.propose(command, unique, fh=fh)
        self._mount.names.put(reply.attr)
        return reply.attr

    # --- files without a name ------------------------------------------------------------------------------------------------

    def release_unopened(self, session: int) -> Op:
        """Give up what is kept for this session and is not open here."""
        mount = self._mount
        reply: Inodes = yield mount.metadata.ask(GetOrphans(session))
        for ino in reply.inos:
            if not mount.opens.count(ino) and ino not in mount.linking:
                self.tell_orphan(ino)
        self.tell_orphans()

    def tell_orphan(self, ino: int) -> None:
        """With others, and soon: each entry costs a journal sync of a majority."""
        with self._taking_orphans:
            self._orphans[ino] = None
            many = len(self._orphans) >= ORPHANS_PER_ENTRY_MAX
        if many:
            self.tell_orphans()

    def tell_orphans(self) -> None:
        """Those that were gathered; not what was given a name and opened meanwhile, it may have lost that again."""
        mount = self._mount
        inos = self._take_orphans()
        while inos:
            unique = mount.uniques.next_background_unique()
            told = partial(self._told_orphans, unique, inos)
            mount.metadata.propose(ReleaseOrphan(mount.volume, inos), unique).start(told)
            inos = self._take_orphans()

    def _take_orphans(self) -> list[int]:
        mount = self._mount
        with self._taking_orphans:
            taken = list(islice(self._orphans, ORPHANS_PER_ENTRY_MAX))
            for ino in taken:
                del self._orphans[ino]
        found = [ino for ino in taken if not mount.opens.count(ino) and ino not in mount.linking]
        for ino in set(taken).difference(found):
            mount.opens.orphan_ended(ino)
        return found if found or not taken else self._take_orphans()

    def _told_orphans(self, unique: int, inos: list[int], _value: Any, error: BaseException | None) -> None:
        self._mount.metadata.ack(unique)
        if error is None or isinstance(error, FsError):  # ESTALE: they ended with their session
            for ino in inos:
                self._mount.opens.orphan_ended(ino)
