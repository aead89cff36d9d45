"""Writes to open files: as records of the dirty log, or through to the device with an entry before the answer."""

from __future__ import annotations

import contextlib
import errno
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from awsomefsd.base.errors import Error, Fenced, FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import DIRTY_FLUSH_BYTES, FILE_BYTES_MAX, INLINE_BYTES_MAX
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Steps
from awsomefsd.io.file.flusher import record_space
from awsomefsd.io.file.write_through import OnDecided, Write, WriteThrough
from awsomefsd.meta.api.commands import SET_KILL_SETGID, SET_KILL_SUIDGID, RemoveXattr, SetAttr
from awsomefsd.meta.api.messages import Found, GetLayout, GetXattr, Layout
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.caller_credentials import groups_of
from awsomefsd.vfs.state.mount_state import MountState

WRITE_CACHE = 1 << 0  # pages of a mapping, at their own place whatever the descriptor says
WRITE_KILL_SUIDGID = 1 << 2
CAPABILITY = b"security.capability"
SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)


def always() -> bool:
    return True


def sync(mount: MountState, ino: int, fh: int) -> Steps:
    """fsync(2): all that is dirty of the file is committed.  Raises FsError, EIO for a handle whose session was lost.

    A failed flush is told to each handle that was open when somebody was first told of it.
    """
    session = mount.session
    session.check_handle(fh)
    hit("fsync.before")
    try:
        yield mount.buffered.flusher.flush(ino)
    finally:
        late = session.late_errors.pop(fh, None)
    session.check_handle(fh)  # the records may have been saved as conflicts meanwhile
    if late is not None:
        raise late
    yield from mount.await_names(mount.names_synced(), ino)
    hit("fsync.after")


def kill_suidgid(mount: MountState, attr: Attr, caller: Context) -> Steps:
    """A write by somebody who may not keep them: setuid and setgid bits go first."""
    if mount.session.recovering:
        mount.caches.forget_attributes(attr.ino)  # they may be gone already, and the predecessor died before it said so
    if attr.mode & 0o6000:
        yield from _kill(mount, attr, SET_KILL_SUIDGID | setgid_lost(caller, attr))


def kill_setgid(mount: MountState, attr: Attr, caller: Context) -> Steps:
    """The setgid bit without execution by the group goes with a change of the bytes by a stranger, who may not keep set-ID bits."""
    mask = setgid_lost(caller, attr)
    if mask:
        yield from _kill(mount, attr, mask)


def setgid_lost(caller: Context, attr: Attr) -> int:
    """Returns SET_KILL_SETGID for a caller who is not in the group of a file with setgid that the group cannot execute, else 0.

    Linux leaves that bit to members of the group.  Of a caller whom /proc does not show only the group of its request counts.

    A caller that changes bytes waits for us even when it is killed, so its id is its own while we look.  If it were another's, nobody would
    gain a group: exec(2) heeds setgid only where the group may execute the file, and chmod(2) that allows it decides about the bit anew.
    """
    if not stat.S_ISREG(attr.mode) or attr.mode & (stat.S_ISGID | stat.S_IXGRP) != stat.S_ISGID:
        return 0
    return 0 if attr.gid == caller.gid or attr.gid in groups_of(caller.pid) else SET_KILL_SETGID


def _kill(mount: MountState, attr: Attr, mask: int) -> Steps:
    with mount.background_unique() as unique:
        reply: Found = yield mount.propose(SetAttr(mount.volume, attr.ino, mask), unique)
    mount.caches.names.put(reply.attr)
    mount.caches.bytes_changed(attr, reply.attr)


def drop_capability(mount: MountState, attr: Attr) -> Steps:
    """Removes security.capability, which was given to other bytes; first it is asked for, because that is cheaper than an entry."""
    if not attr.xattrs:
        return
    try:
        yield mount.metadata.ask(GetXattr(mount.volume, attr.ino, CAPABILITY))
        with mount.background_unique() as unique:
            reply: Found = yield mount.propose(RemoveXattr(mount.volume, attr.ino, CAPABILITY), unique)
    except FsError as err:
        if err.errno != errno.ENODATA:
            raise
        return
    mount.caches.names.put(reply.attr)


