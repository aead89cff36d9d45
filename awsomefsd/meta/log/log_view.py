"""The journal as the log that the Raft core reads (LogView of meta/raft/types.py)."""

from __future__ import annotations

from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.raft.messages import LogEntry


class JournalLog:
    """Implements LogView on a journal."""

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
