"""Extended attributes, and those of them that are POSIX ACLs: the one place that writes their rows.

An access ACL and the mode's permission bits always agree (meta/api/acl.py); fsck checks it.  An ACL that a mode can express is not kept.
Removing an ACL that is not there succeeds, as on ext4; removing any other attribute that is not there is ENODATA.  The consistency that an
inode asks for stands in its row too, so that it comes with the attributes.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base import consistency
from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX
from awsomefsd.meta.api import acl
from awsomefsd.meta.api.commands import XATTR_CREATE, XATTR_REPLACE, Entry, RemoveXattr, SetXattr
from awsomefsd.meta.api.messages import Found, Reply
from awsomefsd.meta.machine.inodes import attr_of, save_changed
from awsomefsd.meta.state import history, rows
from awsomefsd.meta.state.lookups import inode_of, volume_of
from awsomefsd.meta.state.rows_cache import State

CAPABILITY = b"security.capability"


# --- rows ---------------------------------------------------------------------------------------------------------------
def read(state: State, volume: int, ino: int, row: rows.InodeRow, name: bytes) -> bytes | None:
    """Returns the value of an attribute, or None."""
    return history.xattr(state, volume, ino, name) if row.xattrs else None


def check_room(row: rows.InodeRow, name: bytes, old: bytes | None, value: bytes) -> None:
    """Raises FsError(ENOSPC) if the inode may not hold so much."""
    stored = row.xattr_bytes - (len(name) + len(old) if old is not None else 0)
    if stored + len(name) + len(value) > XATTRS_BYTES_MAX:
        raise FsError(errno.ENOSPC, "the inode has no room for more attributes")


def put(state: State, volume: int, ino: int, row: rows.InodeRow, name: bytes, old: bytes | None, value: bytes) -> None:
    """Writes an attribute whose value was `old` (None: it is new).  The caller saves the inode."""
    history.put_xattr(state, volume, ino, row, name, value)
    row.xattr_bytes += len(value) - (len(old) if old is not None else -len(name))
    row.xattrs += old is None
    if name == consistency.XATTR:
        row.consistency = consistency.of_value(value)


def drop(state: State, volume: int, ino: int, row: rows.InodeRow, name: bytes) -> bool:
    """Deletes an attribute.  Returns False if it was not there.  The caller saves the inode."""
    old = read(state, volume, ino, row, name)
    if old is None:
        return False
    history.drop_xattr(state, volume, ino, row, name)
    row.xattr_bytes -= len(name) + len(old)
    row.xattrs -= 1
    if name == consistency.XATTR:
        row.consistency = consistency.UNSAID
    return True


# --- ACLs of others' changes ----------------------------------------------------------------------------------------------
def follow_chmod(state: State, volume: int, ino: int, row: rows.InodeRow) -> None:
    """Changes the access ACL after the mode, so that both agree."""
    old = read(state, volume, ino, row, acl.ACCESS)
    if old is not None:
        put(state, volume, ino, row, acl.ACCESS, old, acl.pack(acl.with_mode(acl.parse(old), row.mode)))


def inherit(state: State, volume: int, ino: int, row: rows.InodeRow, parent: int, above: rows.InodeRow, umask: int) -> None:
    """Gives a new inode the default ACL of its directory, or else takes the bits of the umask.  Links have modes of their own.

    The consistency that the directory asks for holds in it too.
    """
    if stat.S_ISLNK(row.mode):
        return
    said = read(state, volume, parent, above, consistency.XATTR) if above.consistency else None
    if said is not None:
        put(state, volume, ino, row, consistency.XATTR, None, said)
    value = read(state, volume, parent, above, acl.DEFAULT)
    if value is None:
        row.mode &= ~(umask & 0o777)
        return
    entries, row.mode = acl.inherited(acl.parse(value), row.mode)
    if not acl.is_minimal(entries):
        put(state, volume, ino, row, acl.ACCESS, None, acl.pack(entries))
    if stat.S_ISDIR(row.mode):
        put(state, volume, ino, row, acl.DEFAULT, None, value)


# --- commands -----------------------------------------------------------------------------------------------------------
def set_xattr(state: State, entry: Entry, command: SetXattr) -> Reply:
    """Sets an extended attribute or an ACL.  Answered by Found."""
    volume_of(state, entry, command.volume)
    row = inode_of(state, command.volume, command.ino)
    if not 0 < len(command.name) <= XATTR_NAME_BYTES_MAX or b"\0" in command.name:
        raise FsError(errno.ERANGE)
    if len(command.value) > XATTR_VALUE_BYTES_MAX:
        raise FsError(errno.E2BIG)
    if command.name in acl.NAMES:
        return _set_acl(state, entry, command, row)
    if command.name == consistency.XATTR and not consistency.of_value(command.value):
        raise FsError(errno.EINVAL, f"{consistency.XATTR.decode()} is {consistency.WORDS}")
    old = read(state, command.volume, command.ino, row, command.name)
    if old is None and command.flags & XATTR_REPLACE:
        raise FsError(errno.ENODATA)
    if old is not None and command.flags & XATTR_CREATE:
        raise FsError(errno.EEXIST)
    if old == command.value:
        return Found(attr_of(command.ino, row))  # as on ext4: no change, no ctime
    check_room(row, command.name, old, command.value)
    put(state, command.volume, command.ino, row, command.name, old, command.value)
    save_changed(state, entry, command.volume, command.ino, row)
    return Found(attr_of(command.ino, row))


def _set_acl(state: State, entry: Entry, command: SetXattr, row: rows.InodeRow) -> Reply:
    volume, ino, name = command.volume, command.ino, command.name
    if stat.S_ISLNK(row.mode):
        raise FsError(errno.EOPNOTSUPP)
    entries = acl.parse(command.value)
    if not entries:
        return remove_xattr(state, entry, RemoveXattr(volume, ino, name))
    if name == acl.DEFAULT and not stat.S_ISDIR(row.mode):
        raise FsError(errno.EACCES, "only a directory has a default ACL")
    mode = row.mode
    if name == acl.ACCESS:
        mode = mode & ~0o777 | acl.mode_bits(entries)
        if command.kill_sgid:
            mode &= ~stat.S_ISGID
    old = read(state, volume, ino, row, name)
    new = None if name == acl.ACCESS and acl.is_minimal(entries) else command.value
    if (old, row.mode) == (new, mode):
        return Found(attr_of(ino, row))
    if new is not None:
        check_room(row, name, old, new)
        put(state, volume, ino, row, name, old, new)
    elif old is not None:
        drop(state, volume, ino, row, name)
    row.mode = mode
    save_changed(state, entry, volume, ino, row)
    return Found(attr_of(ino, row))


def remove_xattr(state: State, entry: Entry, command: RemoveXattr) -> Reply:
    """Removes an extended attribute or an ACL.  Answered by Found."""
    volume_of(state, entry, command.volume)
    row = inode_of(state, command.volume, command.ino)
    if len(command.name) > XATTR_NAME_BYTES_MAX or not drop(state, command.volume, command.ino, row, command.name):
        if command.name in acl.NAMES:
            return Found(attr_of(command.ino, row))
        raise FsError(errno.ENODATA)
    save_changed(state, entry, command.volume, command.ino, row)
    return Found(attr_of(command.ino, row))
