"""The applied state in LMDB: one long-lived write transaction on the metadata thread, committed every so often.

Nothing is acknowledged on the strength of a commit here; that is the journal's part.  The store is a checkpoint that shortens the replay,
so what counts is only that a commit is atomic and durable *before* the journal drops what it covers: LMDB's sync flags stay on (measured:
without metasync the last commit is missing after every power cut).  After a crash the rows are as of the last commit, and the applied index
among them says from where to replay.

A full map fails even deletes, so the map (sparse) grows early, between two transactions.  When it fills up all the same, `MapFull` leaves
the transaction useless: the driver calls `abort_and_grow`, makes a new machine and replays from the journal.  It is never an operation's
result.  A long read would keep LMDB from reusing pages, so backups read a copy (`copy_to`).

The identity lives in a database of its own, beside the machine's rows: it is checked before anything is read from them.  Beside it, and
committed with the rows: the digest of the rows (meta/state/digest.py; kept by voters that have others to compare with), and notes of the
driver, such as the membership as of the applied index.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import lmdb
from msgspec import Struct
from msgspec.structs import replace

from awsomefsd.base.codec import Sealed
from awsomefsd.base.errors import Corrupt, Error, FormatTooNew, Refused, Unavailable
from awsomefsd.base.limits import GIB, MIB, STORE_MAP_BYTES_MIN, STORE_MAP_USE_MAX_PERCENT
from awsomefsd.meta.state.digest import digest_of, pack_digest, pair_hash, unpack_digest

FORMAT_VERSION = 1
INCOMPAT_KNOWN = 0  # feature bits without which the rows cannot be read
RO_COMPAT_KNOWN = 0  # feature bits without which the rows can be read, not written
COPY_TRIES_MAX = 5
DAMAGE = (Corrupt, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)  # a damaged state, met while it is used
DIGEST_ROWS_MAX = 4096  # so many are counted in one turn: 3 ms
MAP_GROW_BYTES_MAX = 4 * GIB  # at most so much at once
_SCAN_FIRST, _SCAN_MAX = 8, 256
_IDENTITY_KEY = b"identity"
_DIGEST_KEY = b"digest"
_NOTE_PREFIX = b"note "
_BEHIND_ALL = b"\xff" * 512  # LMDB's keys are shorter


class MapFull(Error):
    """The transaction is lost, not the entries: abort, grow, replay."""


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
    """Implements StateStore on LMDB.  All calls on the thread that opened it, except `copy_to` and `copy_pages_to`."""

    def __init__(self, env: lmdb.Environment, readonly: bool, digesting: bool) -> None:
        self._env = env
        self._readonly = readonly
        self._identities = env.open_db(b"identity", create=not readonly)
        self._rows = env.open_db(b"rows", create=not readonly)
        self._page_bytes: int = env.stat()["psize"]
        self.changes = 0  # since the last commit
        self.grown = 0
        self._map = threading.Lock()  # held by a copy: LMDB may not move its map under a reader
        self.identity: StoreIdentity | None = None
        self._read_identity()
        self._txn = env.begin(write=not readonly, db=self._rows)
        self._digesting = digesting
        self._digest = 0  # may leave the range of 128 bits until it is asked for
        self._uncounted: bytes | None = None  # the first key that the digest does not hold yet; None: it holds all
        self._take_up_digest()

    @classmethod
    def open(cls, directory: Path, *, map_bytes_min: int = STORE_MAP_BYTES_MIN, readonly: bool = False, digesting: bool = False) -> Store:
        """The store in `directory`, made if it is missing.

        `digesting`: keep the digest of the rows; one that was not kept until now is computed by `count_rows`.  Raises FormatTooNew for a
        store of a later build, Corrupt for a damaged file or identity.
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
            return cls(env, readonly, digesting)
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
            if self._is_counted(key):
                old = self._txn.replace(key, value)
                self._digest += pair_hash(key, value) - (0 if old is None else pair_hash(key, old))
            else:
                self._txn.put(key, value)
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err

    def delete(self, key: bytes) -> bool:
        self.changes += 1
        try:
            if not self._is_counted(key):
                return bool(self._txn.delete(key))
            old = self._txn.pop(key)
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err
        if old is not None:
            self._digest -= pair_hash(key, old)
        return old is not None

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with start <= key < end.  Pieces are fetched by key: the caller may change rows meanwhile.  Raises Corrupt."""
        count = _SCAN_FIRST
        while True:
            page: list[tuple[bytes, bytes]] = []
            with self._txn.cursor() as cursor:
                if cursor.set_range(start):
                    for key, value in cursor:
                        if key >= end or len(page) == count:
                            break
                        if key < start or (page and key <= page[-1][0]):
                            raise Corrupt(f"the pages of {self._env.path()} are damaged: keys are out of order")
                        page.append((key, value))
            yield from page
            if len(page) < count:
                return
            start = page[-1][0] + b"\0"
            count = min(count * 4, _SCAN_MAX)

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        with self._txn.cursor() as cursor:
            found = cursor.prev() if cursor.set_range(end) else cursor.last()
            if not found or cursor.key() < start:
                return None
            key, value = cursor.item()
            return key, value

    # --- beside the rows ---------------------------------------------------------------------------------------------------------
    @property
    def digest(self) -> bytes:
        """The digest of all rows as they are now; b"" if it is not kept, or not computed to its end."""
        return pack_digest(self._digest) if self._digesting and self._uncounted is None else b""

    def _is_counted(self, key: bytes) -> bool:
        return self._digesting and (self._uncounted is None or key < self._uncounted)

    def _take_up_digest(self) -> None:
        raw = self._txn.get(_DIGEST_KEY, db=self._identities)
        self._uncounted = None
        if self._digesting and raw is not None:
            self._digest = unpack_digest(raw)
        elif self._digesting:
            self._digest, self._uncounted = 0, b""
            self.count_rows()
        elif raw is not None and not self._readonly:
            self._txn.delete(_DIGEST_KEY, db=self._identities)  # from now on it would be wrong

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
        value: bytes = self._txn.get(_NOTE_PREFIX + name, b"", db=self._identities)
        return value

    def set_note(self, name: bytes, value: bytes) -> None:
        """Note bytes under `name`, committed with the rows.  Raises MapFull."""
        self._put_beside(_NOTE_PREFIX + name, value)

    def _put_beside(self, key: bytes, value: bytes) -> None:
        try:
            self._txn.put(key, value, db=self._identities)
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err

    # --- transactions ------------------------------------------------------------------------------------------------------
    def commit(self) -> None:
        """Durable when this returns; a new transaction is open.  MapFull as in put."""
        if self.digest:
            self._put_beside(_DIGEST_KEY, self.digest)
        try:
            self._txn.commit()
        except lmdb.MapFullError as err:
            raise MapFull(str(err)) from err
        self.changes = 0
        if self.map_use_percent > STORE_MAP_USE_MAX_PERCENT and self._map.acquire(blocking=False):
            try:
                self._grow()
            finally:
                self._map.release()  # while a copy is made, the next commits ask again
        self._begin()

    def _begin(self) -> None:
        self._txn = self._env.begin(write=True, db=self._rows)

    def _grow(self) -> None:
        size = self.map_bytes
        self._env.set_mapsize(size + min(size, MAP_GROW_BYTES_MAX))
        self.grown += 1

    def abort_and_grow(self) -> None:
        """After MapFull: back to the last commit, with more room; waits for the end of a copy."""
        self._txn.abort()
        self.changes = 0
        with self._map:
            self._grow()
        self._begin()
        self._take_up_digest()

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
