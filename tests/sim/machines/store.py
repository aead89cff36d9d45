"""What LMDB is to the replica, without a disk: rows in memory, a last commit that survives crashes, and nothing of what came after it.

Same calls as meta/store.Store, so the replica cannot tell.  `Durable` outlives the process; a `SimStore` is one process' use of it.  A
power cut inside `commit` leaves the old state or the new one, as LMDB's two meta pages do.  The map can be full: `full_at` changes from
now a put raises MapFull once, as a real map does when it must grow.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from awsomefsd.base.errors import Refused
from awsomefsd.meta.replica.store import FORMAT_VERSION, MapFull, StoreIdentity
from awsomefsd.meta.state.digest import digest_of, pack_digest, pair_hash


class Durable:
    """The last commit."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.identity: StoreIdentity | None = None
        self.notes: dict[bytes, bytes] = {}
        self.commits = 0


class SimStore:
    def __init__(self, durable: Durable, spend: Callable[[int], None], step: Callable[[str], None]) -> None:
        self._durable = durable
        self._spend = spend
        self._step = step
        self._rows = dict(durable.rows)
        self._order = sorted(self._rows)
        self._undo: dict[bytes, bytes | None] = {}
        self._notes = dict(durable.notes)
        self._digest = digest_of(self._rows.items())
        self.changes = 0
        self.grown = 0
        self.full_at = -1
        self.commit_ns = 2_000_000

    @property
    def identity(self) -> StoreIdentity | None:
        return self._durable.identity

    def claim(self, cluster: str, node: str, incarnation: bytes) -> None:
        mine = self._durable.identity
        if mine is None:
            self._durable.identity = StoreIdentity(FORMAT_VERSION, cluster, node, incarnation)
        elif (mine.cluster, mine.node, mine.incarnation) != (cluster, node, incarnation):
            raise Refused("state of another cluster, node or journal")

    def adopt(self, cluster: str, node: str, incarnation: bytes, state_snapshot_index: int, state_snapshot_term: int) -> None:
        mine = self._durable.identity
        if mine is None or mine.cluster != cluster:
            raise Refused("not a state of this cluster")
        self._durable.identity = replace(
            mine, node=node, incarnation=incarnation, state_snapshot_index=state_snapshot_index, state_snapshot_term=state_snapshot_term
        )

    def note(self, name: bytes) -> bytes:
        return self._notes.get(name, b"")

    def set_note(self, name: bytes, value: bytes) -> None:
        self._notes[name] = value

    @property
    def digest(self) -> bytes:
        return pack_digest(self._digest)

    def count_rows(self) -> int:
        """The digest is always whole."""
        return 0

    # --- Txn ---------------------------------------------------------------------------------------------------------------
    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._changed(key)
        if key not in self._rows:
            insort(self._order, key)
        self._rows[key] = value
        self._digest += pair_hash(key, value)

    def delete(self, key: bytes) -> bool:
        self._changed(key)
        if self._rows.pop(key, None) is None:
            return False
        del self._order[bisect_left(self._order, key)]
        return True

    def _changed(self, key: bytes) -> None:
        if self.full_at >= 0:
            self.full_at -= 1
            if self.full_at < 0:
                raise MapFull("simulated")
        self.changes += 1
        old = self._rows.get(key)
        if old is not None:
            self._digest -= pair_hash(key, old)
        if key not in self._undo:
            self._undo[key] = old

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        before = self.changes
        order, rows = self._order, self._rows
        at = bisect_left(order, start)
        while at < len(order) and order[at] < end:
            assert self.changes == before, "mutated during a scan"
            yield order[at], rows[order[at]]
            at += 1

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        at = bisect_left(self._order, end) - 1
        if at < 0 or self._order[at] < start:
            return None
        return self._order[at], self._rows[self._order[at]]

    # --- transactions --------------------------------------------------------------------------------------------------------
    def commit(self) -> None:
        self._step("store commit")
        self._spend(self.commit_ns)
        rows, durable = self._rows, self._durable.rows
        for key in self._undo:
            if key in rows:
                durable[key] = rows[key]
            else:
                durable.pop(key, None)
        self._undo.clear()
        self._durable.notes = dict(self._notes)
        self.changes = 0
        self._durable.commits += 1
        self._step("store committed")

    def abort_and_grow(self) -> None:
        self._rows = dict(self._durable.rows)
        self._order = sorted(self._rows)
        self._undo.clear()
        self._notes = dict(self._durable.notes)
        self._digest = digest_of(self._rows.items())
        self.changes = 0
        self.grown += 1

    @property
    def map_bytes(self) -> int:
        return 1 << 28

    @property
    def map_use_percent(self) -> float:
        return 1.0

    def close(self) -> None:
        self._rows = {}
        self._order = []
