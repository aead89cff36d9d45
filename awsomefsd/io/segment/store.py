"""The segment store, the seam of the data path: bytes go into leased segments and come back by their extents, wherever segments lie.

Segments lie on devices of the cluster (writer.py, reader.py).  Files, their flusher and the worker know no more than these methods, so
another place for segments is another implementation.  Segments are leased, filled and sealed by the store itself, several for one batch
where one is full: so there is no method to lease or to append, but one to write a batch durably.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from awsomefsd.base.types import Extent, SegmentProgress
from awsomefsd.io.segment.writer import Piece, Written


class SegmentReads(Protocol):
    """The reading half of the segment store."""

    def read(self, extent: Extent, volume: int, ino: int, skip: int, length: int, into: memoryview) -> None:
        """Reads bytes [skip, skip + length) of `extent` into the first `length` bytes of `into`; any thread, blocks for the I/O.

        Raises Corrupt for bytes that a checksum refuses, FormatTooNew, Unavailable where the segment cannot be reached, or OSError; `into`
        may hold anything then.
        """


class SegmentWrites(Protocol):
    """Thread-safe.  Methods block for I/O and for a lease from the metadata service, unless they say otherwise."""

    def write(self, pieces: list[Piece]) -> Written:
        """Writes all pieces durably; returns their extents, and the progress that goes into the same commit.

        Raises OSError, Fenced if the session was replaced meanwhile, or an Error of the lease; nothing is visible then.
        """

    def report_again(self, written: Written) -> None:
        """Takes back the progress of a refused commit: the next one reports the segments that ended.  Does not block."""

    def seal_all(self) -> list[SegmentProgress]:
        """Seals every leased segment; returns the progress for a last commit.

        Raises nothing: a footer that cannot be written is left out.
        """

    def rest(self) -> Written:
        """Seals every leased segment if nothing was written since the last call; returns the progress for a commit, and no extents.

        Raises nothing, as `seal_all`.
        """

    def leave(self, devices: set[int], absent: Container[int] = ()) -> Written:
        """Seals the segments on these devices; returns the progress for a commit, and no extents.  Raises nothing, as `seal_all`.

        No footer is written to those of them that are `absent`, and it is not asked any more whether they write again.
        """

    def devices_in_use(self) -> set[int]:
        """Returns the numbers of the devices on which segments are leased, and of one that has failed.

        Does not wait for a write that is under way.
        """

    def owes_report(self) -> bool:
        """Says whether segments have ended that are still to be reported.  Does not wait for a write."""

    def take_in_doubt(self) -> list[SegmentProgress]:
        """Returns empty segments that were leased while the session was replaced; to be given back one by one.  Does not wait."""

    def abandon(self) -> None:
        """Gives up all leased segments, because their session has ended: none of them is written or reported again.  Returns at once."""

    def await_drained(self) -> None:
        """Returns when no write that was begun before the last `abandon` is on its way any more, however long that takes."""
