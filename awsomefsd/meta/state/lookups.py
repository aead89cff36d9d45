"""Several rules share these look-ups and their refusals.

A rule raises before its first change; meta/machine/machine.py turns the exception into the reply Failed.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NAME_BYTES_MAX
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State


class EpochEnded(FsError):
    """The entry's session or epoch has ended.  Never kept as a result: the same request may come again under a new session."""

    def __init__(self, detail: str) -> None:
        super().__init__(errno.ESTALE, detail)


class RetryLater(FsError):
    """Nothing was changed and the same request may succeed after a pause; never kept as a result."""

    retry_helps = True


class NotKept(FsError):
    """Nothing was changed and nothing is kept: the caller may act on the reason, and ask again under the same request id."""


def volume_of(state: State, entry: Entry, volume: int, *, host: bool = True) -> rows.VolumeRow:
    """Returns the volume, if the entry's session (or the daemon, with `host`) may change it.

    Raises EpochEnded if the session has ended, FsError(ENOENT) if there is no such volume, FsError(EINVAL) if the session serves another.
    """
    if entry.session:
        session_of(state, entry, volume)
    elif not host:
        raise FsError(errno.EINVAL, "this command needs a session")
    row = state.volume(volume)
    if row is None or row.deleted:
        raise FsError(errno.ENOENT, f"no volume {volume}")
    return row


def session_of(state: State, entry: Entry, volume: int = 0) -> rows.SessionRow:
    """Returns the live session of the entry; with `volume`, one that serves it.

    Raises EpochEnded if it has ended, FsError(EINVAL) if it serves another volume, FsError(EROFS) if it reads a snapshot.
    """
    row = state.session(entry.session) if entry.session else None
    if row is None or row.ended or row.epoch != entry.epoch:
        raise EpochEnded(f"session {entry.session} epoch {entry.epoch} has ended")
    if row.snapshot:
        raise FsError(errno.EROFS, f"session {entry.session} reads snapshot {row.snapshot} of volume {row.volume}")
    if volume and row.volume != volume:
        raise FsError(errno.EINVAL, f"session {entry.session} serves volume {row.volume}, not {volume}")
    return row


def is_live(state: State, session: int) -> bool:
    """Returns True if the session has not ended."""
    row = state.session(session)
    return row is not None and not row.ended


def inode_of(state: State, volume: int, ino: int) -> rows.InodeRow:
    """Returns an inode of a volume.  Raises FsError(ENOENT) if there is none."""
    row = state.inode(volume, ino)
    if row is None:
        raise FsError(errno.ENOENT, f"no inode {ino}")
    return row


def check_snapshot(state: State, volume: int, at: int) -> None:
    """Raises FsError(ESTALE) unless a snapshot is alive."""
    if state.txn.get(keys.snapshot(volume, at)) is None:
        raise FsError(errno.ESTALE, f"volume {volume} has no snapshot {at} (any more)")


def check_name(name: bytes) -> None:
    """Raises FsError(ENAMETOOLONG or EINVAL) for bytes that are no file name: the kernel lets none through, tools and gateways might."""
    if len(name) > NAME_BYTES_MAX:
        raise FsError(errno.ENAMETOOLONG)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FsError(errno.EINVAL, "not a file name")