def stored(mount: MountState, fh: int, length: int) -> Steps:
    """It is in the dirty log, and the lease may have run out since: says so while the session under which it was accepted is good.

    Returns `length`.  Raises FsError(EIO) if that session was lost.
    """
    while (renewed := mount.session.lease.renewed()) and mount.session.lease.left_ns() <= 0:
        yield renewed
    mount.session.check_handle(fh)
    return length


class Serving:
    """Says whether a write through one handle may be stored now; asked under the lock of the file's state.

    A new session is taken up only when those that were told yes have stored (FileTable.wait_for_stores).  A refusal is remembered: what the
    caller looked at before is to be looked at again.
    """

    __slots__ = ("_fh", "_session", "refused")

    def __init__(self, mount: MountState, fh: int) -> None:
        self._session = mount.session
        self._fh = fh
        self.refused = False

    def __call__(self) -> bool:
        session = self._session
        if session.lease.left_ns() > 0 and self._fh not in session.failed_handles:
            return True
        self.refused = True
        return False

    def goes_on(self) -> bool:
        return not self.refused


def store_when_room(
    mount: MountState,
    length: int,
    store: Callable[[], bool],
    *,
    may: Callable[[], bool] = always,
    session_replaced: Callable[[], bool] = always,
    allocated: Callable[[], Steps] | None = None,
) -> Steps:
    """Calls `store` until it has made a record of `length` bytes; waits for room in the dirty log and for reserved space.

    Returns True; False once `may` says that no record may be made any more, or when the session was replaced and `session_replaced` says
    not to go on.  `allocated` may store it in space that fallocate(2) has kept.  Raises FsError: ENOSPC or EDQUOT, and what those raise.
    """
    need, flushed = record_space(length), False
    while may():
        room = mount.buffered.flusher.room()
        if store():
            return True
        if mount.buffered.reservation.left_bytes >= need:
            mount.buffered.flusher.kick()
            if may():
                yield room
            continue
        try:
            yield from mount.buffered.reservation.refill(need)
        except FsError as err:
            if err.errno == errno.ESTALE:
                yield mount.session.lease.renewed()
                if not session_replaced():
                    return False
                continue
            if err.errno in SPACE_ERRORS and allocated is not None and (yield from allocated()):
                return True
            if err.errno not in SPACE_ERRORS or flushed:
                raise
            flushed = True
            yield from let_room_come_back(mount)
    return False


def let_room_come_back(mount: MountState) -> Steps:
    """Waits for what may give space back: dirty records, which took more than they need, and removals that the leader has not heard of.

    What fails of that is other files', and told to who syncs them; who asks for room is told whether there is some.
    """
    with contextlib.suppress(Error):
        yield mount.buffered.flusher.flush_all()
    names = mount.names_synced()
    if names is not None:
        with contextlib.suppress(FsError):  # there may be room all the same
            yield names


