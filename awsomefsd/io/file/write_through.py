"""Writes of a shared mount: durable and visible to every node before they are answered, several of one device flush together.

One thread.  Order of durable effects: frames → device flush (inside `SegmentWriter.write`) → one WriteData for each write → the answers.
While it waits for one batch, the next gathers, so the cost of a flush is shared by all that wait for it.

Nothing is dirty here: until it is answered a write lies in the slot of its request, and a successor executes that again, under the same id.
A crash before the entry leaves frames that nothing names; after it, the repetition writes such frames and gets the stored result.

The last entry of a batch alone reports segments that are full: the others, before it in the log, name places in them.  If it is refused,
the next batch reports them.

Where a pool has too few mirrors that can be reached, writes wait for them with back-off (patience.py); nothing of the batch has happened
then, and segments that have ended meanwhile may be reported.

Frames of appended bytes name no inode, because their place in the file is decided by the entry: fsck never takes them for lost extents
of a file at another place.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import EXTENTS_PER_COMMIT_MAX, FRAME_BYTES_MAX, FUSE_WRITE_BYTES_MAX, MIB
from awsomefsd.base.types import SegmentProgress
from awsomefsd.base.wait import Signal, Wait, was_repeated
from awsomefsd.io.file.condition_thread import ConditionThread
from awsomefsd.io.file.patience import Patience
from awsomefsd.io.segment.store import SegmentWrites
from awsomefsd.io.segment.writer import Piece, Written, space_needed
from awsomefsd.meta.api.commands import WriteData
from awsomefsd.meta.client.metadata import Metadata

BATCH_BYTES_MAX = 16 * MIB
RETRY_MS_MIN, RETRY_MS_MAX = 50, 2_000
assert 3 + 2 * (FUSE_WRITE_BYTES_MAX // FRAME_BYTES_MAX) <= EXTENTS_PER_COMMIT_MAX


class Write:
    """One write(2).

    `unique` is the id of its entry.  With `inline`, `data` is the file's inline data, which moves to a segment unchanged.  `token`: session
    and epoch that it is for, because another session may be opened while it waits here.  `on_decided` is called once, on the thread of
    answers, with the answer (None: it failed).
    """

    __slots__ = (
        "_on_decided", "append", "data", "done", "inline", "ino", "kill_suidgid", "offset", "outcome", "repeated", "token", "unique",
    )  # fmt: skip

    def __init__(
        self, unique: int, ino: int, offset: int, data: memoryview, token: tuple[int, int], on_decided: OnDecided | None = None, *,
        append: bool = False, kill_suidgid: bool = False, inline: bytes = b"",
    ) -> None:  # fmt: skip
        self.unique = unique
        self.ino = ino
        self.offset = 0 if append else offset
        self.data = data
        self.append = append
        self.kill_suidgid = kill_suidgid
        self.inline = inline
        self.done = Signal()
        self.outcome: tuple[Any, BaseException | None] = (None, None)
        self.token = token
        self.repeated = False  # as of wait.was_repeated, once it is decided
        self._on_decided = on_decided

    @property
    def space(self) -> int:
        return space_needed(len(self.data))

    def decide(self, value: Any, error: BaseException | None, repeated: bool) -> None:
        """Sets the outcome, as the service answered, and tells of it."""
        self.outcome, self.repeated = (value, error), repeated
        self.tell(value)

    def tell(self, value: Any) -> None:
        """Calls `on_decided`, unless that was done."""
        told, self._on_decided = self._on_decided, None
        if told is not None:
            told(self, value)


OnDecided = Callable[[Write, Any], None]


class WriteThrough:
    """The thread that writes through.  Any thread may call `write`, which does not block."""

    def __init__(self, volume: int, writer: SegmentWrites) -> None:
        self._volume = volume
        self._writer = writer
        self._thread = ConditionThread("write-through", self._run)
        self._cond = self._thread.changed
        self._waiting: deque[tuple[Write, Metadata]] = deque()
        self.undecided = threading.Lock()  # held from a write to its outcome: its segments must stay leased (draining.py)
        self._patience: Patience | None = None  # None: what cannot be written is an error at once
        self.batches = 0

    def wait_for_mirrors(self, patience: Patience) -> None:
        """What is written goes to a pool; called before `start`."""
        self._patience = patience

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the writes that wait, and waits for it; those that wait for mirrors are tried once more."""
        self._thread.stop()

    def write(self, one: Write, metadata: Metadata) -> Wait:
        """Returns a Wait that ends with the inode's attributes (Found), or raises: ESTALE if the session ended before it was decided, EIO,
        ENOSPC.
        """
        with self._cond:
            self._waiting.append((one, metadata))
            self._cond.notify()
        return one.done

    def _run(self) -> None:
        while batch := self._next():
            retry_ms = RETRY_MS_MIN
            while not self._do(batch):
                with self._cond:
                    self._cond.wait_for(lambda: self._thread.stopping, retry_ms / 1_000)
                retry_ms = min(2 * retry_ms, RETRY_MS_MAX)
            for one, _ in batch:
                one.done.fire(*one.outcome)

    def _next(self) -> list[tuple[Write, Metadata]]:
        with self._cond:
            while not self._waiting and not self._thread.stopping:
                self._cond.wait()
            batch: list[tuple[Write, Metadata]] = []
            room = BATCH_BYTES_MAX
            while self._waiting and room > 0:
                batch.append(self._waiting.popleft())
                room -= len(batch[-1][0].data)
            return batch

    def _do(self, batch: list[tuple[Write, Metadata]]) -> bool:
        """Writes and proposes a batch; returns False, and has done nothing, if it is to be tried again."""
        with self.undecided:
            pieces = [Piece(self._volume, 0 if one.append else one.ino, one.offset, [one.data]) for one, _ in batch]
            hit("through.write.before")
            try:
                written = self._writer.write(pieces)
            except (OSError, Error) as err:
                told = self._told(err)
                for one, _ in batch:
                    one.outcome = None, told
                return told is not None
            hit("through.write.after")
            if self._patience is not None:
                self._patience.written()
            self._propose(batch, written)
            self.batches += 1
            return True

    def _told(self, err: OSError | Error) -> Error | None:
        if self._patience is not None and not self._thread.stopping:
            return self._patience.told(err)
        return err if isinstance(err, Error) else FsError(err.errno or errno.EIO, f"device write failed: {err}")

    def _propose(self, batch: list[tuple[Write, Metadata]], written: Written) -> None:
        """Proposes all entries of a batch, in order; returns when each has its outcome."""
        unsealed = [replace(step, sealed=False, footer_offset=0, footer_bytes=0) for step in written.progress]
        left = threading.Semaphore(0)
        for number, (one, metadata) in enumerate(batch):
            last = number == len(batch) - 1
            command = self._command(one, written.extents[number], written.progress if last else unsealed)

            asked = metadata.propose(command, one.unique, one.token)

            def decided(value: Any, error: BaseException | None, one: Write = one, asked: Wait = asked) -> None:
                one.decide(value, error, was_repeated(asked))
                left.release()

            asked.start(decided)
        for _ in batch:
            left.acquire()
        if batch[-1][0].outcome[1] is not None:
            self._writer.report_again(written)

    def _command(self, one: Write, extents: list[Any], progress: list[SegmentProgress]) -> WriteData:
        length = 0 if one.inline else len(one.data)
        return WriteData(self._volume, one.ino, one.offset, length, one.append, one.kill_suidgid, extents, one.space, progress, one.inline)
