"""Locks: fcntl ranges, open-file-description locks and flock, owned by (session, owner).

fcntl and OFD locks share one space (LOCK_POSIX: the owner tells them apart), flock has its own; a lock of one kind never meets one of the
other.  The pure functions work on the list of an inode's locks, kept sorted; one row holds that list, and a marker per (session, inode)
finds a session's locks when it ends.  A lock that must wait is the service's memory; only its grant is an entry.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import LOCKS_PER_INODE_MAX
from awsomefsd.base.types import LOCK_END_MAX, LOCK_FLOCK, LOCK_POSIX, Lock
from awsomefsd.meta.api.commands import AcquireLease, Entry, SetLock
from awsomefsd.meta.api.messages import Done, Leased, Reply
from awsomefsd.meta.machine.write_leases import acquire, changes_since, count_lost_lock
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import inode_of, is_live, session_of, volume_of
from awsomefsd.meta.state.rows_cache import State

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
_LOCKS_A_ROW = 32  # so many locks of one list are about the work of one small row


# --- pure ---------------------------------------------------------------------------------------------------------------
def same_owner(a: Lock, b: Lock) -> bool:
    """Returns True if two locks have one owner, and so never conflict."""
    return a.kind == b.kind and a.owner == b.owner and a.session == b.session


def conflicts(held: list[Lock], want: Lock) -> Iterator[Lock]:
    """Yields the locks that conflict with `want`."""
    if want.lock_type == F_UNLCK:
        return
    for lock in held:
        if (
            lock.kind == want.kind
            and lock.start <= want.end
            and want.start <= lock.end
            and (lock.lock_type == F_WRLCK or want.lock_type == F_WRLCK)
            and not same_owner(lock, want)
        ):
            yield lock


def conflict(held: list[Lock], want: Lock) -> Lock | None:
    """Returns the first lock that conflicts with `want`, or None."""
    return next(conflicts(held, want), None)


def with_lock(held: list[Lock], want: Lock) -> list[Lock]:
    """Returns the list after `want` is granted (or, F_UNLCK, released): the owner's older locks are cut, split and joined."""
    result: list[Lock] = []
    start, end = want.start, want.end
    for lock in held:
        if not same_owner(lock, want):
            result.append(lock)
        elif lock.lock_type == want.lock_type and lock.start <= end + 1 and start <= lock.end + 1:
            start, end = min(start, lock.start), max(end, lock.end)  # touches: one lock
        elif lock.end < want.start or want.end < lock.start:
            result.append(lock)
        else:
            if lock.start < want.start:
                result.append(_with_range(lock, lock.start, want.start - 1))
            if want.end < lock.end:
                result.append(_with_range(lock, want.end + 1, lock.end))
    if want.lock_type != F_UNLCK:
        result.append(_with_range(want, start, end))
    result.sort(key=_order)
    return result


def _with_range(lock: Lock, start: int, end: int) -> Lock:
    return Lock(lock.kind, lock.owner, lock.pid, lock.lock_type, start, end, lock.session, lock.handle)


def _order(lock: Lock) -> tuple[int, int, int, int]:
    return lock.start, lock.kind, lock.session, lock.owner


# --- rows ---------------------------------------------------------------------------------------------------------------
def of_inode(state: State, volume: int, ino: int) -> list[Lock]:
    """Returns all locks of an inode, sorted by start.  Those of a session that has ended are over, also while they are still in its row."""
    held = _stored(state, volume, ino)
    ended = _ended(state, held)
    return [lock for lock in held if lock.session not in ended] if ended else held


def _stored(state: State, volume: int, ino: int) -> list[Lock]:
    row = state.read(keys.locks(volume, ino), rows.LOCKS)
    return [] if row is None else row.locks


def _ended(state: State, held: list[Lock]) -> list[int]:
    return [session for session in sorted({lock.session for lock in held}) if not is_live(state, session)]


def wanted(kind: int, owner: int, pid: int, lock_type: int, start: int, end: int, session: int, handle: int = 0) -> Lock:
    """Returns a lock as it is kept: flock always means the whole file.  Raises FsError(EINVAL) for an impossible one."""
    if kind not in (LOCK_POSIX, LOCK_FLOCK) or lock_type not in (F_RDLCK, F_WRLCK, F_UNLCK):
        raise FsError(errno.EINVAL, f"lock kind {kind}, type {lock_type}")
    if kind == LOCK_FLOCK:
        start, end = 0, LOCK_END_MAX
    end = min(end, LOCK_END_MAX)
    if not 0 <= start <= end:
        raise FsError(errno.EINVAL, f"lock range {start} to {end}")
    return Lock(kind, owner, pid, lock_type, start, end, session, handle)


