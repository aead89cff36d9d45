"""A record names and touches inodes; a checksum of those says whether its holder and the leader agree.

The holder of an operation's inodes runs the rules over its own rows and puts the checksum into the record; the leader runs the same rules
and compares.  It covers the governed fields (meta/state/governed.py) that no commit of data changes: those come in an order of their own.
Sessions that share a volume keep an inode without names for each other, at the leader only; so one that can get none again counts as gone.
"""

from __future__ import annotations

from typing import Any

from crc32c import crc32c

from awsomefsd.base.codec import encode
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.machine.namespace import find
from awsomefsd.meta.state import governed, rows
from awsomefsd.meta.state.rows_cache import State

_Name = tuple[int, bytes]  # directory, name


def names_of(command: c.DelegatedCommand) -> list[_Name]:
    """Returns the names of a command, in the order of Record.leads_to."""
    if isinstance(command, c.Rename):
        return [(command.parent, command.name), (command.new_parent, command.new_name)]
    if isinstance(command, (c.Create, c.Link, c.Unlink, c.Rmdir)):
        return [(command.parent, command.name)]
    return []


def inodes_of(record: c.DecidedRecord) -> list[int]:
    """Returns the inodes that a record may change, each once: directories, what its names led to, what it makes."""
    command = record.command
    found = [parent for parent, _ in names_of(command)] + record.leads_to
    if isinstance(command, c.ReleaseOrphan):
        found += command.inos
    elif isinstance(command, (c.Link, c.SetAttr, c.SetXattr, c.RemoveXattr, c.Fallocate, c.SetLock)):
        found.append(command.ino)
    return [ino for ino in dict.fromkeys([*found, record.ino]) if ino]


def check_of(state: State, record: c.DecidedRecord, touched: list[int] | None = None) -> int:
    """Returns the checksum of what the names and inodes of a record are now; never 0, which says that there is none.

    `touched`: what `inodes_of` gives, where that is known.
    """
    volume = record.command.volume
    names = [_name(state, volume, *name) for name in names_of(record.command)]
    inodes = [(ino, _of_inode(state.inode(volume, ino))) for ino in (inodes_of(record) if touched is None else touched)]
    return crc32c(encode((names, inodes))) or 1


def _name(state: State, volume: int, parent: int, name: bytes) -> tuple[int, int, int] | None:
    dentry = find(state, volume, parent, name)
    return None if dentry is None else (dentry.ino, dentry.kind, dentry.cookie)


def _of_inode(row: rows.InodeRow | None) -> tuple[Any, ...] | None:
    return None if row is None or not (row.nlink or row.linkable) else governed.beside_data(row)
