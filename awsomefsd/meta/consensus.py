"""What the replica needs from whoever decides the order of entries: the interface of Raft, and of a single voter.

Rules both keep.  `propose` stamps index and term and decides nothing.  `ready` does the durable part in the order store → send, and returns
what is committed now, in index order, each exactly once; only that may be applied.  An entry may come out with another term than was
stamped at its index: then somebody else's entry won, and the proposer must send its own again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from awsomefsd.meta.commands import Entry


class Consensus(Protocol):
    @property
    def term(self) -> int: ...

    @property
    def first_index(self) -> int:
        """Oldest entry that `read` still has."""

    @property
    def committed(self) -> int:
        """Newest committed index."""

    def propose(self, batch: list[Entry]) -> None:
        """Stamp index and term into each entry and queue them."""

    def ready(self) -> list[Entry]:
        """Store what is queued, durably; then the entries that became committed.

        Raises Unavailable if nothing was stored (the queued proposals are given up).
        """

    def replay(self, after: int) -> Iterator[Entry]:
        """Committed entries with index > `after` that `ready` has returned already, or that were committed before the start."""

    def read(self, index: int, count: int, bytes_max: int) -> list[bytes]:
        """Committed entries from `index` on, encoded; raises Dropped for one before first_index."""

    def compact(self, index: int) -> None:
        """Entries < `index` are not needed any more."""

    def figures(self) -> dict[str, int | float | str]: ...

    def close(self) -> None: ...
