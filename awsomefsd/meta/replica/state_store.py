"""The store of the applied state as the replica needs it: the machine's rows, and commits that another thread makes.

The seam for crash tests: they put a store here that records its commits among the writes of the other media.  What a crash inside a commit
leaves, the old state or the new one, is LMDB's promise; what we can get wrong is what happens between commits, and what the journal has
dropped by then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from awsomefsd.meta.replica.store import StoreIdentity
from awsomefsd.meta.state.txn import Txn


class StateStore(Txn, Protocol):
    """Rows (Txn) and notes.  Only the thread that opened it may call, but for `copy_to` and `copy_pages_to`."""

    @property
    def identity(self) -> StoreIdentity | None:
        """Cluster, node and journal this state belongs to; None for a new store."""

    @property
    def grown(self) -> int:
        """Number of times the map has grown since the start."""

    @property
    def digest(self) -> bytes:
        """Digest of all rows as they are now, uncommitted ones too; b"" if it is not kept, or not computed to its end."""

    @property
    def map_bytes(self) -> int:
        """Size of the map, the bound of the store until it grows."""

    @property
    def map_use_percent(self) -> float:
        """Share of the map in use as of the last commit."""

    def count_rows(self) -> int:
        """Take the next rows, a bounded number, into a digest that is not computed to its end; returns how many.  Raises Corrupt."""

    def claim(self, cluster: str, node: str, incarnation: bytes) -> None:
        """Write the identity the first time; later, raise Refused if it is another one."""

    def note(self, name: bytes) -> bytes:
        """The bytes noted last under `name`; b"" if there are none."""

    def set_note(self, name: bytes, value: bytes) -> None:
        """Note bytes under `name`, committed with the rows."""

    written: Callable[[], None]  # called on the writer thread when `settle` has something to tell

    @property
    def changes(self) -> int:
        """Rows changed since the last `begin_commit`."""

    @property
    def changed_bytes(self) -> int:
        """Bytes of the changes since then."""

    @property
    def writing(self) -> bool:
        """A generation is not settled yet: `begin_commit` must wait."""

    @property
    def ended(self) -> bool:
        """`settle` has something to tell."""

    def begin_commit(self, mark: int) -> None:
        """Hand everything changed until now to the writer thread.  `mark`: what `settle` returns once it is durable."""

    def settle(self, *, wait: bool) -> int | None:
        """The mark of the generation that has become durable; None: none has.  Raises what the writer met; `wait` blocks on the disk."""

    def commit(self) -> None:
        """Write everything changed until now durably.  Blocks on the disk."""

    def copy_to(self, path: Path) -> None:
        """Write a compacted copy of the last commit as one file, durable when this returns.  For any thread; blocks on the disk."""

    def copy_pages_to(self, path: Path) -> None:
        """Copy the pages of the last commit as they lie, for another process to read.  For any thread.  Raises Unavailable."""

    def close(self) -> None:
        """Close it; what was not handed to the writer thread is forgotten."""
