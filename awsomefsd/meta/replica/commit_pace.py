"""The number of entries after which the store is committed: so few that a commit does not delay heartbeats and answers.  Pure.

A commit takes as long as its dirty pages are many: 2,000 random updates of a large state touch several times as many pages as 2,000 creates
in one directory, and disks differ.  So what it took is measured: half as many entries after one of more than STORE_COMMIT_STALL_MS, twice
as many after one of less than half of that.  What does not shrink with the entries is the sync itself; a disk on which that alone is slow
would be kept busy with commits, so they come at most every COMMIT_SHARE times what the last one took, until the upper bound is reached.
"""

from __future__ import annotations

from awsomefsd.base.limits import NS_PER_MS, STORE_COMMIT_ENTRIES_FIRST, STORE_COMMIT_ENTRIES_MIN, STORE_COMMIT_STALL_MS

COMMIT_SHARE = 5
NEVER = 1 << 62


class CommitPace:
    """Adapts that number to what commits take.  `entries_max`: never more entries than these wait for a commit."""

    def __init__(self, entries_max: int) -> None:
        self._max = entries_max
        self._min = min(STORE_COMMIT_ENTRIES_MIN, entries_max)
        self.entries = min(STORE_COMMIT_ENTRIES_FIRST, entries_max)
        self._not_before_ns = 0

    def due_ns(self, entries: int) -> int:
        """Monotonic time at which `entries` waiting ones are to be committed; 0: at once, NEVER: not because of their number."""
        if entries >= self._max:
            return 0
        return self._not_before_ns if entries >= self.entries else NEVER

    def took(self, entries: int, took_ns: int, now_ns: int) -> None:
        """A commit of so many entries has taken `took_ns` and ended at `now_ns`."""
        self._not_before_ns = now_ns + (COMMIT_SHARE - 1) * took_ns
        if took_ns > STORE_COMMIT_STALL_MS * NS_PER_MS:
            self.entries = max(min(entries, self.entries) // 2, self._min)
        elif took_ns < STORE_COMMIT_STALL_MS * NS_PER_MS // 2 and entries >= self.entries:
            self.entries = min(self.entries * 2, self._max)
