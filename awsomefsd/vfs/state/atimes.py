"""Times of reads: when one counts (relatime, strictatime, noatime as Linux has them), and how they get into the log without a wait.

A read that counts is remembered here and shown by stat(2) at once.  What was gathered goes out as SetAtimes entries from time to time, with
`awsomefsd flush` and before an unmount; nobody waits for them.  So the death of this process loses the times of the last seconds, and
nothing else.  An entry that was sent and one that utimensat(2) asks for reach the service in the order in which they took `_lock`: a read
never overwrites a time that was set after it.

Only what reaches this process can count.  Pages and link targets that the kernel keeps are read without it, so an open whose first read
would count drops the kernel's pages of that file (`cache_policy`): once after each change under relatime, at each open under strictatime.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from awsomefsd.base.limits import ATIMES_PENDING_MAX, ATIMES_PER_ENTRY_MAX
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Signal
from awsomefsd.io.file.reservation import Uniques
from awsomefsd.meta.api.commands import SetAtimes
from awsomefsd.meta.api.messages import Committed
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.vfs.api.context import CachePolicy
from awsomefsd.vfs.state.open_files import OpenTable

RELATIME_NS = 24 * 3600 * 10**9
RELATIME, STRICTATIME, NOATIME = "relatime", "strictatime", "noatime"

log = logging.getLogger("awsomefsd.atime")


class Policy(NamedTuple):
    files: str = RELATIME
    directories: bool = True


def is_due(attr: Attr, now_ns: int) -> bool:
    """relatime: the first read after a change, and one a day."""
    atime_ns = attr.atime_ns
    return atime_ns <= attr.mtime_ns or atime_ns <= attr.ctime_ns or now_ns - atime_ns >= RELATIME_NS


class Atimes:
    """Thread-safe.  `put` takes up committed attributes, on the thread that receives answers."""

    def __init__(
        self, volume: int, metadata: Metadata, uniques: Uniques, opens: OpenTable, put: Callable[[Attr], None], policy: Policy
    ) -> None:
        self._volume = volume
        self.metadata = metadata
        self._uniques = uniques
        self._opens = opens
        self._put = put
        self.policy: Callable[[], tuple[str, bool]] = lambda: policy  # as it is now
        self._lock = threading.Lock()
        self._pending: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._flushed = Signal()
        self._flushed.fire()

    # --- reads -------------------------------------------------------------------------------------------------------------
    def of(self, ino: int) -> int | None:
        """The time of a read that is not committed yet."""
        if not self._pending and not self._sent:
            return None
        return self._pending.get(ino) or self._sent.get(ino)

    def counts(self, attr: Attr) -> bool:
        """Says whether a read now would count; `attr` as stat(2) shows it."""
        files, directories = self.policy()
        if files == NOATIME or (not directories and stat.S_ISDIR(attr.mode)):
            return False
        return files == STRICTATIME or is_due(attr, time.time_ns())

    def accessed(self, attr: Attr, fh: int | None = None) -> None:
        """A read was served; `attr` as stat(2) shows it."""
        if not self.counts(attr):
            return
        opened = self._opens.get(fh) if fh is not None else None
        if opened is not None and opened.flags & os.O_NOATIME:
            return
        with self._lock:
            self._pending[attr.ino] = time.time_ns()
        if len(self._pending) > ATIMES_PENDING_MAX and not self._sent:
            self.flush()

    def cache_policy(self, attr: Attr, flags: int) -> CachePolicy:
        """KEEP, because nobody else changes the file while this session holds the volume, but for reads that must be seen to count."""
        reads = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_NOATIME
        return CachePolicy.DROP if reads and self.counts(attr) else CachePolicy.KEEP

    def discard(self, ino: int) -> None:
        """utimensat(2) is about to be proposed: older reads are overtaken."""
        with self._lock:
            self._pending.pop(ino, None)
            self._sent.pop(ino, None)

    # --- to the log ---------------------------------------------------------------------------------------------------------
    def flush(self) -> Signal:
        """Send what was gathered; the signal fires when that is answered.  Never waits."""
        with self._lock:
            if self._sent or not self._pending:
                return self._flushed
            self._sent, self._pending = self._pending, {}
            items = list(self._sent.items())
            signal = self._flushed = Signal()
            left = [len(range(0, len(items), ATIMES_PER_ENTRY_MAX))]
            for start in range(0, len(items), ATIMES_PER_ENTRY_MAX):
                self._send(items[start : start + ATIMES_PER_ENTRY_MAX], left, signal)
            return signal

    def _send(self, items: list[tuple[int, int]], left: list[int], signal: Signal) -> None:
        """Not repeated under a new session: by then a later time may be in the log."""
        unique = self._uniques.next_background_unique()

        def answered(value: Any, error: BaseException | None) -> None:
            self.metadata.ack(unique)
            if isinstance(value, Committed):
                for attr in value.attrs:
                    if attr is not None:
                        self._put(attr)
            elif error is not None:
                log.info("times of %d reads are lost: %s", len(items), error)
            left[0] -= 1
            if not left[0]:
                self._sent = {}
                signal.fire()

        self.metadata.propose(SetAtimes(self._volume, items), unique).start(answered)
