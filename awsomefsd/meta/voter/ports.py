"""The interface of the replica to the voter, which decides the order of entries: Raft (voter.py), or a single voter (single_voter.py).

Rules both keep.  `propose` stamps index and term and decides nothing.  `ready` does the durable part in the order store → send, and returns
what is committed now, in index order, each exactly once; only that may be applied.  That is also what other leaders proposed.  An entry may
come out with another term than was stamped at its index: then somebody else's entry won, and the proposer must send its own again.

When `leading` turns false (it is seen after any call of `ready`, `tick` or `receive`), what was proposed here and has not come out of
`ready` is undecided: it may still come out, or never.  Whoever asked for it asks again, under the same request id.

A query may be answered from the applied state when a ticket drawn after it arrived is confirmed: a quorum said after the drawing that we
still lead, and `ready` has returned everything that was committed at the drawing (ReadIndex).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.api.messages.members import ChangeMembers, Members
from awsomefsd.meta.raft.membership import Membership

RAFT_NOTE = b"raft"  # the key of the note in the store


class AppliedAt(Struct, array_like=True):
    """A note that is committed with the state: the last applied entry, and the configuration as of it."""

    index: int = 0
    term: int = 0
    membership_index: int = 0
    membership: Membership = msgspec.field(default_factory=Membership)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AppliedAt).decode


def pack_note(applied: AppliedAt) -> bytes:
    """The note as bytes, for `Store.set_note`."""
    return _encode(applied)


def unpack_note(raw: bytes) -> AppliedAt:
    """The note of those bytes; of b"" that of an empty state.  Raises Corrupt."""
    if not raw:
        return AppliedAt()
    try:
        note: AppliedAt = _decode(raw)
        return note
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise Corrupt(f"note of the applied entry: {err}") from err


class Log(Protocol):
    """The entries; indexes only grow.  All calls come from the metadata thread; some wait for the disk, none for another node."""

    @property
    def term(self) -> int:
        """The present term; 0 before the first one."""

    @property
    def first_index(self) -> int:
        """Index of the oldest entry that `read` still has."""

    @property
    def committed(self) -> int:
        """Index of the newest committed entry."""

    def propose(self, batch: list[Entry]) -> None:
        """Stamp index and term into each entry and queue them.  Raises NotLeading, and then nothing of it is queued."""

    def ready(self) -> list[Entry]:
        """Store durably what is queued, send, and return the entries that became committed, in index order; [] if none did.

        Raises Unavailable if nothing was stored and the queued proposals were given up (a single voter; one of several keeps them), and
        JournalFailed after a failed write or sync: then this process must end.
        """

    def replay(self, after: int) -> Iterator[Entry]:
        """Yield committed entries with index > `after` that `ready` has returned, or that were committed before the start.

        Raises Corrupt for one that is not what was written.
        """

    def read(self, index: int, count: int, bytes_max: int) -> list[bytes]:
        """Committed entries from `index` on, encoded: at most `count`, and about `bytes_max` bytes but at least one; [] behind the end.

        Raises Dropped for an index before first_index, Corrupt for an entry that is not what was written.
        """

    def compact(self, index: int) -> None:
        """Say that this node's store and readers need no entry < `index`: the journal may drop them, now or later."""

    def note(self, applied: int) -> bytes:
        """The bytes to commit with the state at entry `applied`, for the next start; b"" if there is nothing to note."""

    def note_digest(self, index: int, digest: bytes) -> None:
        """Take the digest of the state at entry `index`.  Raises RejoinRequired if it proves to be another one than a majority's."""

    def figures(self) -> dict[str, int | float | str]:
        """Figures for metrics: name → number or text."""

    def close(self) -> None:
        """Close the journal.  Nothing is synced: what was acknowledged is durable already."""


class Leadership(Protocol):
    """The leader, and until when its leadership is known.  Times are boot time (clock.boot_ns).  No call waits for another node."""

    @property
    def leading(self) -> bool:
        """This node leads, and has committed and returned an entry of its own term: the state it applied is complete."""

    @property
    def leader(self) -> str:
        """UUID of the node that leads as far as this one knows, "" if it knows none."""

    def request_read(self, *, patient: bool = False) -> int:
        """A ticket for the queries that have arrived; one for all of a turn.  Raises NotLeading.

        A patient one costs no message: the next regular heartbeat confirms it (RAFT_HEARTBEAT_MS), or a ticket that is none.
        """

    def reads_confirmed(self) -> int:
        """Queries with a ticket up to this one may be answered from the applied state.

        A ticket of a leadership that ended is confirmed by a later one, or never: drop what waits for it.
        """

    def quorum_contact_ns(self) -> int:
        """Boot time at which the newest round was *sent* that a quorum answered; 0 if none was in this leadership."""

    def members(self) -> Members:
        """The membership as the leader sees it: each member and how near it is, and the journals that want to become members."""

    def change_members(self, step: ChangeMembers) -> None:
        """Queue one step of the membership.  Raises NotLeading, Refused for one that cannot be taken (now)."""

    def hand_over(self, node: str = "") -> bool:
        """Begin to give the leadership to the voter on that node, or the nearest one; False if nobody can take it.  Raises NotLeading."""

    def next_deadline_ns(self) -> int | None:
        """Boot time at which `tick` is due again; None: never by time."""

    def pass_time(self, now_ns: int) -> None:
        """Tell the boot time before `receive`, so that what comes counts from now on; `tick`, after it, does what is due."""

    def tick(self, now_ns: int) -> None:
        """Time has come to `now_ns`; what follows from it is done by the next `ready`."""

    def receive(self, sender: str, message: Any) -> None:
        """Take a decoded message of another voter (peer_messages.Message); its connection has proved to be node `sender`'s.

        Raises ProtocolError for what `sender` may not say; RejoinRequired or MembershipSuperseded if it proves this journal to be unusable.
        """


class Consensus(Log, Leadership, Protocol):
    """Log and Leadership together: what a voter implements."""
