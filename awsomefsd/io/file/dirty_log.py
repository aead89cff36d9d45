"""The dirty log: the writes that write(2) acknowledged and no commit has made visible yet, in memory that outlives the worker.

A ring of records, each with the bytes of one write; what a kill may leave of it at each step is said in record_ring.py.  Payload is copied
outside the lock.  A record becomes CLEAN when it is committed.  A kill between a commit and CLEAN makes a successor flush the record again;
the commit names log id and sequence, so the machine ignores what it has seen.

A write is carried out once, whoever dies.  The tail does not pass a record before `answered` was called for the request that made it,
although it may be clean long before: a successor that executes the request again finds the record by `find_unique`, and an append is not
put behind itself, nor over what another node has written since.  What is not answered is known to the worker that reads requests; its
successor names those that it found (`recover`).  So the tail waits for requests that are being executed, and these never wait for room:
they have their record.

On a volume that several nodes share, a record names the write lease under which it was buffered: the epoch of the session that had it, the
lease's epoch, and how many changes of the file were known with it (meta/machine/write_leases.py).  That is version 2 of a record: 28 bytes
behind the state word, with a checksum of their own, so that a build which knows version 1 only finds a whole header and refuses it by its
version.
The newest record of a file counts for all of its older ones: data that stays dirty under another lease gets an empty record that names it.

The area has version 1, or 3 while the mount keeps an op log beside it, or 4 while others may have had the volume since what is in the two
(op_log.py, which changes it).  Its records are the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from crc32c import crc32c

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import DIRTY_RECALL_BYTES, MIB
from awsomefsd.io.file.record_ring import ABANDONED as ABANDONED
from awsomefsd.io.file.record_ring import ALONE as ALONE
from awsomefsd.io.file.record_ring import (
    CLEAN,
    DIRTY,
    KIND_WRITE,
    RECORD_VERSION_LEASE,
    RESERVED,
    TIME_NS_MIN,
    RecordRing,
    RingArea,
    RingRecord,
    Sequences,
)
from awsomefsd.io.file.record_ring import TIME_NS_MAX as TIME_NS_MAX
from awsomefsd.io.file.record_ring import LeaseToken as LeaseToken
from awsomefsd.io.file.record_ring import required_bytes as required_bytes

VERSION, VERSION_WITH_OPS, VERSION_IN_DOUBT = 1, 3, 4  # of the area
VERSIONS = (VERSION, VERSION_WITH_OPS, VERSION_IN_DOUBT)
LIMIT_BYTES_MIN = DIRTY_RECALL_BYTES + 12 * MIB  # a few of the largest writes
AREA = RingArea("dirty log", b"awsmdirt", VERSION, VERSION, KIND_WRITE, RECORD_VERSION_LEASE)

DirtyRecord = RingRecord


class DirtyCorrupt(Corrupt):
    """A dirty record whose bytes are not those that were written.  ino is 0 if not even its header can be read."""

    def __init__(self, detail: str, record: DirtyRecord, sequence: int = 0, ino: int = 0, offset: int = 0, length: int = 0) -> None:
        super().__init__(f"dirty log: {detail} (sequence={sequence} ino={ino} offset={offset} length={length})")
        self.sequence, self.ino, self.offset, self.length = sequence, ino, offset, length
        self.record = record


class DirtyLog:
    """The dirty log of one mount.  Thread-safe; no method waits.

    `fresh` formats the area; so does an area without header (a worker died while it formatted).  Otherwise `log_id` must be the id it
    was formatted with, and `recover` is to be called before the first append.  `recall_bytes` stay free for `recall=True`.
    `with_ops`: an op log is opened beside it; without, an area that has one is refused.
    The constructor raises Corrupt and FormatTooNew for an area that it cannot read.
    """

    def __init__(
        self, mem: shm.Mem, log_id: int, fresh: bool = False, *, recall_bytes: int = DIRTY_RECALL_BYTES, with_ops: bool = False
    ) -> None:
        self.log_id = log_id
        area = AREA
        if with_ops:
            shm.mend_version(shm.bytes_view(mem), VERSIONS)
            area = AREA._replace(version_max=VERSION_IN_DOUBT)
        self._ring = RecordRing(mem, area, log_id, fresh, recall_bytes, LIMIT_BYTES_MIN)
        self._lock = self._ring.lock
        self.capacity = self._ring.capacity
        self.formatted = self._ring.formatted
        self._uniques: dict[int, DirtyRecord] | None = None
        self._unanswered: set[int] = set()  # requests that have a record and no answer yet: the tail does not pass theirs
        self.lost = [DirtyCorrupt(f"record header damaged, {gap.span} bytes skipped", gap) for gap in self._ring.damaged]
        self.corrupt: list[DirtyCorrupt] = []  # set by recover(): `lost`, and the ones whose payload fails its checksum
        self._dirty_bytes = sum(record.length for record in self._ring.live if record.is_dirty)

    # --- what is in it ---------------------------------------------------------------------------------------------------

    @property
    def dirty_bytes(self) -> int:
        """The payload bytes of dirty records."""
        return self._dirty_bytes

    @property
    def used_bytes(self) -> int:
        """The bytes of the ring between tail and head."""
        return self._ring.used_bytes

    @property
    def last_sequence(self) -> int:
        """The newest sequence that was given out, by this log or by the op log beside it; 0 before the first."""
        return self._ring.sequences.last

    @property
    def sequences(self) -> Sequences:
        """What gives out the sequences of this log and of the op log beside it."""
        return self._ring.sequences

    @property
    def version(self) -> int:
        """The version of the area: 1, or 3 or 4 while there may be records in the op log beside it."""
        return shm.header_version(self._ring.view)

    def set_version(self, version: int) -> bool:
        """Gives the area another version, and returns whether it has it now: the first one above 1 only if no record is in it."""
        assert version in VERSIONS
        with self._lock:
            if self.version == VERSION < version and self._ring.used_bytes:
                return False
            shm.set_version(self._ring.view, version)
        return True

    def find_unique(self, unique: int) -> DirtyRecord | None:
        """Returns the record that this request made, if it is still known, else None; between recover and forget_uniques an index finds it.

        It may be clean, and then its `data` is not to be read.
        """
        with self._lock:
            if self._uniques is not None:
                return self._uniques.get(unique)
            live = self._ring.live
            return next((r for r in live if r.kind == KIND_WRITE and r.unique == unique and r.state in (DIRTY, CLEAN)), None)

    def forget_uniques(self) -> None:
        """Drops the index: recovery is over."""
        with self._lock:
            self._uniques = None

    # --- append ------------------------------------------------------------------------------------------------------------

    def append_write(
        self, ino: int, offset: int, data: memoryview | bytes, unique: int, time_ns: int, generation: int, *, recall: bool = False,
        token: LeaseToken = ALONE,
    ) -> DirtyRecord | None:  # fmt: skip
        """Stores a write and returns its record: from then on the bytes survive this process.  Returns None if there is no room now.

        A time beyond what a record can say becomes the nearest that it can.  Raises ValueError for data that this ring can never hold.
        """
        length = len(data)
        checksum = crc32c(data)
        time_ns = min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)
        with self._lock:
            record = self._ring.reserve(ino, offset, length, unique, time_ns, generation, recall, token)
        if record is None:
            return None
        try:
            record.data[:] = data
        except BaseException:  # RESERVED for ever would keep the tail where it is
            self.mark_clean((record,))
            raise
        with self._lock:
            self._ring.publish(record, checksum)
            self._dirty_bytes += length
            if unique:
                self._unanswered.add(unique)
            if self._uniques is not None and unique:
                self._uniques.setdefault(unique, record)
        return record

    # --- the way out -------------------------------------------------------------------------------------------------------

    def mark_clean(self, records: Iterable[DirtyRecord]) -> None:
        """Marks records that need not be flushed (again): committed, or cut off by a truncation.

        Their places may be used again at once.
        """
        with self._lock:
            for record in records:
                if record.state == DIRTY:
                    self._dirty_bytes -= record.length
                    self._ring.set_state(record, CLEAN)
                elif record.state == RESERVED:
                    self._ring.set_state(record, ABANDONED)
            self._ring.advance(self._unanswered)

    def answered(self, unique: int) -> None:
        """Notes that the answer of this request is sent, or stored for a successor to send: it is never executed again."""
        if unique not in self._unanswered:  # most requests make no record
            return
        with self._lock:
            self._unanswered.discard(unique)
            self._ring.advance(self._unanswered)

    def bound(self, limit_bytes: int) -> None:
        """Uses no more than `limit_bytes` of the ring from now on, at least LIMIT_BYTES_MIN: pages that the tail passes are given back."""
        with self._lock:
            self._ring.bound(limit_bytes)

    def release_pages(self) -> bool:
        """Gives the memory of the ring back if the log is wholly clean, and returns whether it was; for an idle mount."""
        with self._lock:
            return self._ring.release_pages()

    # --- after a crash -----------------------------------------------------------------------------------------------------

    def recover(self, unanswered: Iterable[int] = ()) -> list[DirtyRecord]:
        """Returns the dirty records in the order of their sequence.  `unanswered`: requests that are going to be executed again.

        Those whose payload fails its checksum are left out and reported in `corrupt`.  They keep their place until they are marked clean
        (`error.record`), so that a successor finds them again if this worker dies before it has reported them.
        """
        whole: list[DirtyRecord] = []
        self.corrupt = list(self.lost)
        uniques: dict[int, DirtyRecord] = {}
        with self._lock:
            live = [record for record in self._ring.live if record.kind == KIND_WRITE]
        for record in live:
            if record.state == DIRTY:
                if not self._ring.is_whole(record):
                    r = record
                    self.corrupt.append(DirtyCorrupt("payload fails its checksum", r, r.sequence, r.ino, r.offset, r.length))
                    continue
                whole.append(record)
            if record.unique and record.state != ABANDONED:
                uniques.setdefault(record.unique, record)
        with self._lock:
            self._uniques = uniques
            self._unanswered = uniques.keys() & set(unanswered)
            self._ring.advance(self._unanswered)
        return whole
