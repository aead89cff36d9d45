"""One connection to a segment server, from the side that asks.

Any thread asks; the connection's own thread dials, and then receives: it brings each answer into the memory of whoever waits for it.  So
nobody but that thread waits without a bound: whoever asks has a deadline, for the connection to be there as for the answer.

    dialling -> open -> ended        An ended one never comes back; who goes on asks on another one.

Answers come in the order of the requests.  So a server that has sent nothing since a request that is overdue is silent, and its
connection is ended: what it may still do with the requests is unknown, and what was opened on it is closed for ever.  One that answers
others is only slow: the overdue request is given up, and its answer is received and forgotten.

Memory that is lent for an answer is never written to after the call that lent it has returned.
"""

from __future__ import annotations

import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import NS_PER_MS, SEGMENT_DIAL_MS_MAX, SEGMENT_GREETING_BYTES_MAX
from awsomefsd.io.pool.remote_errors import ServerAway, again, error_of
from awsomefsd.io.transport.link import SEALED_BODY_BYTES_MAX, BulkLink
from awsomefsd.io.transport.messages import BulkWelcome
from awsomefsd.io.transport.records import ANSWER, BulkRecord, Kind

log = logging.getLogger(__name__)
Dial = Callable[[int], tuple[BulkLink, BulkWelcome]]  # until a deadline (monotonic, ns); raises OSError or ProtocolError
BayKey = tuple[int, int, int, int]  # segment, incarnation, device, index
_STACK_BYTES = 256 << 10


def key_of(record: BulkRecord) -> BayKey:
    return record.segment, record.incarnation, record.device, record.index


class Call:
    """A request that waits for its answer; made by `ServerConnection.begin`."""

    __slots__ = ("abandoned", "answer", "body", "done", "error", "filling", "into", "request", "sent_ns", "then")

    def __init__(self, request: BulkRecord, into: memoryview | None, then: Callable[[Call], None]) -> None:
        self.request, self.into, self.then = request, into, then
        self.sent_ns = time.monotonic_ns()
        self.done = threading.Event()
        self.answer: BulkRecord | None = None
        self.body = b""  # of an answer without `into`
        self.error: OSError | None = None
        self.abandoned = False  # nobody waits any more
        self.filling = False  # `into` is being written to


