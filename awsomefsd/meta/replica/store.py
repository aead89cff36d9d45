"""The state on disk in LMDB.  Voters write it as generations (overlay_store.py), tools in one long transaction.

Nothing is acknowledged on the strength of a commit here; that is the journal's part.  The store is a checkpoint that shortens the replay,
so what counts is only that a commit is atomic and durable *before* the journal drops what it covers: LMDB's sync flags stay on (measured:
without metasync the last commit is missing after every power cut).  After a crash the rows are as of the last commit, and the applied index
among them says from where to replay.

A full map fails even deletes, so the map (sparse) grows early, between two transactions.  When it fills up all the same, `write` raises
`MapFull`, nothing of it is written, and it is written again after `grow`.  It is never an operation's result.  A long read would keep LMDB
from reusing pages, so a snapshot is renewed after each commit, and backups read a copy (`copy_to`).

The identity lives in a database of its own, beside the machine's rows: it is checked before anything is read from them.  Beside it, and
committed with the rows: the digest of the rows (meta/state/digest.py; kept by voters that have others to compare with), and notes of the
driver, such as the membership as of the applied index.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
from msgspec import Struct
from msgspec.structs import replace

from awsomefsd.base.codec import Sealed
from awsomefsd.base.errors import Corrupt, Error, FormatTooNew, Refused, Unavailable
from awsomefsd.base.limits import GIB, MIB, STORE_MAP_BYTES_MIN, STORE_MAP_USE_MAX_PERCENT

FORMAT_VERSION = 1
INCOMPAT_KNOWN = 0  # feature bits without which the rows cannot be read
RO_COMPAT_KNOWN = 0  # feature bits without which the rows can be read, not written
COPY_TRIES_MAX = 5
DAMAGE = (Corrupt, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)  # a damaged state, met while it is used
MAP_GROW_BYTES_MAX = 4 * GIB  # at most so much at once
_SCAN_FIRST, _SCAN_MAX = 8, 256
_IDENTITY_KEY = b"identity"
DIGEST_KEY = b"digest"
NOTE_PREFIX = b"note "


class MapFull(Error):
    """Nothing of the transaction is written: grow, and write it again."""


class StoreIdentity(Struct, array_like=True, gc=False):
    """The owner of this state.  `incarnation` is the journal's: a store never runs beside another journal than its own.

    `state_snapshot_index`, `state_snapshot_term`: the entry up to which this store was taken from another node, 0 if it was not; the
    journal goes on from there.
    """

    format_version: int
    cluster: str
    node: str
    incarnation: bytes
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    state_snapshot_index: int = 0
    state_snapshot_term: int = 0


IDENTITY = Sealed(StoreIdentity)


class Store:
    """Rows (Txn), notes and identity.  All calls on the thread that opened it, except `write`, `copy_to` and `copy_pages_to`.

    Opened with `snapshot`, it implements overlay_store.CommittedRows: rows are read as of the last commit, and changes come by `write`.
    """

    def __init__(self, env: lmdb.Environment, readonly: bool, snapshot: bool) -> None:
        self._env = env
        self._readonly = readonly
        self._snapshot = snapshot
        self._identities = env.open_db(b"identity", create=not readonly)
        self._rows = env.open_db(b"rows", create=not readonly)
        self._page_bytes: int = env.stat()["psize"]
        self.changes = 0  # since the last commit
        self.grown = 0
        self._map = threading.Lock()  # held by a copy: LMDB may not move its map under a reader
        self.identity: StoreIdentity | None = None
        self._read_identity()
        self._begin()
        if not readonly and not snapshot:
            self._txn.delete(DIGEST_KEY, db=self._identities)  # from now on it would be wrong

    @classmethod
    def open(cls, directory: Path, *, map_bytes_min: int = STORE_MAP_BYTES_MIN, readonly: bool = False, snapshot: bool = False) -> Store:
        """The store in `directory`, made if it is missing.

        Raises FormatTooNew for a store of a later build, Corrupt for a damaged file or identity.
        """
        file = directory / "data.mdb"
        size = file.stat().st_size if file.exists() else 0
        map_bytes = map_bytes_min
        while size * 100 > map_bytes * STORE_MAP_USE_MAX_PERCENT:
            map_bytes *= 2
        try:
            env = lmdb.open(str(directory), map_size=map_bytes, max_dbs=2, mode=0o600, readonly=readonly, create=not readonly)
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError) as err:
            raise Corrupt(f"{file}: {err}") from err
        try:
            env.reader_check()
            return cls(env, readonly, snapshot)
        except BaseException:
            env.close()
            raise

    def _read_identity(self) -> None:
        with self._env.begin(db=self._identities) as txn:
            raw = txn.get(_IDENTITY_KEY)
        if raw is None:
            return
        identity = IDENTITY.loads(raw)
        newer = identity.format_version > FORMAT_VERSION or identity.incompat & ~INCOMPAT_KNOWN
        if newer or (identity.ro_compat & ~RO_COMPAT_KNOWN and not self._readonly):
            raise FormatTooNew(
                f"{self._env.path()}: format version {identity.format_version}, features {identity.incompat:#x}/{identity.ro_compat:#x}: "
                "written by a newer build; upgrade this node"
            )
        self.identity = identity

    def claim(self, cluster: str, node: str, incarnation: bytes) -> None:
        """The first time, write the identity; later, raise Refused if it is another one."""
        if self.identity is None:
            self._write_identity(StoreIdentity(FORMAT_VERSION, cluster, node, incarnation))
        elif (self.identity.cluster, self.identity.node, self.identity.incarnation) != (cluster, node, incarnation):
            raise Refused(f"{self._env.path()}: state of cluster {self.identity.cluster}, node {self.identity.node}, or of another journal")

    def adopt(self, cluster: str, node: str, incarnation: bytes, state_snapshot_index: int, state_snapshot_term: int) -> None:
        """Make another node's state, up to this entry, this node's own.  Raises Refused for one of another cluster."""
        identity = self.identity
        if identity is None or identity.cluster != cluster:
            raise Refused(f"{self._env.path()}: not a state of cluster {cluster}")
        mine = replace(
            identity, node=node, incarnation=incarnation, state_snapshot_index=state_snapshot_index, state_snapshot_term=state_snapshot_term
        )
        self._write_identity(mine)

    def _write_identity(self, identity: StoreIdentity) -> None:
        """Write it in a transaction of its own: what was changed before is committed too."""
        self._txn.commit()
        with self._env.begin(write=True, db=self._identities) as txn:
            txn.put(_IDENTITY_KEY, IDENTITY.dumps(identity))
        self.identity = identity
        self._begin()

    # --- Txn -------------------------------------------------------------------------------------------------------------------
    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        self.changes += 1
        try:
            self._txn.put(key, value)
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err

    def delete(self, key: bytes) -> bool:
        self.changes += 1
        try:
            return bool(self._txn.delete(key))
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with start <= key < end.  Pieces are fetched by key: the caller may change rows meanwhile.  Raises Corrupt."""
        count = _SCAN_FIRST
        while True:
            page = self.page(start, end, count)
            yield from page
            if len(page) < count:
                return
            start = page[-1][0] + b"\0"
            count = min(count * 4, _SCAN_MAX)

    def page(self, start: bytes, end: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The first `count` rows with start <= key < end.  Raises Corrupt."""
        page: list[tuple[bytes, bytes]] = []
        with self._txn.cursor() as cursor:
            if cursor.set_range(start):
                for key, value in cursor:
                    if key >= end or len(page) == count:
                        break
                    if key < start or (page and key <= page[-1][0]):
                        raise Corrupt(f"the pages of {self._env.path()} are damaged: keys are out of order")
                    page.append((key, value))
        return page

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        with self._txn.cursor() as cursor:
            found = cursor.prev() if cursor.set_range(end) else cursor.last()
            if not found or cursor.key() < start:
                return None
            key, value = cursor.item()
            return key, value

    # --- beside the rows ---------------------------------------------------------------------------------------------------------
    def beside(self, key: bytes) -> bytes | None:
        """What is stored under `key` beside the rows."""
        value: bytes | None = self._txn.get(key, db=self._identities)
        return value

    def note(self, name: bytes) -> bytes:
        """The bytes noted last under `name`; b"" if there are none."""
        return self.beside(NOTE_PREFIX + name) or b""

    def set_note(self, name: bytes, value: bytes) -> None:
        """Note bytes under `name`, committed with the rows.  Raises MapFull."""
        try:
            self._txn.put(NOTE_PREFIX + name, value, db=self._identities)
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err

    # --- transactions ------------------------------------------------------------------------------------------------------
    def commit(self) -> None:
        """Durable when this returns; a new transaction is open.  MapFull as in put."""
        try:
            self._txn.commit()
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err
        self.changes = 0
        self._grow_early()
        self._begin()

    def write(self, rows: dict[bytes, bytes | None], beside: dict[bytes, bytes | None]) -> None:
        """Commit the changes (None: deleted) in one transaction; durable when this returns.  Any thread, one at a time; the snapshot stays.

        Raises MapFull, and then nothing is written; what a failing or damaged disk raises (OSError, lmdb.Error).
        """
        try:
            with self._env.begin(write=True) as txn:
                for database, changes in ((self._rows, rows), (self._identities, beside)):
                    for key in sorted(changes):  # in key order each page is touched once
                        value = changes[key]
                        if value is None:
                            txn.delete(key, db=database)
                        else:
                            txn.put(key, value, db=database)
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err

    def renew(self) -> None:
        """The snapshot is the last commit from now on; nothing is being written."""
        self._txn.abort()
        self._grow_early()
        self._begin()

    def grow(self) -> None:
        """After MapFull: more room.  Waits for the end of a copy; nothing is being written."""
        self._txn.abort()
        with self._map:
            self._enlarge()
        self._begin()

    def _begin(self) -> None:
        self._txn = self._env.begin(write=not self._readonly and not self._snapshot, db=self._rows)

    def _grow_early(self) -> None:
        if self.map_use_percent > STORE_MAP_USE_MAX_PERCENT and self._map.acquire(blocking=False):
            try:
                self._enlarge()
            finally:
                self._map.release()  # while a copy is made, the next commits ask again

    def _enlarge(self) -> None:
        size = self.map_bytes
        self._env.set_mapsize(size + min(size, MAP_GROW_BYTES_MAX))
        self.grown += 1

    @property
    def map_bytes(self) -> int:
        size: int = self._env.info()["map_size"]
        return size

    @property
    def map_use_percent(self) -> float:
        """The share of the map in use as of the last commit."""
        used: int = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        return used * 100 / self.map_bytes

    def copy_to(self, path: Path) -> None:
        """A compacted copy of the last commit as one file, durable when this returns.  May run on another thread.  Raises OSError."""
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with self._map:
                self._env.copyfd(fd, compact=True)
            os.fsync(fd)
        except lmdb.Error as err:  # it is no OSError, not even where the disk is full
            raise OSError(errno.EIO, f"the store cannot be copied: {err}", str(path)) from err
        finally:
            os.close(fd)
        os.rename(new, path)

    def copy_pages_to(self, path: Path) -> None:
        """The pages of the last commit, copied as they lie, for a look by another process.  May run on another thread.

        A read transaction keeps them from being used again; the two meta pages go first, so the copy begins where that one did.  Should
        a commit have come in between, the copy names another transaction, and it is made again.
        """
        for _ in range(COPY_TRIES_MAX):
            with self._map, self._env.begin() as txn:
                self._copy_file(path)
                with lmdb.open(str(path), subdir=False, readonly=True, lock=False, create=False) as copy:
                    if copy.info()["last_txnid"] == txn.id():
                        return
        raise Unavailable("the state store is committed too often to be copied now")

    def _copy_file(self, path: Path) -> None:
        with Path(self._env.path(), "data.mdb").open("rb") as source, path.open("wb") as target:
            target.write(source.read(2 * self._page_bytes))
            while piece := source.read(MIB):
                target.write(piece)

    def close(self) -> None:
        """Close it; what was not committed is forgotten."""
        self._txn.abort()
        self._env.close()
