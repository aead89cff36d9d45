"""The holder of an inode governs some fields of its rows: nobody else changes those while the lease is held.

The rest of an inode's row is the leader's: where bytes lie and how many there are, what of the dirty log is committed, the version of the
last change, the time of access.  Rows that a holder has decided and rows that the leader has made of the same records are equal in these
fields, and differ in others.  Pure.
"""

from __future__ import annotations

import stat
from typing import Any

from awsomefsd.meta.state import keys, rows

KINDS = (keys.INODE, keys.DENTRY, keys.COOKIE, keys.XATTR)  # of the rows that a holder decides; each key begins with the inode it is of
GROUP_BYTES = keys.NAME_AT  # of a key: its kind, and the inode it is of


def beside_data(row: rows.InodeRow) -> tuple[Any, ...]:
    """Returns the governed fields of an inode but those that a commit of data changes too: size and times of a regular file."""
    return _names(row) if stat.S_ISREG(row.mode) else (*_names(row), *_times(row))


def _names(row: rows.InodeRow) -> tuple[Any, ...]:
    return (
        row.mode, row.nlink, row.uid, row.gid, row.rdev, row.btime_ns, row.xattrs, row.xattr_bytes, row.parent, row.entries,
        row.next_cookie, bytes(row.target), row.linkable, row.consistency,
    )  # fmt: skip


def _times(row: rows.InodeRow) -> tuple[Any, ...]:
    return row.size, row.mtime_ns, row.ctime_ns, row.mtime_explicit


def fields(key: bytes, raw: bytes) -> tuple[Any, ...]:
    """Returns the governed fields of a row of one of KINDS.  Raises Corrupt and FormatTooNew for bytes that do not decode."""
    kind = keys.kind_of(key)[2]
    if kind == keys.INODE:
        row: rows.InodeRow = rows.INODE.loads(raw)
        return *_names(row), *_times(row)
    if kind == keys.DENTRY:
        dentry: rows.DentryRow = rows.DENTRY.loads(raw)
        return dentry.ino, dentry.kind, dentry.cookie
    if kind == keys.COOKIE:
        cookie: rows.CookieRow = rows.COOKIE.loads(raw)
        return cookie.ino, cookie.kind, bytes(cookie.name)
    assert kind == keys.XATTR, f"no holder governs rows of kind {kind:#x}"
    return (bytes(rows.XATTR.loads(raw).value),)
