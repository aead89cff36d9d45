"""A cluster of one voter: what is durable in the journal is committed.

There is no election, but every start is a new term: what a leader keeps in memory (leases, the numbers of recalls) is gone, and sessions
report to a new term only.  All of the journal is committed, also a batch whose sync was never confirmed before a
crash: nobody was told that it failed.

From one to several.  `first_membership` is the entry that ends the time alone: from it on the same journal and state are one of several
voters' (meta/replica/open_voter.py).  Whether it is in the journal is the only thing that counts, so a crash comes before it or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from awsomefsd.base import clock
from awsomefsd.base.errors import Corrupt, ProtocolError, Refused
from awsomefsd.meta.api.commands import ChangeMembership, Entry, entry_decode, entry_encode
from awsomefsd.meta.api.messages.members import ChangeMembers, MemberInfo, Members
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.raft.membership import Member, Membership


def decode(raw: bytes) -> Entry:
    """The entry of those bytes.  Raises Corrupt for bytes that are no entry."""
    try:
        entry: Entry = entry_decode(raw)
        return entry
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise Corrupt(f"log entry: {err}") from err


class SeveralVoters(Refused):
    """This journal or state is that of one of several voters: this node alone may not decide what its log ends with."""


class SingleVoter:
    """Implements ports.Consensus.  `refuse_several`: `replay` raises SeveralVoters for a journal that is one of several voters'."""

    def __init__(
        self, journal: Journal, node: str = "", boot_ns: Callable[[], int] = clock.boot_ns, *, refuse_several: bool = False
    ) -> None:
        self._journal = journal
        # What this process appends itself, growing included, it may replay.
        self._several_until = journal.last_index if refuse_several else 0
        self._boot_ns = boot_ns
        self.leader = node
        self.leading = True
        self._queued: list[Entry] = []
        self.batches = 0
        self.entries = 0
        journal.set_hard_state(journal.term + 1, journal.node)

    @property
    def term(self) -> int:
        return self._journal.term

    @property
    def first_index(self) -> int:
        return self._journal.first_index

    @property
    def committed(self) -> int:
        return self._journal.last_index

    def propose(self, batch: list[Entry]) -> None:
        index = self._journal.last_index + len(self._queued)
        term = self._journal.term
        for entry in batch:
            index += 1
            entry.index = index
            entry.term = term
        self._queued += batch

    def ready(self) -> list[Entry]:
        batch, self._queued = self._queued, []
        if batch:
            self._journal.append(self._journal.term, [entry_encode(entry) for entry in batch])
            self._journal.sync()
            assert self._journal.last_index == batch[-1].index, "the indexes that were stamped are those that were written"
            self.batches += 1
            self.entries += len(batch)
        return batch

    def replay(self, after: int) -> Iterator[Entry]:
        while page := self._journal.read(after + 1):
            for raw in page:
                entry = decode(raw)
                after += 1
                if entry.index != after:
                    raise Corrupt(f"log entry {after} says that it is {entry.index}")
                if entry.index <= self._several_until and isinstance(entry.command, ChangeMembership):
                    raise SeveralVoters("the journal is one of several voters'")
                yield entry

    def read(self, index: int, count: int, bytes_max: int) -> list[bytes]:
        return self._journal.read(index, count, bytes_max)

    def compact(self, index: int) -> None:
        self._journal.drop_before(index)

    def note(self, applied: int) -> bytes:
        return b""

    def note_digest(self, index: int, digest: bytes) -> None:
        """There is nobody to compare it with."""

    def first_membership(self, address: str) -> Membership:
        """The first membership of several voters to come: this node, as the only voter."""
        return Membership([Member(self.leader, self._journal.incarnation.hex(), True, address)])

    # --- leadership, which nobody contests ------------------------------------------------------------------------------------
    def members(self) -> Members:
        alone = MemberInfo(self.leader, self._journal.incarnation.hex(), True, "", 0, 0, True)
        return Members(0, False, self.leader, [alone], [])

    def change_members(self, step: ChangeMembers) -> None:
        raise Refused("the metadata of this cluster has one voter, and is not kept as one of several yet")

    def hand_over(self, node: str = "") -> bool:
        return False

    def request_read(self, *, patient: bool = False) -> int:
        return 0

    def reads_confirmed(self) -> int:
        return 0

    def quorum_contact_ns(self) -> int:
        return self._boot_ns()

    def next_deadline_ns(self) -> int | None:
        return None

    def pass_time(self, now_ns: int) -> None:
        """Time changes nothing."""

    def tick(self, now_ns: int) -> None:
        """Time changes nothing."""

    def receive(self, sender: str, message: Any) -> None:
        raise ProtocolError(f"node {sender} takes this one for a voter beside it; the metadata of this cluster has one voter")

    def figures(self) -> dict[str, int | float | str]:
        journal = self._journal
        return {
            "journal_bytes": journal.size_bytes,
            "journal_syncs": journal.syncs,
            "journal_sync_ns": journal.sync_ns,
            "batches": self.batches,
            "entries": self.entries,
        }

    def close(self) -> None:
        self._journal.close()