class DirtyWrites:
    """Writes that go to the dirty log, and what has to meet the records there in order."""

    def __init__(self, mount: MountState) -> None:
        self._mount = mount

    def store(
        self, unique: int, attr: Attr, offset: int, data: memoryview, time_ns: int | None = None, may: Callable[[], bool] = always
    ) -> bool:
        """One dirty record, if space is reserved, the dirty log has room, and it `may`; what the record stores survives this process."""
        mount = self._mount
        if attr.mode & 0o170000 != stat.S_IFREG:
            raise FsError(errno.EINVAL, "only regular files are written")
        now_ns = time.time_ns() if time_ns is None else time_ns
        return mount.buffered.reservation.spend(record_space(len(data)), lambda: self._record(attr, offset, data, unique, now_ns, may))

    def _record(self, attr: Attr, offset: int, data: memoryview, unique: int, time_ns: int, may: Callable[[], bool]) -> bool:
        mount = self._mount
        hit("dirty.store.before")
        while not (state := mount.file(attr)).store(mount.buffered.dirty, offset, data, unique, time_ns, may=may):
            if not state.forgotten:
                return False
        hit("dirty.store.after")
        if mount.buffered.dirty.dirty_bytes >= DIRTY_FLUSH_BYTES:
            mount.buffered.flusher.kick()
        return True

    def write(self, unique: int, attr: Attr, offset: int, data: memoryview, fh: int) -> Steps:
        """`store`, waiting for room, for space and for the session.  Raises FsError(EIO) once the handle's session is lost."""
        mount = self._mount
        while True:
            mount.session.check_handle(fh)
            serving = Serving(mount, fh)
            done = yield from store_when_room(
                mount,
                len(data),
                partial(self.store, unique, attr, offset, data, may=serving),
                may=serving.goes_on,
                session_replaced=lambda: False,
                allocated=lambda: self._write_allocated(unique, attr, offset, data, fh),
            )
            if done:
                return
            yield from stored(mount, fh, 0)

    def _write_allocated(self, unique: int, attr: Attr, offset: int, data: memoryview, fh: int) -> Steps:
        """Nothing can be reserved, but fallocate(2) may have kept space for this range: true if so, and the write is stored."""
        mount = self._mount
        if attr.inline or not len(data):
            return False
        while True:
            try:
                yield from mount.buffered.reservation.draw(attr.ino, offset, len(data), record_space(len(data)))
                break
            except FsError as err:
                if err.errno in SPACE_ERRORS:
                    return False
                if err.errno != errno.ESTALE:
                    raise
            yield mount.session.lease.renewed()  # the session was replaced
            mount.session.check_handle(fh)
        try:
            while True:
                room, serving = mount.buffered.flusher.room(), Serving(mount, fh)
                if self._record(attr, offset, data, unique, time.time_ns(), serving):
                    return True
                if serving.refused:
                    yield from stored(mount, fh, 0)
                    continue
                mount.buffered.flusher.kick()
                yield room
        except BaseException:
            mount.buffered.reservation.give_back(record_space(len(data)))
            raise

    def leave_inline(self, attr: Attr, may: Callable[[], bool] = always) -> Steps:
        """Inline data becomes extents: an empty record, and a flush that takes the inline data along to a segment.

        The record carries no bytes, so it cannot lay old ones over what is written meanwhile; for a successor it is nothing to do.  Where
        `may` ends there is nothing to store; the caller looks again.
        """
        mount = self._mount
        state = mount.file(attr)
        state.leave_inline = True
        try:
            if not state.dirty:
                empty = memoryview(b"")
                yield from store_when_room(mount, 0, lambda: self.store(0, attr, 0, empty, attr.mtime_ns), may=may)
            yield mount.buffered.flusher.flush(attr.ino)
        finally:
            state.leave_inline = False

    def set_size(self, attr: Attr, command: SetAttr, unique: int, fh: int | None = None) -> Steps:
        """Truncate or extend.  Dirty records are flushed first; those of a truncation to nothing just end.

        The command names the newest record, so a successor that replays older ones cannot bring back what was cut off.
        """
        mount = self._mount
        state = mount.file(attr)
        if command.size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        state.held = command.size == 0
        try:
            if state.dirty:
                yield mount.buffered.flusher.flush(attr.ino, in_flight_only=state.held)
            command.log, command.sequence = mount.buffered.dirty.log_id, mount.buffered.files.begin_cut(attr.ino)
            hit("truncate.entry.before")
            reply: Found = yield mount.propose(command, unique, fh=fh)
            hit("truncate.entry.after")
            mount.caches.names.put(reply.attr)
            if not command.size:
                mount.session.rewrites.begin(attr.ino)
            if state.held and not mount.session.recovering:  # a repeated one may be older than what is dirty
                mount.buffered.release_space(mount.buffered.files.discard(attr.ino, command.sequence))
            state.truncate_committed(command.size, command.sequence)
            current = mount.buffered.files.get(attr.ino)
            if current is not None and current is not state:  # ours was forgotten meanwhile
                current.truncate_committed(command.size, command.sequence)
        finally:
            state.held = False
        return reply.attr


