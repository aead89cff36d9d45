"""Collects the next batch, and remembers what was handed to the log and is not decided yet.  Pure.

An entry is decided when it comes out of the log applied; with another term than it was stamped with, somebody else's entry won its index.
Two kinds are counted apart: SetLocks by inode, because a waiting lock is tested against the applied state and may be proposed only while
nothing is on its way that would change the outcome; and ends of sessions, because no renewal may be acknowledged while one is.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from awsomefsd.base import levels
from awsomefsd.base.clock import HybridClock
from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import (
    ACKS_PER_REQUEST_MAX,
    BATCH_BYTES_MAX,
    BATCH_ENTRIES_MAX,
    ENTRY_BYTES_MAX,
    PROPOSALS_PENDING_BYTES_MAX,
    PROPOSALS_PENDING_MAX,
    RESULTS_PER_MOUNT_MAX,
)
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api.commands import Apply, EndSession, Entry, Init, OpenSession, RaiseLevel, SetLock
from awsomefsd.meta.api.messages import Failed, Propose, WaitLock
from awsomefsd.meta.replica.applied_machine import AppliedMachine, AppliedResults
from awsomefsd.meta.server.request import AnyRequest, Request, Silent
from awsomefsd.meta.server.waiters import Key

_ENTRY_OVERHEAD_BYTES = 512  # of an entry over the request that carries its command


def _level_given(command: Any) -> int:
    """Returns the level that a command gives to the cluster; 0 if it gives none."""
    if type(command) is RaiseLevel:
        return command.target
    return command.start_level if type(command) is Init else 0


class PendingProposal(NamedTuple):
    """A request whose entry is with the log, stamped with `term`, and how many records it brings."""

    term: int
    request: AnyRequest
    records: int


class Proposals:
    __slots__ = ("_asked", "_more", "_pending", "_pending_bytes", "_pending_more", "batch", "bytes", "ending", "locking", "refused")

    def __init__(self) -> None:
        self.batch: list[Entry] = []
        self.bytes = 0
        self.locking: dict[Key, int] = {}  # inodes with SetLocks that are not decided, and how many
        self.refused = 0  # for too many results
        self.ending: set[int] = set()  # sessions with an EndSession that is not decided
        self._asked: list[AnyRequest] = []  # for each of the batch
        self._pending: dict[int, PendingProposal] = {}  # by index
        self._pending_bytes = 0
        self._more = self._pending_more = 0  # records in the batch, and in what is not decided: each is work as a command is

    def __len__(self) -> int:
        """Returns how many are handed over and not decided."""
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        """No more is taken before `mark_handed_over`, or before something is decided: a leader that is cut off must not collect without
        end."""
        if len(self.batch) + self._more >= BATCH_ENTRIES_MAX:
            return True
        if self.bytes > BATCH_BYTES_MAX - ENTRY_BYTES_MAX:
            return True
        return len(self._pending) + self._pending_more >= PROPOSALS_PENDING_MAX or self._pending_bytes >= PROPOSALS_PENDING_BYTES_MAX

    def refusal(self, machine: AppliedResults, mount: int, acks: list[int], command: Any, size: int) -> Failed | None:
        """Returns why a command may not be proposed now; None if it may.  `size`: of the request, in bytes.

        Raises ProtocolError for more acknowledgements than a client may send.
        """
        if len(acks) > ACKS_PER_REQUEST_MAX:
            raise ProtocolError(f"{len(acks)} acknowledgements in one request")
        if size > ENTRY_BYTES_MAX - _ENTRY_OVERHEAD_BYTES:
            return Failed(errno.EMSGSIZE, f"a command of {size} bytes is over the bound of one entry")
        if command.level_needed() > machine.level:
            return Failed(errno.EOPNOTSUPP, levels.too_low(command.level_needed(), machine.level))
        if (wanted := _level_given(command)) > machine.level_known:
            return Failed(errno.EPERM, f"the leader's build knows levels up to {machine.level_known}: level {wanted} would stop it")
        if mount and not (type(command) is Apply and not (command.inodes or command.segments or command.consumed)):
            held = machine.results_held(mount)
            if held + len(self.batch) + len(self) >= RESULTS_PER_MOUNT_MAX:
                held += self.count_of_mount(mount)
                if held - len(acks) >= RESULTS_PER_MOUNT_MAX:
                    self.refused += 1
                    return Failed(errno.EAGAIN, "too many results wait for their acknowledgement", True)
        return None

    def enter(self, entry: Entry, request: AnyRequest) -> None:
        self.batch.append(entry)
        self._asked.append(request)
        self.bytes += request.size
        command = entry.command
        self._more += _records(command)
        for key in _locked(command):
            self.locking[key] = self.locking.get(key, 0) + 1
        if type(command) is EndSession:
            self.ending.add(command.session)

    def mark_handed_over(self) -> None:
        """Moves the batch to what is not decided: it is stamped and with the log."""
        pending = self._pending
        for entry, request in zip(self.batch, self._asked, strict=True):
            assert entry.index > 0 and entry.index not in pending, "an index is proposed once in a leadership"
            pending[entry.index] = PendingProposal(entry.term, request, _records(entry.command))
        self._pending_bytes += self.bytes
        self._pending_more += self._more
        self.batch, self._asked, self.bytes, self._more = [], [], 0, 0

    def count_of_mount(self, mount: int) -> int:
        """Returns how many requests of a mount are not decided."""
        return sum(asked.origin.mount == mount for asked in self._all())

    def opens(self, mount: int) -> bool:
        """Returns whether an OpenSession of this mount is not decided."""
        commands = (getattr(asked.body, "command", None) for asked in self._all())
        return any(isinstance(command, OpenSession) and command.mount == mount for command in commands)

    def _all(self) -> list[AnyRequest]:
        return [*self._asked, *(pending.request for pending in self._pending.values())]

    def take_decided(self, entry: Entry) -> PendingProposal | None:
        """Returns the request that was proposed with the entry's index, and forgets it; None if it was not proposed here."""
        found = self._pending.pop(entry.index, None)
        if found is not None:
            self._pending_bytes -= found.request.size
            self._pending_more -= found.records
        return found

    def take_unlocked(self, command: Any) -> list[Key]:
        """Takes up a decided command.  Returns the inodes of its SetLocks to which no other one is on its way."""
        found: list[Key] = []
        for key in _locked(command):
            left = self.locking.get(key, 0) - 1
            if left > 0:
                self.locking[key] = left
            elif self.locking.pop(key, None) is not None:
                found.append(key)
        return found

    def take_all(self) -> list[AnyRequest]:
        """Returns all requests, because their outcome will not be known here, and forgets them."""
        found = self._all()
        self.batch, self._asked, self.bytes, self._more = [], [], 0, 0
        self._pending.clear()
        self._pending_bytes = self._pending_more = 0
        self.locking.clear()
        self.ending.clear()
        return found


