"""Dirty records become durable and then visible: one thread at a time writes segments and commits.

Order of durable effects, here and nowhere else: lay records over each other → write frames → device flush (inside `SegmentWriter.write`) →
Commit in the log → mark the records clean.  A crash before the Commit leaves orphaned frames and dirty records that a successor flushes
again; after it, the records carry sequences the machine has seen, so flushing them again changes nothing.

*Who drives* takes batches, writes and proposes them: the thread that was asked for an fsync, unless another one drives already.  What is
asked for meanwhile is left to that one, so callers share syncs.  Old data, retries and all else is driven by the flusher's own thread.  A
batch that is committed as proposed is finished by the thread that receives the answer, which so answers the fsync too.  Any other answer
waits for the next one who drives.  Where the bytes go to other nodes (`on_own_thread`) only the flusher's own thread drives.

While the service commits one batch, the device already writes the next, but its Commit is not proposed before the first has succeeded: a
later sequence that overtook a failed one would make the machine ignore the older bytes for ever.
A failed flush leaves its records dirty, is told once of each file it concerned (`FlushEvents.error_told`), and is tried again.  One of a
pool that finds too few mirrors is told to nobody: whoever asked waits for them, with on-lease-loss=error not for ever (patience.py).

On a shared volume a commit names the write lease under which the data was buffered.  If that has ended (ENOLCK in the reply, of that file
alone), another node may have changed the file: `FlushEvents.lease_lost` saves its records as conflicts, and they are never committed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from awsomefsd.base.errors import Error, Fenced, FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import DIRTY_AGE_MS_MAX, DIRTY_FLUSH_BYTES, EXTENTS_PER_COMMIT_MAX, INLINE_BYTES_MAX, MIB, NS_PER_MS
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Errand, Signal, Wait, nothing, was_repeated
from awsomefsd.io.file.batch import Batch, Part, extents_bound
from awsomefsd.io.file.condition_thread import ConditionThread
from awsomefsd.io.file.dirty_log import DirtyLog, DirtyRecord
from awsomefsd.io.file.file_data import FileState, FileTable
from awsomefsd.io.file.overlay import RecordOverlay
from awsomefsd.io.file.patience import Patience
from awsomefsd.io.file.reservation import Reservation, Uniques
from awsomefsd.io.segment.store import SegmentWrites
from awsomefsd.io.segment.writer import Piece, Written, space_needed
from awsomefsd.meta.api.commands import Commit
from awsomefsd.meta.client.metadata import Metadata

BATCH_BYTES_MAX = 16 * MIB
BATCH_INODES_MAX = 256
PART_RECORDS_MAX = 4_096
RETRY_MS_MIN, RETRY_MS_MAX = 50, 2_000
REFUSED_FOR_GOOD = frozenset({errno.EFBIG, errno.EINVAL})  # too many extents; no regular file
REFUSALS_MAX = 3  # of one file, in succession
HELD_PAUSE_S = 0.01  # between two checks of records that a request waits for and a truncation keeps from being flushed

log = logging.getLogger("awsomefsd.flush")


class FlushEvents(Protocol):
    """The mount as the flusher calls it.  Calls come on the thread that drives and may block, unless a method says otherwise."""

    def refresh_layout(self, ino: int) -> None:
        """Asks for the shape of a file and its inline data.  Raises FsError(ENOENT) for one that is gone, else the Error of the service."""

    def committed(self, attr: Attr, repeated: bool) -> None:
        """Takes the attributes of a file that a commit changed; with `repeated` they may be old.

        Called by the thread that receives answers: may not block.
        """

    def lease_lost(self, state: FileState) -> None:
        """Takes the data of a file whose write lease ended before it was committed: it may not be committed any more."""

    def refused_for_good(self, state: FileState, errno_: int) -> None:
        """Takes the data of a file whose commit will never be accepted."""

    def error_told(self, ino: int, error: Error) -> None:
        """Takes the error of a failed flush, just before the one who waits for the file is told of it.

        Any thread, also with the lock of the file's state; may not block.
        """

    def idle(self) -> None:
        """Called on the flusher's own thread while there is nothing to write."""

    def write_failed(self) -> None:
        """Called when data could not be written, before it is tried again."""


def record_space(record_length: int) -> int:
    """Returns the bytes of the reservation that one write takes, whatever becomes of it."""
    return space_needed(record_length)


