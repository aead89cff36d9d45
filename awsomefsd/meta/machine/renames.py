"""rename(2): plain, without replacing, exchanging, and leaving a whiteout.

A whiteout is a character device 0:0 under the old name, for overlayfs: it says that a name of the lower layer is gone.  It is made in the
same entry, so no crash shows the old name empty.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import ROOT_INO
from awsomefsd.meta.api.commands import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Create, Entry, Rename
from awsomefsd.meta.api.messages import Renamed, Reply
from awsomefsd.meta.machine.inodes import attr_of, save_changed, save_new_contents
from awsomefsd.meta.machine.namespace import add_name, directory_of, drop_link, drop_name, find, find_existing, make_inode
from awsomefsd.meta.machine.quota import check_inode_quota
from awsomefsd.meta.state import rows
from awsomefsd.meta.state.lookups import check_name, inode_of, volume_of
from awsomefsd.meta.state.rows_cache import State

FLAGS = (0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE)


def rename(state: State, entry: Entry, command: Rename) -> Reply:
    """Moves a name; it may replace, exchange, or leave a whiteout.  Answered by Renamed."""
    volume = volume_of(state, entry, command.volume)
    check_name(command.name)
    check_name(command.new_name)
    if command.flags not in FLAGS:
        raise FsError(errno.EINVAL, f"rename flags {command.flags:#x}")
    number = command.volume
    parent = directory_of(state, number, command.parent)
    new_parent = directory_of(state, number, command.new_parent)
    dentry, row = find_existing(state, number, command.parent, command.name)
    target = find(state, number, command.new_parent, command.new_name)
    if target is None:
        if command.flags == RENAME_EXCHANGE:
            raise FsError(errno.ENOENT)
    elif command.flags & RENAME_NOREPLACE:
        raise FsError(errno.EEXIST)
    elif target.ino == dentry.ino:  # the same name, or two links of one inode: nothing happens
        return _renamed(command, dentry.ino, row, None, parent, new_parent)
    other = inode_of(state, number, target.ino) if target is not None else None
    _check_trees(state, command, dentry, target)
    if target is not None and other is not None:
        if command.flags == RENAME_EXCHANGE:
            return _exchange(state, entry, command, (dentry, row, parent), (target, other, new_parent))
        _check_replaced(dentry, target, other)
    if command.flags & RENAME_WHITEOUT:
        check_inode_quota(state, volume)
    return _move(state, entry, command, volume, (dentry, row, parent), new_parent, target, other)


_Side = tuple[rows.DentryRow, rows.InodeRow, rows.InodeRow]  # dentry, its inode, its directory


def _check_trees(state: State, command: Rename, dentry: rows.DentryRow, target: rows.DentryRow | None) -> None:
    """Raises FsError if a directory would move below itself."""
    if command.parent == command.new_parent:
        return
    if dentry.kind == stat.S_IFDIR and _is_below(state, command.volume, command.new_parent, dentry.ino):
        raise FsError(errno.EINVAL, "a directory cannot move into itself")
    if target is not None and target.kind == stat.S_IFDIR and _is_below(state, command.volume, command.parent, target.ino):
        raise FsError(errno.EINVAL if command.flags == RENAME_EXCHANGE else errno.ENOTEMPTY)


def _is_below(state: State, volume: int, ino: int, ancestor: int) -> bool:
    while ino != ancestor:
        if ino == ROOT_INO:
            return False
        ino = inode_of(state, volume, ino).parent
    return True


def _check_replaced(dentry: rows.DentryRow, target: rows.DentryRow, other: rows.InodeRow) -> None:
    if target.kind == stat.S_IFDIR:
        if dentry.kind != stat.S_IFDIR:
            raise FsError(errno.EISDIR)
        if other.entries:
            raise FsError(errno.ENOTEMPTY)
    elif dentry.kind == stat.S_IFDIR:
        raise FsError(errno.ENOTDIR)


def _move(
    state: State,
    entry: Entry,
    command: Rename,
    volume: rows.VolumeRow,
    source: _Side,
    new_parent: rows.InodeRow,
    target: rows.DentryRow | None,
    other: rows.InodeRow | None,
) -> Reply:
    number = command.volume
    dentry, row, parent = source
    if target is not None:
        drop_name(state, entry, number, command.new_parent, new_parent, command.new_name, target)
        if target.kind == stat.S_IFDIR:
            new_parent.nlink -= 1
    drop_name(state, entry, number, command.parent, parent, command.name, dentry)
    add_name(state, entry, number, command.new_parent, new_parent, command.new_name, dentry.ino, dentry.kind)
    _reparent(command.new_parent, dentry.kind, row, parent, new_parent)
    whiteout = _leave_whiteout(state, entry, command, volume, parent) if command.flags & RENAME_WHITEOUT else None
    save_new_contents(state, entry, number, command.parent, parent)
    save_new_contents(state, entry, number, command.new_parent, new_parent)
    save_changed(state, entry, number, dentry.ino, row)
    if target is not None and other is not None:
        drop_link(state, entry, volume, target.ino, other, pinned=command.pinned)
    replaced = (target.ino, other) if target is not None and other is not None else None
    reply = _renamed(command, dentry.ino, row, replaced, parent, new_parent)
    reply.whiteout = attr_of(*whiteout) if whiteout is not None else None
    return reply


def _leave_whiteout(
    state: State, entry: Entry, command: Rename, volume: rows.VolumeRow, parent: rows.InodeRow
) -> tuple[int, rows.InodeRow]:
    create = Create(command.volume, command.parent, command.name, stat.S_IFCHR, command.uid, command.gid)
    ino, row = make_inode(state, entry, create, volume, parent)
    add_name(state, entry, command.volume, command.parent, parent, command.name, ino, stat.S_IFCHR)
    return ino, row


def _exchange(state: State, entry: Entry, command: Rename, source: _Side, target: _Side) -> Reply:
    number = command.volume
    dentry, row, parent = source
    other_dentry, other, new_parent = target
    drop_name(state, entry, number, command.parent, parent, command.name, dentry)
    drop_name(state, entry, number, command.new_parent, new_parent, command.new_name, other_dentry)
    add_name(state, entry, number, command.new_parent, new_parent, command.new_name, dentry.ino, dentry.kind)
    add_name(state, entry, number, command.parent, parent, command.name, other_dentry.ino, other_dentry.kind)
    _reparent(command.new_parent, dentry.kind, row, parent, new_parent)
    _reparent(command.parent, other_dentry.kind, other, new_parent, parent)
    save_new_contents(state, entry, number, command.parent, parent)
    save_new_contents(state, entry, number, command.new_parent, new_parent)
    save_changed(state, entry, number, dentry.ino, row)
    save_changed(state, entry, number, other_dentry.ino, other)
    return _renamed(command, dentry.ino, row, (other_dentry.ino, other), parent, new_parent)


def _reparent(parent_ino: int, kind: int, row: rows.InodeRow, old: rows.InodeRow, new: rows.InodeRow) -> None:
    """Lets the ".." of a directory follow it."""
    if kind == stat.S_IFDIR:
        old.nlink -= 1
        new.nlink += 1
        row.parent = parent_ino


def _renamed(
    command: Rename,
    ino: int,
    row: rows.InodeRow,
    replaced: tuple[int, rows.InodeRow] | None,
    parent: rows.InodeRow,
    new_parent: rows.InodeRow,
) -> Renamed:
    return Renamed(
        attr_of(ino, row),
        attr_of(*replaced) if replaced is not None else None,
        attr_of(command.parent, parent),
        attr_of(command.new_parent, new_parent),
    )
