"""The seam between the rules of names and what they do beyond the rows of the inodes they touch.

A rule reads and changes inodes, names and extended attributes.  What follows from that elsewhere is written down by a ledger: numbers and
counters of the volume, extents and inline bytes, pins of sessions, locks, leases, tombstones, the reap queue.  The leader's ledger
(meta/machine/ledger.py) does all of it, in the same entry.  The ledger of a mount that decides by itself (meta/machine/held.py) does next
to nothing: the leader does it when it applies the record, and no rule reads of it what the holder has to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from awsomefsd.meta.state import rows

if TYPE_CHECKING:
    from awsomefsd.meta.api.commands import Entry
    from awsomefsd.meta.state.rows_cache import State


class Ledger(Protocol):
    """Called by rules that have checked everything: only `new_number` may refuse.  `volume` is the volume's row where it is changed."""

    def new_number(self, state: State, volume: rows.VolumeRow) -> int:
        """Returns the number of a new inode, and counts the inode."""

    def grant(self, state: State, session: int, volume: int, ino: int, lease: rows.LeaseRow) -> None:
        """Notes the write lease of an inode that the entry makes."""

    def pin(self, state: State, sessions: Iterable[int], volume: int, ino: int) -> None:
        """Keeps an inode without names while these sessions have it open."""

    def unpin(self, state: State, entry: Entry, volume: rows.VolumeRow, ino: int, session: int) -> None:
        """Ends the pin of a session, and the inode too if it was the last.  Nothing happens if there is no such pin."""

    def drop_pins(self, state: State, volume: int, ino: int) -> None:
        """Ends all pins of an inode that gets a name."""

    def end(self, state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow) -> None:
        """Removes an inode without names and pins, and all that it has."""

    def cut(self, state: State, entry: Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, size: int) -> None:
        """Drops the bytes of a file behind `size`, which is not its size yet, and the space kept there.  The caller saves the inode."""
