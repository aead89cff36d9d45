"""What LMDB is to the replica, without a disk: the last commit, which survives crashes, below the overlay that production uses.

`Durable` outlives the process; a `SimStore` is one process' use of it.  A generation becomes durable at one moment, some time after it was
begun, as it does where LMDB writes its meta page: a power cut before that leaves the old state, one after it the new one.  The reader's
snapshot stays what it was until it is renewed.  The map can be full: then `write` raises MapFull once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from awsomefsd.base.errors import Refused
from awsomefsd.meta.replica.overlay_store import Beside, OverlayStore
from awsomefsd.meta.replica.store import FORMAT_VERSION, NOTE_PREFIX, MapFull, StoreIdentity

Changes = dict[bytes, bytes | None]


class Durable:
    """The last commit.  `notes`: what is stored beside the rows, without their prefix."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.identity: StoreIdentity | None = None
        self.notes: dict[bytes, bytes] = {}
        self.commits = 0


class SimCommitted:
    """Implements overlay_store.CommittedRows."""

    def __init__(self, durable: Durable, step: Callable[[str], None]) -> None:
        self._durable = durable
        self._step = step
        self._rows = dict(durable.rows)
        self._order = sorted(self._rows)
        self._beside = {NOTE_PREFIX + name: value for name, value in durable.notes.items()}
        self._unseen: list[tuple[Changes, Changes]] = []  # durable, and not in the snapshot yet
        self.full = False
        self.grown = 0

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

    # --- the snapshot ------------------------------------------------------------------------------------------------------
    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def page(self, start: bytes, end: bytes, count: int) -> list[tuple[bytes, bytes]]:
        at = bisect_left(self._order, start)
        found = self._order[at : min(bisect_left(self._order, end, at), at + count)]
        return [(key, self._rows[key]) for key in found]

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        at = bisect_left(self._order, end) - 1
        if at < 0 or self._order[at] < start:
            return None
        return self._order[at], self._rows[self._order[at]]

    def beside(self, key: bytes) -> bytes | None:
        return self._beside.get(key)

    def renew(self) -> None:
        for rows, beside in self._unseen:
            for key, value in rows.items():
                if value is not None and key not in self._rows:
                    insort(self._order, key)
                elif value is None and key in self._rows:
                    del self._order[bisect_left(self._order, key)]
            change(self._rows, rows)
            change(self._beside, beside)
        self._unseen.clear()

    # --- commits -----------------------------------------------------------------------------------------------------------
    def write(self, rows: Changes, beside: Changes) -> None:
        if self.full:
            self.full = False
            raise MapFull("simulated")
        self._step("store commit")
        durable = self._durable
        change(durable.rows, rows)
        change(durable.notes, {key.removeprefix(NOTE_PREFIX): value for key, value in beside.items() if key.startswith(NOTE_PREFIX)})
        durable.commits += 1
        self._unseen.append((dict(rows), dict(beside)))
        self._step("store committed")

    def grow(self) -> None:
        self.grown += 1

    @property
    def map_bytes(self) -> int:
        return 1 << 28

    @property
    def map_use_percent(self) -> float:
        return 1.0

    def copy_to(self, path: Path) -> None:
        raise NotImplementedError("SimFiles copies what is durable")

    def copy_pages_to(self, path: Path) -> None:
        raise NotImplementedError("nobody asks for pages here")

    def close(self) -> None:
        self._rows, self._order = {}, []


def change(rows: dict[bytes, bytes], changes: Changes) -> None:
    for key, value in changes.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


class SimStore(OverlayStore):
    """The overlay over simulated rows.  The digest is computed anew at each opening."""

    def __init__(self, durable: Durable, beside: Beside, step: Callable[[str], None]) -> None:
        self.durable = durable
        self.rows = SimCommitted(durable, step)
        super().__init__(self.rows, digesting=True, beside=beside)
        while self.count_rows():
            pass
