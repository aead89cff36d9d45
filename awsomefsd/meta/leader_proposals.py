"""What the leader has collected for the next batch, and what it has handed to the log and is not decided yet.  Pure.

An entry is decided when it comes out of the log applied; with another term than it was stamped with, somebody else's entry won its index.
Two kinds are counted apart: SetLocks by inode, because a waiting lock is tested against the applied state and may be proposed only while
nothing is on its way that would change the outcome; and ends of sessions, because no renewal may be acknowledged while one is.
"""

from __future__ import annotations

from typing import Any

from awsomefsd.limits import BATCH_BYTES_MAX, ENTRY_BYTES_MAX, PROPOSALS_PENDING_MAX
from awsomefsd.meta.commands import EndSession, Entry, SetLock
from awsomefsd.meta.waiting import Key, Origin

Asker = tuple[Origin, int]


class Proposals:
    __slots__ = ("_asked", "_pending", "batch", "bytes", "ending", "locking")

    def __init__(self) -> None:
        self.batch: list[Entry] = []
        self.bytes = 0
        self.locking: dict[Key, int] = {}  # inodes with SetLocks that are not decided, and how many
        self.ending: set[int] = set()  # sessions with an EndSession that is not decided
        self._asked: list[Asker] = []  # who asked for each of the batch
        self._pending: dict[int, tuple[int, Origin, int]] = {}  # index → term, who asked

    def __len__(self) -> int:
        """How many are handed over and not decided."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        return self.bytes > BATCH_BYTES_MAX - ENTRY_BYTES_MAX or len(self._pending) >= PROPOSALS_PENDING_MAX

    def enter(self, entry: Entry, origin: Origin, call: int, size: int) -> None:
        self.batch.append(entry)
        self._asked.append((origin, call))
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
        for entry, (origin, call) in zip(self.batch, self._asked, strict=True):
            pending[entry.index] = (entry.term, origin, call)
        self.batch, self._asked, self.bytes = [], [], 0

    def of_mount(self, mount: int) -> int:
        """Undecided ones of a mount."""
        return sum(origin.mount == mount for origin, _ in self._asked) + sum(asker[1].mount == mount for asker in self._pending.values())

    def decided(self, entry: Entry) -> tuple[int, Origin, int] | None:
        """(stamped term, who asked) if the entry's index was proposed here."""
        return self._pending.pop(entry.index, None)

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
        found = self._asked + [asker[1:] for asker in self._pending.values()]
        self.batch, self._asked, self.bytes = [], [], 0
        self._pending.clear()
        self.locking.clear()
        self.ending.clear()
        return found
