"""Bays of another node's device: one that is read, and one that is written.

`RemoteBay` is a BlockDevice, so that whatever reads segments reads remote ones too; its offsets are those in the segment.  It asks for no
alignment: the server has buffers of its own.  `BayWriter` appends: who has opened a bay may append to it until anything at all fails, and
then never again (`gate.py`).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from awsomefsd.base.limits import BLOCK_BYTES, SEGMENT_BODY_BYTES_MAX
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import rest_of
from awsomefsd.io.pool.gate import Bay
from awsomefsd.io.pool.remote_errors import BayLost, NotServed, ServerAway, again
from awsomefsd.io.pool.remote_server import RemoteServer, answer_by
from awsomefsd.io.pool.server_connection import Call, ServerConnection, key_of
from awsomefsd.io.transport.records import BulkRecord, Kind

_BODY_BYTES_MAX = SEGMENT_BODY_BYTES_MAX // BLOCK_BYTES * BLOCK_BYTES


class RemoteDevice:
    """A device that another node's segment server serves: number, and bytes of a bay."""

    def __init__(self, server: RemoteServer, device: int, bay_bytes: int) -> None:
        self.server, self.device, self.bay_bytes = server, device, bay_bytes

    def bay(self, index: int, segment: int, incarnation: int) -> RemoteBay:
        """Returns a bay for reading, as one that holds this segment."""
        return RemoteBay(self, Bay(self.device, index), segment, incarnation)

    def open(self, index: int, segment: int, incarnation: int, deadline_ns: int | None = None) -> BayWriter:
        """Opens a bay that is leased to the present session for this segment.  Blocks; raises what `remote_errors` has."""
        deadline = answer_by() if deadline_ns is None else deadline_ns
        connection = self.server.writes(deadline)
        record = BulkRecord(Kind.OPEN, 0, segment, incarnation, self.device, index)
        writer = BayWriter(connection, record, self.bay_bytes)
        connection.watch(key_of(record), writer.fail)
        try:
            opened, _ = connection.ask(record, deadline)
        except OSError:
            connection.unwatch(key_of(record))
            raise
        writer.physical_block_bytes = max(BLOCK_BYTES, opened.value)
        return writer


class RemoteBay:
    """A BlockDevice, as far as reading goes: offsets are in the segment.  Thread-safe."""

    logical_block_bytes = physical_block_bytes = 1

    def __init__(self, device: RemoteDevice, bay: Bay, segment: int, incarnation: int) -> None:
        self._device = device
        self._request = BulkRecord(Kind.READ, 0, segment, incarnation, bay.device, bay.index)
        self.path = f"device {bay.device} of node {device.server.name}, bay {bay.index}"
        self.bytes = device.bay_bytes

    def pread_into(self, buffer: memoryview, offset: int, deadline_ns: int | None = None) -> int:
        """Reads into `buffer`, by the deadline (SEGMENT_ANSWER_MS_MAX from now without one).

        Returns the bytes read: fewer than asked at the end of what the bay holds.  Raises what `remote_errors` has.
        """
        deadline = answer_by() if deadline_ns is None else deadline_ns
        connection = self._device.server.reads(deadline)
        calls: list[tuple[Call, int]] = []
        try:
            for at in range(0, len(buffer), SEGMENT_BODY_BYTES_MAX):
                part = buffer[at : at + SEGMENT_BODY_BYTES_MAX]
                calls.append((connection.begin(replace(self._request, offset=offset + at, value=len(part)), part), len(part)))
            return self._collect(connection, calls, deadline)
        finally:
            for call, _ in calls:
                connection.abandon(call)

    @staticmethod
    def _collect(connection: ServerConnection, calls: Sequence[tuple[Call, int]], deadline_ns: int) -> int:
        done = 0
        for call, wanted in calls:
            got = connection.wait(call, deadline_ns).body_bytes
            done += got
            if got < wanted:
                break
        return done

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        if len(buffers) == 1:
            return self.pread_into(buffers[0], offset)
        whole = aligned_buffer(sum(map(len, buffers)))
        done, at = self.pread_into(whole, offset), 0
        for buffer in buffers:
            part = whole[at : min(at + len(buffer), done)]
            buffer[: len(part)] = part
            at += len(buffer)
        return done

    def pwritev(self, buffers: Sequence[memoryview], offset: int) -> None:
        raise NotServed(errno.EROFS, "a bay of another node is appended to by whoever has opened it, and not written otherwise", self.path)

    def flush(self) -> None:
        """There is nothing to flush: nothing is written here."""