def conflicting(state: State, session: int, command: SetLock) -> list[Lock]:
    """Returns the locks that `command` of this session has to wait for; none too where it will fail with another error."""
    try:
        want = wanted(command.kind, command.owner, command.pid, command.lock_type, command.start, command.end, session)
    except FsError:
        return []
    return list(conflicts(of_inode(state, command.volume, command.ino), want))


def set_lock(state: State, entry: Entry, command: SetLock) -> Reply:
    """Takes or releases a lock; FsError(EAGAIN) if another owner has one in its way."""
    session = session_of(state, entry, command.volume)
    volume_of(state, entry, command.volume, host=False)
    kind, owner, pid, lock_type = command.kind, command.owner, command.pid, command.lock_type
    want = wanted(kind, owner, pid, lock_type, command.start, command.end, session.session, command.handle)
    if stat.S_ISLNK(inode_of(state, command.volume, command.ino).mode):
        raise FsError(errno.EINVAL, "a symbolic link cannot be locked")
    held = of_inode(state, command.volume, command.ino)
    if want.lock_type == F_UNLCK and not held:
        return Done()
    other = conflict(held, want)
    if other is not None:
        raise FsError(errno.EAGAIN, f"pid {other.pid} holds {other.start} to {other.end}")
    after = with_lock(held, want)
    if len(after) > LOCKS_PER_INODE_MAX:
        raise FsError(errno.ENOLCK, f"inode {command.ino} has {len(held)} locks")
    if want.lock_type != F_WRLCK:
        state.unlocked.add((command.volume, command.ino))  # released, or converted to a weaker one
    _end_those_of_ended(state, command.volume, command.ino)
    _keep(state, command.volume, command.ino, session.session, held, after)
    return Done()


def acquire_lease(state: State, entry: Entry, command: AcquireLease) -> Reply:
    """Grants the write lease of an inode, and tells as its changes also the locks that ended sessions have left there.

    Reap would count those later, and the holder's own data would then be taken for older than a change of others.
    """
    reply = acquire(state, entry, command)
    if isinstance(reply, Leased) and _end_those_of_ended(state, command.volume, command.ino):
        changes, by_others = changes_since(state, command.volume, command.ino, entry.mount, command.known)
        reply.changes, reply.changed_by_others = changes, by_others
    return reply


def _end_those_of_ended(state: State, volume: int, ino: int) -> bool:
    """Ends the locks that sessions which have ended left on an inode.  False: there were none."""
    ended = _ended(state, _stored(state, volume, ino))
    for session in ended:
        _end_on_inode(state, volume, ino, session)
    return bool(ended)


def _keep(state: State, volume: int, ino: int, session: int, before: list[Lock], after: list[Lock]) -> None:
    """Writes the list, and the session's marker if it had or has locks here."""
    if after:
        state.write(keys.locks(volume, ino), rows.LocksRow(after), rows.LOCKS)
    elif before:
        state.txn.delete(keys.locks(volume, ino))
    had = any(lock.session == session for lock in before)
    has = any(lock.session == session for lock in after)
    if has and not had:
        state.txn.put(keys.locker(session, volume, ino), rows.MARK)
    elif had and not has:
        state.txn.delete(keys.locker(session, volume, ino))


def end_session_locks(state: State, session: int, count: int) -> int:
    """Ends locks of an ended session, for about `count` rows of work (-1: all of them), and returns how much work it was."""
    used = 0
    for key in state.keys_in(keys.locker_range(session), count):
        if 0 <= count <= used:
            break
        _, volume, ino = keys.session_inode_of(key)
        used += 1 + _end_on_inode(state, volume, ino, session) // _LOCKS_A_ROW
        state.txn.delete(key)
    return used


def _end_on_inode(state: State, volume: int, ino: int, session: int) -> int:
    """Ends the locks that an ended session has on an inode, and returns how many locks of anybody were looked at.

    If the session shared its volume, others may change what the locks protected, so the inode counts a change.
    """
    held = _stored(state, volume, ino)
    rest = [lock for lock in held if lock.session != session]
    if len(rest) < len(held):
        _keep(state, volume, ino, session, held, rest)
        row = state.session(session)
        if row is not None and row.shared:
            count_lost_lock(state, volume, ino)
        state.unlocked.add((volume, ino))
    return len(held)


def of_session(state: State, session: int) -> list[tuple[int, Lock]]:
    """Returns (inode, lock) of all locks of a session."""
    found: list[tuple[int, Lock]] = []
    for key in state.keys_in(keys.locker_range(session)):
        _, volume, ino = keys.session_inode_of(key)
        found.extend((ino, lock) for lock in of_inode(state, volume, ino) if lock.session == session)
    return found
