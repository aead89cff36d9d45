"""The journal as the log that the Raft core reads (raft_types.LogView)."""

from __future__ import annotations

from awsomefsd.meta.journal import Journal
from awsomefsd.meta.raft_messages import LogEntry


class JournalLog:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def first_index(self) -> int:
        return self._journal.first_index

    @property
    def last_index(self) -> int:
        return self._journal.last_index

    def term(self, index: int) -> int | None:
        return self._journal.term_of(index)

    def entries(self, start: int, bytes_max: int) -> list[LogEntry]:
        journal = self._journal
        if start < journal.first_index:
            return []
        return [(index, journal.term_of(index) or 0, raw) for index, raw in enumerate(journal.read(start, bytes_max=bytes_max), start)]
