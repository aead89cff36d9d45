"""The shipper of one mount: its thread brings records of the op log into the cluster's log, in order, as shipper_core.py decides.

Nobody else touches the core.  What happens elsewhere (a record was stored, a batch was answered, somebody waits) is posted here and taken
up by the thread.  Posting takes a lock that nothing is done under, so it may be done with any other lock held, on any thread.

A batch whose session has ended waits for the next session (`goes_on`): the row of the mount outlives sessions, and says what is applied.
A record that the cluster refuses ends delegation: all that is left in the log is put aside with it, in the conflict area, before anybody is
told (`RecordsHolder.refused`).  So nothing that follows from what did not happen is shipped, and nothing goes away silently.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from awsomefsd.base.errors import Corrupt, Error, FsError, Overloaded
from awsomefsd.base.limits import NS_PER_MS, SHIP_RECORDS_MAX
from awsomefsd.base.wait import Resume, Signal
from awsomefsd.io.file.op_log import OpLog, OpRecord
from awsomefsd.io.file.reservation import Uniques
from awsomefsd.io.file.shipper_core import RecordBatch, ShipperCore, Step
from awsomefsd.meta.api.commands import Apply, Commit, DecidedRecord, record_decode
from awsomefsd.meta.api.messages import Applied, Committed
from awsomefsd.meta.client.metadata import Metadata

RETRY_PAUSE_MS = 50  # before a batch that the cluster cannot take now is sent again
FOLLOWS = "what it follows from was put aside by a worker before"
_PAUSE_NS = RETRY_PAUSE_MS * NS_PER_MS

log = logging.getLogger("awsomefsd.names")


class RecordsHolder(Protocol):
    """Who decides records.  Called on the shipper's thread, which holds no lock then."""

    def applied(self, through: int) -> None:
        """The cluster has every record up to this sequence."""

    def refused(self, why: str) -> None:
        """A record was refused: no other one is decided from now on."""

    def set_aside(self, records: list[OpRecord], why: str) -> None:
        """Stores records that are never shipped in the conflict area, synced, and forgets what followed from them.  May block."""


def record_of(stored: OpRecord) -> DecidedRecord:
    """Returns what a whole record of the log says, with its sequence."""
    record: DecidedRecord = record_decode(stored.data)
    record.sequence = stored.sequence
    return record


class _Rider(Signal):
    """A commit of data that goes behind the record `through`, in its batch, under the session `token`."""

    __slots__ = ("command", "through", "token")

    def __init__(self, command: Commit, through: int, token: tuple[int, int]) -> None:
        super().__init__()
        self.command = command
        self.through = through
        self.token = token