class ServerConnection:
    """Thread-safe.  `name`: of the server, for people.

    `answered` is called for every answer, with how long it took (ns), and `ended` once, before anybody learns of the end.
    """

    def __init__(
        self, name: str, dial: Dial, answered: Callable[[BulkRecord, int], None] = lambda _record, _ns: None,
        ended: Callable[[ServerConnection, OSError], None] = lambda _connection, _why: None,
    ) -> None:  # fmt: skip
        self._name, self._dial, self._answered, self._ended = name, dial, answered, ended
        self._changed = threading.Condition()  # its lock is that of what follows
        self._link: BulkLink | None = None
        self._calls: dict[int, Call] = {}  # in the order in which they were sent
        self._watched: dict[BayKey, Callable[[OSError], None]] = {}
        self._numbers = itertools.count(1)
        self._heard_ns = 0
        self._ending = False
        self.error: OSError | None = None  # why it has ended
        self.welcome: BulkWelcome | None = None  # what the server said when it opened
        self._room: memoryview | None = None  # for bodies that are being sealed; used under the lock of the link
        self._sealed: memoryview | None = None  # for bodies that come; the receiving thread's
        self._thread = threading.Thread(target=self._run, name=f"segments-of-{name[:8]}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # --- who asks -------------------------------------------------------------------------------------------------------
    def wait_open(self, deadline_ns: int) -> BulkWelcome:
        """Returns when the connection is open, what the server said then.  Raises ServerAway, at the deadline too."""
        with self._changed:
            while self.welcome is None and self.error is None:
                left_ns = deadline_ns - time.monotonic_ns()
                if left_ns <= 0:
                    raise ServerAway(errno.ETIMEDOUT, f"no connection to the segment server of {self._name} in time")
                self._changed.wait(left_ns / 1e9)
            if self.error is not None:
                raise again(self.error)
            assert self.welcome is not None
            return self.welcome

    @property
    def worn(self) -> bool:
        """True: what begins now should begin on another connection."""
        return self._link is not None and self._link.worn

    @property
    def busy(self) -> bool:
        """True while somebody waits for an answer, or has a bay open here."""
        with self._changed:
            return bool(self._calls or self._watched)

    def silent_ns(self) -> int:
        """Returns for how long the server has said nothing although somebody waits for an answer; 0 if nobody does."""
        with self._changed:
            first = next(iter(self._calls.values()), None)
            return 0 if first is None else max(0, time.monotonic_ns() - max(first.sent_ns, self._heard_ns))

    def watch(self, key: BayKey, failed: Callable[[OSError], None]) -> None:
        """Has `failed` called, on the receiving thread, when an Append to this bay fails, or the connection ends.  Raises ServerAway."""
        with self._changed:
            if self.error is not None:
                raise again(self.error)
            self._watched[key] = failed

    def unwatch(self, key: BayKey) -> None:
        with self._changed:
            self._watched.pop(key, None)

    def begin(
        self, request: BulkRecord, into: memoryview | None = None, body: bytes = b"", then: Callable[[Call], None] = lambda _call: None
    ) -> Call:
        """Sends a request and returns at once.  `into`: for the body of the answer; it is the connection's until `wait` or `abandon`.

        `then` is called when the answer is there or the connection has ended, on the receiving thread; perhaps also where this raises.
        Blocks while the other side takes nothing (SEGMENT_RECORD_MS_MAX at most).  Raises ServerAway.
        """
        with self._changed:
            link = self._opened()
            number = next(self._numbers) & 0xFFFF_FFFF
            call = self._calls[number] = Call(replace(request, call=number), into, then)
        try:
            self._send(link, call.request, [memoryview(body)] if body else ())
        except ServerAway:
            self.abandon(call)
            raise
        return call

    def tell(self, record: BulkRecord, body: Sequence[memoryview]) -> None:
        """Sends an Append, which is answered only if it fails (`watch`).  Blocks and raises as `begin`."""
        with self._changed:
            link = self._opened()
        self._send(link, record, body)

    def wait(self, call: Call, deadline_ns: int) -> BulkRecord:
        """Returns the answer to a request.  Raises what `remote_errors` has, at the deadline ServerAway."""
        if not call.done.wait(max(0, deadline_ns - time.monotonic_ns()) / 1e9) and not self._give_up(call):
            raise ServerAway(errno.ETIMEDOUT, f"no answer of the segment server of {self._name} in time")
        if call.error is not None:
            raise again(call.error)
        assert call.answer is not None
        return call.answer

    def abandon(self, call: Call) -> None:
        """Ends a request whose answer nobody wants any more.  What the answer brings is not written anywhere."""
        with self._changed:
            call.abandoned = True
            if not call.filling:
                return
        call.done.wait()  # the bytes are on their way, for SEGMENT_RECORD_MS_MAX at most

    def _give_up(self, call: Call) -> bool:
        """Ends an overdue request; returns True if its answer has come in this moment."""
        with self._changed:
            if call.done.is_set():
                return True
            call.abandoned = True
            silent, filling = self._heard_ns < call.sent_ns, call.filling
        if silent or filling:
            self._interrupt()
        if filling:
            call.done.wait()
        return False

    def ask(self, request: BulkRecord, deadline_ns: int, body: bytes = b"") -> tuple[BulkRecord, bytes]:
        """Sends a request and returns the answer with its body.  Raises as `begin` and `wait`."""
        call = self.begin(request, None, body)
        return self.wait(call, deadline_ns), call.body

    def close(self) -> None:
        """Ends the connection.  Whoever waits meets ServerAway."""
        self._ending = True
        self._interrupt()

    def _interrupt(self) -> None:
        link = self._link
        if link is not None:
            link.interrupt()

    def _opened(self) -> BulkLink:
        if self.error is not None:
            raise again(self.error)
        assert self._link is not None, "wait_open comes first"
        return self._link

    def _send(self, link: BulkLink, record: BulkRecord, body: Sequence[memoryview]) -> None:
        if body and self._room is None and link.sealed:
            self._room = memoryview(bytearray(SEALED_BODY_BYTES_MAX))
        try:
            link.send(record, body, self._room if body else None)
        except OSError as err:
            link.interrupt()  # the receiving thread ends the calls, this one too
            raise ServerAway(err.errno or errno.EPIPE, f"cannot send to the segment server of {self._name}: {err}") from None

    # --- the receiving thread -------------------------------------------------------------------------------------------
    def _run(self) -> None:
        link: BulkLink | None = None
        try:
            link, welcome = self._dial(time.monotonic_ns() + SEGMENT_DIAL_MS_MAX * NS_PER_MS)
            with self._changed:
                self._link, self.welcome = link, welcome
                self._changed.notify_all()
            while not self._ending:
                self._take(link, link.receive())
            why: Exception = ConnectionAbortedError(errno.ECONNABORTED, "closed on this side")
        except (OSError, ProtocolError) as err:
            why = err
        self._end(why)
        if link is not None:
            link.close()

    def _end(self, why: Exception) -> None:
        if isinstance(why, ProtocolError):
            log.error("a segment server breaks the protocol", extra={"node": self._name, "reason": str(why)})
        number = (why.errno if isinstance(why, OSError) else errno.EPROTO) or errno.ECONNRESET
        error = ServerAway(number, f"segment server of {self._name}: {why}")
        self._ended(self, error)
        with self._changed:
            self.error = error
            calls, watched = list(self._calls.values()), list(self._watched.values())
            self._calls.clear()
            self._watched.clear()
            self._changed.notify_all()
        for call in calls:
            call.error = error
            call.done.set()
            call.then(call)
        for failed in watched:
            failed(error)

    def _take(self, link: BulkLink, record: BulkRecord) -> None:
        self._heard_ns = time.monotonic_ns()
        if record.kind is Kind.APPENDED:
            self._append_failed(record, link.receive_small(record))
            return
        with self._changed:
            call = self._calls.get(record.call)
            if call is None or not _answers(record, call.request):
                raise ProtocolError(f"{record.kind.name} answers nothing that was asked")
            into = None if record.errno or call.abandoned else call.into
            call.filling = into is not None
        if record.errno:
            call.error = error_of(record.errno, link.receive_small(record), self._name)
        elif record.body_bytes:
            self._take_body(link, record, call, into)
        call.answer = record
        self._heard_ns = time.monotonic_ns()
        with self._changed:
            del self._calls[record.call]
            call.filling = False
        call.done.set()
        self._answered(record, self._heard_ns - call.sent_ns)
        call.then(call)

    def _take_body(self, link: BulkLink, record: BulkRecord, call: Call, into: memoryview | None) -> None:
        if into is not None:
            if self._sealed is None and link.sealed:
                self._sealed = memoryview(bytearray(SEALED_BODY_BYTES_MAX))
            link.receive_body(record, into, self._sealed)
        elif call.into is not None or record.body_bytes > SEGMENT_GREETING_BYTES_MAX:
            link.receive_body(record, memoryview(bytearray(record.body_bytes)))  # nobody wants it any more
        else:
            call.body = link.receive_small(record)

    def _append_failed(self, record: BulkRecord, words: bytes) -> None:
        if not record.errno:
            raise ProtocolError("an Append is answered only if it failed")
        with self._changed:
            failed = self._watched.pop(key_of(record), None)
        if failed is not None:
            failed(error_of(record.errno, words, self._name))


def _answers(record: BulkRecord, request: BulkRecord) -> bool:
    """Whether an answer fits the request with its number."""
    if record.kind != request.kind | ANSWER or key_of(record) != key_of(request):
        return False
    if record.kind is not Kind.BYTES or record.errno:
        return True
    return record.offset == request.offset and record.body_bytes <= request.value
