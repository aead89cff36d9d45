"""The applied state: changes in memory over the last commit of the store, which a thread of its own makes.

    filling    the generation that takes the changes of the entries applied now
    writing    the generation that the writer thread writes in one transaction; None: it has nothing to do
    committed  the store as of its last commit that this thread has seen (store.py)

A row is what the first of these that knows it says; a deleted one is known too.  `begin_commit` turns `filling` into `writing`, which costs
the caller the digest's bytes and a new, empty generation.  There are never more than two: the next `begin_commit` comes after `settle` has
told that the last one is durable.  Until then its rows are found in it, because the read transaction still shows the commit before.

The thread ends with each generation, so nothing has to be stopped.  What it met is raised by `settle` on the thread that owns the state:
what a failed commit means is decided there.  A full map is no failure: `settle` grows it, while no transaction is open, and the generation
is written again.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import STORE_MAP_BYTES_MIN
from awsomefsd.meta.replica.store import DIGEST_KEY, NOTE_PREFIX, MapFull, Store, StoreIdentity
from awsomefsd.meta.state.digest import digest_of, pack_digest, pair_hash, unpack_digest

DIGEST_ROWS_MAX = 4096  # so many are counted in one turn: 3 ms
WRITER_THREAD = "store-writer"
_SCAN_FIRST, _SCAN_MAX = 8, 256
_BEHIND_ALL = b"\xff" * 512  # LMDB's keys are shorter
_UNKNOWN: Any = object()

Page = list[tuple[bytes, bytes | None]]  # None: deleted
Beside = Callable[[Callable[[], None]], Callable[[], None]]  # starts the work on another thread; the function returned waits for its end


class Generation:
    """Changes in memory: rows (None: deleted) with their keys in order, and what is stored beside the rows."""

    __slots__ = ("beside", "mark", "order", "rows", "size")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self.order: list[bytes] = []
        self.beside: dict[bytes, bytes | None] = {}
        self.mark = 0  # of begin_commit
        self.size = 0  # bytes of all changes, the ones that were overwritten too

    def change(self, key: bytes, value: bytes | None) -> None:
        if key not in self.rows:
            insort(self.order, key)
        self.rows[key] = value
        self.size += len(key) + (len(value) if value is not None else 0)

    def page(self, start: bytes, end: bytes, count: int) -> Page:
        """The first `count` changes with start <= key < end."""
        at = bisect_left(self.order, start)
        found = self.order[at : min(bisect_left(self.order, end, at), at + count)]
        return [(key, self.rows[key]) for key in found]

    def last_key(self, start: bytes, end: bytes) -> bytes | None:
        """The last key with start <= key < end, or None."""
        at = bisect_left(self.order, end) - 1
        return self.order[at] if at >= 0 and self.order[at] >= start else None


class CommittedRows(Protocol):
    """The rows of the last commit, as of the last `renew`: Store.open(snapshot=True), or the simulator's.

    All calls but `write` and the copies come from one thread.
    """

    @property
    def identity(self) -> StoreIdentity | None: ...

    @property
    def grown(self) -> int: ...

    @property
    def map_bytes(self) -> int: ...

    @property
    def map_use_percent(self) -> float: ...

    def claim(self, cluster: str, node: str, incarnation: bytes) -> None: ...

    def adopt(self, cluster: str, node: str, incarnation: bytes, state_snapshot_index: int, state_snapshot_term: int) -> None: ...

    def get(self, key: bytes) -> bytes | None: ...

    def page(self, start: bytes, end: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The first `count` rows with start <= key < end."""

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None: ...

    def beside(self, key: bytes) -> bytes | None:
        """What is stored beside the rows."""

    def write(self, rows: dict[bytes, bytes | None], beside: dict[bytes, bytes | None]) -> None:
        """Commit the changes in one transaction; durable when this returns.  On the writer thread.  Raises MapFull: nothing is written."""

    def renew(self) -> None:
        """Show the last commit from now on."""

    def grow(self) -> None:
        """After MapFull: more room."""

    def copy_to(self, path: Path) -> None: ...

    def copy_pages_to(self, path: Path) -> None: ...

    def close(self) -> None: ...


def on_a_thread(work: Callable[[], None]) -> Callable[[], None]:
    """The writer thread of one generation."""
    thread = threading.Thread(target=work, name=WRITER_THREAD, daemon=True)
    thread.start()
    return thread.join


