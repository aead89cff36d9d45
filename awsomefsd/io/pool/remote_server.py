"""A segment server, as the nodes that use it know it: one connection for writes, one for reads, one for orders, each dialled when needed.

They are apart because a server does the requests of one connection in their order: a read is not held up by a flush that somebody waits
for, nor either by a Verify, which takes seconds.

A server that cannot be reached, or whose connection ended before it brought an answer, is left alone for a pause, which doubles; whoever
asks meanwhile fails at once with the reason, and turns to another mirror.  Nothing dials in the background: who has to go on tries again.
A connection that gets old (its key has been used for long) is replaced before it ends: what begins now is on the new one, and the old one
ends when nobody uses it any more.

No thread that reads the kernel's requests may call anything here but `pause_ns` and `close`.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base import levels
from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import (
    NS_PER_MS,
    SEGMENT_ANSWER_MS_MAX,
    SEGMENT_DIAL_MS_MAX,
    SEGMENT_DIAL_PAUSE_MS,
    SEGMENT_DIAL_PAUSE_MS_MAX,
)
from awsomefsd.base.sockets import connect_tcp, connect_unix
from awsomefsd.base.tls import TlsNow
from awsomefsd.base.wait import may_wait
from awsomefsd.io.pool.remote_errors import ServerAway
from awsomefsd.io.pool.server_connection import ServerConnection
from awsomefsd.io.transport import handshake
from awsomefsd.io.transport.link import BulkLink, prepare
from awsomefsd.io.transport.messages import VERSION, BulkHello, BulkWelcome, dumps, loads
from awsomefsd.io.transport.records import BulkRecord, Kind
from awsomefsd.meta.client.endpoints import split

_USUAL_SHARE = 8  # of the newest answer in what is usual
_SESSION_NONE = (0, 0)
Session = tuple[int, int]  # its number and epoch


def answer_by() -> int:
    """Returns the deadline of a request that begins now, in monotonic nanoseconds."""
    return time.monotonic_ns() + SEGMENT_ANSWER_MS_MAX * NS_PER_MS


def dial(endpoint: str, own: str, tls: TlsNow, session: Session, deadline_ns: int) -> tuple[BulkLink, BulkWelcome]:
    """Connects to a segment server ("UUID@HOST:PORT", or the path of its unix socket) as node `own`, and greets for a session.

    Blocks until the deadline at most, and for the resolution of a host name.  Raises OSError or ProtocolError.
    """
    sock, keys = _connected(endpoint, deadline_ns), None
    try:
        if sock.family != socket.AF_UNIX:
            prepare(sock)
            keys = handshake.dial(sock, tls().segment_client, split(endpoint)[0], own, deadline_ns)
        link = BulkLink(sock, keys)
        body = dumps(BulkHello(VERSION, own, *session))
        link.send(BulkRecord(Kind.HELLO, body_bytes=len(body)), [memoryview(body)])
        record = link.receive(deadline_ns)
        if record.kind is not Kind.WELCOME or record.errno:
            raise ProtocolError(f"{record.kind.name} answers a Hello")
        welcome = loads(link.receive_small(record), BulkWelcome)
        if not levels.agreed(welcome.version, VERSION, VERSION):
            raise ProtocolError(f"it welcomes in version {welcome.version}, which this build does not speak")
    except BaseException:
        sock.close()
        raise
    return link, welcome


def _connected(endpoint: str, deadline_ns: int) -> socket.socket:
    if endpoint.startswith("/"):
        return connect_unix(Path(endpoint), SEGMENT_DIAL_MS_MAX / 1_000)
    _, host, port = split(endpoint)
    left_s = (deadline_ns - time.monotonic_ns()) / 1e9
    if left_s <= 0:
        raise TimeoutError(errno.ETIMEDOUT, "no time is left")
    return connect_tcp(host, port, left_s)


class _Line:
    """The connection for one purpose, and when the next one may be dialled.  Thread-safe."""

    def __init__(self, name: str, make: Callable[[Session], ServerConnection], monotonic_ns: Callable[[], int]) -> None:
        self._name, self._make, self._monotonic_ns = name, make, monotonic_ns
        self._lock = threading.Lock()
        self._session = _SESSION_NONE
        self._now: ServerConnection | None = None
        self._old: list[ServerConnection] = []  # replaced, and still used by somebody
        self._failures = 0
        self._not_before_ns = 0
        self._why: OSError | None = None  # of the pause
        self._closed = False
        self.dialled = 0

    def connection(self, session: Session, deadline_ns: int) -> ServerConnection:
        """Returns the connection, which is open.  Raises ServerAway: during a pause at once."""
        with self._lock:
            self._retire()
            now = self._now
            if now is None or now.error is not None or now.worn or session != self._session:
                now = self._replace(session)
        now.wait_open(deadline_ns)
        return now

    def _replace(self, session: Session) -> ServerConnection:
        before, self._now = self._now, None
        if before is not None and before.error is None:
            self._old.append(before)
        if self._closed:
            raise ServerAway(errno.ESHUTDOWN, f"the connections to the segment server of {self._name} are closed")
        if self.pause_ns():
            assert self._why is not None
            raise ServerAway(self._why.errno, f"left alone for a moment: {self._why.strerror}")
        made = self._make(session)
        try:
            made.start()
        except RuntimeError as err:  # no memory, or no more threads for this process
            raise ServerAway(errno.EAGAIN, f"no thread for a connection to the segment server of {self._name}: {err}") from None
        self._now, self._session = made, session
        self.dialled += 1
        return made

    def _retire(self) -> None:
        for old in [one for one in self._old if not one.busy]:
            self._old.remove(old)
            old.close()

    def answered(self) -> None:
        self._failures = 0

    def ended(self, connection: ServerConnection, why: OSError) -> None:
        """Begins a pause; not where the connection was replaced before it ended."""
        with self._lock:
            if connection is not self._now:
                return
            pause_ms = min(SEGMENT_DIAL_PAUSE_MS << min(self._failures, 10), SEGMENT_DIAL_PAUSE_MS_MAX)
            self._failures += 1
            self._why, self._not_before_ns = why, self._monotonic_ns() + pause_ms * NS_PER_MS

    def pause_ns(self) -> int:
        return max(0, self._not_before_ns - self._monotonic_ns())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            every = [*self._old, *([self._now] if self._now else [])]
            self._old.clear()
        for one in every:
            one.close()


class RemoteServer:
    """Thread-safe.  `endpoint`: of the server, `own`: the UUID of this node.  `session`: for whom bays are opened now.

    Every method that asks raises what `remote_errors` has, and blocks until its deadline at most.
    """

    def __init__(
        self, endpoint: str, own: str, tls: TlsNow, session: Callable[[], Session] = lambda: _SESSION_NONE,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:  # fmt: skip
        self.endpoint, self.name = endpoint, endpoint if endpoint.startswith("/") else split(endpoint)[0]
        self._own, self._tls, self._session = own, tls, session
        self._reads, self._writes, self._orders = (
            _Line(self.name, self._make(which), monotonic_ns) for which in ("_reads", "_writes", "_orders")
        )  # fmt: skip
        self.usual_read_ns = 0  # how long a read takes, the newest ones counting most; 0: there was none yet

    def _make(self, line: str) -> Callable[[Session], ServerConnection]:
        def answered(record: BulkRecord, took_ns: int) -> None:
            getattr(self, line).answered()
            if record.kind is Kind.BYTES and not record.errno:
                self.usual_read_ns += (took_ns - self.usual_read_ns) // (_USUAL_SHARE if self.usual_read_ns else 1)

        def ended(connection: ServerConnection, why: OSError) -> None:
            getattr(self, line).ended(connection, why)

        def make(session: Session) -> ServerConnection:
            return ServerConnection(self.name, lambda end: dial(self.endpoint, self._own, self._tls, session, end), answered, ended)

        return make

    def reads(self, deadline_ns: int) -> ServerConnection:
        """Returns the connection for reads, which is open."""
        assert may_wait(), "a thread that reads the kernel's requests does not wait for another node"
        return self._reads.connection(_SESSION_NONE, deadline_ns)

    def writes(self, deadline_ns: int) -> ServerConnection:
        """Returns the connection for bays of the present session, which is open."""
        assert may_wait(), "a thread that reads the kernel's requests does not wait for another node"
        return self._writes.connection(self._session(), deadline_ns)

    def order(self, request: BulkRecord, deadline_ns: int, body: bytes = b"") -> tuple[BulkRecord, bytes]:
        """Sends an order (Verify, Copy, Trim) and returns its answer with the body."""
        assert may_wait(), "a thread that reads the kernel's requests does not wait for another node"
        return self._orders.connection(_SESSION_NONE, deadline_ns).ask(request, deadline_ns, body)

    def pause_ns(self) -> int:
        """Returns for how long reads still fail at once, because the server could not be reached.  Does not block."""
        return self._reads.pause_ns()

    def is_left_alone(self) -> bool:
        """Returns True while anything fails at once because the server could not be reached.  Does not block."""
        return any(line.pause_ns() for line in (self._reads, self._writes, self._orders))

    def dialled(self) -> int:
        return sum(line.dialled for line in (self._reads, self._writes, self._orders))

    def close(self) -> None:
        """Ends all connections, and with them the right to append to what was opened.  Does not block."""
        for line in (self._reads, self._writes, self._orders):
            line.close()
