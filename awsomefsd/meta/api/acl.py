"""POSIX access control lists as values: their bytes in an extended attribute, and what they mean for a mode.  Pure.

The rules are those of Linux (fs/posix_acl.c), so that a mount answers as ext4 does:
- the permission bits of a mode and an access ACL are one thing seen twice: owner and other are the entries of these names, the group bits
  are the mask where there is one, else the group's entry.  Whoever changes one changes the other in the same log entry
  (meta/machine/xattrs.py, meta/machine/attributes.py);
- an ACL that says no more than a mode does (three entries) is not kept: it is the mode;
- a directory's default ACL takes the place of the umask for what is made in it.

Access by them is checked by the kernel; `grants` is for callers whom only the server can check (vfs/ops/permissions.py).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from awsomefsd.base.errors import FsError

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
NAMES = (ACCESS, DEFAULT)
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")  # tag, permissions, uid or gid
_PERMISSIONS, _BITS = 0o7, 0o777
_ORDER = (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)
_REPEATED = (USER, GROUP)

Acl = list[tuple[int, int, int]]


def parse(value: bytes) -> Acl:
    """Returns the entries (tag, permissions, uid or gid) of an attribute's value; none for a bare header, which means: no ACL.

    Raises FsError(EINVAL) for an invalid ACL, FsError(EOPNOTSUPP) for another version.
    """
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise FsError(errno.EINVAL, f"an ACL has no {len(value)} bytes")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise FsError(errno.EOPNOTSUPP, "an ACL of another version")
    entries: Acl = list(_ENTRY.iter_unpack(value[_HEADER.size :]))
    if entries:
        _check(entries)
    return entries


def _check(entries: Acl) -> None:
    """Raises FsError(EINVAL) unless the entries are in order, none comes too often, and there is a mask where somebody is named."""
    place = 0
    tags = [tag for tag, _, _ in entries]
    for at, (tag, permissions, _) in enumerate(entries):
        if permissions & ~_PERMISSIONS or tag not in _ORDER:
            raise FsError(errno.EINVAL, f"ACL entry {tag:#x} with permissions {permissions:#o}")
        step = _ORDER.index(tag)
        if step < place or (at and step == place and tag not in _REPEATED):
            raise FsError(errno.EINVAL, "ACL entries are not in order")
        place = step
    if not {USER_OBJ, GROUP_OBJ, OTHER} <= set(tags) or (MASK not in tags and (USER in tags or GROUP in tags)):
        raise FsError(errno.EINVAL, "an ACL without owner, group, other, or the mask that names need")


def pack(entries: Acl) -> bytes:
    """Returns the value of the attribute that holds these entries."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_minimal(entries: Acl) -> bool:
    """Returns True if the ACL says no more than a mode does."""
    return all(tag in (USER_OBJ, GROUP_OBJ, OTHER) for tag, _, _ in entries)


def mode_bits(entries: Acl) -> int:
    """Returns the nine bits of st_mode that go with an access ACL."""
    found = {tag: permissions for tag, permissions, _ in entries}
    return found[USER_OBJ] << 6 | found.get(MASK, found[GROUP_OBJ]) << 3 | found[OTHER]


def with_mode(entries: Acl, mode: int) -> Acl:
    """Returns an access ACL after chmod(2): names keep their permissions, the mask (or else the group) takes the group bits."""
    shown = {USER_OBJ: mode >> 6, OTHER: mode, _group_of(entries): mode >> 3}
    return [(tag, shown[tag] & _PERMISSIONS if tag in shown else permissions, who) for tag, permissions, who in entries]


def grants(entries: Acl, owner: tuple[int, int], uid: int, is_in: Callable[[int], bool], wanted: int) -> bool:
    """Returns True if an access ACL allows a caller all that is wanted, as posix_acl_permission decides.

    `owner` is (uid, gid) of the inode; `is_in(gid)` says if the caller is in a group; `wanted` has the bits 4, 2, 1 for rwx.
    """
    mask = next((permissions for tag, permissions, _ in entries if tag == MASK), 0o7)
    in_group = False
    for tag, permissions, who in entries:
        if tag == USER_OBJ and uid == owner[0]:
            return not wanted & ~permissions
        if tag == USER and uid == who:
            return not wanted & ~(permissions & mask)
        if (tag == GROUP_OBJ and is_in(owner[1])) or (tag == GROUP and is_in(who)):
            in_group = True
            if not wanted & ~permissions:
                return not wanted & ~mask
        if tag == OTHER:
            return not in_group and not wanted & ~permissions
    return False


def inherited(default: Acl, mode: int) -> tuple[Acl, int]:
    """Returns the access ACL and the mode of an inode made with `mode` in a directory of this default ACL.

    Nobody gets more than the mode asks for.
    """
    entries = with_mode(default, mode & mode_bits(default))
    return entries, mode & ~_BITS | mode_bits(entries)


def _group_of(entries: Acl) -> int:
    return MASK if any(tag == MASK for tag, _, _ in entries) else GROUP_OBJ
