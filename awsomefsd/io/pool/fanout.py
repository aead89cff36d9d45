"""The fan-out of a writer: what is appended to a segment goes to all its mirrors at once.  What their answers mean ensemble.py decides.

    UnopenedSegment.open -> MirroredSegment: begin (a batch up to `end`) -> pwritev ... -> flush -> begin ... -> leave

Each segment server has a sender, a thread that does one thing after the other: it opens bays, appends, and asks for a Sync.  It waits for
no Sync: the answer comes by the thread of the connection.  `pwritev` returns when every mirror that has not failed has taken the bytes, so
memory is used again without having been copied, and at most one piece waits for each server.  A mirror that has failed may still be sending
then, bytes that have changed meanwhile: its connection is ended, and nothing that it has not answered before counts.

What is written is in the order of the offsets and without gaps.  Where a batch begins behind the end of the last one, because the media
write larger blocks as one, zeros fill the gap.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from queue import SimpleQueue

from awsomefsd.base.limits import (
    ENSEMBLE_LOOK_MS,
    ENSEMBLE_STALL_MS_ALL,
    NS_PER_MS,
    PHYSICAL_BLOCK_BYTES_MAX,
    SEGMENT_DIAL_MS_MAX,
    SEGMENT_RECORD_MS_MAX,
    SEGMENT_STALL_MS,
)
from awsomefsd.base.types import BAY_MIRROR, Redundancy, SegmentInBays
from awsomefsd.io.pool.ensemble import AvoidedDevices, Ensemble, Verdict
from awsomefsd.io.pool.gate import Bay
from awsomefsd.io.pool.remote_device import BayWriter, RemoteDevice
from awsomefsd.io.pool.remote_errors import BayLost, NobodyLeads, ServerAway
from awsomefsd.io.pool.server_connection import Call

log = logging.getLogger(__name__)
_ZEROS = memoryview(bytes(PHYSICAL_BLOCK_BYTES_MAX))


class _Sender:
    """The thread that talks to one server, in the order in which it is told.  Thread-safe."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=f"send-{name[:8]}", daemon=True).start()

    def do(self, job: Callable[[], None]) -> None:
        """Has a job done, which raises nothing.  Does not block."""
        self._jobs.put(job)

    def end(self) -> None:
        """Ends the thread after what it was told to do."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a bug: the mirror that it was for is silent, and what comes later is done
                log.exception("a job of a sender failed")


class _Mirror:
    """A mirror of a segment that is open, or cannot be opened.  What changes does so under the lock of the fan-out."""

    __slots__ = ("bay", "failed", "sender", "sent", "writer")

    def __init__(self, bay: Bay, sender: _Sender | None) -> None:
        self.bay, self.sender = bay, sender
        self.writer: BayWriter | None = None
        self.sent = 0  # up to where the connection has taken the bytes
        self.failed: OSError | None = None


class Fanout:
    """The mirrors that one writer writes to.  Thread-safe, but one thread at a time opens.

    `device_of` returns a device of the pool through its server; it raises OSError where nobody serves the device, and may block.
    """

    def __init__(self, device_of: Callable[[int], RemoteDevice], monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._device_of, self.monotonic_ns = device_of, monotonic_ns
        self.changed = threading.Condition()
        self.avoided = AvoidedDevices()
        self._senders: dict[str, _Sender] = {}  # by server
        self._looks = 0

    def avoid(self) -> list[int]:
        """Returns the devices on which no segment should be leased now."""
        with self.changed:
            return self.avoided.devices(self.monotonic_ns())

    def one_is_back(self, devices: Iterable[int]) -> bool:
        """Looks for one of these devices, which are avoided, whether its server has it; if so it is not avoided any more.

        Blocks for a dial.
        """
        candidates = sorted(devices)
        if not candidates:
            return False
        number = candidates[self._looks % len(candidates)]
        self._looks += 1
        try:
            connection = self._device_of(number).server.writes(time.monotonic_ns() + SEGMENT_DIAL_MS_MAX * NS_PER_MS)
        except OSError:
            return False
        welcome = connection.welcome
        if welcome is None or number not in {one.device for one in welcome.devices}:
            return False
        with self.changed:
            self.avoided.forgive(number)
        return True

    def begin_open(self, bay: Bay, info: SegmentInBays, deadline_ns: int) -> _Mirror:
        """Has a bay opened by its server's sender, which says so by `changed`.  Blocks for where the device is at most."""
        try:
            device = self._device_of(bay.device)
        except OSError as err:
            mirror = _Mirror(bay, None)
            mirror.failed = err
            return mirror
        endpoint = device.server.endpoint
        if endpoint not in self._senders:
            self._senders[endpoint] = _Sender(device.server.name)
        sender = self._senders[endpoint]
        mirror = _Mirror(bay, sender)
        sender.do(partial(self._open, mirror, device, info, deadline_ns))
        return mirror

    def _open(self, mirror: _Mirror, device: RemoteDevice, info: SegmentInBays, deadline_ns: int) -> None:
        try:
            writer = device.open(mirror.bay.index, info.segment, info.incarnation, deadline_ns)
        except OSError as err:
            with self.changed:
                mirror.failed = err
                self.changed.notify_all()
            return
        with self.changed:
            late = mirror.failed is not None
            if not late:
                mirror.writer = writer
            self.changed.notify_all()
        if late:  # nobody waits for it any more
            writer.leave()

    def close(self) -> None:
        """Ends the threads, after what they were told to do.  Does not block."""
        for sender in self._senders.values():
            sender.end()


