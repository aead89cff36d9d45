"""A mount asks for rows of what it holds, to decide by itself (held.py).

It gets rows of the volume that its session serves, of the four kinds that its rules read, and of no inode that another session writes
under a lease: those would be old.  Everything else in the store, secrets of the cluster among it, has no key that this question takes.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NAME_BYTES_MAX, ROWS_ANSWER_BYTES, ROWS_ASKED_MAX, XATTR_NAME_BYTES_MAX
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.api.messages.rows import FoundRows, GetRows
from awsomefsd.meta.machine import volumes, write_leases
from awsomefsd.meta.state import governed, keys, rows
from awsomefsd.meta.state.lookups import EpochEnded, RetryLater
from awsomefsd.meta.state.rows_cache import State

_GROUP = governed.GROUP_BYTES
_LENGTHS = {
    keys.INODE: range(_GROUP, _GROUP + 1),
    keys.DENTRY: range(_GROUP + 1, _GROUP + NAME_BYTES_MAX + 1),
    keys.COOKIE: range(_GROUP + 8, _GROUP + 9),
    keys.XATTR: range(_GROUP + 1, _GROUP + XATTR_NAME_BYTES_MAX + 1),
}


class _Answer:
    def __init__(self, state: State, body: GetRows) -> None:
        self._state = state
        self._body = body
        self._volume = volumes.existing(state, body.volume)
        self._free: dict[int, bool] = {}  # inode -> no other session writes it
        self.rows: list[tuple[bytes, bytes | None]] = []
        self._bytes = 0

    def is_full(self) -> bool:
        return self._bytes >= ROWS_ANSWER_BYTES

    def is_free(self, key: bytes) -> bool:
        ino = keys.first_u64(key)
        if ino not in self._free:
            lease = write_leases.of_inode(self._state, self._body.volume, ino) if self._volume.sharers else rows.LeaseRow()
            self._free[ino] = lease.session in (0, self._body.session)
        return self._free[ino]

    def check(self, key: bytes, *, group: bool = False) -> None:
        """Raises FsError(EINVAL) for a key that this question does not take, RetryLater for one of an inode that another session writes."""
        kind = keys.kind_of(key)[2] if len(key) >= _GROUP else 0
        lengths = range(_GROUP, _GROUP + 1) if group else _LENGTHS.get(kind, range(0))
        if kind not in governed.KINDS or keys.kind_of(key)[:2] != (keys.SHARD, self._body.volume) or len(key) not in lengths:
            raise FsError(errno.EINVAL, f"{key[:_GROUP].hex()} is no key of a row of volume {self._body.volume} that a mount asks for")
        if not self.is_free(key):
            raise RetryLater(errno.EAGAIN, f"another session writes inode {keys.first_u64(key)}")

    def add(self, key: bytes, value: bytes | None) -> None:
        self._put(key, value)
        if value is not None and keys.kind_of(key)[2] == keys.DENTRY:
            dentry: rows.DentryRow = rows.DENTRY.loads(value)
            child = keys.inode(self._body.volume, dentry.ino)
            if self.is_free(child) and (found := self._state.txn.get(child)) is not None:
                self._put(child, found)

    def _put(self, key: bytes, value: bytes | None) -> None:
        self.rows.append((key, value))
        self._bytes += len(key) + (len(value) if value is not None else 0)


def get_rows(state: State, body: GetRows) -> Reply:
    """Answers GetRows."""
    session = state.session(body.session)
    if session is None or session.ended or session.epoch != body.epoch:
        raise EpochEnded(f"session {body.session} epoch {body.epoch} has ended")
    if session.volume != body.volume:
        raise FsError(errno.EINVAL, f"session {body.session} serves volume {session.volume}, not {body.volume}")
    if len(body.keys) > ROWS_ASKED_MAX:
        raise FsError(errno.E2BIG, f"more than {ROWS_ASKED_MAX} rows")
    answer = _Answer(state, body)
    for key in body.keys:
        answer.check(key)
    if body.group:
        answer.check(body.group, group=True)
        if body.after and not body.after.startswith(body.group):
            raise FsError(errno.EINVAL, "the key to go on behind is not of that group")
    state.write_back()
    for key in body.keys:
        if answer.is_full():
            break
        answer.add(key, state.txn.get(key))
    return FoundRows(answer.rows, _add_group(state, body, answer))


def _add_group(state: State, body: GetRows, answer: _Answer) -> bool:
    """Adds rows of the group that was asked for.  Returns True if there are more."""
    if not body.group:
        return False
    start = body.after + b"\0" if body.after else body.group
    end = (int.from_bytes(body.group, "big") + 1).to_bytes(_GROUP, "big")
    for key, value in state.txn.scan(start, end):
        if answer.is_full():
            return True
        answer.add(key, value)
    return False
