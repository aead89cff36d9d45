"""The store of the applied state as the replica needs it: the machine's rows, and commits that are atomic and durable when they return.

The seam for crash tests: they put a store here that records its commits among the writes of the other media.  What a crash inside a commit
leaves, the old state or the new one, is LMDB's promise; what we can get wrong is what happens between commits, and what the journal has
dropped by then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from awsomefsd.meta.replica.store import StoreIdentity
from awsomefsd.meta.state.txn import Txn


class StateStore(Txn, Protocol):
    """Rows (Txn) and notes in one open transaction.  Only the thread that opened it may call, but for `copy_to` and `copy_pages_to`."""

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
        """Note bytes under `name`, committed with the rows.  Raises MapFull."""

    def commit(self) -> None:
        """Write everything durably and open the next transaction.  Blocks on the disk.  Raises MapFull: use `abort_and_grow`."""

    def abort_and_grow(self) -> None:
        """Go back to the last commit, with a larger map.  Waits for the end of a copy."""

    def copy_to(self, path: Path) -> None:
        """Write a compacted copy of the last commit as one file, durable when this returns.  For any thread; blocks on the disk."""

    def copy_pages_to(self, path: Path) -> None:
        """Copy the pages of the last commit as they lie, for another process to read.  For any thread.  Raises Unavailable."""

    def close(self) -> None:
        """Close it; what was not committed is forgotten."""
