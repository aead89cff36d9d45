"""Refusals that several rules share.  A rule raises before its first change; machine.py turns the exception into the reply Failed."""

from __future__ import annotations

import errno

from awsomefsd.errors import FsError
from awsomefsd.limits import NAME_BYTES_MAX
from awsomefsd.meta import rows
from awsomefsd.meta.commands import Entry
from awsomefsd.meta.state import State


class Fence(FsError):
    """The entry's session or epoch has ended.  Never kept as a result: the same request may come again under a new session."""

    def __init__(self, detail: str) -> None:
        super().__init__(errno.ESTALE, detail)


class Later(FsError):
    """Nothing was changed and the same request may succeed after a pause; never kept as a result."""

    retry_helps = True


class NotNow(FsError):
    """Nothing was changed and nothing is kept: whoever asked may do something about it, and ask again under the same request id."""


def volume_of(state: State, entry: Entry, volume: int, *, host: bool = True) -> rows.VolumeRow:
    """The live volume, if the entry's session (or the host, where that may be) is allowed to change it."""
    if entry.session:
        session_of(state, entry, volume)
    elif not host:
        raise FsError(errno.EINVAL, "this command needs a session")
    row = state.volume(volume)
    if row is None or row.deleted:
        raise FsError(errno.ENOENT, f"no volume {volume}")
    return row


def session_of(state: State, entry: Entry, volume: int = 0) -> rows.SessionRow:
    """The live session of the entry; with `volume`, one that serves it."""
    row = state.session(entry.session) if entry.session else None
    if row is None or row.ended or row.epoch != entry.epoch:
        raise Fence(f"session {entry.session} epoch {entry.epoch} has ended")
    if volume and row.volume != volume:
        raise FsError(errno.EINVAL, f"session {entry.session} serves volume {row.volume}, not {volume}")
    return row


def inode_of(state: State, volume: int, ino: int) -> rows.InodeRow:
    row = state.inode(volume, ino)
    if row is None:
        raise FsError(errno.ENOENT, f"no inode {ino}")
    return row


def check_name(name: bytes) -> None:
    """The kernel lets none of these through; tools and gateways might."""
    if len(name) > NAME_BYTES_MAX:
        raise FsError(errno.ENAMETOOLONG)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FsError(errno.EINVAL, "not a file name")
