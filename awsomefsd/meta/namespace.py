"""Names: create, link, unlink, rmdir, rename, with the semantics of the system calls of the same name.

A name is two rows: the dentry, found by name, and the cookie row, found by readdir offset.  Cookies of a directory only grow, and a rename
gives a new one, so a readdir that goes on after any change neither repeats nor loses an entry that was there all the time.

Every rule checks everything before its first change; permissions and sticky bits are the kernel's (default_permissions).  The number of
subdirectories is not bounded by LINKS_MAX: that is what st_nlink of a directory shows, not a count of links that anybody made.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.errors import FsError
from awsomefsd.limits import LINKS_MAX, SYMLINK_BYTES_MAX
from awsomefsd.meta import keys, rows
from awsomefsd.meta.commands import RENAME_EXCHANGE, RENAME_NOREPLACE, Create, Entry, Link, ReleaseOrphan, Rename, Rmdir, Unlink
from awsomefsd.meta.inodes import DIRECTORY_BYTES_SHOWN, attr_of, changed, contents_changed, lost_last_name, tombstone, unpin
from awsomefsd.meta.messages import Done, Found, Removed, Renamed, Reply
from awsomefsd.meta.quota import check_inode_quota
from awsomefsd.meta.refuse import check_name, inode_of, volume_of
from awsomefsd.meta.state import State
from awsomefsd.types import ROOT_INO

KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


def directory_of(state: State, volume: int, ino: int) -> rows.InodeRow:
    """A directory that still has a name (nothing can be made in a removed one)."""
    row = inode_of(state, volume, ino)
    if not stat.S_ISDIR(row.mode):
        raise FsError(errno.ENOTDIR)
    if not row.nlink:
        raise FsError(errno.ENOENT, f"directory {ino} was removed")
    return row


def find(state: State, volume: int, parent: int, name: bytes) -> rows.DentryRow | None:
    return state.read(keys.dentry(volume, parent, name), rows.DENTRY)


def find_existing(state: State, volume: int, parent: int, name: bytes) -> tuple[rows.DentryRow, rows.InodeRow]:
    dentry = find(state, volume, parent, name)
    if dentry is None:
        raise FsError(errno.ENOENT)
    row = state.inode(volume, dentry.ino)
    assert row is not None, f"dentry without inode {dentry.ino}"
    return dentry, row


# --- the two rows of a name ---------------------------------------------------------------------------------------------
def _add_name(state: State, entry: Entry, volume: int, parent: int, row: rows.InodeRow, name: bytes, ino: int, kind: int) -> None:
    cookie = row.next_cookie
    row.next_cookie = cookie + 1
    row.entries += 1
    put = state.txn.put
    put(keys.dentry(volume, parent, name), rows.DENTRY.dumps(rows.DentryRow(ino, kind, cookie, entry.stamp, entry.site)))
    put(keys.cookie(volume, parent, cookie), rows.COOKIE.dumps(rows.CookieRow(ino, kind, name)))


def _drop_name(
    state: State, entry: Entry, volume: int, parent: int, row: rows.InodeRow, name: bytes, dentry: rows.DentryRow
) -> None:
    row.entries -= 1
    state.txn.delete(keys.dentry(volume, parent, name))
    state.txn.delete(keys.cookie(volume, parent, dentry.cookie))
    tombstone(state, entry, rows.TOMB_DENTRY, volume, parent, name)


# --- create and link ----------------------------------------------------------------------------------------------------
def create(state: State, entry: Entry, command: Create) -> Reply:
    volume = volume_of(state, entry, command.volume)
    check_name(command.name)
    parent = directory_of(state, command.volume, command.parent)
    existing = find(state, command.volume, command.parent, command.name)
    if existing is not None:
        if command.open_existing and existing.kind == stat.S_IFREG:
            return Found(attr_of(existing.ino, inode_of(state, command.volume, existing.ino)))
        raise FsError(errno.EEXIST)
    kind = stat.S_IFMT(command.mode)
    if kind not in KINDS:
        raise FsError(errno.EINVAL, f"mode {command.mode:o} names no kind of inode")
    if kind == stat.S_IFLNK and not 0 < len(command.target) <= SYMLINK_BYTES_MAX:
        raise FsError(errno.ENAMETOOLONG if command.target else errno.ENOENT)
    check_inode_quota(volume)
    ino = volume.next_ino
    volume.next_ino = ino + 1
    volume.used_inodes += 1
    state.save_volume(volume)
    row = new_inode(entry, command, kind, parent)
    state.save_inode(command.volume, ino, row)
    if kind == stat.S_IFDIR:
        parent.nlink += 1
    _add_name(state, entry, command.volume, command.parent, parent, command.name, ino, kind)
    contents_changed(state, entry, command.volume, command.parent, parent)
    return Found(attr_of(ino, row), attr_of(command.parent, parent), True)


def new_inode(entry: Entry, command: Create, kind: int, parent: rows.InodeRow) -> rows.InodeRow:
    mode, gid = command.mode, command.gid
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if kind == stat.S_IFDIR:
            mode |= stat.S_ISGID
    now = entry.time_ns
    row = rows.InodeRow(mode, 1, command.uid, gid, 0, 0, 0, now, now, now, now, entry.stamp, entry.site)
    if kind == stat.S_IFREG:
        row.inline = True
    elif kind == stat.S_IFDIR:
        row.nlink, row.size, row.parent = 2, DIRECTORY_BYTES_SHOWN, command.parent
    elif kind == stat.S_IFLNK:
        row.target, row.size = command.target, len(command.target)
    else:
        row.rdev = command.rdev
    return row


def link(state: State, entry: Entry, command: Link) -> Reply:
    volume_of(state, entry, command.volume)
    check_name(command.name)
    parent = directory_of(state, command.volume, command.parent)
    row = inode_of(state, command.volume, command.ino)
    if stat.S_ISDIR(row.mode):
        raise FsError(errno.EPERM)
    if not row.nlink:
        raise FsError(errno.ENOENT, "the inode has lost its last name")
    if find(state, command.volume, command.parent, command.name) is not None:
        raise FsError(errno.EEXIST)
    if row.nlink >= LINKS_MAX:
        raise FsError(errno.EMLINK)
    row.nlink += 1
    _add_name(state, entry, command.volume, command.parent, parent, command.name, command.ino, stat.S_IFMT(row.mode))
    changed(state, entry, command.volume, command.ino, row)
    contents_changed(state, entry, command.volume, command.parent, parent)
    return Found(attr_of(command.ino, row), attr_of(command.parent, parent), True)


# --- unlink and rmdir ---------------------------------------------------------------------------------------------------
def unlink(state: State, entry: Entry, command: Unlink) -> Reply:
    volume = volume_of(state, entry, command.volume)
    check_name(command.name)
    parent = directory_of(state, command.volume, command.parent)
    dentry, row = find_existing(state, command.volume, command.parent, command.name)
    if dentry.kind == stat.S_IFDIR:
        raise FsError(errno.EISDIR)
    _drop_name(state, entry, command.volume, command.parent, parent, command.name, dentry)
    contents_changed(state, entry, command.volume, command.parent, parent)
    _lose_name(state, entry, volume, dentry.ino, row, pinned=command.pinned)
    return Removed(attr_of(dentry.ino, row), attr_of(command.parent, parent))


def rmdir(state: State, entry: Entry, command: Rmdir) -> Reply:
    volume = volume_of(state, entry, command.volume)
    check_name(command.name)
    parent = directory_of(state, command.volume, command.parent)
    dentry, row = find_existing(state, command.volume, command.parent, command.name)
    if dentry.kind != stat.S_IFDIR:
        raise FsError(errno.ENOTDIR)
    if row.entries:
        raise FsError(errno.ENOTEMPTY)
    _drop_name(state, entry, command.volume, command.parent, parent, command.name, dentry)
    parent.nlink -= 1
    contents_changed(state, entry, command.volume, command.parent, parent)
    _lose_name(state, entry, volume, dentry.ino, row, pinned=command.pinned)
    return Removed(attr_of(dentry.ino, row), attr_of(command.parent, parent))


def _lose_name(state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, *, pinned: bool) -> None:
    row.nlink = 0 if stat.S_ISDIR(row.mode) else row.nlink - 1
    if row.nlink:
        changed(state, entry, volume.volume, ino, row)
    else:
        lost_last_name(state, entry, volume, ino, row, pinned=pinned)


def release_orphan(state: State, entry: Entry, command: ReleaseOrphan) -> Reply:
    volume = volume_of(state, entry, command.volume, host=False)
    for ino in command.inos:
        unpin(state, entry, volume, ino, entry.session)
    return Done()


# --- rename -------------------------------------------------------------------------------------------------------------
def rename(state: State, entry: Entry, command: Rename) -> Reply:
    volume = volume_of(state, entry, command.volume)
    check_name(command.name)
    check_name(command.new_name)
    if command.flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise FsError(errno.EINVAL, f"rename flags {command.flags:#x}")
    number = command.volume
    parent = directory_of(state, number, command.parent)
    new_parent = directory_of(state, number, command.new_parent)
    dentry, row = find_existing(state, number, command.parent, command.name)
    target = find(state, number, command.new_parent, command.new_name)
    if target is None:
        if command.flags == RENAME_EXCHANGE:
            raise FsError(errno.ENOENT)
    elif command.flags == RENAME_NOREPLACE:
        raise FsError(errno.EEXIST)
    elif target.ino == dentry.ino:  # the same name, or two links of one inode: nothing happens
        return _renamed(command, dentry.ino, row, None, parent, new_parent)
    other = inode_of(state, number, target.ino) if target is not None else None
    _check_trees(state, command, dentry, target)
    if target is not None and other is not None:
        if command.flags == RENAME_EXCHANGE:
            return _exchange(state, entry, command, (dentry, row, parent), (target, other, new_parent))
        _check_replaced(dentry, target, other)
    return _move(state, entry, command, volume, (dentry, row, parent), new_parent, target, other)


_Side = tuple[rows.DentryRow, rows.InodeRow, rows.InodeRow]  # dentry, its inode, its directory


def _check_trees(state: State, command: Rename, dentry: rows.DentryRow, target: rows.DentryRow | None) -> None:
    """A directory never moves below itself."""
    if command.parent == command.new_parent:
        return
    if dentry.kind == stat.S_IFDIR and _below(state, command.volume, command.new_parent, dentry.ino):
        raise FsError(errno.EINVAL, "a directory cannot move into itself")
    if target is not None and target.kind == stat.S_IFDIR and _below(state, command.volume, command.parent, target.ino):
        raise FsError(errno.EINVAL if command.flags == RENAME_EXCHANGE else errno.ENOTEMPTY)


def _below(state: State, volume: int, ino: int, ancestor: int) -> bool:
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
        _drop_name(state, entry, number, command.new_parent, new_parent, command.new_name, target)
        if target.kind == stat.S_IFDIR:
            new_parent.nlink -= 1
    _drop_name(state, entry, number, command.parent, parent, command.name, dentry)
    _add_name(state, entry, number, command.new_parent, new_parent, command.new_name, dentry.ino, dentry.kind)
    _reparent(command.new_parent, dentry.kind, row, parent, new_parent)
    contents_changed(state, entry, number, command.parent, parent)
    contents_changed(state, entry, number, command.new_parent, new_parent)
    changed(state, entry, number, dentry.ino, row)
    if target is not None and other is not None:
        _lose_name(state, entry, volume, target.ino, other, pinned=command.pinned)
    replaced = (target.ino, other) if target is not None and other is not None else None
    return _renamed(command, dentry.ino, row, replaced, parent, new_parent)


def _exchange(state: State, entry: Entry, command: Rename, source: _Side, target: _Side) -> Reply:
    number = command.volume
    dentry, row, parent = source
    other_dentry, other, new_parent = target
    _drop_name(state, entry, number, command.parent, parent, command.name, dentry)
    _drop_name(state, entry, number, command.new_parent, new_parent, command.new_name, other_dentry)
    _add_name(state, entry, number, command.new_parent, new_parent, command.new_name, dentry.ino, dentry.kind)
    _add_name(state, entry, number, command.parent, parent, command.name, other_dentry.ino, other_dentry.kind)
    _reparent(command.new_parent, dentry.kind, row, parent, new_parent)
    _reparent(command.parent, other_dentry.kind, other, new_parent, parent)
    contents_changed(state, entry, number, command.parent, parent)
    contents_changed(state, entry, number, command.new_parent, new_parent)
    changed(state, entry, number, dentry.ino, row)
    changed(state, entry, number, other_dentry.ino, other)
    return _renamed(command, dentry.ino, row, (other_dentry.ino, other), parent, new_parent)


def _reparent(parent_ino: int, kind: int, row: rows.InodeRow, old: rows.InodeRow, new: rows.InodeRow) -> None:
    """A directory's ".." follows it."""
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
) -> Reply:
    return Renamed(
        attr_of(ino, row),
        attr_of(*replaced) if replaced is not None else None,
        attr_of(command.parent, parent),
        attr_of(command.new_parent, new_parent),
    )
