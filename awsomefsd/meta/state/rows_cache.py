"""Rules see the rows through this cache: decoded, and the hot ones written back late.

A rule gets a row object, checks everything, then changes it in place and saves it; the same key gives the same object until the entry is
over.  So the cache is emptied only between entries (`evict`), and a row that was fetched twice cannot diverge.  Cached kinds are those read
by point: cluster, volume, session, device, segment, inode.  All others go straight to the transaction.  Scans over cached kinds write
back first (`scan`), so a cache changes no result and no final row, only how often a row is encoded.

A snapshot keeps inodes as they are stored, for a rule has changed the row before it saves it.  So the entry that makes a snapshot writes
back, and a row that is changed but not written back always belongs to the present chapter: what does not make a version is stored at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from awsomefsd.base.codec import Sealed
from awsomefsd.base.errors import FormatTooNew
from awsomefsd.meta.state import chapters, invariants, keys, rows
from awsomefsd.meta.state.chapters import Chapter
from awsomefsd.meta.state.extent_counts import ExtentCounts
from awsomefsd.meta.state.ledger import Ledger
from awsomefsd.meta.state.results import Results
from awsomefsd.meta.state.txn import Txn

ROWS_CACHED_MAX = 8_192
ROWS_DIRTY_MAX = 512  # 4 ms to write back: nobody waits longer for it when a commit begins
INCOMPAT_SNAPSHOTS = 1  # there may be chapters and rows of history
INCOMPAT_KNOWN = INCOMPAT_SNAPSHOTS  # feature bits this build can read
RO_COMPAT_KNOWN = 0  # feature bits beside which this build may change rows


class GivenNumber:
    """The number of the inode that a record makes.  `paid`: the quota counts it as used already.  `taken`: the inode was made."""

    __slots__ = ("ino", "paid", "taken")

    def __init__(self, ino: int, *, paid: bool) -> None:
        self.ino = ino
        self.paid = paid
        self.taken = False


class State:
    """The rows of one transaction, for one thread.  Reads raise Corrupt and FormatTooNew for a row that does not decode."""

    __slots__ = (
        "_cache", "_dirty", "chaptered", "cluster", "devices_saved", "extent_counts", "given", "ledger", "maybe_dead", "results",
        "tombstones_written", "txn", "unlocked",
    )  # fmt: skip

    def __init__(self, txn: Txn, ledger: Ledger) -> None:
        self.txn = txn
        self.ledger = ledger
        self._cache: dict[bytes, Any] = {}
        self._dirty: dict[bytes, Sealed] = {}
        self.maybe_dead: set[int] = set()  # segments that may have become wholly dead in this entry
        self.devices_saved: set[int] = set()  # devices that this entry has saved; noted for invariants.py only
        self.tombstones_written = 0  # tombstones written by this entry
        self.given: GivenNumber | None = None  # the inode number that the running record brings; None: the volume's counter gives one
        self.extent_counts = ExtentCounts(txn)  # what was found of large files; no part of the state
        self.unlocked: set[tuple[int, int]] = set()  # (volume, ino) whose locks shrank; for waiters, no part of the state
        raw = txn.get(keys.cluster())
        self.cluster: rows.ClusterRow = rows.ClusterRow() if raw is None else rows.CLUSTER.loads(raw)
        if self.cluster.incompat & ~INCOMPAT_KNOWN:
            raise FormatTooNew(f"state store needs features {self.cluster.incompat:#x} that this build does not know; upgrade this node")
        self.chaptered = bool(self.cluster.incompat & INCOMPAT_SNAPSHOTS)  # a volume may have chapters
        self.results = Results(txn)

    @property
    def writable(self) -> bool:
        """False if a newer build has used a feature that this build would break by applying entries."""
        return not self.cluster.ro_compat & ~RO_COMPAT_KNOWN

    def acts_at(self, level: int) -> bool:
        """Returns True if the cluster acts at `level` or above.  A rule that was changed at that level asks; see base/levels.py.

        It looks at nothing but the state.  What this node's build knows is no part of the answer: voters of two builds would differ.
        """
        return self.cluster.level >= level

    # --- the cache ----------------------------------------------------------------------------------------------------
    def load(self, key: bytes, codec: Sealed) -> Any:
        """Returns the row of a cached kind, or None; the same object until the end of the entry."""
        row = self._cache.get(key)
        if row is None:
            raw = self.txn.get(key)
            if raw is None:
                return None
            row = codec.loads(raw)
            if invariants.ASSERTED:
                invariants.assert_row(row, self.cluster)
            self._cache[key] = row
        return row

    def save(self, key: bytes, row: Any, codec: Sealed) -> None:
        """Marks a row of a cached kind as changed."""
        if invariants.ASSERTED:
            invariants.assert_row(row, self.cluster)
        self._cache[key] = row
        self._dirty[key] = codec

    def drop(self, key: bytes) -> None:
        """Deletes the row of a cached kind."""
        self._cache.pop(key, None)
        self._dirty.pop(key, None)
        self.txn.delete(key)

    def write_back(self) -> None:
        """Writes the changed rows of cached kinds into the transaction."""
        put, cache = self.txn.put, self._cache
        for key in sorted(self._dirty):  # in key order a tool's store touches each page once
            put(key, self._dirty[key].dumps(cache[key]))
        self._dirty.clear()

    def evict(self) -> None:
        """Keeps the cache, and the changed rows in it, within their bounds.  Call it only between entries."""
        if len(self._dirty) > ROWS_DIRTY_MAX:
            self.write_back()
        if len(self._cache) > ROWS_CACHED_MAX:
            self.write_back()
            self._cache.clear()

    def forget(self) -> None:
        """Drops the cache, changed rows too: what was not written back has not happened."""
        self._cache.clear()
        self._dirty.clear()

    def flush(self) -> None:
        """Writes everything that is only in memory into the transaction."""
        self.write_back()
        self.results.flush()
        self.txn.put(keys.cluster(), rows.CLUSTER.dumps(self.cluster))

    def reload(self) -> None:
        """Reads all again after a change below this cache, which was flushed before.  The object of the cluster's row stays."""
        self._cache.clear()
        self.extent_counts.forget()
        self.results = Results(self.txn)
        raw = self.txn.get(keys.cluster())
        found: rows.ClusterRow = rows.CLUSTER.loads(raw) if raw is not None else rows.ClusterRow()
        for name in rows.ClusterRow.__struct_fields__:
            if name not in ("applied_index", "last_stamp"):
                setattr(self.cluster, name, getattr(found, name))
        self.chaptered = bool(self.cluster.incompat & INCOMPAT_SNAPSHOTS)

    def scan(self, span: keys.Range, codec: Sealed) -> Iterator[Any]:
        """Yields the rows of a cached kind in key order, as the shared objects."""
        self.write_back()
        for key in [key for key, _ in self.txn.scan(*span)]:
            yield self.load(key, codec)

    def evict_volume(self, volume: int) -> None:
        """Drops cached rows inside a volume whose rows are about to be deleted by range."""
        self.write_back()
        prefix = keys.volume_range(volume)[0][:-1]
        for key in [key for key in self._cache if key.startswith(prefix)]:
            del self._cache[key]

    # --- cached kinds -------------------------------------------------------------------------------------------------
    def inode(self, volume: int, ino: int) -> rows.InodeRow | None:
        return self.load(keys.inode(volume, ino), rows.INODE)

    def save_inode(self, volume: int, ino: int, row: rows.InodeRow) -> None:
        """Saves an inode that a rule has changed.  What a snapshot sees of it is kept."""
        key = keys.inode(volume, ino)
        if self.chaptered and (chapter := self.chapter(volume)) is not None and not chapters.begin_inode(self.txn, chapter, key, row):
            self._store(key, row)
            return
        self.save(key, row, rows.INODE)

    def save_same_inode(self, volume: int, ino: int, row: rows.InodeRow) -> None:
        """Saves an inode of which only changed what makes no version: where its bytes are, when it was read, what Reap has freed."""
        key = keys.inode(volume, ino)
        if self.chaptered and row.chapter != self.now(volume):
            self._store(key, row)
        else:
            self.save(key, row, rows.INODE)

    def _store(self, key: bytes, row: rows.InodeRow) -> None:
        assert key not in self._dirty, "an inode of an earlier chapter was not written back"
        if invariants.ASSERTED:
            invariants.assert_row(row, self.cluster)
        self._cache[key] = row
        self.txn.put(key, rows.INODE.dumps(row))

    def drop_inode(self, volume: int, ino: int) -> None:
        """Deletes an inode.  What a snapshot sees of it was kept when it lost its last name."""
        self.drop(keys.inode(volume, ino))

    # --- chapters -----------------------------------------------------------------------------------------------------
    def chapter(self, volume: int) -> Chapter | None:
        """Returns where a volume is; None if it never had a snapshot."""
        row = self.volume(volume)
        return Chapter(row.chapter, row.newest) if row is not None and row.chapter else None

    def now(self, volume: int) -> int:
        """Returns the present chapter of a volume; 0 if it never had a snapshot."""
        row = self.volume(volume) if self.chaptered else None
        return 0 if row is None else row.chapter

    def volume(self, number: int) -> rows.VolumeRow | None:
        return self.load(keys.volume(number), rows.VOLUME)

    def save_volume(self, row: rows.VolumeRow) -> None:
        self.save(keys.volume(row.volume), row, rows.VOLUME)

    def session(self, number: int) -> rows.SessionRow | None:
        return self.load(keys.session(number), rows.SESSION)

    def save_session(self, row: rows.SessionRow) -> None:
        self.save(keys.session(row.session), row, rows.SESSION)

    def device(self, number: int) -> rows.DeviceRow:
        row = self.load(keys.device(number), rows.DEVICE)
        assert row is not None, f"a segment names device {number}, which does not exist"
        return row

    def save_device(self, row: rows.DeviceRow) -> None:
        if invariants.ASSERTED:
            self.devices_saved.add(row.device)
        self.save(keys.device(row.device), row, rows.DEVICE)

    def devices(self) -> list[rows.DeviceRow]:
        """Returns all devices that were not removed.  There are few, and their numbers have no gaps."""
        return [row for number in range(1, self.cluster.next_device) if not (row := self.device(number)).removed]

    def segment(self, number: int) -> rows.SegmentRow | None:
        return self.load(keys.segment(number), rows.SEGMENT)

    def save_segment(self, row: rows.SegmentRow) -> None:
        self.save(keys.segment(row.segment), row, rows.SEGMENT)

    # --- small rows that go straight through -----------------------------------------------------------------------------
    def read(self, key: bytes, codec: Sealed) -> Any:
        raw = self.txn.get(key)
        return None if raw is None else codec.loads(raw)

    def write(self, key: bytes, row: Any, codec: Sealed) -> None:
        self.txn.put(key, codec.dumps(row))

    def any_in(self, span: keys.Range) -> bool:
        """Returns True if there is a row in the range."""
        return next(iter(self.txn.scan(*span)), None) is not None

    def keys_in(self, span: keys.Range, count: int = -1) -> list[bytes]:
        """Returns the keys of a range, at most `count`."""
        found: list[bytes] = []
        for key, _ in self.txn.scan(*span):
            if len(found) == count:
                break
            found.append(key)
        return found

    def queue_reap(self, key: bytes, row: rows.ReapRow) -> None:
        self.write(key, row, rows.REAP)
        self.cluster.reaps += 1

    def unqueue_reap(self, key: bytes) -> None:
        if self.txn.delete(key):
            self.cluster.reaps -= 1
