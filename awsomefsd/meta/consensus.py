"""What the replica needs from whoever decides the order of entries: the interface of Raft (voter.py), and of a single voter (solo.py).

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

from awsomefsd.meta.commands import Entry
from awsomefsd.meta.member_messages import ChangeMembers, Members


class Log(Protocol):
    """The entries.  Indexes only grow."""

    @property
    def term(self) -> int: ...

    @property
    def first_index(self) -> int:
        """Oldest entry that `read` still has."""

    @property
    def committed(self) -> int:
        """Newest committed index."""

    def propose(self, batch: list[Entry]) -> None:
        """Stamp index and term into each entry and queue them.  Raises NotLeading, and then nothing of it is queued."""

    def ready(self) -> list[Entry]:
        """Store what is queued, durably, and send; then the entries that became committed.

        Raises Unavailable if nothing was stored and the queued proposals were given up (a single voter; one of several keeps them).
        """

    def replay(self, after: int) -> Iterator[Entry]:
        """Committed entries with index > `after` that `ready` has returned already, or that were committed before the start."""

    def read(self, index: int, count: int, bytes_max: int) -> list[bytes]:
        """Committed entries from `index` on, encoded; raises Dropped for one before first_index."""

    def compact(self, index: int) -> None:
        """Entries < `index` are not needed any more by this node's store and readers."""

    def note(self, applied: int) -> bytes:
        """To be committed with the state at entry `applied`, for the next start; b"" if there is nothing to note."""

    def note_digest(self, index: int, digest: bytes) -> None:
        """Of the state at entry `index`.  Raises StartAnew if it proves to be another one than a majority's."""

    def figures(self) -> dict[str, int | float | str]: ...

    def close(self) -> None: ...


class Leadership(Protocol):
    """Who leads, and until when that is known.  Times are boot time (clock.boot_ns)."""

    @property
    def leading(self) -> bool:
        """This node leads, and has committed and returned an entry of its own term: the state it applied is complete."""

    @property
    def leader(self) -> str:
        """UUID of the node that leads as far as this one knows, "" if it knows none."""

    def request_read(self) -> int:
        """A ticket for the queries that have arrived; one for all of a turn.  Raises NotLeading."""

    def reads_confirmed(self) -> int:
        """Queries with a ticket up to this one may be answered from the applied state.

        A ticket of a leadership that ended is confirmed by a later one, or never: drop what waits for it.
        """

    def quorum_contact_ns(self) -> int:
        """When the newest round was *sent* that a quorum answered; 0 if none was in this leadership."""

    def members(self) -> Members:
        """Of the leader: who is a member, how near each is, and who wants to be one."""

    def change_members(self, step: ChangeMembers) -> None:
        """Queue one step of the membership.  Raises NotLeading, Refused for one that cannot be taken (now)."""

    def hand_over(self, node: str = "") -> bool:
        """Begin to give the leadership to the voter on that node, or the nearest one; False if nobody can take it.  Raises NotLeading."""

    def next_deadline_ns(self) -> int | None:
        """When `tick` is due again; None: never by time."""

    def tick(self, now_ns: int) -> None:
        """Time has come to `now_ns`; what follows from it is done by the next `ready`."""

    def receive(self, sender: str, message: Any) -> None:
        """A decoded message of another voter (peer_messages.Message), from the connection that proved to be node `sender`'s."""


class Consensus(Log, Leadership, Protocol):
    """Both."""