class Shipper:
    """Any thread may call; only `stop` blocks.  `begin` once, before the first record; a mount that never has one needs no thread."""

    def __init__(self, volume: int, op_log: OpLog, log_id: int, metadata: Metadata, uniques: Uniques, holder: RecordsHolder) -> None:
        self._volume = volume
        self._log = op_log
        self._log_id = log_id
        self._metadata = metadata
        self._uniques = uniques
        self._holder = holder
        self._core = ShipperCore()
        self._token = (0, 0)  # the session whose end is known to have changed nothing: no batch goes under a later one
        self._changed = threading.Condition()  # guards the next three; nothing is done under it
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._sleeping = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._left: deque[OpRecord] = deque()  # neither applied nor put aside, in order
        self._batch: RecordBatch | None = None  # in flight
        self._why = ""  # a record was refused
        self.diverged = False  # and nobody else had the volume: the cluster's rows were others than the holder's, or memory was damaged
        self._removed = False  # the node was: a refusal says nothing of rows
        self._ended: Error | None = None  # why nothing is asked of the service any more
        self._not_before_ns = 0
        self.applied = 0  # the newest record that the cluster is known to have; written where answers are received, before anybody is told
        self.batches = 0
        self.differing = 0  # records after which the cluster's rows were others than the holder's

    # --- any thread --------------------------------------------------------------------------------------------------------
    def begin(self, applied: int, round_: int) -> None:
        """Starts the thread, under the present session.  `applied` and `round_`: of the row of the mount."""
        self._core = ShipperCore(applied, round_)
        self._token = self._metadata.session_token()
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self._thread.start()

    @property
    def has_refused(self) -> bool:
        """A record was refused, or given up: nothing is shipped any more."""
        return bool(self._why)

    def stop(self) -> None:
        """Ends the thread; what is not shipped stays in the log."""
        if self._thread is None:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def stored(self, record: OpRecord, touches: Iterable[int] | None) -> None:
        """Takes the next record of the log; called in the order of their sequences.  `touches`: None of a damaged one."""
        with self._changed:
            self._posted.append((self._stored, (record, touches, time.monotonic_ns())))
            if self._sleeping or len(self._posted) == SHIP_RECORDS_MAX:
                self._changed.notify()

    def wait(self, through: int) -> Signal:
        """Returns a Wait that ends when every record up to this sequence is applied; EIO if one of them was put aside."""
        signal = Signal()
        self._post(self._wait, signal, through)
        return signal

    def commit(self, command: Commit, through: int, token: tuple[int, int], resume: Resume) -> None:
        """Calls `resume` with Committed when the commit was done in the batch of this record, or with its error.

        ESTALE if the batch goes under another session than `token`, EIO if a record up to it was put aside.  With None if the record was
        applied before and the commit did not go.  Committed comes on the thread that receives answers, and nothing on the calling one: that
        has locks which whoever is resumed may wait for.
        """
        rider = _Rider(command, through, token)
        rider.start(resume)
        self._post(self._wait, rider, through)

    def goes_on(self, applied: int, round_: int) -> None:
        """The present session was opened, nobody else had the volume, and the row of the mount says this.

        What was in flight under an ended one is sent again.
        """
        self._post(self._goes_on, applied, round_, self._metadata.session_token())

    def inherited_is_over(self) -> None:
        """What a predecessor has left is applied or put aside, and no row is known yet: nothing that is decided now follows from it."""
        self._post(self._core.cleansed, None)

    def note_removal(self) -> None:
        """The node was removed: what is in flight ends with an error, and so will all that comes."""
        self._removed = True

    def goes_no_further(self, applied: int, round_: int, why: str) -> None:
        """As `goes_on`, and what the cluster does not have was decided under leases that have ended: it is never shipped."""
        self._post(self._goes_no_further, applied, round_, why, self._metadata.session_token())

    def give_up(self, why: str) -> None:
        """Others have changed the volume: nothing that is in the log is shipped any more."""
        self._post(self._refuse_all, why, False)

    def _post(self, do: Callable[..., None], *args: Any) -> None:
        with self._changed:
            if self._thread is not None:
                self._posted.append((do, args))
                self._changed.notify()

    # --- the thread --------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._posted and not self._stopping and not self._is_due():
                    pause_s = self._pause_s()
                    self._sleeping = pause_s is None and self._batch is None  # else the answer wakes it
                    self._changed.wait(pause_s)
                    self._sleeping = False
                if self._stopping:
                    return
            self._turn()

    def _turn(self) -> None:
        """Takes up what was posted, and does what is due."""
        with self._changed:
            posted, self._posted = self._posted, deque()
        for do, args in posted:
            do(*args)
        self._do(self._core.poll(time.monotonic_ns() if self._may_send() else 0))

    def _may_send(self) -> bool:
        return time.monotonic_ns() >= self._not_before_ns

    def _is_due(self) -> bool:
        due = self._core.due_ns()
        return due is not None and max(due, self._not_before_ns) <= time.monotonic_ns()

    def _pause_s(self) -> float | None:
        due = self._core.due_ns()
        return None if due is None else max(max(due, self._not_before_ns) - time.monotonic_ns(), 0) / 1e9

    def _stored(self, record: OpRecord, touches: Iterable[int] | None, now_ns: int) -> None:
        if not record.aside:
            self._left.append(record)
        self._core.stored(record, touches, now_ns)
        if record.damaged and not self._why:
            self._refuse_all("a record of the op log is damaged")
        elif self._why:
            self._core.put_aside(record.sequence)

    def _wait(self, signal: Signal, through: int) -> None:
        self._core.wait(signal, through, rides=isinstance(signal, _Rider))
        if self._ended is not None:
            self._abandon(self._ended)

    def _do(self, step: Step) -> None:
        if self._left and self._left[0].sequence <= step.applied:
            self._settle(step.applied)
        if step.aside:  # what was decided while one was refused came to the core before what waited here: the list is in order
            self._set_aside(sorted(step.aside, key=lambda record: record.sequence))  # type: ignore[arg-type]
            step.told += self._core.poll(0).told
        for signal, aside in step.told:
            assert isinstance(signal, Signal)
            signal.fire(None, FsError(errno.EIO, "changes of names became conflicts; see `awsomefsd status`") if aside else None)
        if step.batch is not None:
            self._send(step.batch)

    def _settle(self, through: int) -> None:
        while self._left and self._left[0].sequence <= through:
            self._left.popleft()
        self._log.applied(through)
        self._holder.applied(through)

    def _set_aside(self, records: list[OpRecord]) -> None:
        """Nothing that follows from them is left, so they are over when they are stored."""
        self._holder.set_aside(records, self._why or FOLLOWS)
        self._log.put_aside(records)
        self._log.cleansed(records)
        gone = {record.sequence for record in records}
        self._left = deque(record for record in self._left if record.sequence not in gone)
        self._core.aside_synced(len(records))
        self._core.cleansed(None)

    # --- batches -----------------------------------------------------------------------------------------------------------
    def _send(self, batch: RecordBatch) -> None:
        records = [record_of(record) for record in batch.records]  # type: ignore[arg-type]
        rider = batch.rider
        assert rider is None or isinstance(rider, _Rider)
        command = Apply(self._volume, self._log_id, batch.after, records[0].sequence, records, [], [], 0, batch.round)
        if rider is not None and rider.token != self._token:
            rider.fire(None, FsError(errno.ESTALE, "the session was replaced since the data was written"))
            rider = None
        if rider is not None:
            data = rider.command
            command.inodes, command.segments, command.consumed = data.inodes, data.segments, data.consumed_bytes
        self._batch = batch
        self.batches += 1
        unique = self._uniques.next_background_unique()

        def answered(reply: Any, error: BaseException | None) -> None:
            self._metadata.ack(unique)
            if reply is not None:
                self.applied = max(self.applied, reply.applied)
            self._post(self._answered, batch, rider, reply, error)
            if rider is not None and error is not None:
                rider.fire(None, error)
            elif rider is not None and not reply.errno:
                rider.fire(Committed(reply.errnos, reply.attrs))

        self._metadata.propose(command, unique, self._token).start(answered)

    def _answered(self, batch: RecordBatch, rider: _Rider | None, reply: Applied | None, error: BaseException | None) -> None:
        if batch is self._batch:  # else its session has ended, and another one goes on
            if reply is None:
                self._not_taken(error)
            else:
                self._taken(batch.number, reply)
        if rider is not None and reply is not None and reply.errno:
            self._wait(rider, rider.through)  # a record stopped the batch before it

    def _taken(self, number: int, reply: Applied) -> None:
        self._batch = None
        if reply.differs:
            self.differing += 1
            log.error("the cluster's rows are others than this mount's after record %d", reply.differs)
        try:
            if reply.refused and not reply.retry:
                why = f"record {reply.refused} was refused: {errno.errorcode.get(reply.errno, reply.errno)} {reply.text}"
                self._note_refusal(why, diverged=reply.errno != errno.EDQUOT)  # the quota was lowered while there was no session
                self._core.answered(number, reply.applied, reply.refused)
                self._leave_nothing()
            elif reply.errno:
                self._not_before_ns = time.monotonic_ns() + _PAUSE_NS
                self._core.resumed(reply.applied, reply.round)
            else:
                self._core.answered(number, reply.applied)
        except Corrupt as err:
            self._refuse_all(str(err))

    def _not_taken(self, error: BaseException | None) -> None:
        """The batch as a whole was refused, and nothing of it is done.  If its session has ended, the next one goes on with it.

        If a commit went with it, its sender has the error, and the records go again without it: either of the two, or the session, was why.
        """
        if isinstance(error, FsError) and self._batch is not None and self._batch.rider is not None:
            self._batch = None
            self._core.landed()
            return
        if isinstance(error, FsError) and error.errno == errno.ESTALE:
            return
        if isinstance(error, Overloaded):  # the client has no place for one more request now
            self._batch, self._not_before_ns = None, time.monotonic_ns() + _PAUSE_NS
            self._core.landed()
        elif isinstance(error, FsError):
            self._refuse_all(f"a batch of records was refused: {error}", diverged=error.errno != errno.EACCES)  # EACCES: of the node
        elif isinstance(error, Error):
            log.info("records wait for the next worker: %s", str(error))
            self._ended = error
            self._abandon(error)

    def _abandon(self, error: Error) -> None:
        """The client has ended: nobody who waits is ever told more than that."""
        for signal in self._core.abandoned():
            assert isinstance(signal, Signal)
            signal.fire(None, error)

    def _goes_on(self, applied: int, round_: int, token: tuple[int, int]) -> None:
        self._batch, self._token = None, token
        try:
            self._core.resumed(applied, round_)
        except Corrupt as err:  # its metadata was recovered from an older copy, or has forgotten the mount
            self._refuse_all(str(err), diverged=False)

    def _goes_no_further(self, applied: int, round_: int, why: str, token: tuple[int, int]) -> None:
        self._goes_on(applied, round_, token)
        self._refuse_all(why, False)

    # --- refusals ----------------------------------------------------------------------------------------------------------
    def _note_refusal(self, why: str, diverged: bool = True) -> None:
        log.error("names are not decided here any more: %s", why)
        self.diverged = self.diverged or (diverged and not self._removed)
        self._why = self._why or why
        self._holder.refused(why)
        with self._changed:  # what was decided before that is in the log: it follows
            posted, self._posted = self._posted, deque()
        for do, args in posted:
            if do == self._stored:
                self._left.append(args[0])
                self._core.stored(*args)
            else:
                with self._changed:
                    self._posted.append((do, args))

    def _refuse_all(self, why: str, diverged: bool = True) -> None:
        self._note_refusal(why, diverged)
        if self._batch is not None:
            self._batch = None
            self._core.landed()
        self._leave_nothing()

    def _leave_nothing(self) -> None:
        for record in list(self._left):
            if record.sequence > self._core.applied:
                self._core.put_aside(record.sequence)
