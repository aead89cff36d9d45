"""Places in files whose bytes cannot be read right, as files below state_dir/damage: what a worker or scrub met, until it is over.

A worker writes a record when a program's read is refused, scrub when it finds data that cannot be read.  The daemon alone removes them
(node/maintenance/damage.py): the place was rewritten, its file is gone, or its bytes are right again.  So a record outlives both processes,
and `status` names the file as long as it is damaged.  Rejected: the leader's memory, which a change of leader empties.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from awsomefsd.base import durable
from awsomefsd.base.limits import DAMAGED_READS_MAX

READ, SCRUB = "read", "scrub"  # who met it; each writes files of its own
_SUFFIX = ".json"


class DamagedRead(Struct, frozen=True):
    """`length` bytes of a file from `offset` on, some of which are wrong.  `what`: why, in words; `seen_ns`: since 1970."""

    volume: int
    ino: int
    offset: int
    length: int
    volume_name: str = ""
    path: str = ""
    what: str = ""
    seen_ns: int = 0
    by: str = READ

    @property
    def name(self) -> str:
        return f"{self.volume}-{self.ino}-{self.offset}-{self.by}{_SUFFIX}"


class DamagedReads:
    """The records of one node, DAMAGED_READS_MAX at most.  Any thread, of any process of the node; blocks for the disk."""

    def __init__(self, state_dir: Path | str) -> None:
        self._directory = Path(state_dir) / "damage"

    def knows(self, one: DamagedRead) -> bool:
        return (self._directory / one.name).exists()

    def add(self, one: DamagedRead) -> bool:
        """Stores a record, durable when this returns.  False if there are as many as can be.  Raises OSError."""
        if self.knows(one):
            return True
        if len(self._names()) >= DAMAGED_READS_MAX:
            return False
        self._directory.mkdir(mode=0o700, exist_ok=True)
        durable.write_json(self._directory / one.name, msgspec.to_builtins(one))
        return True

    def all(self) -> list[DamagedRead]:
        """Returns the records in the order of volume, inode and offset; one that cannot be read is left out.  Raises OSError."""
        found: list[DamagedRead] = []
        for name in self._names():
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                found.append(msgspec.json.decode((self._directory / name).read_bytes(), type=DamagedRead))
        return sorted(found, key=lambda one: (one.volume, one.ino, one.offset))

    def remove(self, one: DamagedRead) -> None:
        """Removes a record, if it is there.  Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            (self._directory / one.name).unlink()

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._directory) if name.endswith(_SUFFIX)]
        except FileNotFoundError:
            return []
