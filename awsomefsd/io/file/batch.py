"""A batch, which the flusher takes to the device and into one Commit together: parts of several files, and the outcome of each."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

from awsomefsd.base.limits import FRAME_BYTES_MAX
from awsomefsd.base.types import Attr
from awsomefsd.io.file.dirty_log import DirtyRecord
from awsomefsd.io.file.file_data import FileState
from awsomefsd.io.segment.writer import Piece, Written
from awsomefsd.meta.api.commands import InodeCommit
from awsomefsd.meta.api.messages import Committed


def extents_bound(run_length: int) -> int:
    """Returns the most extents that a run of adjoining records adds to a commit: frames and segments cut it (packing.py)."""
    return 3 + 2 * (run_length // FRAME_BYTES_MAX)


class Part:
    """One inode's share of a batch."""

    __slots__ = ("base", "commit", "count", "extents_bound", "pieces", "records", "state")

    def __init__(self, state: FileState, records: list[DirtyRecord], extents: int) -> None:
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
    """The records that go to the device and into one Commit together, and the outcome of both."""

    __slots__ = ("_answered", "bug", "done", "error", "on_attr", "parts", "pauses", "refused", "reply", "unique", "written")

    def __init__(
        self, parts: list[Part], unique: int, on_attr: Callable[[Attr, bool], None], answered: Callable[[Batch], None], pauses: int,
    ) -> None:  # fmt: skip
        """`answered` is called with the batch once it has its answer; it sets `done` when whoever waits for that may go on."""
        self.pauses = pauses
        self.on_attr = on_attr
        self._answered = answered
        self.parts = parts
        self.unique = unique
        self.written: Written | None = None
        self.done = threading.Event()
        self.reply: Committed | None = None
        self.error: BaseException | None = None
        self.refused = False  # one of its files was
        self.bug: BaseException | None = None  # raised while the answer was taken up

    def committed(self, reply: Any, error: BaseException | None, repeated: bool = False) -> None:
        """Takes the answer, on the thread that receives answers, so that attributes are taken up in the order in which the service gave
        them.

        `repeated` as of wait.was_repeated: the attributes of a Commit that was sent again may be old.
        """
        self.reply, self.error = reply, error
        if isinstance(reply, Committed):
            for attr in reply.attrs:
                if attr is not None:
                    self.on_attr(attr, repeated)
        self._answered(self)

    @property
    def is_plain(self) -> bool:
        """It was committed as proposed: each of its files, or the file is gone."""
        return self.error is None and self.reply is not None and all(one in (0, errno.ENOENT) for one in self.reply.errnos)
