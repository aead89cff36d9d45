"""The data of files in a worker: what is committed (extents, inline), what is dirty, and one answer to read(2) out of both.

The life of written bytes: `write` stores a record in the dirty log (dirty), the flusher writes it to a segment (durable), a Commit makes it
visible to others, and only then the record is clean.  A reader lays the dirty records over the committed layout.

Two things may change while a reader copies: a commit turns records clean, whose place in the ring may then be used again, and collection
frees a segment whose extents were overwritten.  `FileState.version` counts such changes; a reader that finds it changed after its copy
reads again, so neither can be taken for data.

A truncation, hole or copy may meet records that are dirty or whose commit is answered and not taken up yet.  This worker does not know
which of the two came first in the log, nor how far the machine has clipped the records.  Such a state is `layout_stale`: it learns nothing
from its commits, and is forgotten with the last of them.

Where several nodes share the volume, `FileState.token` is the write lease under which data may be buffered now.  It is read and changed
under the state's lock only: a thread that gives the lease up takes it out first, and then waits for what is dirty, so no write is buffered
in between.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from awsomefsd.base.errors import Corrupt, Error, FsError
from awsomefsd.base.types import Attr, Extent
from awsomefsd.io.file.dirty_log import ALONE, TIME_NS_MAX, DirtyLog, DirtyRecord, LeaseToken
from awsomefsd.io.segment.extent_map import ExtentMap, cut
from awsomefsd.io.segment.store import SegmentReads

LAYOUT_WINDOW_BYTES = 1 << 30  # how much of a layout one request asks for
LAYOUT_ALIGN_BYTES = 1 << 20  # where it begins: a file of many small extents comes in parts, so not far before what is wanted
FILES_CACHED_MAX = 8_192
EXTENTS_CACHED_MAX = 200_000
READ_RETRIES_MAX = 16
GENERATIONS = 1 << 32  # what a dirty record can tell apart

log = logging.getLogger("awsomefsd.files")


def _always() -> bool:
    return True


class FileState:
    """One inode's data.  Thread-safe where not said otherwise; `lock` guards all of it and is never held over I/O or a request."""

    __slots__ = (
        "dirty",
        "dirty_bytes",
        "error",
        "extents",
        "forgotten",
        "generation",
        "grant",
        "held",
        "in_flight",
        "index",
        "inline",
        "ino",
        "is_inline",
        "layout_stale",
        "leave_inline",
        "lock",
        "mtime_min_ns",
        "mtime_ns",
        "refusals",
        "size",
        "token",
        "version",
    )  # fmt: skip

    def __init__(self, attr: Attr, token: LeaseToken | None = ALONE, index: dict[int, FileState] | None = None) -> None:
        """`index`: of a table; this state is in it while it holds something dirty."""
        self.ino = attr.ino
        self.index = {} if index is None else index
        self.token = token  # None: nothing may be buffered
        self.grant = 0  # number of the lease under which this was learned
        self.mtime_min_ns = 0  # the next write has to show a later mtime
        self.lock = threading.Lock()
        self.size = attr.size
        self.is_inline = attr.inline
        self.inline: bytes | None = b"" if attr.inline and attr.stored_bytes == 0 else None  # None: not known
        self.extents = ExtentMap(known_empty=attr.inline)
        self.dirty: list[DirtyRecord] = []
        self.in_flight = 0  # so many of the first records are being flushed
        self.generation = 0  # grows with each truncation: records of two generations are never committed together
        self.held = False  # no flush may begin: a truncation to nothing is about to end these records
        self.leave_inline = False  # inline data is to become extents at the next flush, however little it is
        self.forgotten = False  # no longer in the table: a thread that still has it must ask the table again before a write
        self.dirty_bytes = 0
        self.mtime_ns: int | None = None  # of the newest dirty write, None if the committed one stands
        self.error: Error | None = None  # a failed flush, reported once by fsync
        self.refusals = 0  # commits in succession that were refused for good
        self.layout_stale = False  # another change met dirty records: only the service knows the layout after their commits
        self.version = 0

    def oldest(self) -> DirtyRecord | None:
        """Returns the oldest dirty record, or None.  One step without the lock: others take records out at any time."""
        return next(iter(self.dirty), None)

    def newest(self) -> DirtyRecord | None:
        """Returns the newest dirty record, or None.

        One read of the end, without the lock: an iterator would miss records that go in between.
        """
        try:
            return self.dirty[-1]
        except IndexError:
            return None

    def next_mtime_ns(self) -> int:
        """Returns the time of the next write: now, but later than what was shown before, whatever the clocks of other writers say.

        A time that no record can say was set by utimensat(2), and a write after that moves it to now.
        """
        least_ns = self.mtime_min_ns + 1
        now_ns = self.mtime_min_ns = max(time.time_ns(), least_ns if least_ns <= TIME_NS_MAX else 0)
        return now_ns

    def needs_layout(self, start: int, end: int) -> bool:
        """Returns True if the service must be asked before [start, end) can be read."""
        if self.is_inline:
            return self.inline is None
        return not self.extents.knows(start, min(end, self.size))

    def store(
        self,
        log: DirtyLog,
        offset: int,
        data: memoryview,
        unique: int,
        time_ns: int,
        *,
        append: bool = False,
        recall: bool = False,
        may: Callable[[], bool] = _always,
    ) -> bool:
        """Appends one write to the dirty log; returns False if it has no room, this state was forgotten, or the lease it needs is not held.

        `may` is asked with the lock held: False, and nothing is appended.

        `append`: at the end of the file instead of `offset`.  The lock is held from the sequence number to the list: the machine ignores
        what is older than the newest committed sequence of an inode, so two writes of one file (write-back sends several at once) may not
        change places in between.
        """
        with self.lock:
            if self.forgotten or self.token is None or not may():
                return False
            at = self.size if append else offset
            record = log.append_write(self.ino, at, data, unique, time_ns, self.generation, recall=recall, token=self.token)
            if record is None:
                return False
            self._add(record)
            return True

    def let_go(self) -> None:
        """Ends buffering: new writes are refused, and what is dirty stays until it is committed."""
        with self.lock:
            self.token = None

    @property
    def lease(self) -> int:
        """The epoch under which what is dirty may be committed: that of the newest record counts for all (called with the lock)."""
        return self.dirty[-1].token.lease if self.dirty else 0

    def adopt(self, record: DirtyRecord) -> None:
        """Takes up a record of a dead predecessor; called in the order of sequences."""
        with self.lock:
            self._add(record)
            self.generation = (record.generation + 1) % GENERATIONS  # a truncation of the predecessor may lie behind the newest one

    def _add(self, record: DirtyRecord) -> None:
        if not self.dirty:
            self.index[self.ino] = self  # before the record is there: who asks without the lock finds all that was stored
        self.dirty.append(record)
        self.dirty_bytes += record.length
        self.size = max(self.size, record.offset + record.length)
        self.mtime_ns = record.time_ns

    def take_out(self, first: int, count: int) -> None:
        """Takes records that are clean, or gone, out of the list (called with the lock).

        This state may be forgotten, and hold nothing any more: then the file's next one may be in the index.
        """
        del self.dirty[first : first + count]
        self.dirty_bytes = sum(record.length for record in self.dirty)
        if not self.dirty and self.index.get(self.ino) is self:
            del self.index[self.ino]

    def learn_layout(self, start: int, end: int, extents: list[Extent], inline: bytes | None) -> None:
        """Takes up the layout of [start, end) as the service gave it, or the inline data of the file."""
        with self.lock:
            if inline is not None:
                self.is_inline, self.inline = True, inline
                return
            self.is_inline, self.inline = False, None
            self.extents.learn(start, end, extents)

    def truncate_committed(self, size: int, sequence: int) -> None:
        """Takes up a truncation by the machine: nothing committed is at or beyond `size`, nor will be of records up to `sequence`."""
        with self.lock:
            self.version += 1
            self.size = max([size, *(record.offset + record.length for record in self.dirty if record.sequence > sequence)])
            self.layout_stale = self.layout_stale or bool(self.dirty)
            self.extents.truncate(size)
            if self.is_inline and self.inline is not None:
                self.inline = self.inline[:size]

    def forget_layout(self, attr: Attr) -> None:
        """Takes up the attributes after a change that was no commit (a hole, a copy); the layout has to be asked for again."""
        with self.lock:
            self.version += 1
            self.layout_stale = self.layout_stale or bool(self.dirty)
            self.size = max(self.size, attr.size)
            self.mtime_min_ns = max(self.mtime_min_ns, attr.mtime_ns)
            self.is_inline = attr.inline
            self.inline = b"" if attr.inline and attr.stored_bytes == 0 else None
            self.extents.forget()

    def committed(self, extents: list[Extent], patched: Callable[[bytes], bytes] | None) -> None:
        """Takes up extents, or patches of inline data, that a commit of our records has made (called with the lock)."""
        if self.layout_stale:
            self.extents.forget()
            self.inline = None
        elif extents:
            if self.is_inline:
                self.is_inline, self.inline = False, None
            for extent in extents:
                self.extents.insert(extent)
        elif patched is not None and self.inline is not None:
            self.inline = patched(self.inline)

    def spans(self, start: int) -> tuple[list[tuple[int, int]], int] | None:
        """Returns the [start, end) runs of bytes from `start` on, dirty ones too, sorted and disjoint, and up to where that is known.

        None: the layout must be asked for first.
        """
        with self.lock:
            if self.needs_layout(start, min(start + 1, self.size)):
                return None
            if self.is_inline:
                end = self.size
                found = [(0, min(len(self.inline or b""), self.size))]
            else:
                end = min(self.extents.known_end, self.size)
                found = [(one.file_offset, one.file_offset + one.length) for one in self.extents.overlapping(start, end)]
            found += [(record.offset, record.offset + record.length) for record in self.dirty]
        spans: list[tuple[int, int]] = []
        for first, last in sorted(found):
            first, last = max(first, start), min(last, end)
            if first >= last:
                continue
            if spans and first <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
            else:
                spans.append((first, last))
        return spans, end


