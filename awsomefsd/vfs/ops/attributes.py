"""Attributes and extended attributes."""

from __future__ import annotations

import errno
import logging

from awsomefsd.base import consistency
from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Steps
from awsomefsd.meta.api import acl
from awsomefsd.meta.api.commands import (
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_KILL_SUIDGID,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    RemoveXattr,
    SetAttr,
    SetXattr,
)
from awsomefsd.meta.api.messages import Blob, Found, GetXattr, ListXattr, Names
from awsomefsd.vfs.api.context import Context, SetAttrIn
from awsomefsd.vfs.ops.caller_credentials import loses_set_ids
from awsomefsd.vfs.ops.data import DataOps
from awsomefsd.vfs.ops.writing import CAPABILITY, setgid_lost
from awsomefsd.vfs.state.mount_state import MountState

log = logging.getLogger("awsomefsd.xattr")

XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
TIME_NS_MIN, TIME_NS_MAX = -9_223_372_036 * 10**9, 18_446_744_073 * 10**9  # years 1677 to 2554, what 64 bits hold; ext4 ends in 2446


class AttributeOps:
    def __init__(self, mount: MountState, data: DataOps) -> None:
        self._mount = mount
        self._data = data

    def getattr(self, ctx: Context, ino: int, fh: int | None) -> Attr | Steps:
        kernel = self._mount.caches.kernel
        shown = self._mount.shown_from_memory(ino)
        if shown is None:
            return self._getattr(ino)
        return self._refreshed(shown) if kernel is not None and kernel.stale(shown) else shown

    def _refreshed(self, shown: Attr) -> Steps:
        assert self._mount.caches.kernel is not None
        yield self._mount.caches.kernel.dropped(shown.ino)
        return shown

    def _getattr(self, ino: int) -> Steps:
        kernel = self._mount.caches.kernel
        shown = yield from self._mount.shown_op(ino)
        if kernel is not None and kernel.stale(shown):
            yield kernel.dropped(ino)
        return shown

    def setattr(self, ctx: Context, ino: int, fh: int | None, change: SetAttrIn) -> Steps:
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        return self._setattr(ctx, ino, fh, change)

    def _setattr(self, ctx: Context, ino: int, fh: int | None, change: SetAttrIn) -> Steps:
        mount = self._mount
        mount.session.check_handle(fh)
        attr: Attr = yield from mount.attr_op(ino)
        mask = change.mask
        # With chown(2) the flag comes whoever asks, with truncation only for callers without CAP_FSETID.
        if mask & SET_KILL_SUIDGID and (not mask & (SET_UID | SET_GID) or loses_set_ids(ctx.uid, ctx.pid)):
            mask |= setgid_lost(ctx, attr)
        command = SetAttr(  # without anything: chown(2) to nobody else, which is a change all the same
            mount.volume, ino, mask or SET_CTIME, change.mode, change.uid, change.gid, change.size,
            storable(change.atime_ns), storable(change.mtime_ns), storable(change.ctime_ns),
            mount.buffered.dirty.log_id, mount.buffered.dirty.last_sequence,
        )  # fmt: skip
        if change.mask & SET_ATIME:
            mount.caches.atimes.discard(ino)
        if change.mask & SET_SIZE:
            attr = yield from self._data.set_size(attr, command, ctx.unique, fh)
            return mount.shown(attr)
        reply: Found = yield mount.propose(command, ctx.unique, fh=fh)
        mount.caches.names.put(reply.attr)
        state = mount.buffered.files.get(ino)
        if state is not None and change.mask & SET_MTIME:
            state.mtime_ns = None  # what is dirty now was written before
        return mount.shown(reply.attr)

    # --- extended attributes -----------------------------------------------------------------------------------------------

    def getxattr(self, ctx: Context, ino: int, name: bytes) -> Steps:
        check_xattr_name(name)
        attr = self._mount.caches.names.attr(ino)
        if attr is not None and attr.xattrs == 0:
            raise FsError(errno.ENODATA)
        return self._getxattr(ino, name)

    def _getxattr(self, ino: int, name: bytes) -> Steps:
        names = self._mount.caches.names
        known = names.memo(ino, name)
        if known is None:
            self._mount.caches.cover(ino)
            try:
                reply: Blob = yield self._mount.metadata.ask(GetXattr(self._mount.volume, ino, name))
            except FsError as err:
                if err.errno != errno.ENODATA:
                    raise
                known = (None,)
            else:
                known = (reply.data,)
            names.keep_memo(ino, name, known)
        if known[0] is None:
            raise FsError(errno.ENODATA)
        return known[0]

    def listxattr(self, ctx: Context, ino: int) -> list[bytes] | Steps:
        attr = self._mount.caches.names.attr(ino)
        if attr is not None and attr.xattrs == 0:
            return []
        return self._listxattr(ctx, ino)

    def _listxattr(self, ctx: Context, ino: int) -> Steps:
        known = self._mount.caches.names.memo(ino, b"")
        if known is None:
            self._mount.caches.cover(ino)
            reply: Names = yield self._mount.metadata.ask(ListXattr(self._mount.volume, ino))
            known = reply.names
            self._mount.caches.names.keep_memo(ino, b"", known)
        return [name for name in known if ctx.uid == 0 or not name.startswith(b"trusted.")]

    def setxattr(self, ctx: Context, ino: int, name: bytes, value: bytes, flags: int) -> Steps:
        check_xattr_name(name)
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise FsError(errno.E2BIG)
        if name == consistency.XATTR:
            _check_consistency(ino, bytes(value))
        return self._change(ctx, SetXattr(self._mount.volume, ino, name, bytes(value), flags, ctx.kill_sgid))

    def removexattr(self, ctx: Context, ino: int, name: bytes) -> Steps:
        check_xattr_name(name)
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        return self._change(ctx, RemoveXattr(self._mount.volume, ino, name))

    def _change(self, ctx: Context, command: SetXattr | RemoveXattr) -> Steps:
        reply = yield self._mount.propose(command, ctx.unique)
        if command.name == CAPABILITY and self._mount.caches.leases is not None:
            state = self._mount.buffered.files.get(command.ino)
            if state is not None:
                state.let_go()  # the next write looks at the attributes again, and removes it
        if isinstance(reply, Found):
            self._mount.caches.names.put(reply.attr)
        else:
            self._mount.caches.names.drop(command.ino)


def storable(time_ns: int | None) -> int | None:
    """The nearest time that can be stored, as Linux does on every filesystem whose times have an end."""
    return None if time_ns is None else min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)


def _check_consistency(ino: int, value: bytes) -> None:
    try:
        consistency.parse(value.decode("ascii", "backslashreplace"))
    except ValueError as err:
        log.warning("%s of inode %d is not set: %s", consistency.XATTR.decode(), ino, err)
        raise FsError(errno.EINVAL, str(err)) from None


def check_xattr_name(name: bytes) -> None:
    """Raises FsError for names that no filesystem takes, and for those of system.* that are no POSIX ACL."""
    if len(name) > XATTR_NAME_BYTES_MAX:
        raise FsError(errno.ERANGE)
    if name in acl.NAMES:
        return
    if not name.startswith(XATTR_PREFIXES):
        raise FsError(errno.EOPNOTSUPP)
    if name in XATTR_PREFIXES:
        raise FsError(errno.EINVAL)
