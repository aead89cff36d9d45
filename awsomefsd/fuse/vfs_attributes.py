"""Attributes and extended attributes."""

from __future__ import annotations

import errno
import logging

from awsomefsd import consistency
from awsomefsd.errors import FsError
from awsomefsd.fuse.context import Context, SetAttrIn
from awsomefsd.fuse.mount_state import MountState
from awsomefsd.fuse.vfs_data import DataOps
from awsomefsd.limits import XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from awsomefsd.meta import acl
from awsomefsd.meta.commands import SET_ATIME, SET_CTIME, SET_MTIME, SET_SIZE, RemoveXattr, SetAttr, SetXattr
from awsomefsd.meta.messages import Blob, Found, GetXattr, ListXattr, Names
from awsomefsd.types import Attr
from awsomefsd.wait import Op

log = logging.getLogger("awsomefsd.xattr")

XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
TIME_NS_MIN, TIME_NS_MAX = -9_223_372_036 * 10**9, 18_446_744_073 * 10**9  # years 1677 to 2554, what 64 bits hold; ext4 ends in 2446


class AttributeOps:
    def __init__(self, mount: MountState, data: DataOps) -> None:
        self._mount = mount
        self._data = data

    def getattr(self, ctx: Context, ino: int, fh: int | None) -> Attr | Op:
        kernel = self._mount.kernel
        shown = self._mount.shown_from_memory(ino)
        if shown is None or (kernel is not None and not kernel.clean(ino)):
            return self._getattr(ino)
        return self._refreshed(shown) if kernel is not None and kernel.stale(shown) else shown

    def _refreshed(self, shown: Attr) -> Op:
        assert self._mount.kernel is not None
        yield self._mount.kernel.dropped(shown.ino)
        return shown

    def _getattr(self, ino: int) -> Op:
        """The kernel believes in its pages when it has the answer: those that may be old go before."""
        kernel = self._mount.kernel
        if kernel is not None and not kernel.clean(ino):
            yield kernel.refreshed(ino)
        attr = yield from self._mount.attr_or_gone(ino)
        shown = self._mount.shown(attr)
        if kernel is not None and kernel.stale(shown):
            yield kernel.dropped(ino)
        return shown

    def setattr(self, ctx: Context, ino: int, fh: int | None, change: SetAttrIn) -> Op:
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        return self._setattr(ctx, ino, fh, change)

    def _setattr(self, ctx: Context, ino: int, fh: int | None, change: SetAttrIn) -> Op:
        mount = self._mount
        mount.check_handle(fh)
        attr: Attr = yield from mount.attr_op(ino)
        command = SetAttr(  # without anything: chown(2) to nobody else, which is a change all the same
            mount.volume, ino, change.mask or SET_CTIME, change.mode, change.uid, change.gid, change.size,
            storable(change.atime_ns), storable(change.mtime_ns), storable(change.ctime_ns),
            mount.dirty.log_id, mount.dirty.last_sequence,
        )  # fmt: skip
        if change.mask & SET_ATIME:
            mount.atimes.discard(ino)
        if change.mask & SET_SIZE:
            attr = yield from self._data.set_size(attr, command, ctx.unique, fh)
            return mount.shown(attr)
        reply: Found = yield mount.propose(command, ctx.unique, fh=fh)
        mount.names.put(reply.attr)
        state = mount.files.get(ino)
        if state is not None and change.mask & SET_MTIME:
            state.mtime_ns = None  # what is dirty now was written before
        return mount.shown(reply.attr)

    # --- extended attributes -----------------------------------------------------------------------------------------------

    def getxattr(self, ctx: Context, ino: int, name: bytes) -> Op:
        check_xattr_name(name)
        attr = self._mount.names.attr(ino)
        if attr is not None and attr.xattrs == 0:
            raise FsError(errno.ENODATA)
        return self._getxattr(ino, name)

    def _getxattr(self, ino: int, name: bytes) -> Op:
        names = self._mount.names
        known = names.memo(ino, name)
        if known is None:
            self._mount.cover(ino)
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

    def listxattr(self, ctx: Context, ino: int) -> list[bytes] | Op:
        attr = self._mount.names.attr(ino)
        if attr is not None and attr.xattrs == 0:
            return []
        return self._listxattr(ctx, ino)

    def _listxattr(self, ctx: Context, ino: int) -> Op:
        known = self._mount.names.memo(ino, b"")
        if known is None:
            self._mount.cover(ino)
            reply: Names = yield self._mount.metadata.ask(ListXattr(self._mount.volume, ino))
            known = reply.names
            self._mount.names.keep_memo(ino, b"", known)
        return [name for name in known if ctx.uid == 0 or not name.startswith(b"trusted.")]

    def setxattr(self, ctx: Context, ino: int, name: bytes, value: bytes, flags: int) -> Op:
        check_xattr_name(name)
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise FsError(errno.E2BIG)
        if name == consistency.XATTR:
            _check_consistency(ino, bytes(value))
        return self._change(ctx, SetXattr(self._mount.volume, ino, name, bytes(value), flags, ctx.kill_sgid))

    def removexattr(self, ctx: Context, ino: int, name: bytes) -> Op:
        check_xattr_name(name)
        if self._mount.read_only:
            raise FsError(errno.EROFS)
        return self._change(ctx, RemoveXattr(self._mount.volume, ino, name))

    def _change(self, ctx: Context, command: SetXattr | RemoveXattr) -> Op:
        reply = yield self._mount.propose(command, ctx.unique)
        if isinstance(reply, Found):
            self._mount.names.put(reply.attr)
        else:
            self._mount.names.drop(command.ino)


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
