"""The metadata client of a worker: requests from many threads, one connection, answers resumed on one receive thread.

Exactly once.  What has no answer stays outstanding, over any number of connections, and is sent again in order with the same request id;
the service finds the stored result or commits it for the first time.  A worker may therefore go on as if the daemon had only been slow.

No submitter blocks.  A frame is sent from the submitting thread with MSG_DONTWAIT; when the socket is full, the rest is left to a sender
thread and later frames queue behind it.  At most RPC_INFLIGHT_MAX requests are with the service; the next ones wait here in order, up to
QUEUED_MAX.

The session's lease is kept by lease.LeaseKeeper, which renews through this client.

Resumes and callbacks run with no lock held.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from awsomefsd import clock, sockets
from awsomefsd.codec import encode
from awsomefsd.errors import Error, FsError, Overloaded, ProtocolError, Unavailable
from awsomefsd.limits import (
    ACKS_PER_REQUEST_MAX,
    RECONNECT_MS_MAX,
    RECONNECT_MS_MIN,
    RPC_INFLIGHT_MAX,
)
from awsomefsd.meta.commands import AnyCommand, EndSession, OpenSession, SetLock
from awsomefsd.meta.lease import Event, LeaseKeeper
from awsomefsd.meta.messages import (
    PROTOCOL_VERSION,
    Answer,
    Body,
    Cancel,
    Failed,
    Hello,
    Propose,
    Reply,
    Request,
    SessionOpened,
    WaitLock,
    Welcome,
)
from awsomefsd.rpc import FrameReader, frame
from awsomefsd.types import BACKGROUND_BIT
from awsomefsd.wait import Resume, Signal, Wait, block_on

QUEUED_MAX = 64 * RPC_INFLIGHT_MAX
RECEIVE_BYTES = 256 << 10
_RETRY_PAUSE_S = 0.02
_MS = 1_000_000
_HELLO_CALL = 0
_SESSION_BIT = 1 << 61  # in the ids of OpenSession, apart from those of a worker's counter

_decode = msgspec.msgpack.Decoder(Answer).decode


class Refused(Error):
    """The daemon does not speak our protocol version; going on would not help."""


def decode_answer(raw: bytes) -> Answer:
    """Raises ProtocolError for anything that is no answer."""
    try:
        answer: Answer = _decode(raw)
        return answer
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"not an answer: {err}") from err


class _Outstanding:
    """One request until its final answer."""

    __slots__ = ("body", "cancelled", "resume")

    def __init__(self, body: Body, resume: Resume) -> None:
        self.body = body
        self.resume = resume
        self.cancelled = False


class _Ask:
    """A Wait for one request; built when it starts, so that it carries the session of that moment."""

    __slots__ = ("_client", "_make")

    def __init__(self, client: MetaClient, make: Callable[[], Body]) -> None:
        self._client = client
        self._make = make

    def start(self, resume: Resume) -> None:
        self._client.submit(self._make(), resume)


class MetaClient:
    """Thread-safe.  Connects from the start, for ever; `close` ends its threads.  `lease_options` are LeaseKeeper's."""

    def __init__(
        self,
        path: Path | str,
        mount: int,
        *,
        log: Any = None,
        boot_ns: Callable[[], int] = clock.boot_ns,
        **lease_options: Any,
    ) -> None:
        self.mount = mount
        self.seen_index: Callable[[], int] = int  # nothing older than this entry's state is used by this worker any more
        self.on_fenced: Callable[[], None] | None = None  # the lease ran out; the session may still live
        self.on_renewed: Callable[[], None] | None = None  # after each acknowledged renewal that leaves some lease
        self.on_session_lost: Callable[[], None] | None = None  # the leader has ended it
        self.session = self.epoch = 0
        self.cluster_uuid = ""
        self.reconnects = 0
        self._path = Path(path)
        self._log = log or logging.getLogger(__name__)
        self._boot_ns = boot_ns
        self._send_lock = threading.Lock()  # guards what follows, up to _acks
        self._sock: socket.socket | None = None
        self._calls = _HELLO_CALL
        self._outstanding: dict[int, _Outstanding] = {}  # with the service, in order
        self._queue: deque[_Outstanding] = deque()  # over RPC_INFLIGHT_MAX
        self._waiting_locks: dict[int, _Outstanding] = {}  # unique → WaitLock
        self._unsent = bytearray()
        self._acks: list[int] = []
        self._unacknowledged: set[int] = set()  # ids proposed here; what never was must not stand in the way of what makes room
        self._unsent_ready = threading.Condition(self._send_lock)
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._retries: deque[tuple[float, _Outstanding]] = deque()  # (monotonic time, refused request)
        self._keeper = LeaseKeeper(self, boot_ns, self._notify, **lease_options)
        self.lease_left_ns = self._keeper.left_ns  # what is left of the lease; 0: the session is fenced, or there is none
        self._opening: tuple[OpenSession, int, Signal] | None = None  # an OpenSession without an answer, when it was sent
        for name, target in (("meta-receive", self._receive_loop), ("meta-send", self._send_loop), ("meta-renew", self._keeper.run)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    # --- life -----------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the threads; what is outstanding ends with Unavailable."""
        with self._send_lock:
            self._closing.set()
            self._drop_connection()
            self._unsent_ready.notify_all()
            ended = [*self._outstanding.values(), *self._queue, *(request for _, request in self._retries)]
            self._outstanding.clear()
            self._queue.clear()
            self._retries.clear()
        self._keeper.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for request in ended:
            self._resume(request, None, Unavailable("the metadata client is closed"))

    # --- requests --------------------------------------------------------------------------------------------------------------
    def submit(self, body: Body, resume: Resume) -> None:
        """Ask; `resume(reply, None)` or `resume(None, FsError)` follows, once.  Never blocks."""
        self._submit(_Outstanding(body, resume))

    def ask(self, body: Body) -> Wait:
        return _Ask(self, lambda: body)

    def call(self, body: Body, timeout_s: float | None) -> Reply:
        """Ask and wait on this thread; FsError for Failed, TimeoutError."""
        reply: Reply = block_on(self.ask(body), timeout_s)
        return reply

    def propose(self, command: AnyCommand, unique: int) -> Wait:
        if type(command) is EndSession and command.session == self.session:
            self._keeper.end()  # or its next renewal would find it gone and report a loss
        return _Ask(self, lambda: Propose(self._holds(unique), self.session, self.epoch, self._take_acks(), command))

    def wait_lock(self, command: SetLock, unique: int) -> Wait:
        """As propose, answered when the lock is granted, or with EINTR after `cancel(unique)`."""
        return _Ask(self, lambda: WaitLock(self._holds(unique), self.session, self.epoch, self._take_acks(), command))

    def tell(self, body: Cancel) -> None:
        """What has no answer."""
        self.cancel(body.unique)

    def cancel(self, unique: int) -> None:
        """End the wait_lock of that id, if it still waits."""
        with self._send_lock:
            request = self._waiting_locks.get(unique)
            if request is not None:
                request.cancelled = True
                self._write(Cancel(unique), 0)

    def ack(self, unique: int) -> None:
        """The result of this request is not needed any more; said with a later proposal.  Most requests never had one."""
        if unique in self._unacknowledged:
            self._unacknowledged.discard(unique)
            self.ack_inherited(unique)

    def ack_inherited(self, unique: int) -> None:
        """The same for a request that a predecessor may have proposed."""
        with self._send_lock:
            self._acks.append(unique)

    def _holds(self, unique: int) -> int:
        self._unacknowledged.add(unique)
        return unique

    # --- the session -----------------------------------------------------------------------------------------------------------
    def start_session(self, command: OpenSession, timeout_s: float | None = None) -> SessionOpened:
        """Open the session and begin to renew it.  FsError(EBUSY) while another mount holds the volume, Unavailable after `timeout_s`.

        The request has an id of its own: opened, answered into a lost connection and opened again it would say `resumed` and hide that
        it was a new session.  For the same reason a call after a timeout waits for the same request.
        """
        if self._opening is None or self._opening[0] != command:
            signal = Signal()
            unique = BACKGROUND_BIT | _SESSION_BIT | int.from_bytes(os.urandom(7), "little")
            self._opening = (command, self._boot_ns(), signal)

            def opened(reply: Reply | None, error: BaseException | None) -> None:
                self.ack_inherited(unique)
                signal.fire(reply, error)

            self.submit(Propose(unique, 0, 0, self._take_acks(), command), opened)
        _, sent_ns, signal = self._opening
        try:
            reply = block_on(signal, timeout_s)
        except TimeoutError as err:
            raise Unavailable("the metadata service gives no answer") from err
        except Error:
            self._opening = None
            raise
        self._opening = None
        assert isinstance(reply, SessionOpened)
        self.set_session(reply.session, reply.epoch, sent_ns)
        return reply

    def set_session(self, session: int, epoch: int, since_ns: int | None = None) -> None:
        """Proposals are this session's from now on; its lease counts from `since_ns` (before its opening was sent)."""
        self.session, self.epoch = session, epoch
        self._keeper.begin(self._boot_ns() if since_ns is None else since_ns)

    def end_session(self) -> None:
        """Stop renewing; no later proposal is this session's."""
        self.session = self.epoch = 0
        self._keeper.end()

    # --- sending ---------------------------------------------------------------------------------------------------------------
    def _take_acks(self) -> list[int]:
        if not self._acks:
            return []
        with self._send_lock:
            acks = self._acks[:ACKS_PER_REQUEST_MAX]
            del self._acks[:ACKS_PER_REQUEST_MAX]
        return acks

    def _submit(self, request: _Outstanding) -> None:
        with self._send_lock:
            if not self._closing.is_set():
                if type(request.body) is WaitLock:
                    self._waiting_locks[request.body.unique] = request
                if len(self._queue) < QUEUED_MAX:
                    self._admit(request)
                    return
        error = Unavailable("the metadata client is closed") if self._closing.is_set() else Overloaded(f"{QUEUED_MAX} requests wait")
        self._resume(request, None, error)

    def _admit(self, request: _Outstanding) -> None:
        """With the lock held."""
        if len(self._outstanding) < RPC_INFLIGHT_MAX:
            self._enter(request)
        else:
            self._queue.append(request)

    def _enter(self, request: _Outstanding) -> None:
        """With the lock held: number it and send it, if there is a connection."""
        self._calls += 1
        self._outstanding[self._calls] = request
        self._write(request.body, self._calls)
        if request.cancelled and type(request.body) is WaitLock:
            self._write(Cancel(request.body.unique), 0)

    def _write(self, body: Body, call: int) -> None:
        """With the lock held; without a connection the frame is dropped, reconnecting sends it again."""
        if self._sock is None:
            return
        data = frame(encode(Request(call, body)))
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the receive thread sees it too, and connects again
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._unsent_ready.notify_all()

    def _send_loop(self) -> None:
        """Sends what did not fit the socket, and what was refused for now."""
        while True:
            with self._send_lock:
                while not (self._unsent and self._sock is not None):
                    if self._closing.is_set():
                        return
                    pause_s = self._retry_due()
                    if not self._unsent:  # what was sent again may not have fitted the socket
                        self._unsent_ready.wait(pause_s)
                sock, piece = self._sock, bytes(memoryview(self._unsent)[:RECEIVE_BYTES])
            try:
                sent = sock.send(piece)
            except OSError:
                sent = -1
            with self._send_lock:
                if sock is self._sock:
                    if sent < 0:
                        self._drop_connection()
                    else:
                        del self._unsent[:sent]

    # --- receiving -------------------------------------------------------------------------------------------------------------
    def _receive_loop(self) -> None:
        pause_ms = RECONNECT_MS_MIN
        while not self._closing.is_set():
            try:
                sock, reader = self._connect()
            except (OSError, ProtocolError, Refused) as err:
                self._log.debug("metadata service: %s", err)
                self._closing.wait(pause_ms / 1000)
                pause_ms = min(pause_ms * 2, RECONNECT_MS_MAX)
                continue
            pause_ms = RECONNECT_MS_MIN
            try:
                self._resend(sock)
                self._receive(sock, reader)
            except (OSError, ProtocolError) as err:
                if not self._closing.is_set():
                    self._log.warning("lost the connection to the metadata service: %s", err)
            with self._send_lock:
                self._drop_connection()
            sock.close()

    def _connect(self) -> tuple[socket.socket, FrameReader]:
        sock = sockets.connect_unix(self._path)
        try:
            sock.settimeout(10)
            sock.sendall(frame(encode(Request(_HELLO_CALL, Hello(PROTOCOL_VERSION, self.mount)))))
            reader = FrameReader()
            frames: list[bytes] = []
            while not frames:
                data = sock.recv(RECEIVE_BYTES)
                if not data:
                    raise ConnectionResetError("closed during the greeting")
                frames = reader.feed(data)
            reply = decode_answer(frames[0]).reply
            if not isinstance(reply, Welcome):
                detail = reply.detail if isinstance(reply, Failed) else str(reply)
                self._log.error("the metadata service refuses this client: %s", detail)
                raise Refused(detail)
            self.cluster_uuid = reply.cluster_uuid
            sock.settimeout(None)
            return sock, reader
        except BaseException:
            sock.close()
            raise

    def _resend(self, sock: socket.socket) -> None:
        """Everything outstanding again, in order; later submitters come behind it."""
        with self._send_lock:
            if self._closing.is_set():
                raise ConnectionAbortedError("closed")
            self.reconnects += 1
            self._unsent.clear()
            self._sock = sock
            for call, request in self._outstanding.items():
                self._write(request.body, call)
                if request.cancelled and type(request.body) is WaitLock:
                    self._write(Cancel(request.body.unique), 0)
        self._keeper.wake()

    def _drop_connection(self) -> None:
        """With the lock held."""
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that receives; it closes the socket
            except OSError:
                pass
            self._sock = None
        self._unsent.clear()

    def _receive(self, sock: socket.socket, reader: FrameReader) -> None:
        while True:
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("closed by the service")
            for raw in reader.feed(data):
                self._take(decode_answer(raw))

    def _take(self, answer: Answer) -> None:
        with self._send_lock:
            request = self._outstanding.pop(answer.call, None)
            if request is None:
                return
            if self._queue:
                self._enter(self._queue.popleft())
            reply = answer.reply
            if type(reply) is Failed and reply.retry:
                self._retry_later(request)
                return
            if type(request.body) is WaitLock and self._waiting_locks.get(request.body.unique) is request:
                del self._waiting_locks[request.body.unique]
        if type(reply) is Failed:
            if reply.errno == errno.ESTALE and type(request.body) in (Propose, WaitLock):
                self._keeper.doubt()
            self._resume(request, None, FsError(reply.errno, reply.detail))
        else:
            self._resume(request, reply, None)

    def _retry_later(self, request: _Outstanding) -> None:
        """With the lock held.  A refused proposal takes along the acknowledgements that came up since: they are what makes room."""
        body = request.body
        if type(body) is Propose and self._acks:
            room = ACKS_PER_REQUEST_MAX - len(body.acks)
            request.body = Propose(body.unique, body.session, body.epoch, body.acks + self._acks[:room], body.command)
            del self._acks[:room]
        self._retries.append((time.monotonic() + _RETRY_PAUSE_S, request))
        self._unsent_ready.notify_all()

    def _retry_due(self) -> float | None:
        """With the lock held: send again what has paused long enough; seconds until the next."""
        while self._retries:
            due, request = self._retries[0]
            left = due - time.monotonic()
            if left > 0:
                return left
            self._retries.popleft()
            self._admit(request)
        return None

    def _notify(self, event: Event) -> None:
        callback = {"fenced": self.on_fenced, "renewed": self.on_renewed, "lost": self.on_session_lost}[event]
        try:
            if callback is not None:
                callback()
        except Exception:
            self._log.exception("the callback for a session that is %s failed", event)

    def _resume(self, request: _Outstanding, reply: Reply | None, error: BaseException | None) -> None:
        try:
            request.resume(reply, error)
        except Exception:
            self._log.exception("a continuation of %s failed", type(request.body).__name__)
