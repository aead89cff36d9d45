"""A connection that carries records: sealed between nodes, plain on a unix socket of this machine.

    sealed   header, 64 bytes in the clear | body, encrypted | tag, 16 bytes        plain   header | body

A record has a deadline that begins with its first byte, so a peer that stops, or sends a byte now and then, occupies a thread and a buffer
for RECORD_MS at most.  Between records a connection may rest for as long as it likes: it is a right to append (POOLS section 2), and the
kernel finds out when the other machine is gone.

Of a header that has a body one thing is believed before the seal behind the body proves it: the body's length, which is bounded.  Nothing
else may be done on the strength of it before `receive_body` has returned.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from awsomefsd.base.limits import NS_PER_MS, SEGMENT_BODY_BYTES_MAX, SEGMENT_CONNECTION_MS_MAX, SEGMENT_RECORD_MS_MAX, SEGMENT_STALL_MS
from awsomefsd.io.device.checksum import Bytes
from awsomefsd.io.transport.handshake import deadline_after, wait_for
from awsomefsd.io.transport.records import HEADER_BYTES, BulkRecord, pack, unpack
from awsomefsd.io.transport.seal import RECORDS_MAX, TAG_BYTES, Keys, Seal

SEALED_BODY_BYTES_MAX = SEGMENT_BODY_BYTES_MAX + TAG_BYTES
_IOV_MAX = 1_000


def prepare(sock: socket.socket) -> None:
    """Sets the options of a TCP socket: no delay for small records; what the peer does not acknowledge for SEGMENT_STALL_MS ends it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEGMENT_STALL_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1 + SEGMENT_STALL_MS // 1_000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


class BulkLink:
    """One connection.  One thread receives; any thread sends (a lock keeps records whole).

    Every method but `close` may raise OSError or ProtocolError: the connection is over, the caller closes it.
    """

    def __init__(
        self, sock: socket.socket, keys: Keys | None, *, records_max: int = RECORDS_MAX, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`keys` None: plain."""
        sock.setblocking(False)
        self._sock = sock
        self._sealing = Seal(keys.sending, records_max) if keys else None
        self._opening = Seal(keys.receiving, records_max) if keys else None
        self._lock = threading.Lock()
        self._closing = threading.Lock()  # of the descriptor's end; taken last
        self._monotonic_ns = monotonic_ns
        self._ends_ns = monotonic_ns() + SEGMENT_CONNECTION_MS_MAX * NS_PER_MS
        self._header = bytearray(HEADER_BYTES)
        self._deadline_ns = 0  # of the record that is being received
        self._torn = False  # a record was sent in part
        self.sealed = keys is not None
        self.received_bytes = self.sent_bytes = 0

    @property
    def worn(self) -> bool:
        """True: it ends before long (its key gets old), so what begins now should begin on another one."""
        used = max(seal.records for seal in (self._sealing, self._opening) if seal) if self._sealing else 0
        return used > RECORDS_MAX // 4 * 3 or self._monotonic_ns() > self._ends_ns - SEGMENT_CONNECTION_MS_MAX // 4 * NS_PER_MS

    def send(self, record: BulkRecord, body: Sequence[memoryview] = (), room: memoryview | None = None) -> None:
        """Sends one record; `record.body_bytes` is the length of the body, in one or more pieces.

        `room`: memory of SEALED_BODY_BYTES_MAX for the sealed body, used while this call lasts; without it some is allocated.
        """
        assert record.body_bytes == sum(map(len, body))
        header = pack(record)
        with self._lock:
            self._check_age()
            if self._torn:
                raise ConnectionResetError(errno.ECONNRESET, "a record before this one was sent in part")
            self._torn = True
            if self._sealing is None:
                pieces: list[Bytes] = [header, *body]
            else:
                whole = body[0] if len(body) == 1 else b"".join(body)
                pieces = [header, self._sealing.seal(header, whole, room if len(whole) else None)]
            self._send(pieces, deadline_after(SEGMENT_RECORD_MS_MAX))
            self._torn = False

    def _send(self, pieces: Sequence[Bytes], deadline_ns: int) -> None:
        left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        while left:
            try:
                sent = self._sock.sendmsg(left[:_IOV_MAX])
            except BlockingIOError:
                wait_for(self._sock, select.POLLOUT, deadline_ns)
                continue
            self.sent_bytes += sent
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def receive(self, first_by_ns: int | None = None) -> BulkRecord:
        """Returns the next record, whose body, if it has one, the caller takes by `receive_body` before anything else.

        Blocks until it begins, or until `first_by_ns` (TimeoutError).  Raises ConnectionResetError at the end of the stream.
        """
        raw = memoryview(self._header)
        wait_for(self._sock, select.POLLIN, first_by_ns)
        self._check_age()
        self._deadline_ns = deadline_after(SEGMENT_RECORD_MS_MAX)
        self._fill(raw)
        record = unpack(raw)
        if self._opening is not None and not record.body_bytes:
            tag = bytearray(TAG_BYTES)
            self._fill(memoryview(tag))
            self._opening.open(bytes(raw), tag, memoryview(b""))
        return record

    def receive_body(self, record: BulkRecord, into: memoryview, room: memoryview | None = None) -> memoryview:
        """Returns the body of the record that `receive` has returned last, in the first bytes of `into`.

        `room`: memory of SEALED_BODY_BYTES_MAX for the sealed body; without it some is allocated.
        """
        body = into[: record.body_bytes]
        assert len(body) == record.body_bytes > 0
        if self._opening is None:
            self._fill(body)
            return body
        length = record.body_bytes + TAG_BYTES
        sealed = memoryview(bytearray(length)) if room is None else room[:length]
        self._fill(sealed)
        self._opening.open(bytes(self._header), sealed, body)
        return body

    def receive_small(self, record: BulkRecord) -> bytes:
        """Returns the body of the record that `receive` has returned last, where that is at most a few KiB; b"" if it has none."""
        if not record.body_bytes:
            return b""
        return bytes(self.receive_body(record, memoryview(bytearray(record.body_bytes))))

    def _fill(self, into: memoryview) -> None:
        done = 0
        while done < len(into):
            try:
                got = self._sock.recv_into(into[done:])
            except BlockingIOError:
                wait_for(self._sock, select.POLLIN, self._deadline_ns)
                continue
            if got == 0:
                raise ConnectionResetError(errno.ECONNRESET, "the connection has ended" + (" inside a record" if done else ""))
            done += got
            self.received_bytes += got
            if done < len(into) and time.monotonic_ns() > self._deadline_ns:  # a byte now and then is no progress
                raise TimeoutError(errno.ETIMEDOUT, "a record was not complete in time")

    def _check_age(self) -> None:
        if self._monotonic_ns() > self._ends_ns:
            raise ConnectionResetError(errno.ECONNRESET, "this connection is as old as it may become")

    def interrupt(self) -> None:
        """Ends the connection from another thread: whoever receives or sends meets an error."""
        with self._closing:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already

    def close(self) -> None:
        """Closes the socket; on the thread that receives, if one does.  Awaits who sends: its descriptor may soon be another file's."""
        self.interrupt()
        with self._lock, self._closing:
            self._sock.close()