class FileTable:
    """All FileStates of a mount, and reads over them.  Thread-safe; `read_into` blocks for the device, nothing else does."""

    def __init__(
        self, volume: int, log: DirtyLog, reader: SegmentReads, corrupt: Callable[[int, int, int, str], None], *, leased: bool = False
    ) -> None:
        """`leased`: data of a file is buffered under a write lease only.  `corrupt(ino, offset, length, words)`: these bytes are lost."""
        self._under = None if leased else ALONE
        self.volume = volume
        self.log = log
        self._reader = reader
        self._corrupt = corrupt
        self._lock = threading.Lock()
        self._states: OrderedDict[int, FileState] = OrderedDict()
        self._dirty: dict[int, FileState] = {}  # those of them that hold something dirty: an fsync must not look at all
        self._share = 1.0

    def get(self, ino: int) -> FileState | None:
        return self._states.get(ino)

    def state(self, attr: Attr) -> FileState:
        """Returns the state of a regular file, made from its committed attributes if there is none yet."""
        state = self._states.get(attr.ino)
        if state is None:
            with self._lock:
                state = self._states.setdefault(attr.ino, FileState(attr, self._under, self._dirty))
                if len(self._states) > FILES_CACHED_MAX * self._share:
                    self._evict()
        return state

    def every(self) -> list[FileState]:
        with self._lock:
            return list(self._states.values())

    def wait_for_stores(self) -> None:
        """Blocks until every record that is just being stored is there: who asks from now on whether it may finds that it may not."""
        for state in self.every():
            with state.lock:
                pass

    def dirty_states(self) -> list[FileState]:
        return [state for state in self._dirty.copy().values() if state.dirty]

    def hold(self, attr: Attr, grant: int, token: LeaseToken, held: Callable[[], bool]) -> FileState | None:
        """Returns the state under which data is buffered from now on, made from the attributes that came with this grant.

        None if the lease is not `held` any more: that is checked under the state's lock, and a recall takes `token` out afterwards.  A
        state of an earlier grant is not used, unless it has dirty data under this very lease (a successor's).  None also while it has dirty
        data under another lease, which has ended: the newest record speaks for all, and this one must not speak for that.
        """
        with self._lock:
            old = self._states.get(attr.ino)
            if old is not None and old.grant != grant and not old.dirty:
                self._forget(old)
            state = self._states.setdefault(attr.ino, FileState(attr, None, self._dirty))
            if old is not None and old is not state:
                state.error = old.error
            if len(self._states) > FILES_CACHED_MAX * self._share:
                self._evict()
            with state.lock:
                if state.forgotten or not held() or (state.dirty and state.lease != token.lease):
                    return None
                state.grant, state.token = grant, token
                state.mtime_min_ns = max(state.mtime_min_ns, attr.mtime_ns)
                return state

    def forget(self, state: FileState) -> None:
        """Forgets a state that may be old, unless it holds something dirty or an error."""
        with self._lock:
            if self._states.get(state.ino) is state and state.error is None:
                self._forget(state)

    def begin_cut(self, ino: int) -> int:
        """Begins a truncation, and returns the newest sequence that it overtakes.

        What is stored from now on belongs to another generation, so it is never committed together with what may be cut: the machine
        judges all records of one commit by the newest.
        """
        with self._lock:
            state = self._states.get(ino)
            if state is None:
                return self.log.last_sequence
            with state.lock:
                state.generation = (state.generation + 1) % GENERATIONS
                state.version += 1  # a layout that was asked for before may be told after the cut: over a new connection
                return self.log.last_sequence

    def discard(self, ino: int, up_to: int | None = None, *, in_flight: bool = False) -> list[int]:
        """Drops the records of an inode that is gone, or (`up_to` a sequence) truncated to nothing; those in flight only if told to.

        Returns their lengths in bytes.
        """
        state = self._states.get(ino)
        if state is None:
            return []
        with state.lock:
            if in_flight:  # in one step with the rest: an answer that comes now finds its records here, or none
                state.in_flight = 0
            dropped = [record for record in state.dirty[state.in_flight :] if up_to is None or record.sequence <= up_to]
            state.take_out(state.in_flight, len(dropped))
            state.version += 1
            self.log.mark_clean(dropped)  # in the same step, as in Flusher._settle
        return [record.length for record in dropped]

    def drop(self, ino: int, *, in_flight: bool = False) -> list[int]:
        """Forgets a file that is gone, with `in_flight` also what is on its way.

        Returns the lengths in bytes of records that need not be written.
        """
        lengths = self.discard(ino, in_flight=in_flight)
        with self._lock:
            state = self._states.get(ino)
            if state is not None:
                self._forget(state)
        return lengths

    def forget_clean(self, *, with_errors: bool = False) -> None:
        """Forgets every file that holds nothing dirty and no error; the service knows them.

        `with_errors`: those with an error too.  It is lost, but what is known of such a file may be as old as of any other.
        """
        with self._lock:
            for state in list(self._states.values()):
                if with_errors or state.error is None:
                    self._forget(state)

    def settled(self, state: FileState) -> None:
        """Takes note that records of a state are committed.

        A stale layout is made again, from the attributes that the service gave last.
        """
        if state.layout_stale and state.error is None and not state.held:
            with self._lock:
                if self._states.get(state.ino) is state:
                    self._forget(state)

    def bound(self, share: float) -> None:
        """Sets the share (0 to 1) of the bounds that holds from now on.

        Called every so often: one file alone may have too many extents.
        """
        with self._lock:
            self._share = share
            self._evict()

    def _forget(self, state: FileState) -> None:
        """Forgets a state unless it holds something dirty (called with the table's lock)."""
        with state.lock:
            if not state.dirty:
                state.forgotten = True
                del self._states[state.ino]

    def _evict(self) -> None:
        """Forgets the oldest states that hold nothing dirty (called with the table's lock).

        The newest stays, whatever the share: somebody is about to use it, and would ask for it again and again.
        """
        over = len(self._states) - max(int(FILES_CACHED_MAX * self._share * 7 / 8), 1)
        for state in list(self._states.values())[: max(over, 0)]:
            if state.error is None:
                self._forget(state)
        extents = sum(len(state.extents) for state in self._states.values())
        if extents > EXTENTS_CACHED_MAX * self._share:
            for state in list(self._states.values())[: len(self._states) // 2]:
                with state.lock:
                    if not state.is_inline:
                        state.extents.forget()

    # --- reading ---------------------------------------------------------------------------------------------------------

    def read_into(self, state: FileState, offset: int, buffer: memoryview, *, last_look: bool = False) -> int:
        """Fills `buffer` from `offset`; returns the bytes read, fewer at the end of the file, or -1 if the layout must be asked for first.

        Blocks for the device; raises FsError(EIO), Corrupt, Unavailable.  A mismatch may only mean that our layout is old, so it is
        forgotten and asked for again, unless this is the `last_look`: then Corrupt (EIO) is raised and reported.
        """
        for _ in range(READ_RETRIES_MAX):
            with state.lock:
                version = state.version
                length = max(0, min(len(buffer), state.size - offset))
                end = offset + length
                if length and state.needs_layout(offset, end):
                    return -1
                extents = state.extents.overlapping(offset, end) if length and not state.is_inline else []
                inline = state.inline if state.is_inline else None
                records = [r for r in state.dirty if r.offset < end and offset < r.offset + r.length]
            try:
                self._gather(state, offset, buffer[:length], extents, inline, records)
            except OSError as err:  # of the device; the log names the file
                log.error("device read failed: ino=%d offset=%d length=%d %s", state.ino, offset, length, err)
                raise FsError(errno.EIO, f"device read failed: {err}") from err
            except Corrupt as err:
                if state.version == version:
                    if last_look:
                        part = err.part if isinstance(err, _WrongPart) else (offset, length)
                        self._corrupt(state.ino, *part, str(err))
                        raise
                    with state.lock:
                        state.extents.forget()
                    return -1
                continue
            if state.version == version:
                return length
        raise Corrupt(f"inode {state.ino}: layout changed {READ_RETRIES_MAX} times during one read")

    def _gather(
        self, state: FileState, offset: int, buffer: memoryview, extents: list[Extent], inline: bytes | None, records: list[DirtyRecord]
    ) -> None:
        end = offset + len(buffer)
        filled = offset
        for extent in extents:
            part = cut(extent, offset, end)
            if part.file_offset > filled:
                zero(buffer[filled - offset : part.file_offset - offset])
            filled = part.file_offset + part.length
            into = buffer[part.file_offset - offset : filled - offset]
            if not any(r.offset <= part.file_offset and filled <= r.offset + r.length for r in records):
                try:
                    self._reader.read(extent, self.volume, state.ino, part.file_offset - extent.file_offset, part.length, into)
                except Corrupt as err:
                    raise _WrongPart(str(err), (part.file_offset, part.length)) from err
        if filled < end:
            zero(buffer[filled - offset :])
        if inline is not None and offset < len(inline):
            piece = inline[offset:end]
            buffer[: len(piece)] = piece
        for record in records:
            low, high = max(offset, record.offset), min(end, record.offset + record.length)
            buffer[low - offset : high - offset] = record.data[low - record.offset : high - record.offset]


class _WrongPart(Corrupt):
    """Some bytes of `part` (file offset, length) are wrong."""

    def __init__(self, why: str, part: tuple[int, int]) -> None:
        super().__init__(why)
        self.part = part


_ZEROS = bytes(1 << 20)


def zero(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
