"""A filesystem whose callers are somebody else below: mapped ids (map_uid, map_gid), squashed root, modes and ACLs checked by the server.

It stands between the handlers and the vfs on mounts that ask for it; other mounts never see it.  The order at this boundary: the caller
becomes who it is inside, modes are checked there with stored ids, the vfs works with stored ids, and what it answers is mapped outwards.

As kernel id-mapped mounts do: an unmapped owner is shown as 65534; a caller without a counterpart creates nothing (EOVERFLOW); nothing is
given to an unmapped id (EOVERFLOW); a file of an unmapped owner is not opened for writing (EACCES) and its attributes are not changed
(EOVERFLOW) unless the change gives it a mapped owner.

root_squash: requests of uid 0 are those of 65534.  The kernel believes root (its CAP_DAC_OVERRIDE passes default_permissions), so every
check of such a caller is made here, and names and attributes are handed out for no time at all: each step of a path asks us.  What cannot
be seen from here: access(2), chdir(2) and use of a descriptor that somebody else has opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from awsomefsd.base.errors import FsError
from awsomefsd.base.id_map import ACL_NAMES, EVERYBODY, OVERFLOW_ID, IdMap, map_acl
from awsomefsd.base.limits import ACLS_CACHED_MAX
from awsomefsd.base.types import Attr, Dirent
from awsomefsd.base.wait import GENERATORS, Steps
from awsomefsd.meta.api import acl
from awsomefsd.meta.api.commands import SET_ATIME, SET_GID, SET_MODE, SET_MTIME, SET_UID
from awsomefsd.vfs.api.context import Context, SetAttrIn
from awsomefsd.vfs.api.filesystem import Filesystem
from awsomefsd.vfs.ops import permissions
from awsomefsd.vfs.ops.caller_credentials import groups_of
from awsomefsd.vfs.ops.permissions import EXEC, READ, WRITE, Caller

_NO_GROUPS: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class MappedIds:
    users: IdMap = EVERYBODY
    groups: IdMap = EVERYBODY
    root_squash: bool = False
    check_all: bool = False  # mounted without default_permissions

    @property
    def changes_nothing(self) -> bool:
        return self == MappedIds()

    @property
    def root_is_root(self) -> bool:
        """Says whether a caller of uid 0 is root inside, too."""
        return not self.root_squash and self.users.inside(0) == 0


def identified(fs: Filesystem, identity: MappedIds) -> Filesystem:
    """Returns `fs` as callers with that identity see it; `fs` itself where nothing changes."""
    return fs if identity.changes_nothing else Identified(fs, identity)  # type: ignore[return-value]


class Identified:
    """fs, seen by other people.  Methods that know neither names nor ids are those of `fs` itself (__getattr__)."""

    def __init__(self, fs: Filesystem, identity: MappedIds) -> None:
        self._fs = fs
        self._id = identity
        self._checks = identity.root_squash or identity.check_all
        self._acls: dict[int, tuple[int, acl.Acl]] = {}  # ino -> (the ctime it was asked for under, its access ACL)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._fs, name)
        setattr(self, name, method)
        return method

    def ttl_ns(self) -> int:
        return 0 if self._checks else self._fs.ttl_ns()

    def attr_ttl_ns(self, attr: Attr) -> int:
        """Asks for stored attributes; mapped ones are another's."""
        return 0 if self._checks or self._id.users.ranges or self._id.groups.ranges else self._fs.attr_ttl_ns(attr)

    def name_ttl_ns(self, parent: int, name: bytes, ino: int) -> int:
        return 0 if self._checks else self._fs.name_ttl_ns(parent, name, ino)

    # --- who ---------------------------------------------------------------------------------------------------------------

    def _enter(self, ctx: Context) -> Caller | None:
        """Make the caller who it is inside.  Whoever is not None is checked here."""
        squashed = self._id.root_squash and ctx.uid == 0
        if squashed:
            ctx.uid = ctx.gid = OVERFLOW_ID
            return Caller(OVERFLOW_ID, OVERFLOW_ID)
        groups = groups_of(ctx.pid) if self._id.check_all else _NO_GROUPS
        uid, gid = self._id.users.inside(ctx.uid), self._id.groups.inside(ctx.gid)
        ctx.uid, ctx.gid = OVERFLOW_ID if uid is None else uid, OVERFLOW_ID if gid is None else gid
        if not self._id.check_all:
            return None
        inside = frozenset(mapped for group in groups if (mapped := self._id.groups.inside(group)) is not None)
        return Caller(ctx.uid, ctx.gid, inside)

    def _enter_as_creator(self, ctx: Context) -> Caller | None:
        squashed = self._id.root_squash and ctx.uid == 0
        if not squashed and (self._id.users.inside(ctx.uid) is None or self._id.groups.inside(ctx.gid) is None):
            raise FsError(errno.EOVERFLOW)
        return self._enter(ctx)

    # --- what comes back -----------------------------------------------------------------------------------------------------

    def _attr(self, attr: Attr) -> Attr:
        users, groups = self._id.users, self._id.groups
        if not users.ranges and not groups.ranges:
            return attr
        return structs.replace(attr, uid=users.outside(attr.uid), gid=groups.outside(attr.gid))  # a copy: the caches keep theirs

    def _dirent(self, entry: Dirent) -> Dirent:
        if entry.attr is None:
            return entry
        return Dirent(entry.name, entry.ino, entry.kind, entry.cookie, self._attr(entry.attr))

    def _out(self, value: Any) -> Any:
        if isinstance(value, Attr):
            return self._attr(value)
        if isinstance(value, tuple):
            return tuple(self._out(part) for part in value)
        return value

    def _run(self, method: Callable[..., Any], *args: Any) -> Steps:
        return self._out((yield from _result(method(*args))))

    def _see(self, ctx: Context, ino: int) -> Steps:
        attr: Attr = yield from _result(self._fs.getattr(ctx, ino, None))
        return attr

    def _require(self, caller: Caller | None, ctx: Context, ino: int, wanted: int) -> Steps:
        if caller is not None:
            yield from self._check(caller, ctx, (yield from self._see(ctx, ino)), wanted)

    def _check(self, caller: Caller, ctx: Context, attr: Attr, wanted: int) -> Steps:
        permissions.check(caller, attr, wanted, (yield from self._access(caller, ctx, attr)))

    def _access(self, caller: Caller, ctx: Context, attr: Attr) -> Steps:
        """The access ACL where one decides, asked for once: whoever changes it changes ctime, and mode and ACL change together."""
        if not attr.xattrs or not permissions.needs_acl(caller, attr):
            return []
        known = self._acls.get(attr.ino)
        if known is not None and known[0] == attr.ctime_ns:
            return known[1]
        try:
            entries = acl.parse((yield from _result(self._fs.getxattr(ctx, attr.ino, acl.ACCESS))))
        except FsError as err:
            if err.errno != errno.ENODATA:
                raise
            entries = []
        if len(self._acls) >= ACLS_CACHED_MAX:
            self._acls.clear()
        self._acls[attr.ino] = attr.ctime_ns, entries
        return entries

    # --- names ---------------------------------------------------------------------------------------------------------------

    def lookup(self, ctx: Context, parent: int, name: bytes) -> Steps:
        caller = self._enter(ctx)
        if name not in (b".", b".."):
            yield from self._require(caller, ctx, parent, EXEC)
        return (yield from self._run(self._fs.lookup, ctx, parent, name))

    def _make(self, method: Callable[..., Any], ctx: Context, parent: int, *args: Any) -> Steps:
        caller = self._enter_as_creator(ctx)
        yield from self._require(caller, ctx, parent, WRITE | EXEC)
        return (yield from self._run(method, ctx, parent, *args))

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int) -> Steps:
        if self._id.root_squash and ctx.uid == 0 and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise FsError(errno.EPERM)
        return self._make(self._fs.mknod, ctx, parent, name, mode, rdev)

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int) -> Steps:
        return self._make(self._fs.mkdir, ctx, parent, name, mode)

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> Steps:
        return self._make(self._fs.symlink, ctx, parent, name, target)

    def tmpfile(self, ctx: Context, parent: int, *args: Any) -> Steps:
        return self._make(self._fs.tmpfile, ctx, parent, *args)  # type: ignore[attr-defined]

    def create(self, ctx: Context, parent: int, name: bytes, mode: int, flags: int) -> Steps:
        """The kernel sends it where it knows of no file; one that is there all the same is opened, and checked as open(2) does."""
        caller = self._enter_as_creator(ctx)
        if caller is None:
            return (yield from self._run(self._fs.create, ctx, parent, name, mode, flags))
        there = yield from self._victim(ctx, parent, name)
        if there is None:
            yield from self._require(caller, ctx, parent, WRITE | EXEC)
        else:
            yield from self._require(caller, ctx, parent, EXEC)
            yield from self._check(caller, ctx, there, permissions.open_wants(flags))
        return (yield from self._run(self._fs.create, ctx, parent, name, mode, flags))

    def link(self, ctx: Context, ino: int, new_parent: int, new_name: bytes) -> Steps:
        caller = self._enter_as_creator(ctx)
        yield from self._require(caller, ctx, new_parent, WRITE | EXEC)
        return (yield from self._run(self._fs.link, ctx, ino, new_parent, new_name))

    def _victim(self, ctx: Context, parent: int, name: bytes) -> Steps:
        """The attributes behind a name, None if there are none; the kernel does not hear of it."""
        try:
            attr: Attr = yield from _result(self._fs.lookup(ctx, parent, name))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return None
        self._fs.forget(attr.ino, 1)
        return attr

    def _may_delete(self, caller: Caller | None, ctx: Context, parent: int, name: bytes) -> Steps:
        if caller is None:
            return
        above: Attr = yield from self._see(ctx, parent)
        yield from self._check(caller, ctx, above, WRITE | EXEC)
        if above.mode & stat.S_ISVTX:
            victim = yield from self._victim(ctx, parent, name)
            if victim is not None:
                permissions.check_sticky(caller, above, victim)

    def unlink(self, ctx: Context, parent: int, name: bytes) -> Steps:
        yield from self._may_delete(self._enter(ctx), ctx, parent, name)
        return (yield from self._run(self._fs.unlink, ctx, parent, name))

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> Steps:
        yield from self._may_delete(self._enter(ctx), ctx, parent, name)
        return (yield from self._run(self._fs.rmdir, ctx, parent, name))

    def rename(self, ctx: Context, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Steps:
        caller = self._enter(ctx)
        yield from self._may_delete(caller, ctx, parent, name)
        yield from self._may_delete(caller, ctx, new_parent, new_name)
        if caller is not None and parent != new_parent:
            moved = yield from self._victim(ctx, parent, name)
            if moved is not None and stat.S_ISDIR(moved.mode):
                yield from self._check(caller, ctx, moved, WRITE)  # its ".." changes
        return (yield from self._run(self._fs.rename, ctx, parent, name, new_parent, new_name, flags))

    # --- attributes -----------------------------------------------------------------------------------------------------------

    def getattr(self, ctx: Context, ino: int, fh: int | None) -> Steps:
        self._enter(ctx)
        return (yield from self._run(self._fs.getattr, ctx, ino, fh))

    def setattr(self, ctx: Context, ino: int, fh: int | None, change: SetAttrIn) -> Steps:
        caller = self._enter(ctx)
        before: Attr = yield from self._see(ctx, ino)
        self._map_owner(change, before)
        if caller is not None:
            given = [time_ns for bit, time_ns in ((SET_ATIME, change.atime_ns), (SET_MTIME, change.mtime_ns)) if change.mask & bit]
            now = all(time_ns is None for time_ns in given)
            access = yield from self._access(caller, ctx, before)
            permissions.check_change(caller, before, change.mask, change.uid, change.gid, fh is not None, now, access)
            if change.mask & SET_MODE:
                change.mode = permissions.mode_kept(caller, before, change.mode)
        return (yield from self._run(self._fs.setattr, ctx, ino, fh, change))

    def _map_owner(self, change: SetAttrIn, before: Attr) -> None:
        users, groups = self._id.users, self._id.groups
        if change.mask & SET_UID:
            change.uid = _stored(users, change.uid)
        elif not users.has_outside(before.uid):
            raise FsError(errno.EOVERFLOW)
        if change.mask & SET_GID:
            change.gid = _stored(groups, change.gid)
        elif not groups.has_outside(before.gid):
            raise FsError(errno.EOVERFLOW)

    # --- extended attributes ----------------------------------------------------------------------------------------------------

    def _xattr_allowed(self, ctx: Context, ino: int, name: bytes, wanted: int) -> Steps:
        """Applies xattr_permission and the owner rule of ACLs."""
        caller = self._enter(ctx)
        if caller is None or caller.is_root:
            return
        if name.startswith(b"trusted."):
            raise FsError(errno.EPERM if wanted == WRITE else errno.ENODATA)
        attr: Attr = yield from self._see(ctx, ino)
        if name.startswith(b"user."):
            yield from self._check(caller, ctx, attr, wanted)
        elif wanted == WRITE and (name not in ACL_NAMES or caller.uid != attr.uid):
            raise FsError(errno.EPERM)

    def getxattr(self, ctx: Context, ino: int, name: bytes) -> Steps:
        yield from self._xattr_allowed(ctx, ino, name, READ)
        value = yield from _result(self._fs.getxattr(ctx, ino, name))
        return map_acl(value, self._id.users.outside, self._id.groups.outside) if name in ACL_NAMES else value

    def setxattr(self, ctx: Context, ino: int, name: bytes, value: bytes, flags: int, *rest: Any) -> Steps:
        yield from self._xattr_allowed(ctx, ino, name, WRITE)
        if name in ACL_NAMES:
            value = map_acl(value, lambda each: _stored(self._id.users, each), lambda each: _stored(self._id.groups, each))
        return (yield from self._run(self._fs.setxattr, ctx, ino, name, value, flags, *rest))

    def removexattr(self, ctx: Context, ino: int, name: bytes) -> Steps:
        yield from self._xattr_allowed(ctx, ino, name, WRITE)
        return (yield from self._run(self._fs.removexattr, ctx, ino, name))

    def listxattr(self, ctx: Context, ino: int) -> Steps:
        self._enter(ctx)
        return (yield from self._run(self._fs.listxattr, ctx, ino))

    # --- files ----------------------------------------------------------------------------------------------------------------

    def open(self, ctx: Context, ino: int, flags: int) -> Steps:
        caller = self._enter(ctx)
        wanted = permissions.open_wants(flags)
        if caller is not None or (wanted & WRITE and (self._id.users.ranges or self._id.groups.ranges)):
            attr: Attr = yield from self._see(ctx, ino)
            if wanted & WRITE and not (self._id.users.has_outside(attr.uid) and self._id.groups.has_outside(attr.gid)):
                raise FsError(errno.EACCES)
            if caller is not None:
                yield from self._check(caller, ctx, attr, wanted)
        return (yield from self._run(self._fs.open, ctx, ino, flags))

    def opendir(self, ctx: Context, ino: int, flags: int) -> Steps:
        yield from self._require(self._enter(ctx), ctx, ino, permissions.open_wants(flags & ~os.O_ACCMODE))
        return (yield from self._run(self._fs.opendir, ctx, ino, flags))

    def readdir(self, ctx: Context, ino: int, fh: int, offset: int, plus: bool) -> Steps:
        self._enter(ctx)
        entries = yield from _result(self._fs.readdir(ctx, ino, fh, offset, plus))
        return map(self._dirent, entries)


def _stored(ids: IdMap, outside: int) -> int:
    inside = ids.inside(outside)
    if inside is None:
        raise FsError(errno.EOVERFLOW)
    return inside


def _result(value: Any) -> Steps:
    """Returns the T of a Result[T]."""
    if type(value) in GENERATORS:
        return (yield from value)
    return value
