"""Finds the member whose state differs from the others' at the same index.  Pure.

Every member notes its own digest at fixed indexes and tells the leader.  As soon as more than half of the voters have the same one, whoever
has another one has diverged; also the leader itself.  Without such a majority nobody is accused.
"""

from __future__ import annotations

from collections import Counter

NOTED_MAX = 8  # newest indexes that are remembered


class Digests:
    """This member's own digests, and for a leader those of the others, of the newest NOTED_MAX indexes."""

    def __init__(self) -> None:
        self._noted: dict[int, bytes] = {}  # this member's own
        self._heard: dict[int, dict[str, bytes]] = {}
        self.compared = 0  # indexes at which a majority agreed
        self.diverged = 0  # members found

    def note(self, index: int, digest: bytes) -> None:
        """Remember this member's own digest."""
        self._noted[index] = digest
        while len(self._noted) > NOTED_MAX:
            del self._noted[min(self._noted)]

    def differs(self, index: int, digest: bytes) -> bool:
        """This member noted another digest at that index."""
        return self._noted.get(index, digest) != digest

    def hear(self, member: str, index: int, digest: bytes, voters: frozenset[str]) -> list[tuple[str, bytes]]:
        """Take a report to the leader.  Returns members found to have diverged, each once, with the majority's digest."""
        reports = self._heard.setdefault(index, {})
        before = self._majority(reports, voters)
        if reports.get(member) == digest:
            return []
        reports[member] = digest
        while len(self._heard) > NOTED_MAX:
            del self._heard[min(self._heard)]
        agreed = self._majority(reports, voters)
        if agreed is None:
            return []
        self.compared += before is None
        suspects = [member] if before is not None else list(reports)
        found = [(one, agreed) for one in suspects if reports[one] != agreed]
        self.diverged += len(found)
        return found

    def _majority(self, reports: dict[str, bytes], voters: frozenset[str]) -> bytes | None:
        counted = Counter(digest for member, digest in reports.items() if member in voters)
        return next((digest for digest, count in counted.items() if count * 2 > len(voters)), None)
