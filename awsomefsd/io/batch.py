"""What the flusher takes to the device and into one Commit together: parts of several files, and what became of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from awsomefsd.io.dirty import Record
from awsomefsd.io.files import FileState
from awsomefsd.io.writer import Piece, Written
from awsomefsd.limits import FRAME_BYTES_MAX
from awsomefsd.meta.commands import InodeCommit
from awsomefsd.meta.messages import Committed
from awsomefsd.types import Attr


def extents_bound(run_length: int) -> int:
    """The most extents that a run of adjoining records adds to a commit (cut at the ends of frames and segments, see placement.plan)."""
    return 3 + 2 * (run_length // FRAME_BYTES_MAX)


class Part:
    """One inode's share of a batch."""

    __slots__ = ("base", "commit", "count", "extents_bound", "pieces", "records", "state")

    def __init__(self, state: FileState, records: list[Record], extents: int) -> None:
        self.extents_bound = extents
        self.state = state
        self.records = records
        self.count = len(records)
        self.base = b""  # inline bytes that become the first extent
        self.pieces: list[Piece] = []
        newest = records[-1]
        size = max(record.offset + record.length for record in records)
        self.commit = InodeCommit(state.ino, 0, newest.sequence, size, newest.time_ns, lease=state.lease)


class Batch:
    """What goes to the device and into one Commit together."""

    __slots__ = ("done", "era", "error", "on_attr", "parts", "refused", "reply", "unique", "written")

    def __init__(self, parts: list[Part], unique: int, on_attr: Callable[[Attr, bool], None], era: int) -> None:
        self.era = era
        self.on_attr = on_attr
        self.parts = parts
        self.unique = unique
        self.written: Written | None = None
        self.done = threading.Event()
        self.reply: Committed | None = None
        self.error: BaseException | None = None
        self.refused = False  # one of its files was

    def committed(self, reply: Any, error: BaseException | None, repeated: bool = False) -> None:
        """Runs where answers arrive, so that attributes are taken up in the order in which the service gave them.

        `repeated` as of wait.was_repeated: those of a Commit that was sent again may be old.
        """
        self.reply, self.error = reply, error
        if isinstance(reply, Committed):
            for attr in reply.attrs:
                if attr is not None:
                    self.on_attr(attr, repeated)
        self.done.set()