class _Request(NamedTuple):
    ino: int  # 0: all
    target: int  # up to this sequence
    signal: Signal
    in_flight_only: bool = False
    patient: bool = False  # a failure is not its end


class Flusher:
    """The flusher of one mount.  Any thread may call; only `stop` blocks.

    `flush`, `drained` and `flush_all` return Waits, which end on the thread that finishes a batch, as `room()` does when it is time to look
    again.
    """

    def __init__(
        self,
        files: FileTable,
        dirty: DirtyLog,
        writer: SegmentWrites,
        metadata: Metadata,
        reservation: Reservation,
        uniques: Uniques,
    ) -> None:
        self._files = files
        self._dirty = dirty
        self._writer = writer
        self._metadata = metadata
        self._reservation = reservation
        self._uniques = uniques
        self._events: FlushEvents  # given to `start`
        self._thread = ConditionThread("flusher", self._run)
        self._cond = self._thread.changed
        self._requests: list[_Request] = []
        self._room = Signal()
        self._driven = False  # a thread drives
        self._blocks: Callable[[], None] = nothing  # what that one wants to be called before it blocks
        self._asked = 0  # counts what was asked for: who drives looks again before it leaves
        self._looked = 0  # `_asked` as of the last look that found nothing to take
        self._proposed: Batch | None = None  # its answer is not taken up; set by who drives, reset by who finishes it
        self._proposer = 0  # the thread that proposes: an answer that comes at once is not taken up with the lock held
        self._kicked = False
        self._paused = False
        self._pauses = 0  # and fences; a batch taken before one is not proposed after it: its records may have been saved as conflicts
        self._retry_ms = 0
        self.on_own_thread = False  # what is written waits for other nodes, and the thread that asks may not
        self._patience = Patience(None)
        self.batches = 0

    def wait_for_mirrors(self, patience: Patience) -> None:
        """What is written goes to a pool; called before `start`."""
        self.on_own_thread, self._patience = True, patience

    def start(self, events: FlushEvents) -> None:
        """Starts the thread that flushes; called once."""
        self._events = events
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for it; what is dirty stays in the dirty log."""
        self._thread.stop()

    def pause(self, paused: bool) -> None:
        """Stops new batches (True) or allows them again: none begins while the worker has no session."""
        with self._cond:
            self._paused = paused
            self._pauses += paused
            self._cond.notify()

    def fence(self) -> None:
        """Lets no batch be proposed that was taken before: its records may go another way.  What is proposed already goes on."""
        with self._cond:
            self._pauses += 1

    # --- asked by the vfs ------------------------------------------------------------------------------------------------

    def flush(self, ino: int, *, in_flight_only: bool = False) -> Wait:
        """Returns a Wait that ends when all that is dirty now in this inode is committed; it raises the sticky error of a failed flush,
        once.

        `in_flight_only` waits for what is already on its way and starts nothing.  The work may be done by the one who waits.
        """
        state = self._files.get(ino)
        signal = Signal() if self.on_own_thread else Errand(self._drive, self._wake_thread)
        if state is None:
            signal.fire()
            return signal
        with state.lock:
            error = state.error
            if error is not None:
                self._events.error_told(ino, error)  # then only: an fsync that finds neither error nor dirty data does not take the lock
                state.error = None
            last = state.in_flight if in_flight_only else len(state.dirty)
            target = state.dirty[last - 1].sequence if last else 0
        if error is not None:
            signal.fire(None, error)
        elif not target:
            signal.fire()
        else:
            self._note(_Request(ino, target, signal, in_flight_only))
            if self.on_own_thread:
                self._wake_thread()
        return signal

    def drained(self, ino: int) -> Wait:
        """Returns a Wait as `flush`, which goes on over failures; the sticky error stays for those who wait with `flush`."""
        state, signal = self._files.get(ino), Signal()
        newest = None if state is None else state.newest()
        if newest is None:
            signal.fire()
        else:
            self._request(_Request(ino, newest.sequence, signal, patient=True))
        return signal

    def flush_all(self) -> Wait:
        """Returns a Wait that ends when all that is dirty now, in any inode, is committed, or raises when a flush failed."""
        signal = Signal()
        target = max((record.sequence for state in self._files.dirty_states() if (record := state.newest()) is not None), default=0)
        if target:
            self._request(_Request(0, target, signal))
        else:
            signal.fire()
        return signal

    def room(self) -> Signal:
        """Returns a Signal that is fired when records become clean, or there are none to flush.  Take it before the check whether there is
        room.  It raises ETIMEDOUT where nobody is to wait for mirrors any longer."""
        return self._room

    def kick(self) -> None:
        """Lets the thread flush what is dirty now, oldest first; called when much is."""
        if not self._kicked:
            with self._cond:
                self._kicked = True
                self._asked += 1
                self._cond.notify()

    def wake(self) -> None:
        """Checks the waiting requests again: records went another way than by a flush."""
        self._announce()

    def _request(self, request: _Request) -> None:
        self._note(request)
        self._wake_thread()

    def _note(self, request: _Request) -> None:
        with self._cond:
            self._requests.append(request)
            self._asked += 1

    def _wake_thread(self) -> None:
        with self._cond:
            if not self._driven:  # else who drives looks again
                self._cond.notify()

    # --- who drives ------------------------------------------------------------------------------------------------------

    def _drive(self, blocks: Callable[[], None]) -> None:
        """Flushes on the calling thread what is asked for; calls `blocks` before that blocks.

        Returns at once if another one drives, or if the thread has to.
        """
        with self._cond:
            if self._driven:
                return
            if self._paused or self._retry_ms or self._thread.stopping:
                self._cond.notify()
                return
            self._driven, self._blocks = True, blocks
        self._batches()

    def _run(self) -> None:
        held = False
        while self._await_turn(held):
            took = self._batches(self._nothing_taken)
            with self._cond:
                held = not took and self._proposed is None and bool(self._requests or self._kicked)

    def _await_turn(self, held: bool) -> bool:
        """Waits until this thread has to drive.  Returns False when it is stopped and all is answered.

        `held`: there is nothing to take for what is asked, so it is looked for again soon.
        """
        with self._cond:
            if held and not self._thread.stopping:
                self._cond.wait(HELD_PAUSE_S)
            elif not self._work_due():
                self._cond.wait(self._pause_s())
            while self._driven or (self._thread.stopping and self._proposed is not None and not self._proposed.done.is_set()):
                self._cond.wait(self._pause_s())
            if self._thread.stopping and self._proposed is None:
                return False
            self._driven, self._blocks = True, nothing
            return True

    def _batches(self, nothing_taken: Callable[[], None] | None = None) -> bool:
        """Flushes until there is nothing to take or a batch fails, and then drives no more.  Returns False if there was nothing at all.

        `nothing_taken` is called in that case, unless a batch is on its way.
        """
        took = False
        while self._finish_proposed(wait=False) is None:
            asked = self._asked
            batch = self._next_batch()
            if batch is None:
                if nothing_taken is not None and not took and self._proposed is None:
                    nothing_taken()
                if self._leave(asked):
                    return took
                continue
            took = True
            self._write(batch)
            if (failed := self._finish_proposed(wait=True)) is not None:
                self._abandon(batch, failed)
                break
            if batch.error is not None:
                self._finish(batch)
                break
            self._propose(batch)
        self._leave(None)
        return True

    def _leave(self, asked: int | None) -> bool:
        """Gives the turn to drive up; returns False, and keeps it, if more was asked for since `asked`."""
        with self._cond:
            if asked not in (None, self._asked) and not (self._thread.stopping or self._paused):
                return False
            self._driven = False
            self._looked = self._looked if asked is None else asked
            if self._retry_ms or self._thread.stopping or (self._requests and self._proposed is None) or self._must_finish():
                self._cond.notify()
            return True

    def _must_finish(self) -> bool:
        """The answer of a batch is there, and who received it did not take it up."""
        return self._proposed is not None and self._proposed.done.is_set()

    def _finish_proposed(self, *, wait: bool) -> BaseException | None:
        """Takes up the answer of the batch that was proposed, if it is there or one may `wait`.  Returns why it was not committed."""
        batch = self._proposed
        if batch is None or not (wait or batch.done.is_set()):
            return None
        self._blocks()
        batch.done.wait()
        if self._proposed is not batch:
            return None  # finished where the answer came
        if batch.bug is not None:
            raise batch.bug
        self._finish(batch)
        self._proposed = None
        return batch.error or (FsError(errno.ESTALE, "what was written before was refused") if batch.refused else None)

    def _answered(self, batch: Batch) -> None:
        """Called by the thread that receives answers; a batch that was committed as proposed is finished here, which does not block."""
        finished = False
        try:
            if batch.is_plain and self._proposer != threading.get_ident():
                self._finish(batch)
                finished = True
        except BaseException as err:
            batch.bug = err  # nobody can know who was answered: who drives next ends the worker, which this thread does not
            raise
        finally:
            with self._cond:
                if finished:
                    self._proposed = None
                batch.done.set()
                if not self._driven and (not finished or self._requests or self._thread.stopping):
                    self._cond.notify()

    def _nothing_taken(self) -> None:
        """Answers requests whose records went another way (removed, or committed before).

        Whoever waits for room looks again too: it may wait for something else, and no flush will come where nothing is dirty.
        """
        self._announce()
        if not (self._paused or self._thread.stopping):
            self._events.idle()

    def _next_batch(self) -> Batch | None:
        with self._cond:
            if self._thread.stopping or self._paused:
                return None
            states, pauses = self._choose(), self._pauses
            self._kicked = False
        parts: list[Part] = []
        room, extents = BATCH_BYTES_MAX, EXTENTS_PER_COMMIT_MAX
        for state in states:
            if room <= 0 or extents <= 0 or len(parts) >= BATCH_INODES_MAX:
                break
            part = self._take(state, room, extents)
            if part is not None:
                parts.append(part)
                room -= sum(record.length for record in part.records)
                extents -= part.extents_bound
        if not parts:
            return None
        return Batch(parts, self._uniques.next_background_unique(), self._events.committed, self._answered, pauses)

    def _work_due(self) -> bool:
        asked = not self._paused and not self._retry_ms and (self._kicked or bool(self._requests))
        if self._proposed is not None and self._looked == self._asked:
            asked = False  # it is on its way, or waits for what is: the answer wakes the thread
        return asked or self._thread.stopping or self._must_finish()

    def _pause_s(self) -> float:
        return (self._retry_ms or 1_000) / 1_000

    def _choose(self) -> list[FileState]:
        """Returns the files to flush: those that a request waits for, then the oldest (called with the condition's lock)."""
        asked = {request[0] for request in self._requests}
        if 0 in asked or self._kicked or self._dirty.dirty_bytes >= DIRTY_FLUSH_BYTES:
            states = self._files.dirty_states()
        else:
            states = [state for state in (self._files.get(ino) for ino in asked) if state is not None]
            now_ns = time.time_ns()
            young = range(now_ns - DIRTY_AGE_MS_MAX * NS_PER_MS + 1, now_ns + 1)  # a later one: the clock was set back
            others = [state for state in self._files.dirty_states() if state.ino not in asked]
            states += [state for state in others if (record := state.oldest()) is not None and record.time_ns not in young]

        def order(state: FileState) -> tuple[bool, int]:
            record = state.oldest()
            return state.ino not in asked, record.sequence if record is not None else 0

        return sorted(states, key=order)

    def _take(self, state: FileState, room: int, extents: int) -> Part | None:
        with state.lock:
            records: list[DirtyRecord] = []
            run, end, left = 0, -1, extents
            # a file that leaves its inline row does so in one batch: the next must not lay the old inline bytes over it again
            held = state.held or (state.is_inline and state.in_flight > 0)
            for record in () if held else state.dirty[state.in_flight :]:
                before = extents_bound(run) if record.offset == end else 0  # appends join: thousands of lines are one frame
                run = run + record.length if before else record.length
                added = extents_bound(run) - before
                full = record.length > room or added > left or len(records) >= PART_RECORDS_MAX
                if records and (full or record.generation != records[0].generation):
                    break
                records.append(record)
                room -= record.length
                left -= added
                end = record.offset + record.length
            if not records:
                return None
            state.in_flight += len(records)
            return Part(state, records, extents - left)

    # --- one batch ---------------------------------------------------------------------------------------------------------

    def _write(self, batch: Batch) -> None:
        try:
            pieces: list[Piece] = []
            for part in batch.parts:
                self._plan(part)
                pieces += part.pieces
            hit("flush.write.before")
            self._blocks()  # not sooner: who is woken by it would wait for the interpreter
            batch.written = self._writer.write(pieces) if pieces else Written([], [], 0)
            hit("flush.write.after")
            if pieces:  # else no mirror was asked
                self._patience.written()
        except (OSError, Error) as err:
            batch.error = err
            return
        at = 0
        for part in batch.parts:
            for extents in batch.written.extents[at : at + len(part.pieces)]:
                part.commit.extents.extend(extents)
            at += len(part.pieces)

    def _plan(self, part: Part) -> None:
        """Plans inline patches for a small file, else pieces for segments; the first extents also take over what was inline."""
        state, commit = part.state, part.commit
        overlay = RecordOverlay()
        commit.log = self._dirty.log_id
        commit.extents, commit.inline = [], []
        with state.lock:
            is_inline, base = state.is_inline, state.inline
            stays = not state.leave_inline
        if stays and is_inline and commit.size <= INLINE_BYTES_MAX and state.size <= INLINE_BYTES_MAX:
            for record in part.records:
                overlay.put(record.offset, record.data)
            commit.inline = [(start, b"".join(buffers)) for start, buffers in overlay.runs()]
            return
        if is_inline and base is None:
            if not self._ask_layout(state.ino):
                return  # the commit will say the same
            is_inline, base = state.is_inline, state.inline
        if is_inline and base:
            overlay.put(0, memoryview(base))
        for record in part.records:
            overlay.put(record.offset, record.data)
        part.pieces = [Piece(self._files.volume, state.ino, start, buffers) for start, buffers in overlay.runs()]

    def _ask_layout(self, ino: int) -> bool:
        """Asks for the layout; returns False for an inode that is gone."""
        self._blocks()
        try:
            self._events.refresh_layout(ino)
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return False
        return True

    def _propose(self, batch: Batch) -> None:
        assert batch.written is not None
        inline_bytes = sum(len(data) for part in batch.parts for _, data in part.commit.inline)
        command = Commit(
            self._files.volume,
            [part.commit for part in batch.parts],
            batch.written.consumed_bytes + inline_bytes,
            batch.written.progress,
        )
        hit("flush.commit.before")
        with self._cond:
            self._proposed, self._proposer = batch, threading.get_ident()
            if batch.pauses == self._pauses:
                asked = self._metadata.propose(command, batch.unique)
                asked.start(lambda reply, error: batch.committed(reply, error, was_repeated(asked)))
            else:
                batch.committed(None, Fenced("the session was replaced, or files were put aside, since these records were taken"))
            self._proposer = 0

    def _finish(self, batch: Batch) -> None:
        """Marks the records of a committed batch clean; those of a failed one stay dirty, and the error sticks to the files."""
        self._metadata.ack(batch.unique)
        if batch.error is not None:
            self._abandon(batch, batch.error)
            return
        assert batch.reply is not None and batch.written is not None
        hit("flush.commit.after")
        hit("dirty.clean.before")
        cleaned: list[DirtyRecord] = []
        for part, errno_ in zip(batch.parts, batch.reply.errnos, strict=True):
            if errno_ in (0, errno.ENOENT):
                cleaned += self._settle(part, errno_)
            else:
                self._refused(part, errno_)
                batch.refused = True
        hit("dirty.clean.after")
        reserved = sum(record_space(record.length) for record in cleaned)
        inline_bytes = sum(len(data) for part in batch.parts for _, data in part.commit.inline)
        self._reservation.give_back(reserved - batch.written.consumed_bytes - inline_bytes)
        self.batches += 1
        if not batch.refused:
            self._retry_ms = 0
        self._announce(next((part.state.error for part in batch.parts if part.state.error is not None), None))

    def _settle(self, part: Part, errno_: int) -> list[DirtyRecord]:
        """Takes up that the records of one inode are committed, or gone with it (ENOENT); returns those that are clean by this.

        Records are marked clean and leave their state in one step, under its lock: who finds a file without dirty records answers a recall
        by that, and from then on no successor may find one.  A reader that still copies from them finds another version.
        """
        state = part.state
        with state.lock:
            state.version += 1
            state.refusals = 0
            cleaned = [record for record in part.records if record.is_dirty]  # others were saved as conflicts meanwhile
            self._dirty.mark_clean(cleaned)
            state.take_out(0, len(cleaned))
            state.in_flight -= len(cleaned)
            if not state.dirty:
                state.mtime_ns = None
            if errno_ == 0:
                patches = part.commit.inline
                state.committed(part.commit.extents, (lambda base: patch(base, patches)) if patches else None)
        self._files.settled(state)
        return cleaned

    def _refused(self, part: Part, errno_: int) -> None:
        """Takes up that the records of one inode may not be committed (their lease has ended), or have to be flushed again.

        ESTALE: it is not in the shape we believed (inline or not): ask, then flush again.  What is refused for good (REFUSED_FOR_GOOD) so
        many times is saved as a conflict: else its records would fill the dirty log, and the mount could neither write nor end.
        """
        state = part.state
        with state.lock:
            state.version += 1
            state.in_flight = 0
            state.extents.forget()
            state.refusals += errno_ in REFUSED_FOR_GOOD
            for_good = state.refusals >= REFUSALS_MAX
            if errno_ not in (errno.ESTALE, errno.ENOLCK):
                state.error = FsError(errno_)
        if errno_ == errno.ENOLCK:
            log.error("the write lease of a file had ended before its data was committed: ino=%d", state.ino)
            self._events.lease_lost(state)
            return
        if for_good:
            self._events.refused_for_good(state, errno_)
            return
        log.warning("the commit of one file was refused; it is flushed again: ino=%d errno=%d", state.ino, errno_)
        self._retry_ms = RETRY_MS_MIN
        with contextlib.suppress(Error):  # not known then; the next commit is refused again, or says that it is gone
            self._ask_layout(part.state.ino)

    def _abandon(self, batch: Batch, error: BaseException) -> None:
        log.warning("flush failed; the data stays buffered: %s (files=%d)", error, len(batch.parts))
        if batch.written is not None:
            self._writer.report_again(batch.written)
        else:
            self._events.write_failed()
        told: Error | None = error if isinstance(error, Error) else FsError(getattr(error, "errno", None) or 5, str(error))
        room_error: Error | None = None
        if self.on_own_thread and batch.written is None:
            told = self._patience.told(error)
            room_error = told if told is not None and told.errno == errno.ETIMEDOUT else None
        for part in batch.parts:
            with part.state.lock:
                part.state.in_flight = 0
                if told is not None and told.errno != errno.ESTALE and not isinstance(told, Fenced):
                    part.state.error = told
        self._retry_ms = min(max(self._retry_ms * 2, RETRY_MS_MIN), RETRY_MS_MAX)
        self._announce(told, room_error)

    def _announce(self, error: Error | None = None, room_error: Error | None = None) -> None:
        """Answers requests whose records are clean, or whose file has failed; wakes those who wait for room.

        `room_error` is told to the latter.  It is no error of a device, for which they wait, nor an older one that a file still has.
        """
        answered: list[tuple[int, Signal, Error | None]] = []
        with self._cond:
            kept = []
            for request in self._requests:
                ino, target, signal, in_flight_only, patient = request
                states = self._files.dirty_states() if ino == 0 else [self._files.get(ino)]
                pending = [s for s in states if s is not None and (r := s.oldest()) is not None and r.sequence <= target]
                if in_flight_only:
                    pending = [s for s in pending if s.in_flight]
                failed = _take_error(pending, keep=ino == 0) if error and not patient else None
                if not pending:
                    answered.append((ino, signal, None))
                elif failed is not None:
                    answered.append((ino, signal, failed))
                else:
                    kept.append(request)
            self._requests = kept
            room, self._room = self._room, Signal()
        for ino, signal, outcome in answered:
            if ino and outcome is not None:
                self._events.error_told(ino, outcome)
            signal.fire(None, outcome)
        room.fire(None, room_error)


def _take_error(states: list[FileState], *, keep: bool) -> Error | None:
    """Takes the first error that sticks to one of these files, or looks at it only (`keep`), and leaves it to the file's own fsync.

    Looked at and taken in one step: another fsync of the file may take it at any time.
    """
    for state in states:
        with state.lock:
            error = state.error
            if error is not None:
                state.error = error if keep else None
                return error
    return None


def patch(base: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    """Returns inline data after `patches` (offset, bytes), holes filled with zeros."""
    data = bytearray(base)
    for offset, piece in patches:
        if len(data) < offset:
            data += bytes(offset - len(data))
        data[offset : offset + len(piece)] = piece
    return bytes(data)