class OverlayStore:
    """Implements StateStore.  All calls on the thread that opened it, except `copy_to` and `copy_pages_to`."""

    def __init__(self, committed: CommittedRows, *, digesting: bool = False, beside: Beside = on_a_thread) -> None:
        self.committed = committed
        self.written: Callable[[], None] = lambda: None  # called on the writer thread when `settle` has something to tell
        self._beside = beside
        self._filling = Generation()
        self._writing: Generation | None = None
        self._wait: Callable[[], None] = lambda: None
        self._ended = False  # the writer thread is done with `_writing`
        self._failure: BaseException | None = None
        self._digesting = digesting
        self._digest = 0  # may leave the range of 128 bits until it is asked for
        self._uncounted: bytes | None = None  # the first key that the digest does not hold yet; None: it holds all
        self._take_up_digest()

    @classmethod
    def open(cls, directory: Path, *, map_bytes_min: int = STORE_MAP_BYTES_MIN, digesting: bool = False) -> OverlayStore:
        """The store in `directory`, made if it is missing.

        `digesting`: keep the digest of the rows; one that was not kept until now is computed by `count_rows`.  Raises as Store.open.
        """
        return cls(Store.open(directory, map_bytes_min=map_bytes_min, snapshot=True), digesting=digesting)

    # --- Txn -------------------------------------------------------------------------------------------------------------------
    def get(self, key: bytes) -> bytes | None:
        value = self._filling.rows.get(key, _UNKNOWN)
        if value is _UNKNOWN and self._writing is not None:
            value = self._writing.rows.get(key, _UNKNOWN)
        return self.committed.get(key) if value is _UNKNOWN else value

    def put(self, key: bytes, value: bytes) -> None:
        if self._is_counted(key):
            old = self.get(key)
            self._digest += pair_hash(key, value) - (0 if old is None else pair_hash(key, old))
        self._filling.change(key, value)

    def delete(self, key: bytes) -> bool:
        old = self.get(key)
        if old is None:
            return False
        if self._is_counted(key):
            self._digest -= pair_hash(key, old)
        self._filling.change(key, None)
        return True

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with start <= key < end.  Pieces are fetched by key: the caller may change rows meanwhile.  Raises Corrupt."""
        count = _SCAN_FIRST
        while start < end:
            rows, start = self._piece(start, end, count)
            yield from rows
            count = min(count * 4, _SCAN_MAX)

    def _piece(self, start: bytes, end: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Rows from `start` on, and the key before which they are all: `end`, or where a layer had more than `count`."""
        layers: list[Any] = [self.committed.page(start, end, count)]
        layers += [layer.page(start, end, count) for layer in (self._writing, self._filling) if layer is not None and layer.rows]
        bound = min([end, *(layer[-1][0] + b"\0" for layer in layers if len(layer) == count)])
        if not any(layers[1:]):
            return layers[0], bound
        merged = {key: value for layer in layers for key, value in layer if key < bound}
        return [(key, value) for key, value in sorted(merged.items()) if value is not None], bound

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        while True:
            below = self.committed.last(start, end)
            found = [layer.last_key(start, end) for layer in (self._filling, self._writing) if layer is not None]
            known = [key for key in [*found, below[0] if below is not None else None] if key is not None]
            if not known:
                return None
            key = max(known)
            value = self.get(key)
            if value is not None:
                return key, value
            end = key

    # --- beside the rows ---------------------------------------------------------------------------------------------------------
    @property
    def identity(self) -> StoreIdentity | None:
        return self.committed.identity

    def claim(self, cluster: str, node: str, incarnation: bytes) -> None:
        """The first time, write the identity; later, raise Refused if it is another one.  Before the first commit."""
        assert self._writing is None
        self.committed.claim(cluster, node, incarnation)

    def adopt(self, cluster: str, node: str, incarnation: bytes, state_snapshot_index: int, state_snapshot_term: int) -> None:
        """Make another node's state, up to this entry, this node's own.  Raises Refused for one of another cluster."""
        assert self._writing is None
        self.committed.adopt(cluster, node, incarnation, state_snapshot_index, state_snapshot_term)

    @property
    def digest(self) -> bytes:
        """The digest of all rows as they are now; b"" if it is not kept, or not computed to its end."""
        return pack_digest(self._digest) if self._digesting and self._uncounted is None else b""

    def _is_counted(self, key: bytes) -> bool:
        return self._digesting and (self._uncounted is None or key < self._uncounted)

    def _take_up_digest(self) -> None:
        raw = self.committed.beside(DIGEST_KEY)
        if self._digesting and raw is not None:
            self._digest = unpack_digest(raw)
        elif self._digesting:
            self._uncounted = b""
            self.count_rows()
        elif raw is not None:
            self._filling.beside[DIGEST_KEY] = None  # from now on it would be wrong

    def count_rows(self) -> int:
        """Takes the next rows into a digest that was not kept until now, at most DIGEST_ROWS_MAX; returns how many.  0: there is none left.

        A row behind these that changes meanwhile is counted as it is then.  A crash begins this again.
        """
        if self._uncounted is None:
            return 0
        rows = list(islice(self.scan(self._uncounted, _BEHIND_ALL), DIGEST_ROWS_MAX))
        self._digest += digest_of(rows)
        self._uncounted = rows[-1][0] + b"\0" if len(rows) == DIGEST_ROWS_MAX else None
        return len(rows)

    def note(self, name: bytes) -> bytes:
        """The bytes noted last under `name`; b"" if there are none."""
        key = NOTE_PREFIX + name
        for layer in (self._filling, self._writing):
            if layer is not None and key in layer.beside:
                return layer.beside[key] or b""
        return self.committed.beside(key) or b""

    def set_note(self, name: bytes, value: bytes) -> None:
        """Note bytes under `name`, committed with the rows."""
        self._filling.beside[NOTE_PREFIX + name] = value

    # --- generations -------------------------------------------------------------------------------------------------------
    @property
    def changes(self) -> int:
        """Rows changed since the last `begin_commit`."""
        return len(self._filling.rows)

    @property
    def changed_bytes(self) -> int:
        """Bytes of the changes since then."""
        return self._filling.size

    @property
    def writing(self) -> bool:
        """A generation is not settled yet: `begin_commit` must wait."""
        return self._writing is not None

    @property
    def ended(self) -> bool:
        """`settle` has something to tell."""
        return self._ended

    def begin_commit(self, mark: int) -> None:
        """Hand everything changed until now to the writer thread.  `mark`: what `settle` returns once it is durable."""
        assert self._writing is None, "two generations at most"
        if self.digest:
            self._filling.beside[DIGEST_KEY] = self.digest
        self._filling.mark = mark
        self._writing, self._filling = self._filling, Generation()
        self._start()

    def _start(self) -> None:
        self._ended = False
        self._wait = self._beside(self._write)

    def _write(self) -> None:
        """On the writer thread."""
        generation = self._writing
        assert generation is not None
        try:
            hit("store.commit.before")
            self.committed.write(generation.rows, generation.beside)
            hit("store.commit.after")
        except BaseException as err:
            self._failure = err
        self._ended = True
        self.written()

    def settle(self, *, wait: bool) -> int | None:
        """The mark of the generation that has become durable; None: there is none, or (without `wait`) it is being written still.

        Raises what the writer thread met, each time: then nothing can be committed any more.  `wait` blocks on the disk.
        """
        while self._writing is not None:
            if not self._ended and not wait:
                return None
            self._wait()
            assert self._ended, "a generation whose thread could not begin is not durable"
            if self._failure is None:
                self.committed.renew()  # first: until then its rows are found nowhere else
                mark, self._writing, self._ended = self._writing.mark, None, False
                return mark
            if not isinstance(self._failure, MapFull):
                raise self._failure
            self.committed.grow()
            self._failure = None  # last: without room nothing is durable
            self._start()
        return None

    def commit(self) -> None:
        """Durable when this returns: everything changed until now."""
        self.settle(wait=True)
        self.begin_commit(0)
        self.settle(wait=True)

    # --- the store below -----------------------------------------------------------------------------------------------------
    @property
    def grown(self) -> int:
        return self.committed.grown

    @property
    def map_bytes(self) -> int:
        return self.committed.map_bytes

    @property
    def map_use_percent(self) -> float:
        return self.committed.map_use_percent

    def copy_to(self, path: Path) -> None:
        """As Store.copy_to."""
        self.committed.copy_to(path)

    def copy_pages_to(self, path: Path) -> None:
        """As Store.copy_pages_to."""
        self.committed.copy_pages_to(path)

    def close(self) -> None:
        """Close it; what was not handed to the writer thread is forgotten.  Waits for that."""
        self._wait()
        self.committed.close()