class UnopenedSegment:
    """A segment that was leased, and that nothing was written to.  One thread at a time.

    Bays that could not be opened may be tried again, for as long as the session lasts: those of the others that are open stay so.
    """

    def __init__(self, fanout: Fanout, info: SegmentInBays, want: Redundancy) -> None:
        self._fanout, self.info, self._want = fanout, info, want
        self._mirrors: dict[Bay, _Mirror] = {}  # as of the last try

    @property
    def devices(self) -> set[int]:
        return {bay.device for bay in self.info.bays if bay.role == BAY_MIRROR}

    @property
    def lost(self) -> bool:
        """True: a bay will never be opened for this segment."""
        return any(isinstance(one.failed, BayLost) for one in self._mirrors.values())

    def open(self) -> MirroredSegment:
        """Opens all bays that are not open, at once.

        Blocks for the servers, ENSEMBLE_STALL_MS_ALL and what their senders still do before, a record at most.  Raises OSError where one of
        them cannot be opened.
        """
        fanout, deadline = self._fanout, self._fanout.monotonic_ns() + ENSEMBLE_STALL_MS_ALL * NS_PER_MS
        for bay in [Bay(one.device, one.index) for one in self.info.bays if one.role == BAY_MIRROR]:
            before = self._mirrors.get(bay)
            if before is None or before.writer is None or before.writer.error is not None:
                self._mirrors[bay] = fanout.begin_open(bay, self.info, deadline)
        mirrors = list(self._mirrors.values())
        with fanout.changed:
            while waiting := [one for one in mirrors if one.writer is None and one.failed is None]:
                left_ns = deadline + SEGMENT_RECORD_MS_MAX * NS_PER_MS - fanout.monotonic_ns()
                if left_ns <= 0 or not fanout.changed.wait(left_ns / 1e9):
                    for one in waiting:
                        one.failed = ServerAway(errno.ETIMEDOUT, "its bay was not opened in time")
            for one in mirrors:  # a leader who was not there, or a session that has ended, says nothing of a device
                if one.failed is not None and not isinstance(one.failed, BayLost | NobodyLeads):
                    fanout.avoided.avoid(one.bay.device, fanout.monotonic_ns())
        if any(one.failed for one in mirrors):
            raise OSError(errno.EIO, f"{_named(self.info, mirrors)} cannot be opened: {_reasons(mirrors)}")
        return MirroredSegment(fanout, self.info, self._want, mirrors)

    def leave(self) -> None:
        """Ends the right to append where there is one.  Does not wait."""
        _leave(self._mirrors.values())


def _named(info: SegmentInBays, mirrors: Sequence[_Mirror]) -> str:
    return f"segment {info.segment} in bays of devices {sorted(one.bay.device for one in mirrors)}"


def _reasons(mirrors: Sequence[_Mirror]) -> str:
    return "; ".join(f"device {one.bay.device}: {one.failed}" for one in mirrors if one.failed is not None)


def _leave(mirrors: Iterable[_Mirror]) -> None:
    for one in mirrors:
        if one.writer is not None:
            assert one.sender is not None
            one.sender.do(one.writer.leave)