class BayWriter:
    """A bay that was opened.  One thread at a time appends, begins a sync and closes; the rest any thread may call or look at.

    After the first error every method raises the same one: nothing is appended any more, and another segment has to be opened.
    """

    def __init__(self, connection: ServerConnection, opened: BulkRecord, bay_bytes: int) -> None:
        self._connection, self._opened, self.bay_bytes = connection, opened, bay_bytes
        self._lock = threading.Lock()
        self.error: OSError | None = None
        self.written = self.durable = 0
        self.physical_block_bytes = BLOCK_BYTES  # what the medium writes as one

    def fail(self, error: OSError) -> None:
        """Takes up that the bay cannot be appended to any more."""
        with self._lock:
            self.error = self.error or error

    def silent_ns(self) -> int:
        """Returns for how long the server has said nothing although somebody waits for it."""
        return self._connection.silent_ns()

    def append(self, pieces: Sequence[memoryview]) -> None:
        """Sends whole blocks, which follow what was appended before.  They need not be kept afterwards; they are not durable yet.

        Blocks while the server takes nothing.  That the server could not write them is seen later: by `error`, at `begin_sync` the latest.
        """
        left = [piece for piece in pieces if len(piece)]
        total = sum(map(len, left))
        assert total % BLOCK_BYTES == 0
        if self.written + total > self.bay_bytes:
            raise BayLost(errno.ESTALE, f"{total} bytes at {self.written} are more than the bay has room for")
        while left:
            body, left = _divided(left, _BODY_BYTES_MAX)
            length = sum(map(len, body))
            with self._ends_at_errors():
                self._connection.tell(replace(self._opened, kind=Kind.APPEND, offset=self.written, body_bytes=length), body)
            self.written += length

    def begin_sync(self, then: Callable[[Call], None] = lambda _call: None) -> Call:
        """Asks for all that was appended to be made durable, and does not wait for it.

        `then` is called on the connection's thread when `end_sync` does not block any more; perhaps also where this raises.
        """
        with self._ends_at_errors():
            return self._connection.begin(replace(self._opened, kind=Kind.SYNC, offset=self.written), then=then)

    def end_sync(self, call: Call, deadline_ns: int) -> int:
        """Returns up to where the bay is durable.  A deadline that passes ends the writer, as any error does."""
        with self._ends_at_errors():
            answer = self._connection.wait(call, deadline_ns)
            if answer.offset < call.request.offset:
                raise ServerAway(errno.EPROTO, f"durable up to {answer.offset}, and {call.request.offset} was asked for")
        self.durable = max(self.durable, call.request.offset)
        return self.durable

    def sync(self, deadline_ns: int | None = None) -> int:
        """Returns when all that was appended is durable, up to where that is.  Blocks."""
        return self.end_sync(self.begin_sync(), answer_by() if deadline_ns is None else deadline_ns)

    def close(self, deadline_ns: int | None = None) -> int:
        """Ends the right to append; returns up to where the bay is durable.  Blocks."""
        deadline = answer_by() if deadline_ns is None else deadline_ns
        with self._ends_at_errors():
            answer, _ = self._connection.ask(replace(self._opened, kind=Kind.CLOSE, offset=self.written), deadline)
        self._end(BayLost(errno.ESTALE, "this bay was closed"))
        return answer.offset

    def leave(self) -> None:
        """Ends the right to append, and waits for no answer.  Raises nothing."""
        if self.error is None:
            try:
                self._connection.abandon(self._connection.begin(replace(self._opened, kind=Kind.CLOSE, offset=self.written)))
            except OSError:
                pass  # the end of a connection closes the bay too
        self._end(BayLost(errno.ESTALE, "this bay was closed"))

    def sever(self) -> None:
        """Ends the connection, with everything that was opened on it: nothing that is on its way to the bay counts.  Does not block."""
        self._end(ServerAway(errno.ETIMEDOUT, "the writer has given this mirror up"))
        self._connection.close()

    def _end(self, error: OSError) -> None:
        self.fail(error)
        self._connection.unwatch(key_of(self._opened))

    @contextmanager
    def _ends_at_errors(self) -> Iterator[None]:
        """Inside the `with` an error ends the writer; raises the first that it met, before and behind."""
        if self.error is not None:
            raise again(self.error)
        try:
            yield
        except OSError as err:
            self._end(err)
            assert self.error is not None
            raise again(self.error) from err


def _divided(pieces: list[memoryview], most: int) -> tuple[list[memoryview], list[memoryview]]:
    """Returns the first `most` bytes of pieces, and the rest."""
    taken: list[memoryview] = []
    room = most
    for piece in pieces:
        if not room:
            break
        taken.append(piece[:room])
        room -= len(taken[-1])
    return taken, rest_of(pieces, most - room)
