"""The bays of one device, as a segment server has attached it: where each lies, a lock for each, and one thread that flushes for everybody.

Whoever works on the device says so (`enter`, `leave`).  A device that is given up while the server goes on ends for all of them first: its
descriptor is closed when nobody can use it any more, for its number may be another file's a moment later.

A flush of the device is the same for all, so those who wait share one: whoever comes while one is under way gets the next.  A flush that
fails closes bays (`gate.py`) and wakes everybody, who are told so.
"""

from __future__ import annotations

import errno
import logging
import threading
import time

from awsomefsd.base.errors import FsError
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.pool.gate import Bay, Gate

log = logging.getLogger(__name__)
_USUAL_SHARE = 8  # of the newest one in what is usual


class DeviceWork:
    """What a device has done of one kind (read, write, flush): how often, how long, how much, and how often not.  Thread-safe."""

    def __init__(self) -> None:
        self.done = self.ns = self.bytes = self.errors = 0
        self.usual_us = 0  # how long one takes, the newest ones counting most
        self._lock = threading.Lock()

    def note(self, began_ns: int, count: int = 0) -> None:
        """Notes one that began then, of `count` bytes, and has ended now."""
        took_ns = time.monotonic_ns() - began_ns
        with self._lock:
            self.done += 1
            self.ns += took_ns
            self.bytes += count
            took_us = took_ns // 1_000
            self.usual_us += (took_us - self.usual_us) // _USUAL_SHARE if self.usual_us else took_us

    def note_error(self) -> None:
        with self._lock:
            self.errors += 1


class DeviceBays:
    """Thread-safe.  `gate` and `changed` (its lock, notified when bytes have become durable) are the server's."""

    def __init__(
        self, number: int, device: BlockDevice, first_offset: int, bay_bytes: int, bays: int, gate: Gate, changed: threading.Condition
    ) -> None:
        assert first_offset + bays * bay_bytes <= device.bytes
        self.number, self.device, self.bay_bytes, self.bays = number, device, bay_bytes, bays
        self._first_offset = first_offset
        self._gate, self._changed = gate, changed
        self._locks: dict[int, threading.Lock] = {}
        self._wanted = self._stopped = False
        self._users = 0
        self.reads, self.writes, self.flushes = DeviceWork(), DeviceWork(), DeviceWork()
        self._thread = threading.Thread(target=self._flush_loop, name=f"flush-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the flush that is under way; those who wait are told that it has ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def stopped(self) -> bool:
        """True: the server is ending, or the device is given up; long work on the device ends too."""
        return self._stopped

    def enter(self) -> bool:
        """Says that a thread uses the device until it calls `leave`.  False: it must not, the device is being given up."""
        with self._changed:
            if self._stopped:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def give_up(self) -> None:
        """Closes all bays for ever, and returns when nobody uses the device any more; then it may be closed.  Blocks for its I/O."""
        self.stop()
        with self._changed:
            self._gate.close_device(self.number)
            self._changed.wait_for(lambda: not self._users)

    def place_of(self, index: int, offset: int) -> int:
        """Returns where byte `offset` of a bay lies on the device.  Raises FsError(EINVAL) for what is no byte of a bay."""
        if index >= self.bays or offset > self.bay_bytes:
            raise FsError(errno.EINVAL, f"device {self.number} has {self.bays} bays of {self.bay_bytes} bytes")
        return self._first_offset + index * self.bay_bytes + offset

    def lock_of(self, index: int) -> threading.Lock:
        """Returns the lock under which a bay is written, given to another holder, and trimmed."""
        with self._changed:
            return self._locks.setdefault(index, threading.Lock())

    def read(self, buffer: memoryview, place: int) -> None:
        """Fills `buffer` from the device, whole blocks.  Raises OSError."""
        began = time.monotonic_ns()
        try:
            self.device.pread_into(buffer, place)
        except OSError:
            self.reads.note_error()
            raise
        self.reads.note(began, len(buffer))

    def write(self, body: memoryview, place: int) -> None:
        """Writes whole blocks to the device.  Raises OSError."""
        began = time.monotonic_ns()
        try:
            self.device.pwritev([body], place)
        except OSError as err:
            self.writes.note_error()
            log.error("a write failed, its bay is closed: %s", err, extra={"device": self.number})
            raise
        self.writes.note(began, len(body))

    def sync(self, index: int, segment: int, incarnation: int, connection: int, end: int) -> None:
        """Returns when all up to `end` of a bay is durable.  Raises FsError(ESTALE) when it will not be."""
        bay = Bay(self.number, index)
        with self._changed:
            while not self._gate.is_durable(bay, segment, incarnation, connection, end):
                if self._stopped:
                    raise FsError(errno.ESTALE, "the segment server is ending, or gives the device up")
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait()

    def _flush_loop(self) -> None:
        while not self._stopped:
            with self._changed:
                while not (self._wanted or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                self._wanted = False
                flush = self._gate.begin_flush(self.number)
            failed = not self._flush()
            with self._changed:
                self._gate.end_flush(flush, failed=failed)
                self._changed.notify_all()

    def _flush(self) -> bool:
        began = time.monotonic_ns()
        try:
            self.device.flush()
        except OSError as err:
            self.flushes.note_error()
            log.error("a flush failed, what was written since the last one does not count: %s", err, extra={"device": self.number})
            return False
        self.flushes.note(began)
        return True