class MirroredSegment:
    """A segment in bays that is open: a BlockDevice whose offsets are in the segment, which is appended to.

    One thread at a time writes.  Every method but `durable`, `ended` and `leave` may block, for as long as the slowest mirror that is not
    given up; raises OSError when too few mirrors are left for the batch to count.
    """

    logical_block_bytes = 1

    def __init__(self, fanout: Fanout, info: SegmentInBays, want: Redundancy, mirrors: list[_Mirror]) -> None:
        self._fanout, self._changed, self._mirrors = fanout, fanout.changed, mirrors
        self.path, self.bytes = _named(info, mirrors), info.bytes
        self._written = self._end = 0
        self.physical_block_bytes = max(one.writer.physical_block_bytes for one in mirrors if one.writer is not None)
        self._ensemble = Ensemble([one.bay for one in mirrors], want, fanout.avoided)

    # --- one batch ----------------------------------------------------------------------------------------------------------
    def begin(self, end: int, *, footer: bool = False) -> None:
        """Begins a batch: all bytes up to `end` follow, and a Sync goes with the last of them.  `footer`: nothing comes after it."""
        with self._changed:
            taking = self._ensemble.begin(end, self._fanout.monotonic_ns(), footer=footer)
            self._end = end
            if not taking:
                raise self._lost()

    def pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Appends whole blocks at `offset`, not before what was appended last."""
        gap = offset - self._written
        assert 0 <= gap <= len(_ZEROS) and offset < self._end, "appended in order, in a batch"
        pieces = [_ZEROS[:gap], *buffers]
        self._written += sum(map(len, pieces))
        assert self._written <= self._end
        end, last = self._written, self._written == self._end
        taking = [one for one in self._mirrors if one.failed is None]
        for mirror in taking:
            assert mirror.sender is not None
            mirror.sender.do(partial(self._append, mirror, pieces, end, last))
        with self._changed:
            while any(one.sent < end and one.failed is None for one in taking):
                self._wait()
            if self._ensemble.verdict is Verdict.LOST:
                raise self._lost()

    def flush(self) -> None:
        """Returns when the batch that was begun counts."""
        if self._written < self._end and self._ensemble.verdict is Verdict.WAITING:
            self.pwritev([_ZEROS[: self._end - self._written]], self._written)
        with self._changed:
            while self._ensemble.verdict is Verdict.WAITING:
                self._wait()
            if self._ensemble.verdict is Verdict.LOST:
                raise self._lost()

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        raise OSError(errno.EINVAL, "a segment is not read by the way by which it is written", self.path)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.EINVAL, "a segment is not read by the way by which it is written", self.path)

    # --- what has become of it ----------------------------------------------------------------------------------------------
    @property
    def ended(self) -> bool:
        """True: a mirror has failed, so nothing more than a footer should go here."""
        return self._ensemble.ended

    def durable(self) -> list[tuple[int, int, int]]:
        """Returns what a Commit may say of the mirrors: (device, index, bytes)."""
        with self._changed:
            return self._ensemble.durable()

    def settled(self, *, wait: bool = False) -> bool:
        """Returns True if no mirror owes an answer; with `wait` when that is so: with `quorum` some may be behind, for a bounded time."""
        with self._changed:
            while wait and self._ensemble.waits:
                self._wait()
            self._ensemble.look(self._fanout.monotonic_ns())
            self._take_failures()
            return not self._ensemble.waits

    def leave(self) -> None:
        """Ends the right to append.  Does not wait."""
        _leave(self._mirrors)

    # --- on other threads -----------------------------------------------------------------------------------------------------
    def _append(self, mirror: _Mirror, pieces: Sequence[memoryview], end: int, last: bool) -> None:
        assert mirror.writer is not None
        if mirror.failed is not None:
            return
        try:
            mirror.writer.append(pieces)
            with self._changed:
                mirror.sent = end
                self._ensemble.sent(mirror.bay, end, self._fanout.monotonic_ns())
                self._changed.notify_all()
            if last:
                mirror.writer.begin_sync(partial(self._synced, mirror))
        except OSError as err:
            self._fail(mirror, err)

    def _synced(self, mirror: _Mirror, call: Call) -> None:
        assert mirror.writer is not None
        try:
            durable = mirror.writer.end_sync(call, 0)
        except OSError as err:
            self._fail(mirror, err)
            return
        with self._changed:
            self._ensemble.answered(mirror.bay, durable, self._fanout.monotonic_ns())
            self._take_failures()

    def _fail(self, mirror: _Mirror, err: OSError) -> None:
        with self._changed:
            self._ensemble.failed(mirror.bay, str(err), self._fanout.monotonic_ns())
            self._take_failures()

    # --- with the lock --------------------------------------------------------------------------------------------------------
    def _wait(self) -> None:
        self._changed.wait(ENSEMBLE_LOOK_MS / 1_000)
        self._ensemble.look(self._fanout.monotonic_ns())
        self._take_failures()

    def _take_failures(self) -> None:
        for bay, why in self._ensemble.failures().items():
            mirror = next(one for one in self._mirrors if one.bay == bay)
            mirror.failed = mirror.failed or ServerAway(errno.EIO, why)
        given_up = self._ensemble.take_given_up()
        for mirror in self._mirrors:
            if mirror.bay in given_up and mirror.writer is not None:
                self._give_up(mirror, mirror.writer)
        self._changed.notify_all()

    def _give_up(self, mirror: _Mirror, writer: BayWriter) -> None:
        """Ends what is appended to a mirror.  Its connection, with the mirrors of other segments, only where that is of no use any more:
        nothing comes by it, or it is still to take bytes, which change when this batch is over."""
        assert mirror.sender is not None
        if mirror.sent < self._written or writer.silent_ns() >= SEGMENT_STALL_MS * NS_PER_MS:
            writer.sever()
        else:
            mirror.sender.do(writer.leave)

    def _lost(self) -> OSError:
        return OSError(errno.EIO, f"{self.path}: too few mirrors are left: {_reasons(self._mirrors) or 'it has ended'}")
