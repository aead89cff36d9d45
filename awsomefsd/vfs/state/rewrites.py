"""Files that were truncated to nothing: what is written to them next is committed by close(2), so that a crash leaves old or new contents.

That is what programs rely on that replace a file in place without fsync. It is remembered beside the file states, which memory pressure
and commits may take away at any time. A successor is not told which files its predecessor's programs had truncated, so it takes all
that are open for writing for such: one flush too many for each, after the death of a worker.
"""

from __future__ import annotations

import os
import threading

from awsomefsd.vfs.state.open_files import OpenTable

REMEMBERED_MAX = 8_192  # beside those that are open


class Rewrites:
    """Thread-safe; nothing blocks."""

    def __init__(self, opens: OpenTable) -> None:
        self._opens = opens
        self._lock = threading.Lock()
        self._inos: set[int] = set()

    def begin(self, ino: int) -> None:
        """The file was truncated to nothing, or the commit at a close has failed."""
        with self._lock:
            if len(self._inos) >= REMEMBERED_MAX + len(self._opens):
                self._inos = {known for known in self._inos if self._opens.count(known)}
            self._inos.add(ino)

    def end(self, ino: int) -> None:
        """What was written is being committed."""
        with self._lock:
            self._inos.discard(ino)

    def __contains__(self, ino: int) -> bool:
        return ino in self._inos

    def take_over(self) -> None:
        """Takes up the open files of a predecessor; called before anything is served."""
        with self._lock:
            self._inos |= {file.ino for file in self._opens if file.flags & os.O_ACCMODE != os.O_RDONLY}