MakeWrite = Callable[[tuple[int, int], OnDecided | None], Write]  # for a session, to be told of when it is decided


class ThroughWrites:
    """Writes that are on the device and in the log before they are answered, after what is dirty of their file."""

    def __init__(self, mount: MountState, through: WriteThrough) -> None:
        self._mount = mount
        self._through = through

    def write(self, fh: int | None, ino: int, make: MakeWrite, caller: Context | None = None) -> Steps:
        """Writes until it is decided, under whatever session: a write whose session ended is written again, under the same id.

        `caller`: who writes, if the set-ID bits go with it.

        Each time for one session: while the write waited for the device another may have been opened, in which the handle's lock is lost.
        """
        mount = self._mount
        state = mount.buffered.files.get(ino)
        if state is not None and state.dirty:
            yield mount.buffered.flusher.drained(ino)
        while True:
            token, renewed = mount.metadata.session_token(), mount.session.lease.renewed()
            if mount.session.lease.left_ns() <= 0:
                yield renewed  # a session that was just opened: what of the old one is lost is not decided yet
                continue
            mount.session.check_handle(fh)
            one = make(token, None if mount.caches.leases is None else self._learn)
            try:
                attr: Attr = yield from self._decided(one)
                break
            except FsError as err:
                if err.errno == errno.EAGAIN and not one.inline:
                    yield from self.leave_inline(one.ino)
                    continue
                if err.errno == errno.ENOENT:
                    raise FsError(errno.EIO, f"inode {one.ino} is gone, with the session that had it open") from err
                if err.errno != errno.ESTALE:
                    raise
            except Fenced:
                pass
            yield mount.session.session_after(token)
        if caller is not None:
            yield from kill_setgid(mount, attr, caller)
        return len(one.data)

    def _decided(self, one: Write) -> Steps:
        mount = self._mount
        yield from self._reserve(one.space)
        if mount.caches.leases is not None:
            mount.caches.begin_change([one.ino])
        try:
            found: Found = yield self._through.write(one, mount.metadata)
        except Error as err:
            if not isinstance(err, Fenced) and err.errno != errno.ESTALE:  # else it went with the session
                mount.buffered.reservation.give_back(one.space)
            raise
        finally:
            one.tell(None)  # unless it was decided: the device failed, and it was not proposed
        return found.attr

    def _learn(self, one: Write, value: Any) -> None:
        """The outcome, on the thread that receives answers."""
        mount = self._mount
        assert mount.caches.leases is not None
        mount.caches.leases.end_change([one.ino])
        if not isinstance(value, Found):
            return
        with mount.caches.leases.doubting([one.ino]) if one.repeated else contextlib.nullcontext():
            mount.caches.names.put(value.attr)
        state = mount.buffered.files.get(one.ino)
        if state is not None:
            state.forget_layout(value.attr)

    def _reserve(self, need: int) -> Steps:
        """Space for one write.  What was kept for allocated ranges is not drawn on."""
        reservation, waited = self._mount.buffered.reservation, False
        while not reservation.take(need):
            try:
                yield from reservation.refill(need)
            except FsError as err:
                if err.errno not in SPACE_ERRORS or waited:
                    raise
                waited = True
                yield from let_room_come_back(self._mount)

    def leave_inline(self, ino: int) -> Steps:
        """Another kind of mount has left inline data: it becomes an extent, unless it changes meanwhile (then the caller looks again)."""
        mount = self._mount
        reply: Layout = yield mount.metadata.ask(GetLayout(mount.volume, ino, 0, INLINE_BYTES_MAX))
        if not reply.inline:
            return
        base = reply.inline
        try:
            with mount.background_unique() as unique:
                yield from self.write(None, ino, lambda *given: Write(unique, ino, 0, memoryview(base), *given, inline=base))
        except FsError as err:
            if err.errno != errno.EAGAIN:
                raise
