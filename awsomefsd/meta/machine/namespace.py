"""Names are created, linked and removed as by the system calls of the same name; rename is in renames.py.

A name is two rows: the dentry, found by name, and the cookie row, found by readdir offset.  Cookies of a directory only grow, and a rename
gives a new one, so a readdir that goes on after any change neither repeats nor loses an entry that was there all the time.

Every rule checks everything before its first change; permissions and sticky bits are the kernel's (default_permissions).  The number of
subdirectories is not bounded by LINKS_MAX: st_nlink of a directory shows it, but it is no count of links that a program made.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import LINKS_MAX, SYMLINK_BYTES_MAX
from awsomefsd.meta.api.commands import Create, Entry, Link, ReleaseOrphan, Rmdir, Tmpfile, Unlink
from awsomefsd.meta.api.messages import Done, Found, Removed, Reply
from awsomefsd.meta.machine import write_leases, xattrs
from awsomefsd.meta.machine.inodes import (
    DIRECTORY_BYTES_SHOWN,
    attr_of,
    end_or_pin,
    save_changed,
    save_new_contents,
    tombstone,
)
from awsomefsd.meta.machine.quota import check_inode_quota
from awsomefsd.meta.state import history, rows
from awsomefsd.meta.state.lookups import check_name, inode_of, volume_of
from awsomefsd.meta.state.rows_cache import State

KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


def directory_of(state: State, volume: int, ino: int) -> rows.InodeRow:
    """Returns a directory that still has a name (nothing can be made in a removed one).  Raises FsError(ENOTDIR or ENOENT)."""
    row = inode_of(state, volume, ino)
    if not stat.S_ISDIR(row.mode):
        raise FsError(errno.ENOTDIR)
    if not row.nlink:
        raise FsError(errno.ENOENT, f"directory {ino} was removed")
    return row


def find(state: State, volume: int, parent: int, name: bytes) -> rows.DentryRow | None:
    """Returns the dentry of a name, or None."""
    return history.dentry(state, volume, parent, name)


def find_existing(state: State, volume: int, parent: int, name: bytes) -> tuple[rows.DentryRow, rows.InodeRow]:
    """Returns the dentry of a name and its inode.  Raises FsError(ENOENT) if there is none."""
    dentry = find(state, volume, parent, name)
    if dentry is None:
        raise FsError(errno.ENOENT)
    row = state.inode(volume, dentry.ino)
    assert row is not None, f"dentry without inode {dentry.ino}"
    return dentry, row


# --- the two rows of a name ---------------------------------------------------------------------------------------------
def add_name(state: State, entry: Entry, volume: int, parent: int, row: rows.InodeRow, name: bytes, ino: int, kind: int) -> None:
    """Writes the two rows of a name under a new cookie; the caller saves the directory."""
    cookie = row.next_cookie
    row.next_cookie = cookie + 1
    row.entries += 1
    history.add_name(state, volume, parent, name, rows.DentryRow(ino, kind, cookie, entry.stamp, entry.site))


def drop_name(state: State, entry: Entry, volume: int, parent: int, row: rows.InodeRow, name: bytes, dentry: rows.DentryRow) -> None:
    """Deletes the two rows of a name; the caller saves the directory."""
    row.entries -= 1
    history.drop_name(state, volume, parent, name, dentry)
    tombstone(state, entry, rows.TOMB_DENTRY, volume, parent, name)


# --- create and link ----------------------------------------------------------------------------------------------------
def create(state: State, entry: Entry, command: Create) -> Reply:
    """Makes an inode under a new name; or finds the file of that name, with `open_existing`.  Answered by Found."""
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
    check_inode_quota(state, volume)
    ino, row = make_inode(state, entry, command, volume, parent)
    if kind == stat.S_IFDIR:
        parent.nlink += 1
    add_name(state, entry, command.volume, command.parent, parent, command.name, ino, kind)
    save_new_contents(state, entry, command.volume, command.parent, parent)
    leased = write_leases.grant_with_inode(state, entry, command.volume, ino) if command.lease and kind == stat.S_IFREG else None
    return Found(attr_of(ino, row), attr_of(command.parent, parent), True, leased)


def tmpfile(state: State, entry: Entry, command: Tmpfile) -> Reply:
    """Makes a file without a name (O_TMPFILE).  Answered by Found.  The directory gives group and ACL, and does not change."""
    volume = volume_of(state, entry, command.volume, host=False)
    parent = directory_of(state, command.volume, command.parent)
    check_inode_quota(state, volume)
    mode = stat.S_IFREG | stat.S_IMODE(command.mode)
    create = Create(command.volume, command.parent, b"", mode, command.uid, command.gid, umask=command.umask)
    ino, row = make_inode(state, entry, create, volume, parent)
    row.nlink, row.linkable = 0, command.linkable
    state.ledger.pin(state, (entry.session,), command.volume, ino)
    return Found(attr_of(ino, row), None, True, write_leases.grant_with_inode(state, entry, command.volume, ino) if command.lease else None)


def make_inode(state: State, entry: Entry, command: Create, volume: rows.VolumeRow, parent: rows.InodeRow) -> tuple[int, rows.InodeRow]:
    """Makes and saves an inode without a name, and returns its number and row; the caller has checked the quota."""
    ino = state.ledger.new_number(state, volume)
    row = new_inode(entry, command, parent)
    xattrs.inherit(state, command.volume, ino, row, command.parent, parent, command.umask)
    state.save_inode(command.volume, ino, row)
    return ino, row


def new_inode(entry: Entry, command: Create, parent: rows.InodeRow) -> rows.InodeRow:
    """Returns the row of a new inode; group and set-group-ID follow from the directory."""
    kind = stat.S_IFMT(command.mode)
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
    """Gives an inode another name.  Answered by Found."""
    volume_of(state, entry, command.volume)
    check_name(command.name)
    parent = directory_of(state, command.volume, command.parent)
    row = inode_of(state, command.volume, command.ino)
    if stat.S_ISDIR(row.mode):
        raise FsError(errno.EPERM)
    if not row.nlink and not row.linkable:
        raise FsError(errno.ENOENT, "the inode has lost its last name")
    if find(state, command.volume, command.parent, command.name) is not None:
        raise FsError(errno.EEXIST)
    if row.nlink >= LINKS_MAX:
        raise FsError(errno.EMLINK)
    if not row.nlink:
        state.ledger.drop_pins(state, command.volume, command.ino)
        row.linkable = False
    row.nlink += 1
    add_name(state, entry, command.volume, command.parent, parent, command.name, command.ino, stat.S_IFMT(row.mode))
    save_changed(state, entry, command.volume, command.ino, row)
    save_new_contents(state, entry, command.volume, command.parent, parent)
    return Found(attr_of(command.ino, row), attr_of(command.parent, parent), True)


# --- unlink and rmdir ---------------------------------------------------------------------------------------------------
def unlink(state: State, entry: Entry, command: Unlink) -> Reply:
    """Removes a name of an inode that is no directory.  Answered by Removed."""
    volume = volume_of(state, entry, command.volume)
    check_name(command.name)
    parent = directory_of(state, command.volume, command.parent)
    dentry, row = find_existing(state, command.volume, command.parent, command.name)
    if dentry.kind == stat.S_IFDIR:
        raise FsError(errno.EISDIR)
    drop_name(state, entry, command.volume, command.parent, parent, command.name, dentry)
    save_new_contents(state, entry, command.volume, command.parent, parent)
    drop_link(state, entry, volume, dentry.ino, row, pinned=command.pinned)
    return Removed(attr_of(dentry.ino, row), attr_of(command.parent, parent))


def rmdir(state: State, entry: Entry, command: Rmdir) -> Reply:
    """Removes an empty directory.  Answered by Removed."""
    volume = volume_of(state, entry, command.volume)
    check_name(command.name)
    parent = directory_of(state, command.volume, command.parent)
    dentry, row = find_existing(state, command.volume, command.parent, command.name)
    if dentry.kind != stat.S_IFDIR:
        raise FsError(errno.ENOTDIR)
    if row.entries:
        raise FsError(errno.ENOTEMPTY)
    drop_name(state, entry, command.volume, command.parent, parent, command.name, dentry)
    parent.nlink -= 1
    save_new_contents(state, entry, command.volume, command.parent, parent)
    drop_link(state, entry, volume, dentry.ino, row, pinned=command.pinned)
    return Removed(attr_of(dentry.ino, row), attr_of(command.parent, parent))


def drop_link(state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, *, pinned: bool) -> None:
    """Counts one name less; without a name the inode becomes an orphan, or ends."""
    row.nlink = 0 if stat.S_ISDIR(row.mode) else row.nlink - 1
    if row.nlink:
        save_changed(state, entry, volume.volume, ino, row)
    else:
        end_or_pin(state, entry, volume, ino, row, pinned=pinned)


def release_orphan(state: State, entry: Entry, command: ReleaseOrphan) -> Reply:
    """Ends the pins of the session on inodes without names."""
    volume = volume_of(state, entry, command.volume, host=False)
    for ino in command.inos:
        state.ledger.unpin(state, entry, volume, ino, entry.session)
    return Done()
