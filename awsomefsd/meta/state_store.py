"""What a replica needs of the store of its applied state: the machine's rows, and commits that are atomic and durable when they return.

The seam for crash tests: they put a store here that records its commits among the writes of the other media.  What a crash inside a commit
leaves, the old state or the new one, is LMDB's promise; what we can get wrong is what happens between commits, and what the journal has
dropped by then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from awsomefsd.meta.store import Identity
from awsomefsd.meta.txn import Txn


class StateStore(Txn, Protocol):
    @property
    def identity(self) -> Identity | None: ...

    @property
    def grown(self) -> int: ...

    @property
    def digest(self) -> bytes: ...

    @property
    def map_bytes(self) -> int: ...

    @property
    def map_use_percent(self) -> float: ...

    def claim(self, cluster: str, node: str, incarnation: bytes) -> None: ...

    def note(self, name: bytes) -> bytes: ...

    def set_note(self, name: bytes, value: bytes) -> None: ...

    def commit(self) -> None: ...

    def abort_and_grow(self) -> None: ...

    def copy_to(self, path: Path) -> None: ...

    def copy_pages_to(self, path: Path) -> None: ...

    def close(self) -> None: ...
