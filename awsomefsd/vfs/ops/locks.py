"""Locks: fcntl ranges, OFD and flock.  The machine decides; a waiting lock parks at the service and holds no thread here.  The service
looks for circles of waits (EDEADLK) among fcntl locks; which wait is of an open file description is found out here (caller_credentials.py).

The kernel sends FLUSH with the owner at every close(2) and RELEASE for flock, so this side remembers which owners hold anything at all:
a close of a file without locks asks nobody.

RELEASE ends what was locked with an open file description, and close(2) does not wait for its answer.  The kernel has sent it by then, so
whoever asks for a lock of this inode on this node afterwards waits until it is decided (`_released`): otherwise he would meet the lock of a
file that is closed.
"""

from __future__ import annotations

import errno

import msgspec

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import LOCK_END_MAX, LOCK_FLOCK, LOCK_POSIX, Lock
from awsomefsd.base.wait import Signal, Steps, Wait
from awsomefsd.meta.api.commands import SetLock
from awsomefsd.meta.api.messages import GetLocks, Locked, Locks, TestLock
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.caller_credentials import waits_for_ofd_lock
from awsomefsd.vfs.state.mount_state import MountState

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2


class LockOps:
    def __init__(self, mount: MountState, client: Metadata) -> None:
        self._mount = mount
        self._client = client
        # inode -> (kind, owner) that may hold locks -> handles it took them with (the last one of each lock, after a takeover)
        self._owners: dict[int, dict[tuple[int, int], set[int]]] = {}
        self._waiting: set[int] = set()  # uniques of requests that wait for a lock
        self._ending: dict[int, Signal] = {}  # inode -> fires when what the newest RELEASE ends is decided

    def getlk(self, ctx: Context, ino: int, fh: int, lock: Lock) -> Steps:
        yield from self._released(ino)
        own = msgspec.structs.replace(lock, session=self._client.session_token()[0])  # else the caller's own locks were in its way
        reply: Locked = yield self._client.ask(TestLock(self._mount.volume, ino, own))
        return reply.lock

    def setlk(self, ctx: Context, ino: int, fh: int, lock: Lock, wait: bool) -> Steps | None:
        self._mount.session.check_handle(fh)
        if lock.lock_type == F_UNLCK and not self._mount.session.recovering and not self.holds(ino, lock.kind, lock.owner):
            return None
        return self._setlk(ctx, ino, fh, lock, wait)

    def _setlk(self, ctx: Context, ino: int, fh: int, lock: Lock, wait: bool) -> Steps:
        command = SetLock(self._mount.volume, ino, lock.kind, lock.owner, lock.pid, lock.lock_type, lock.start, lock.end, fh)
        if lock.lock_type == F_UNLCK:
            yield self._mount.propose(command, ctx.unique)
            return
        self._may_hold(ino, lock).add(fh)
        if wait:
            yield from self._wait_lock(command, fh, ctx)
        else:
            yield from self._released(ino)
            if not self._mount.session.recovering:  # else a predecessor may have asked for it, and got it
                self._check_open(fh)
            yield self._mount.propose(command, ctx.unique)
        if self._mount.session.opens.get(fh) is None:
            if not self.holds(ino, lock.kind, lock.owner):  # else somebody new has this owner's number, and gives it back with his own
                yield from self._take_back(command)
            self._check_open(fh)
        try:
            self._mount.session.check_handle(fh)
        except FsError:
            # Its session was replaced meanwhile.  The answer may be the stored one, of a lock that went with the old session; a lock that
            # was granted under the new one nobody would give back.
            yield from self._take_back(command)
            raise
        self._may_hold(ino, lock).add(fh)

    def _check_open(self, fh: int) -> None:
        """Raises FsError(EINTR) if the file was closed: its caller was killed, and nobody would give the lock back."""
        if self._mount.session.opens.get(fh) is None:
            raise FsError(errno.EINTR, "the file was closed while a lock of it was waited for")

    def _released(self, ino: int) -> Steps:
        while (ending := self._ending.get(ino)) is not None:
            yield ending

    def _take_back(self, command: SetLock) -> Steps:
        mount = self._mount
        with mount.background_unique() as unique:
            yield from _waited(mount.propose(msgspec.structs.replace(command, lock_type=F_UNLCK), unique))

    def _may_hold(self, ino: int, lock: Lock) -> set[int]:
        return self._owners.setdefault(ino, {}).setdefault((lock.kind, lock.owner), set())

    def _wait_lock(self, command: SetLock, fh: int, ctx: Context) -> Steps:
        unique = ctx.unique
        no_deadlock = command.kind == LOCK_POSIX and waits_for_ofd_lock(ctx.pid)
        self._waiting.add(unique)
        try:
            while True:
                try:
                    yield self._client.wait_lock(command, unique, no_deadlock)
                    return
                except FsError as err:
                    if err.errno != errno.ESTALE:
                        raise
                yield self._mount.session.lease.renewed()
                self._mount.session.check_handle(fh)
        finally:
            self._waiting.discard(unique)

    def interrupt(self, unique: int) -> None:
        """A signal for the caller of a request: ends a lock wait with EINTR; other requests run to their end."""
        if unique in self._waiting:
            self._client.cancel(unique)

    def holds(self, ino: int, kind: int, owner: int) -> bool:
        return (kind, owner) in self._owners.get(ino, ())

    def give_up(self, ino: int, kind: int, owner: int, unique: int) -> Wait | None:
        """Everything this owner holds on the inode ends; None if it never held anything."""
        owners = self._owners.get(ino)
        if owners is None or (kind, owner) not in owners:
            if not self._mount.session.recovering:
                return None
        else:
            del owners[kind, owner]
            if not owners:
                self._owners.pop(ino, None)
        return self._mount.propose(SetLock(self._mount.volume, ino, kind, owner, 0, F_UNLCK, 0, LOCK_END_MAX), unique)

    def flush_op(self, ctx: Context, ino: int, lock_owner: int) -> Steps | None:
        wait = self.give_up(ino, LOCK_POSIX, lock_owner, ctx.unique)
        return None if wait is None else _waited(wait)

    def release_op(self, ino: int, fh: int, flock_owner: int | None, unique: int) -> Steps | None:
        """The last close of a handle: locks taken with it end, and with the inode's last handle all of them.

        The kernel names a flock's owner, but says nothing of open-file-description locks, whose owner is the handle itself.  A flock's
        owner stands for the address of the kernel's file, and the next file that is opened may be at the same one.  close(2) does not wait
        for RELEASE, a successor executes it again: what the owner has locked with its next handle by then is not of this one, and stays.
        """
        owners = self._owners.get(ino, {})
        last = not self._mount.session.opens.count(ino)
        ended = {key for key, handles in owners.items() if last or _forget_handle(key, handles, fh, flock_owner)}
        if flock_owner is not None and (LOCK_FLOCK, flock_owner) not in owners and self._mount.session.recovering:
            ended.add((LOCK_FLOCK, flock_owner))
        if not ended:
            return None
        before, mine = self._ending.get(ino), Signal()
        self._ending[ino] = mine
        return self._ended(ino, self._end(ino, sorted(ended), unique), before, mine)

    def _ended(self, ino: int, end: Steps, before: Signal | None, mine: Signal) -> Steps:
        """Runs `end`, and lets those go on who wait for it and for what is `before` it."""

        def decided(_value: object = None, _error: object = None) -> None:
            if self._ending.get(ino) is mine:
                del self._ending[ino]
            mine.fire()

        try:
            yield from end
        finally:
            if before is None:
                decided()
            else:
                before.start(decided)

    def _end(self, ino: int, ended: list[tuple[int, int]], unique: int) -> Steps:
        mount = self._mount
        own = unique  # of the request for the first one; a request makes one entry at most under its own id
        for kind, owner in ended:
            wait = self.give_up(ino, kind, owner, own)
            try:
                if wait is not None:
                    yield from _waited(wait)
            finally:
                if own != unique:
                    mount.metadata.ack(own)
            own = mount.uniques.next_background_unique()

    def inodes(self) -> list[int]:
        """Inodes on which somebody may hold a lock."""
        return list(self._owners)

    def forget_all(self) -> None:
        """The session that owned them has ended."""
        self._owners.clear()

    def load(self, session: int) -> Steps:
        """Loads what the predecessor's callers hold, after a takeover."""
        reply: Locks = yield self._client.ask(GetLocks(session))
        for ino, lock in reply.locks:
            self._may_hold(ino, lock).add(lock.handle)


def _forget_handle(key: tuple[int, int], handles: set[int], fh: int, flock_owner: int | None) -> bool:
    """Takes `fh` out of the handles with which a flock was taken; true if the owner's locks end with it.

    Handle 0: an older build did not say with which they were taken.
    """
    if key[0] != LOCK_FLOCK:
        return fh in handles
    named = fh in handles or key[1] == flock_owner
    handles.discard(fh)
    return named and not handles - {0}


def _waited(wait: Wait) -> Steps:
    try:
        yield wait
    except FsError as err:
        if err.errno != errno.ENOENT:  # the inode went with its last name
            raise
