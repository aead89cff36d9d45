"""What the leader has collected for the next batch, and what it has handed to the log and is not decided yet.  Pure.

An entry is decided when it comes out of the log applied; with another term than it was stamped with, somebody else's entry won its index.
Two kinds are counted apart: SetLocks by inode, because a waiting lock is tested against the applied state and may be proposed only while
nothing is on its way that would change the outcome; and ends of sessions, because no renewal may be acknowledged while one is.
"""

from __future__ import annotations

import errno
from typing import Any

from awsomefsd.errors import ProtocolError
from awsomefsd.limits import (
    ACKS_PER_REQUEST_MAX,
    BATCH_BYTES_MAX,
    ENTRY_BYTES_MAX,
    PROPOSALS_PENDING_BYTES_MAX,
    PROPOSALS_PENDING_MAX,
    RESULTS_PER_MOUNT_MAX,
)
from awsomefsd.meta.commands import EndSession, Entry, SetLock
from awsomefsd.meta.messages import Failed
from awsomefsd.meta.replica import AppliedMachine
from awsomefsd.meta.waiting import Key, Origin

Asker = tuple[Origin, int]
Pending = tuple[int, Origin, int, int]  # stamped term, who asked, size
_ENTRY_OVERHEAD_BYTES = 512  # of an entry over the request that carries its command


class Proposals:
    __slots__ = ("_asked", "_pending", "_pending_bytes", "batch", "bytes", "ending", "locking", "refused")

    def __init__(self) -> None:
        self.batch: list[Entry] = []
        self.bytes = 0
        self.locking: dict[Key, int] = {}  # inodes with SetLocks that are not decided, and how many
        self.refused = 0  # for too many results
        self.ending: set[int] = set()  # sessions with an EndSession that is not decided
        self._asked: list[tuple[Origin, int, int]] = []  # who asked for each of the batch, and its size
        self._pending: dict[int, Pending] = {}  # by index
        self._pending_bytes = 0

    def __len__(self) -> int:
        """How many are handed over and not decided."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        """No more is taken before something is decided: a leader that is cut off must not collect without end."""
        if self.bytes > BATCH_BYTES_MAX - ENTRY_BYTES_MAX:
            return True
        return len(self._pending) >= PROPOSALS_PENDING_MAX or self._pending_bytes >= PROPOSALS_PENDING_BYTES_MAX

    def refusal(self, machine: AppliedMachine, mount: int, acks: list[int], command: Any, size: int) -> Failed | None:
        """Why a command may not be proposed now; None if it may."""
        if len(acks) > ACKS_PER_REQUEST_MAX:
            raise ProtocolError(f"{len(acks)} acknowledgements in one request")
        if size > ENTRY_BYTES_MAX - _ENTRY_OVERHEAD_BYTES:
            return Failed(errno.EMSGSIZE, f"a command of {size} bytes is over the bound of one entry")
        if command.since > machine.level:
            return Failed(
                errno.EOPNOTSUPP,
                f"this needs level {command.since}, the cluster acts at level {machine.level}: "
                "upgrade the nodes that `awsomefsd upgrade status` names, then `awsomefsd upgrade finalize`",
            )
        if mount:
            held = machine.results_held(mount)
            if held + len(self.batch) + len(self) >= RESULTS_PER_MOUNT_MAX:
                held += self.of_mount(mount)
                if held - len(acks) >= RESULTS_PER_MOUNT_MAX:
                    self.refused += 1
                    return Failed(errno.EAGAIN, "too many results wait for their acknowledgement", True)
        return None

    def enter(self, entry: Entry, origin: Origin, call: int, size: int) -> None:
        self.batch.append(entry)
        self._asked.append((origin, call, size))
        self.bytes += size
        command = entry.command
        if type(command) is SetLock:
            key = command.volume, command.ino
            self.locking[key] = self.locking.get(key, 0) + 1
        elif type(command) is EndSession:
            self.ending.add(command.session)

    def handed_over(self) -> None:
        """The batch is stamped and with the log."""
        pending = self._pending
        for entry, (origin, call, size) in zip(self.batch, self._asked, strict=True):
            pending[entry.index] = (entry.term, origin, call, size)
        self._pending_bytes += self.bytes
        self.batch, self._asked, self.bytes = [], [], 0

    def of_mount(self, mount: int) -> int:
        """Undecided ones of a mount."""
        return sum(asked[0].mount == mount for asked in self._asked) + sum(asker[1].mount == mount for asker in self._pending.values())

    def decided(self, entry: Entry) -> Pending | None:
        """What is known of the proposal, if the entry's index was proposed here."""
        found = self._pending.pop(entry.index, None)
        if found is not None:
            self._pending_bytes -= found[3]
        return found

    def unlocked(self, command: Any) -> Key | None:
        """The inode of a decided SetLock, if that was the last on its way."""
        if type(command) is not SetLock:
            return None
        key = command.volume, command.ino
        left = self.locking.get(key, 0) - 1
        if left > 0:
            self.locking[key] = left
            return None
        return key if self.locking.pop(key, None) is not None else None

    def take_all(self) -> list[Asker]:
        """Everybody whose outcome will not be known here."""
        found = [asked[:2] for asked in self._asked] + [pending[1:3] for pending in self._pending.values()]
        self.batch, self._asked, self.bytes = [], [], 0
        self._pending.clear()
        self._pending_bytes = 0
        self.locking.clear()
        self.ending.clear()
        return found