def _records(command: Any) -> int:
    return len(command.records) if type(command) is Apply else 0


def _locked(command: Any) -> list[Key]:
    """Returns the inode of each SetLock that a command brings, alone or among records."""
    if type(command) is Apply:
        return [(record.command.volume, record.command.ino) for record in command.records if type(record.command) is SetLock]
    return [(command.volume, command.ino)] if type(command) is SetLock else []


class BatchProposer:
    """Stamps what is proposed and puts it into the next batch; nothing comes there in another way.  Used by the metadata thread only."""

    def __init__(self, proposals: Proposals, site: int, wall_ns: Callable[[], int], machine: AppliedMachine) -> None:
        self._proposals = proposals
        self._machine = machine
        self._site = site
        self._wall_ns = wall_ns
        self._clock = HybridClock(machine.last_stamp, wall_ns)
        self._nobody = Silent()

    def begin(self, last_stamp: int) -> None:
        """A leadership begins: stamps go on from the newest in the state."""
        self._clock = HybridClock(last_stamp, self._wall_ns)

    @property
    def is_full(self) -> bool:
        return self._proposals.is_full

    def enter(self, request: AnyRequest, said: Propose | WaitLock) -> None:
        """Proposes `said`, which may differ from what `request` said; `request` is answered once that is decided.

        The entry's version is the level at which the cluster acts: its rules are those of that level, so an older build must not apply it.
        """
        time_ns, mount, command = self._wall_ns(), request.origin.mount, said.command
        stamp = self._clock.now(len(command.records) if type(command) is Apply else 0)  # each record has its own
        version = max(command.level_needed(), self._machine.level)
        entry = Entry(
            0, 0, version, 0, self._site, stamp, time_ns, mount, said.unique, said.session, said.epoch, said.acks, command
        )  # fmt: skip
        self._proposals.enter(entry, request)

    def enter_own(self, command: Any) -> None:
        """Proposes a command of the service itself; nobody hears what becomes of it."""
        said = Propose(HOST_UNIQUE, 0, 0, [], command)
        self.enter(Request(self._nobody, 0, said), said)
