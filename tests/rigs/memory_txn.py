"""A sorted dict as the machine's transaction."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from awsomefsd.meta.state.txn import KEY_BYTES_MAX


class MemTxn:
    """Txn over a dict and a sorted list of keys.  Asserts what LMDB would refuse and what the machine promises."""

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        self.rows: dict[bytes, bytes] = dict(rows or {})
        self.order: list[bytes] = sorted(self.rows)
        self.changes = 0

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= KEY_BYTES_MAX and isinstance(value, bytes)
        self.changes += 1
        if key not in self.rows:
            insort(self.order, key)
        self.rows[key] = value

    def delete(self, key: bytes) -> bool:
        self.changes += 1
        if self.rows.pop(key, None) is None:
            return False
        del self.order[bisect_left(self.order, key)]
        return True

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        before = self.changes
        at = bisect_left(self.order, start)
        while at < len(self.order) and self.order[at] < end:
            assert self.changes == before, "mutated during a scan"
            yield self.order[at], self.rows[self.order[at]]
            at += 1

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        at = bisect_left(self.order, end) - 1
        if at < 0 or self.order[at] < start:
            return None
        return self.order[at], self.rows[self.order[at]]
