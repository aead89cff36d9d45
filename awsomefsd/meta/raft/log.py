"""The log as the Raft core sees it: the durable part through a LogView, and in memory what is newer (etcd raft, log.go, log_unstable.go).

    first_index … (LogView) … | start … cache … last_index |      commit, applied, stable, handed are indexes into it

`handed` was given out to be stored, `stable` is known to be stored; both only fall when a suffix conflicts.  The cache holds everything
that is not stable or not committed, and some more behind it for followers that are a little late; below `start` the LogView is asked.
The newest configuration of the log is in force, so the configurations of entries that may still be cut off are kept beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.raft.messages import LogEntry
from awsomefsd.meta.raft.types import Config, EntryCodec, LogView, MembershipAt


class RaftLog:
    """One thread uses it.  Calls below `start` read the LogView, which may block on the disk and raise Corrupt."""

    def __init__(self, view: LogView, codec: EntryCodec, config: Config, applied: int, membership: MembershipAt) -> None:
        self._view = view
        self._codec = codec
        self._config = config
        self._cache: list[LogEntry] = []
        self._cache_bytes = 0
        assert applied <= view.last_index, "the state is of entries that the log has"
        self.last_index = self.stable = self.handed = view.last_index
        self._start = view.last_index + 1
        self._truncate: int | None = None
        self.commit = self.applied = self._applying = applied
        self._memberships = [membership]
        self._scan(applied + 1)

    def _scan(self, index: int) -> None:
        """Note the configurations of entries that are stored and not applied."""
        while page := self._view.entries(index, self._config.apply_bytes_max) if index <= self.last_index else []:
            self._note_memberships(page)
            index = page[-1][0] + 1

    # --- reading --------------------------------------------------------------------------------------------------------
    @property
    def membership(self) -> MembershipAt:
        """The newest configuration of the log, committed or not."""
        return self._memberships[-1]

    def contenders(self) -> frozenset[str]:
        """Voters of the newest committed configuration and of all after it."""
        found = self._memberships[-1].membership.all_voters()
        for number in range(len(self._memberships) - 1, 0, -1):
            if self._memberships[number].index <= self.commit:
                break
            found |= self._memberships[number - 1].membership.all_voters()
        return found

    @property
    def first_index(self) -> int:
        """Index of the oldest entry kept."""
        return min(self._view.first_index, self._start)

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        term = self.term(self.last_index)
        assert term is not None, "the term of the last entry is known, also of one that a state snapshot holds"
        return term

    def term(self, index: int) -> int | None:
        """Term of an entry, 0 for index 0; None if it is not known."""
        if index >= self._start:
            return self._cache[index - self._start][1] if index <= self.last_index else None
        return self._view.term(index) if index else 0

    def matches(self, index: int, term: int) -> bool:
        """True if the log has that entry."""
        return self.term(index) == term

    def slice(self, start: int, bytes_max: int, end: int | None = None) -> list[LogEntry]:
        """Consecutive entries from `start` to at most `end`, about `bytes_max` bytes but at least one."""
        end = self.last_index if end is None else end
        if start > end:
            return []
        if start < self._start:
            found = self._view.entries(start, bytes_max)
            return found[: min(end, self._start - 1) - start + 1]
        entries = self._cache[start - self._start : end - self._start + 1]
        if self._cache_bytes <= bytes_max:  # nearly always
            return entries
        total = 0
        for count, entry in enumerate(entries):
            total += len(entry[2])
            if total > bytes_max and count:
                return entries[:count]
        return entries

    def hint(self, index: int, term: int) -> tuple[int, int]:
        """The largest known index at or below `index` whose term is at most `term`, and its term.  Terms never fall along a log."""
        low, high = self.first_index - 1, min(index, self.last_index)
        low = min(low, high)
        while low < high:
            middle = (low + high + 1) // 2
            if (self.term(middle) or 0) <= term:
                low = middle
            else:
                high = middle - 1
        return low, self.term(low) or 0

    # --- writing --------------------------------------------------------------------------------------------------------
    def append(self, entries: Sequence[LogEntry]) -> bool:
        """Append entries from last_index + 1 on; True if a configuration is among them."""
        assert entries[0][0] == self.last_index + 1
        self._cache += entries
        self._cache_bytes += sum([len(entry[2]) for entry in entries])
        self.last_index = entries[-1][0]
        return self._note_memberships(entries)

    def accept(self, entries: Sequence[LogEntry]) -> bool:
        """Take a leader's entries behind a match: skip those that are there, cut off those that conflict.

        True if the configuration may have changed.  Raises Corrupt if a committed entry is another one.
        """
        overlap = min(self.last_index, entries[-1][0]) - entries[0][0] + 1
        if overlap <= 0:
            return self.append(entries)
        skip, changed = overlap, False
        if not self.matches(*entries[overlap - 1][:2]):  # equal terms at one index: equal logs up to it
            skip = next(number for number, entry in enumerate(entries) if not self.matches(entry[0], entry[1]))
            changed = self._cut(entries[skip][0])
        fresh = entries[skip:]
        return self.append(fresh) or changed if fresh else changed

    def _cut(self, index: int) -> bool:
        """Entries from `index` on were another leader's; whether a configuration was among them."""
        if index <= self.commit:
            raise Corrupt(f"a leader has another entry {index} than the one committed here (commit {self.commit})")
        if index < self._start:
            self._cache, self._cache_bytes, self._start = [], 0, index
        else:
            gone = self._cache[index - self._start :]
            del self._cache[index - self._start :]
            self._cache_bytes -= sum([len(entry[2]) for entry in gone])
        if index <= self.handed:
            self._truncate = index - 1 if self._truncate is None else min(self._truncate, index - 1)
        self.last_index = index - 1
        self.handed, self.stable = min(self.handed, index - 1), min(self.stable, index - 1)
        count = len(self._memberships)
        while self._memberships[-1].index >= index:
            self._memberships.pop()
        return len(self._memberships) != count

    def _note_memberships(self, entries: Sequence[LogEntry]) -> bool:
        count = len(self._memberships)
        membership_of = self._codec.membership_of
        for index, _, payload in entries:
            if (membership := membership_of(payload)) is not None:
                self._memberships.append(MembershipAt(index, membership))
        return len(self._memberships) != count

    def reset(self, index: int, membership: MembershipAt) -> None:
        """A state snapshot up to `index` has replaced everything."""
        self._cache, self._cache_bytes, self._start = [], 0, index + 1
        self._truncate = None
        self.last_index = self.stable = self.handed = self.commit = self.applied = self._applying = index
        self._memberships = [membership]

    # --- the way of an entry: handed out, stored, committed, applied ------------------------------------------------------
    def pending(self) -> bool:
        """True if there is something to store or to apply."""
        return self.handed < self.last_index or self._truncate is not None or self._applying < min(self.commit, self.stable)

    def take_entries(self) -> tuple[int | None, list[LogEntry]]:
        """(index to truncate after or None, entries to store behind it); given out once."""
        truncate, self._truncate = self._truncate, None
        entries = self._cache[self.handed + 1 - self._start :] if self.handed < self.last_index else []
        self.handed = self.last_index
        return truncate, entries

    def take_committed(self) -> list[LogEntry]:
        """Committed entries that are stored, about apply_bytes_max bytes; each is given out once."""
        end = min(self.commit, self.stable)
        entries = self.slice(self._applying + 1, self._config.apply_bytes_max, end)
        if entries:
            assert entries[0][0] == self._applying + 1 and entries[-1][0] <= end, "in order, each once, none that is not stored"
            self._applying = entries[-1][0]
        return entries

    def stored(self, index: int, term: int) -> bool:
        """Everything up to (index, term) is durable.  False for what was cut off meanwhile."""
        if not self.stable < index <= self.handed or not self.matches(index, term):
            return False
        self.stable = index
        return True

    def commit_to(self, index: int) -> None:
        """Everything up to `index` is committed; a smaller index than before changes nothing."""
        assert index <= self.last_index
        self.commit = max(self.commit, index)

    def applied_to(self, index: int) -> None:
        """Everything up to `index` is applied; the cache may drop it."""
        assert self.applied <= index <= self._applying <= min(self.commit, self.stable)
        self.applied = index
        while len(self._memberships) > 1 and self._memberships[1].index <= index:
            del self._memberships[0]
        if len(self._cache) > self._config.cache_entries_max or self._cache_bytes > self._config.cache_bytes_max:
            self._evict()

    def _evict(self) -> None:
        """Drop half of the entries that may go: the LogView has them."""
        count = min(self.stable, self.applied) + 1 - self._start
        if count <= 0:
            return
        count = (count + 1) // 2
        self._cache_bytes -= sum([len(entry[2]) for entry in self._cache[:count]])
        del self._cache[:count]
        self._start += count
