"""Questions about names, attributes and extended attributes, answered from the rows of inodes alone.

The leader answers them from its rows, and a mount that decides by itself from those that it has (held.py).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import READDIR_ENTRIES_MAX, XATTR_NAME_BYTES_MAX
from awsomefsd.base.types import Dirent
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.base import Message
from awsomefsd.meta.machine import volumes
from awsomefsd.meta.machine.inodes import attr_of
from awsomefsd.meta.state import history, rows
from awsomefsd.meta.state.lookups import check_name, check_snapshot, inode_of
from awsomefsd.meta.state.rows_cache import State


def inode(state: State, volume: int, ino: int, at: int = 0) -> rows.InodeRow:
    """Returns an inode of a volume that is there.  Raises FsError(ENOENT); ESTALE for a snapshot that is not there."""
    volumes.existing(state, volume)
    if not at:
        return inode_of(state, volume, ino)
    check_snapshot(state, volume, at)
    return _inode_as_of(state, volume, ino, at)


def _inode_as_of(state: State, volume: int, ino: int, at: int) -> rows.InodeRow:
    row = history.inode(state, volume, ino, at) if at else inode_of(state, volume, ino)
    if row is None:
        raise FsError(errno.ENOENT, f"no inode {ino} in snapshot {at}")
    return row


def _directory(state: State, volume: int, ino: int, at: int) -> rows.InodeRow:
    row = inode(state, volume, ino, at)
    if not stat.S_ISDIR(row.mode):
        raise FsError(errno.ENOTDIR)
    return row


def _lookup(state: State, body: m.Lookup) -> m.Reply:
    _directory(state, body.volume, body.parent, body.at)
    check_name(body.name)
    dentry = history.dentry(state, body.volume, body.parent, body.name, body.at)
    if dentry is None:
        raise FsError(errno.ENOENT)
    return m.Found(attr_of(dentry.ino, _inode_as_of(state, body.volume, dentry.ino, body.at)))


def _get_attr(state: State, body: m.GetAttr) -> m.Reply:
    return m.Found(attr_of(body.ino, inode(state, body.volume, body.ino, body.at)))


def _get_parent(state: State, body: m.GetParent) -> m.Reply:
    row = _directory(state, body.volume, body.ino, body.at)
    return m.Found(attr_of(row.parent, _inode_as_of(state, body.volume, row.parent, body.at)))


def _read_dir(state: State, body: m.ReadDir) -> m.Reply:
    directory = _directory(state, body.volume, body.ino, body.at)
    count = min(max(body.count, 1), READDIR_ENTRIES_MAX)
    stored = history.cookies(state, body.volume, body.ino, max(body.after, 0), count + 1, body.at)
    volume, at, plus = body.volume, body.at, body.plus
    found = [
        Dirent(row.name, row.ino, row.kind, cookie, attr_of(row.ino, _inode_as_of(state, volume, row.ino, at)) if plus else None)
        for cookie, row in stored[:count]
    ]
    return m.Entries(found, len(stored) <= count, directory.next_cookie - 1)


def _read_link(state: State, body: m.ReadLink) -> m.Reply:
    row = inode(state, body.volume, body.ino, body.at)
    if not stat.S_ISLNK(row.mode):
        raise FsError(errno.EINVAL)
    return m.Blob(row.target)


def _get_xattr(state: State, body: m.GetXattr) -> m.Reply:
    row = inode(state, body.volume, body.ino, body.at)
    if row.xattrs and len(body.name) <= XATTR_NAME_BYTES_MAX:
        value = history.xattr(state, body.volume, body.ino, body.name, body.at)
        if value is not None:
            return m.Blob(value)
    raise FsError(errno.ENODATA)


def _list_xattr(state: State, body: m.ListXattr) -> m.Reply:
    row = inode(state, body.volume, body.ino, body.at)
    if not row.xattrs:
        return m.Names([])
    return m.Names(history.xattr_names(state, body.volume, body.ino, body.at))


QUERIES: dict[type[Message], Callable[[State, Any], m.Reply]] = {
    m.Lookup: _lookup,
    m.GetAttr: _get_attr,
    m.GetParent: _get_parent,
    m.ReadDir: _read_dir,
    m.ReadLink: _read_link,
    m.GetXattr: _get_xattr,
    m.ListXattr: _list_xattr,
}  # that a holder may answer
