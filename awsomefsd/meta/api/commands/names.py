"""Commands about names: create, link, unlink, rename."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command


class Create(Command, tag=20):
    """Make any kind of inode under a name.  `mode` holds the S_IFMT bits; EEXIST names no inode.

    A default ACL of the directory decides the permission bits, else they lose those of `umask` (0 where it was applied already).
    With `open_existing` (O_CREAT without O_EXCL) an existing regular file is returned instead.  `pin` opens it for the entry's session.
    setgid directories: the group is inherited, and the bit too by directories.
    """

    volume: int
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""  # of a symbolic link
    open_existing: bool = False
    umask: int = 0
    lease: bool = False  # what a session makes that shares its volume and caches begins with its lease: a file to write, a directory read


class Tmpfile(Command, tag=60):
    """A regular file without a name (O_TMPFILE), pinned by the entry's session.  `linkable`: Link may give it its first name."""

    volume: int
    parent: int
    mode: int
    uid: int
    gid: int
    umask: int = 0
    linkable: bool = True
    lease: bool = False  # as in Create


class Link(Command, tag=21):
    """EPERM for a directory, EMLINK at LINKS_MAX, ENOENT for an inode that has lost its last name."""

    volume: int
    ino: int
    parent: int
    name: bytes


class Unlink(Command, tag=22):
    """Remove a non-directory name.  `pinned`: the session has the inode open, so the last link makes an orphan row instead of an end."""

    volume: int
    parent: int
    name: bytes
    pinned: bool = False


class Rmdir(Command, tag=23):
    """`pinned` as in Unlink (an open or current directory)."""

    volume: int
    parent: int
    name: bytes
    pinned: bool = False


RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


class Rename(Command, tag=24):
    """rename(2) with `flags`; `pinned` speaks of the inode that is replaced, `uid` and `gid` of the whiteout that is left behind."""

    volume: int
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int = 0
    pinned: bool = False
    uid: int = 0
    gid: int = 0


class ReleaseOrphan(Command, tag=28):
    """Last close of an inode without names: its pin by the entry's session ends."""

    volume: int
    inos: list[int]
