"""The op log: the operations on names, attributes and locks that a mount has decided and the cluster has not applied yet, in memory that
outlives the worker.

A ring of its own (record_ring.py) beside that of the dirty log, so that data which cannot be flushed takes no room from names.  Both draw
from one sequence word: names and data have one order.  To this module a record is bytes, with four things beside them: sequence, unique of
the request that made it, the holder's time, and `after`, the newest sequence of *data* that must be committed before it is shipped.

* `store` returns when the record is whole; a kill before its state word leaves an ABANDONED place, and the request executes again.  The
  caller shows nothing of the operation before, and holds one lock over deciding, storing and showing: no record builds upon one that a kill
  may abandon.
* A record becomes CLEAN when it is applied *and* its request is answered.  So a request without answer always finds its record
  (`find_unique`), whoever dies.  Places are used again from the tail.
* A record that is never shipped becomes ASIDE when the conflict area has it, synced, and CLEAN when it is `cleansed`, too: nothing that may
  still be shipped builds upon it.  Until then a successor finds it, and puts aside what follows it.
* A kill between the answer of the cluster and CLEAN makes a successor ship the record again.  The row of the mount says which sequence was
  applied last, and the machine skips what it has.
* `recover` gives a successor what is not CLEAN, in the order of sequence.  A record that memory has damaged is among them, in its place:
  what comes behind it may build upon it, so nobody may pass it silently.

*Format.*  While there may be records here, the area of the dirty log has version 3, which a build that does not know of this ring refuses:
it would serve the mount beside acknowledged operations that it does not see.  `begin` raises the version, on two empty rings and only when
it is told to; `end` lowers it again when this ring is empty.  While another mount may have had the volume since what is left here was
decided, it has version 4 (`doubted`, until `trusted`): a build that knows version 3 only would take the next session for the one that
follows the present one, and ship what is overtaken.  Each is two stores, and a successor finishes one that was cut.

Rejected: one ring for names and data (they would wait for each other for room); marking CLEAN what is applied and holding the tail for
answers, as the dirty log does (a successor could not tell a record whose request waits from one that is done with).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from crc32c import crc32c

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import OP_RECALL_BYTES, OP_RECORD_BYTES_MAX, OP_RECORDS_MAX, OP_RECORDS_RECALL
from awsomefsd.io.file import dirty_log
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.file.record_ring import (
    ABANDONED,
    ASIDE,
    CLEAN,
    DIRTY,
    KIND_OP,
    RECORD_VERSION_OP,
    TIME_NS_MAX,
    TIME_NS_MIN,
    RecordRing,
    RingArea,
    RingRecord,
)

AREA = RingArea("op log", b"awsmoops", 3, 3, KIND_OP, RECORD_VERSION_OP)


class OpRecord:
    """One decided operation.  Only the log changes it; what it says is copied, so it may be kept after its place is used again.

    `damaged`: memory has changed it.  Then `data` is empty; the fields are right, unless `unique` and `time_ns` are 0: then its header was
    damaged, and `sequence` is only right in order (above that of the record before it, below that of the next).
    """

    __slots__ = ("_place", "after", "answered", "applied", "aside", "damaged", "data", "sequence", "time_ns", "unique")

    def __init__(self, place: RingRecord, data: bytes, answered: bool, damaged: bool = False) -> None:
        self._place = place
        self.sequence = place.sequence
        self.unique = place.unique
        self.after = place.offset
        self.time_ns = place.time_ns
        self.data = data
        self.answered = answered  # a successor is not asked for it again
        self.applied = False  # the cluster has it, or it was put aside and cleansed: it is over
        self.aside = place.state == ASIDE  # never shipped; what follows it is put aside, too
        self.damaged = damaged

    def __repr__(self) -> str:
        marks = [name for name in ("answered", "applied", "aside", "damaged") if getattr(self, name)]
        return f"OpRecord(sequence={self.sequence} unique={self.unique} after={self.after} {' '.join(marks)})"


class OpLog:
    """The op log of one mount, beside its dirty log, which was opened `with_ops`.  Thread-safe; no method waits.

    `fresh` formats the area; so does an area without header.  Unless it was formatted, `recover` is to be called before the first `store`.
    `records_max` bounds what is not applied or not answered; of it OP_RECORDS_RECALL are for `recall=True`, as `recall_bytes` of the room.
    The constructor raises Corrupt and FormatTooNew for an area that it cannot read.
    """

    def __init__(
        self, mem: shm.Mem, dirty: DirtyLog, fresh: bool = False, *, records_max: int = OP_RECORDS_MAX, recall_bytes: int = OP_RECALL_BYTES
    ) -> None:
        assert records_max > OP_RECORDS_RECALL
        self._dirty = dirty
        ring = self._ring = RecordRing(mem, AREA, dirty.log_id, fresh, recall_bytes, recall_bytes + OP_RECORD_BYTES_MAX, dirty.sequences)
        self._lock = ring.lock
        self.formatted = ring.formatted
        self.is_begun = dirty.version != dirty_log.VERSION  # records may be stored: builds that know no op log refuse the mount
        if ring.used_bytes and not self.is_begun:
            raise Corrupt(f"op log: {ring.used_bytes} bytes of records beside a dirty log of version {dirty.version}")
        self._records_max = records_max
        self._recovered = not ring.live
        self._count = 0  # records that are not clean
        self._unapplied: deque[OpRecord] = deque()  # in the order of sequence
        self._unanswered: dict[int, OpRecord] = {}  # by unique

    # --- the format --------------------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Makes builds that know no op log refuse this mount, if both logs are empty; returns whether records may be stored now."""
        with self._lock:
            self.is_begun = self.is_doubted or self._dirty.set_version(dirty_log.VERSION_WITH_OPS)
            return self.is_begun

    def end(self) -> bool:
        """Lets every build serve this mount again, if no record is left; returns whether it does.  Records need `begin` again then."""
        with self._lock:
            if self._ring.used_bytes or self.is_doubted:
                return False
            self.is_begun = False
            return self._dirty.set_version(dirty_log.VERSION)

    @property
    def is_doubted(self) -> bool:
        """Builds that do not know of this refuse the mount."""
        return self._dirty.version == dirty_log.VERSION_IN_DOUBT

    def doubted(self) -> None:
        """Notes that others may have had the volume since what is in both logs; nothing, if there is no op log."""
        with self._lock:
            if self.is_begun:
                self._dirty.set_version(dirty_log.VERSION_IN_DOUBT)

    def trusted(self) -> None:
        """Notes that what is in both logs is of the present session, or that nobody had the volume since."""
        with self._lock:
            if self.is_doubted:
                self._dirty.set_version(dirty_log.VERSION_WITH_OPS)

    # --- what is in it -----------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The records that are not applied, or not answered."""
        return self._count

    @property
    def used_bytes(self) -> int:
        """The bytes of the ring between tail and head."""
        return self._ring.used_bytes

    def newest_unapplied(self) -> int:
        """Returns the newest sequence that is neither applied nor put aside; 0: there is none."""
        with self._lock:
            return self._unapplied[-1].sequence if self._unapplied else 0

    def find_unique(self, unique: int) -> OpRecord | None:
        """Returns the record of a request that is not answered, or None if it made none: then it was not carried out here."""
        with self._lock:
            return self._unanswered.get(unique)

    # --- append ------------------------------------------------------------------------------------------------------------

    def store(self, data: bytes, unique: int, time_ns: int, after: int = 0, *, recall: bool = False) -> OpRecord | None:
        """Stores an operation whole and returns its record: from then on it survives this process.  Returns None if there is no room now.

        `unique` 0: no request waits for it.  A request makes one record; a second one that belongs to it has an id of its own.
        A time beyond what a record can say becomes the nearest that it can.  Raises ValueError for a record that is too long, or a second
        one of the same request.
        """
        if len(data) > OP_RECORD_BYTES_MAX:
            raise ValueError(f"a record of {len(data)} bytes, {OP_RECORD_BYTES_MAX} is the most")
        checksum = crc32c(data)
        time_ns = min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)
        with self._lock:
            assert self._recovered and self.is_begun, "a record before recover() or begin()"
            if unique in self._unanswered:
                raise ValueError(f"request {unique} has a record already: {self._unanswered[unique]}")
            if self._count >= self._records_max - (0 if recall else OP_RECORDS_RECALL):
                return None
            place = self._ring.reserve(0, after, len(data), unique, time_ns, 0, recall)
            if place is None:
                return None
            return self._fill(place, data, checksum)

    def _fill(self, place: RingRecord, data: bytes, checksum: int) -> OpRecord:
        try:
            place.data[:] = data
        except BaseException:  # RESERVED for ever would keep the tail where it is
            self._ring.set_state(place, ABANDONED)
            self._ring.advance()
            raise
        self._ring.publish(place, checksum)
        record = OpRecord(place, data, answered=not place.unique)
        self._take(record)
        return record

    def _take(self, record: OpRecord) -> None:
        """Counts a record that is not clean (called with the lock)."""
        self._count += 1
        if not record.aside:
            self._unapplied.append(record)
        if not record.answered:
            self._unanswered[record.unique] = record

    # --- the way out -------------------------------------------------------------------------------------------------------

    def applied(self, through: int) -> list[OpRecord]:
        """Notes that the cluster has every record up to this sequence; returns those of which that was not known."""
        passed: list[OpRecord] = []
        with self._lock:
            while self._unapplied and self._unapplied[0].sequence <= through:
                passed.append(self._unapplied.popleft())
            self._close(passed)
        return passed

    def put_aside(self, records: Iterable[OpRecord]) -> None:
        """Notes that these records are never shipped: they are in the conflict area, synced.  They keep their places."""
        with self._lock:
            aside = {record.sequence: record for record in records if not record.applied}
            self._unapplied = deque(record for record in self._unapplied if record.sequence not in aside)
            for record in aside.values():
                record.aside = True
                if not record.damaged:  # a successor finds a damaged one as it is
                    self._ring.set_state(record._place, ASIDE)

    def cleansed(self, records: Iterable[OpRecord]) -> None:
        """Notes of records put aside that whatever followed them is put aside as well, and that the overlay has the cluster's rows again.

        One whose request is not answered before this worker dies is taken for one that is not cleansed: it errs to the safe side.
        """
        with self._lock:
            self._close({record.sequence: record for record in records if record.aside and not record.applied}.values())

    def _close(self, records: Iterable[OpRecord]) -> None:
        for record in records:
            record.applied = True
            if record.answered:
                self._clean(record)
        self._ring.advance()

    def answered(self, unique: int) -> bool:
        """Notes that the answer of this request is sent, or stored for a successor to send: it is never executed again.

        Returns whether it had made a record.
        """
        if unique not in self._unanswered:  # most requests make no record
            return False
        with self._lock:
            record = self._unanswered.pop(unique, None)
            if record is None:
                return False
            record.answered = True
            if record.applied:
                self._clean(record)
                self._ring.advance()
        return True

    def _clean(self, record: OpRecord) -> None:
        self._count -= 1
        self._ring.set_state(record._place, CLEAN)

    def release_pages(self) -> bool:
        """Gives the memory of the ring back if no record is left, and returns whether it was; for an idle mount."""
        with self._lock:
            return self._ring.release_pages()

    # --- after a crash -----------------------------------------------------------------------------------------------------

    def recover(self, unanswered: Iterable[int] | None) -> list[OpRecord]:
        """Returns the records that a predecessor has left, in the order of sequence, those that memory has damaged in their place.

        `unanswered`: the requests that are going to be executed again; None: nobody knows which, and every request of a record may be among
        them.  `answered` of each record says whether its request is; `aside`, that it was put aside and is not shipped.  Called once,
        before the first `store`.
        """
        repeated = None if unanswered is None else set(unanswered)
        with self._lock:
            assert not self._unapplied and not self._count, "recovered twice, or after a store"
            before = 0
            found: list[OpRecord] = []
            for place in self._ring.live:
                if place.state in (DIRTY, ASIDE):
                    found.append(self._recovered_record(place, before, repeated))
                before = max(before, place.sequence)
            for record in found:
                self._take(record)
            self._recovered = True
            self._ring.advance()
        return found

    def _recovered_record(self, place: RingRecord, before: int, repeated: set[int] | None) -> OpRecord:
        damaged = place.kind != KIND_OP or (place.state == DIRTY and not self._ring.is_whole(place))
        answered = not place.unique or (repeated is not None and place.unique not in repeated)
        record = OpRecord(place, b"" if damaged else bytes(place.data), answered, damaged)
        record.sequence = place.sequence or before + 1
        return record

    def requests_repeated(self) -> None:
        """Notes that every request of a predecessor has been dealt with; what is not answered by now never will be asked for.

        For `recover(None)`.  Called before requests are read from the kernel.
        """
        with self._lock:
            left = list(self._unanswered)
        for unique in left:
            self.answered(unique)

