"""The seam between the leases of a mount and what uses them: four Protocols by subject, all of which lease_cache.MountLeases implements.

A lease covers one inode: under a read lease answers may be remembered, under a write lease data may be buffered as well.  A *grant* is the
number of a lease for as long as it is held, a *stamp* changes with every change of this mount besides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from awsomefsd.base.types import LEASE_READ
from awsomefsd.base.wait import Wait
from awsomefsd.meta.api.messages import Found

EVERY_INODE = 0  # in a list of inodes that are changed: the attributes of one that is not known by number, no data


class AdoptedLease(NamedTuple):
    """A write lease, as the dirty records of a dead worker name it."""

    epoch: int
    known: int  # changes of the file; 0: not said, as by builds that did not hand it on


class Shown(NamedTuple):
    """What a mount shows of a file that it writes under a lease, committed or not."""

    size: int
    stored_bytes: int
    mtime_ns: int
    ctime_ns: int


class LeaseView(Protocol):
    """What may be remembered and promised: any thread may call, none waits or takes a lock.  An answer holds at this moment only."""

    def stamp(self, ino: int) -> int:
        """The number to draw before a question whose answer is to be cached, another after each change; 0: nothing may be cached."""

    def keeps(self, ino: int) -> int:
        """The grant under which an answer that is being taken up on this thread may be kept; 0: it may not."""

    def serves(self, ino: int, grant: int) -> bool:
        """Says whether what was kept under that grant may be used."""

    def changing(self, ino: int) -> bool:
        """Says whether a change of this mount has no outcome yet, there or at an inode that is not known."""

    def leaving(self, ino: int) -> bool:
        """Says whether it is being recalled or given up: nothing may be promised beyond this moment."""


class WriteLeases(Protocol):
    """Under which lease data is buffered.  Any thread may call; nothing blocks but for the lock of the leases."""

    @property
    def epoch(self) -> int:
        """The epoch of the session under which leases are held; 0: there is none."""

    def may_buffer(self, ino: int) -> int:
        """The epoch of the write lease under which new data may be buffered; 0: none may."""

    def grant(self, ino: int) -> int:
        """The number of the lease as long as it is held, also while this mount changes something; 0: none, or the session is fenced."""

    def leaving(self, ino: int) -> bool:
        """As of LeaseView."""

    def changes_known(self, ino: int) -> int:
        """The number of changes of the file that was told with its lease."""

    def want(self, ino: int, mode: int = LEASE_READ) -> Wait:
        """A lease: ends with Leased, Contested, None where it came too late to count, or FsError (ESTALE, ENOENT, EINVAL …)."""

    def touch(self, ino: int) -> None:
        """Data was buffered: answers that were kept do not have it."""


class OwnChanges(Protocol):
    """What this mount asks and changes itself.  Any thread may call; nothing blocks but for the lock of the leases."""

    def cover(self, ino: int, *, unless_written: bool = False) -> None:
        """Asks for a read lease for what is asked next, if none is held and it may be asked for; nobody waits for it.

        `unless_written`: and only if nobody has the write lease, which would be recalled.
        """

    def made(self, session: int, found: Found) -> bool:
        """Takes up the lease that came with what was made under that session; false if none is held now."""

    def begin_change(self, inos: list[int]) -> None:
        """This mount is about to propose a change of these: nothing that was asked for before is valid."""

    def end_change(self, inos: list[int]) -> None:
        """The outcome is known, and what it means here is taken up next, on this thread."""

    def doubting(self, inos: list[int]) -> contextlib.AbstractContextManager[None]:
        """A scope for taking up, on this thread, the answer of a repeated request that changed these: nothing of it is kept."""


class DecidingLeases(Protocol):
    """Under which leases names are decided.  Any thread may call; nothing blocks but for the lock of the leases."""

    @property
    def may_make(self) -> bool:
        """False: so many leases are held that what is made now should come without one."""

    def may_decide(self, ino: int) -> bool:
        """Says whether the write lease is held and nobody asks for it; takes no lock."""

    def made_here(self, ino: int) -> None:
        """A record that makes the inode is stored and not sent yet: its first write lease is held from now on."""

    def want_to_decide(self, ino: int) -> None:
        """Asks for the write lease, if it may be asked for; nobody waits for it."""


class SessionLeases(Protocol):
    """What the session of a mount does with all of its leases.  Nothing blocks but for the lock of the leases."""

    def begin(self, session: int, epoch: int, adopted: Mapping[int, AdoptedLease] | None = None) -> None:
        """A session was opened; `adopted`: inode → write lease that it has already.  Nothing is held of an older one."""

    def lost(self) -> None:
        """The session has ended: nothing is held."""

    def greeted(self, term: int) -> None:
        """A leader of that term took the connection.  On the client's receiving thread."""

    def want_knowing(self, ino: int, mode: int, known: int) -> Wait:
        """Asks as `want`, for one who knows the file as it was after so many changes: the answer tells of those of others since."""

    def writes(self) -> dict[int, tuple[int, int]]:
        """Write leases that nobody recalls: inode → (grant, stamp), others after each use."""

    def note_ended(self, ino: int, epoch: int) -> None:
        """The machine has refused a commit under that write lease: it is not held any more, whatever the leader has said of it."""

    def lower(self, inos: list[int], clean: Callable[[int], bool]) -> None:
        """Write leases that are not needed become read leases.  `clean`: nothing is buffered of a file, nor will be from this call on."""


class Leases(LeaseView, WriteLeases, OwnChanges, DecidingLeases, SessionLeases, Protocol):
    """The leases of one mount, as the vfs knows them."""
