"""The metadata client of a worker: requests from many threads, one connection, answers resumed on one receive thread.

What is open, what is sent again, when and to whom is client_core.ClientCore's; here are its lock, its socket and its threads.

No submitter blocks.  A frame is sent from the submitting thread with MSG_DONTWAIT; when the socket is full, the rest is left to a sender
thread and later frames queue behind it.

The service is this node's, over its unix socket, or another node's, over TLS (tls_layer.py; loaded when that is needed first).  Where to
ask is endpoints.py's to say.

The session's lease is kept by lease.LeaseKeeper, which renews through this client.

Resumes and callbacks run with no lock held.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from awsomefsd import clock, sockets
from awsomefsd.codec import encode
from awsomefsd.errors import WAS_REMOVED, Error, ProtocolError, Unavailable
from awsomefsd.limits import CLIENT_CONNECT_MS, CLIENT_GREETING_MS, CLIENT_STUCK_MS_MAX
from awsomefsd.meta.client_core import HELLO_CALL, ClientCore, Ended, Outstanding, Refused
from awsomefsd.meta.commands import AnyCommand, EndSession, OpenSession, SetLock
from awsomefsd.meta.endpoints import Endpoints, OnThisHost, split
from awsomefsd.meta.lease import LeaseKeeper
from awsomefsd.meta.lease_core import Event
from awsomefsd.meta.messages import Answer, Body, Cancel, NotLeader, Propose, Reply, Request, SessionOpened, WaitLock, Welcome
from awsomefsd.rpc import FrameReader, frame
from awsomefsd.types import BACKGROUND_BIT
from awsomefsd.wait import Resume, Signal, Wait, block_on

if TYPE_CHECKING:
    from awsomefsd.meta.tls_layer import TlsLayer

RECEIVE_BYTES = 256 << 10
GREETING_TIMEOUT_S = 10
_MS = 1_000_000
_SESSION_BIT = 1 << 61  # in the ids of OpenSession, apart from those of a worker's counter

_decode = msgspec.msgpack.Decoder(Answer).decode


def decode_answer(raw: bytes) -> Answer:
    """Raises ProtocolError for anything that is no answer."""
    try:
        answer: Answer = _decode(raw)
        return answer
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"not an answer: {err}") from err


def connect(endpoint: str) -> socket.socket:
    """A connection to a metadata service (endpoints.py says what an endpoint is), no handshake yet; OSError."""
    if endpoint.startswith("/"):
        return sockets.connect_unix(Path(endpoint))
    _, host, port = split(endpoint)
    sock = socket.create_connection((host, port), CLIENT_CONNECT_MS / 1_000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLIENT_STUCK_MS_MAX)
    return sock


def _jitter() -> float:
    """Clients that lost the same leader do not come back at the same moment."""
    return 0.5 + os.urandom(1)[0] / 512


def _nobody(reply: Reply) -> str:
    if isinstance(reply, NotLeader) and reply.node:
        return f"node {reply.node} leads the metadata"
    return "no node is known to lead the metadata"


class _Ask:
    """A Wait for one request; built when it starts, so that it carries the session of that moment.  `repeated` as of wait.was_repeated."""

    __slots__ = ("_client", "_make", "repeated")

    def __init__(self, client: MetaClient, make: Callable[[], Body]) -> None:
        self._client = client
        self._make = make
        self.repeated = False

    def start(self, resume: Resume) -> None:
        self._client.submit(self._make(), resume, None, self._note)

    def _note(self) -> None:
        self.repeated = True


class MetaClient:
    """Thread-safe.  Connects from the start, for ever; `close` ends its threads.  `lease_options` are LeaseKeeper's.

    `places` says where the service may be; a path, or several to be tried in turn, are sockets on this host.
    """

    def __init__(
        self,
        places: Endpoints | Path | str | Sequence[Path | str],
        mount: int,
        *,
        log: Any = None,
        boot_ns: Callable[[], int] = clock.boot_ns,
        connect: Callable[[str], socket.socket] = connect,
        **lease_options: Any,
    ) -> None:
        self.mount = mount
        self.seen_index: Callable[[], int] = int  # nothing older than this entry's state is used by this worker any more
        self.on_fenced: Callable[[], None] | None = None  # the lease ran out; the session may still live
        self.on_renewed: Callable[[], None] | None = None  # after each acknowledged renewal that leaves some lease
        self.on_session_lost: Callable[[], None] | None = None  # the leader has ended it
        self.on_removed: Callable[[str], None] | None = None  # why nobody will ever answer this node
        self._on_greeted: Callable[[int], None] | None = None
        self._greeted_term = 0  # of the leader that greeted last
        self.session = self.epoch = 0
        self._log = log or logging.getLogger(__name__)
        self._boot_ns = boot_ns
        self._connect_to = connect
        if not isinstance(places, Endpoints):
            places = OnThisHost([places] if isinstance(places, (str, Path)) else places)
        self._places = places
        self._send_lock = threading.Lock()  # guards the core and what follows, up to _unsent
        self._core = ClientCore(mount, places.now(), self._write, time.monotonic_ns)
        self._sock: socket.socket | None = None
        self._layer: TlsLayer | None = None  # over _sock
        self.trouble = ""  # why there is no connection now
        self.refusal: Refused | None = None  # what was said to the newest greeting that was answered
        self.away_ns = time.monotonic_ns()  # since when, if there is none
        self._unsent = bytearray()
        self._unsent_ready = threading.Condition(self._send_lock)
        self._closing = threading.Event()
        self._failure: Error | None = None  # what everything ends with
        self._threads: list[threading.Thread] = []
        self._keeper = LeaseKeeper(self, boot_ns, self._notify, **lease_options)
        self.lease_left_ns = self._keeper.left_ns  # what is left of the lease; 0: the session is fenced, or there is none
        self.doubt_session = self._keeper.doubt  # something was refused as of an ended session: ask at once
        self._opening: tuple[OpenSession, int, Signal] | None = None  # an OpenSession without an answer, when it was sent
        for name, target in (("meta-receive", self._receive_loop), ("meta-send", self._send_loop), ("meta-renew", self._keeper.run)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def cluster_uuid(self) -> str:
        """"" before the first connection."""
        return self._core.cluster_uuid

    @property
    def connected(self) -> bool:
        """Greeted: a leader takes requests."""
        return self._sock is not None and self._core.connected

    @property
    def reconnects(self) -> int:
        return self._core.connections

    # --- life -----------------------------------------------------------------------------------------------------------------
    def on_greeted(self, greeted: Callable[[int], None]) -> None:
        """Call it with the leader's term: for the present connection, and on each later one once what was outstanding is sent again."""
        self._on_greeted = greeted
        if self._greeted_term:
            greeted(self._greeted_term)

    def close(self) -> None:
        """End the threads; what is outstanding ends with Unavailable."""
        self._closing.set()
        self.fail(Unavailable("the metadata client is closed"))
        self._keeper.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def fail(self, error: Error) -> None:
        """What is outstanding ends with this, and so does whatever is asked from now on; nobody is asked any more."""
        with self._send_lock:
            self._failure = self._failure or error
            self._drop_connection()
            self._unsent_ready.notify_all()
            ended = self._core.close(error)
        self._resume_all(ended)

    # --- requests --------------------------------------------------------------------------------------------------------------
    def submit(self, body: Body, resume: Resume, timeout_ms: int | None = None, on_repeated: Callable[[], None] | None = None) -> None:
        """Ask; `resume(reply, None)` or `resume(None, FsError)` follows, once.  Never blocks.  OutcomeUnknown after `timeout_ms`."""
        deadline_ns = None if timeout_ms is None else time.monotonic_ns() + timeout_ms * _MS
        request = Outstanding(body, resume, deadline_ns)
        request.on_repeated = on_repeated
        with self._send_lock:
            ended = self._core.submit(request) if self._failure is None else Ended(request, None, self._failure)
            if deadline_ns is not None:
                self._unsent_ready.notify_all()
        if ended is not None:
            self._resume(ended)

    def ask(self, body: Body) -> Wait:
        return _Ask(self, lambda: body)

    def call(self, body: Body, timeout_s: float | None) -> Reply:
        """Ask and wait on this thread; FsError for Failed, TimeoutError."""
        reply: Reply = block_on(self.ask(body), timeout_s)
        return reply

    def under(self) -> tuple[int, int]:
        """Session and epoch as they are now, for `propose`."""
        return self.session, self.epoch

    def propose(self, command: AnyCommand, unique: int, under: tuple[int, int] | None = None) -> Wait:
        """`under`: for that session or none (ESTALE once it has ended), else for the one that there is when it starts."""
        if type(command) is EndSession and command.session == self.session:
            self._keeper.end()  # or its next renewal would find it gone and report a loss
        return _Ask(self, lambda: Propose(self._core.holds(unique), *(under or (self.session, self.epoch)), self._take_acks(), command))

    def identified(self, body: Propose, unique: int) -> Propose:
        """A proposal with that id and the acknowledgements that wait; acknowledge it like any other."""
        return Propose(self._core.holds(unique), body.session, body.epoch, self._take_acks(), body.command)

    def wait_lock(self, command: SetLock, unique: int, no_deadlock: bool = False) -> Wait:
        """As propose, answered when the lock is granted, with EINTR after `cancel(unique)`, or with EDEADLK."""
        holds = self._core.holds
        return _Ask(self, lambda: WaitLock(holds(unique), self.session, self.epoch, self._take_acks(), command, no_deadlock))

    def tell(self, body: Cancel) -> None:
        """What has no answer."""
        self.cancel(body.unique)

    def cancel(self, unique: int) -> None:
        """End the wait_lock of that id, if it still waits."""
        with self._send_lock:
            self._core.cancel(unique)

    def ack(self, unique: int) -> None:
        """The result of this request is not needed any more; said with a later proposal.  Most requests never had one."""
        if self._core.held(unique):
            with self._send_lock:
                self._core.ack(unique)

    def ack_inherited(self, unique: int) -> None:
        """The same for a request that a predecessor may have proposed."""
        with self._send_lock:
            self._core.ack_inherited(unique)

    def _take_acks(self) -> list[int]:
        if not self._core.acks:
            return []
        with self._send_lock:
            return self._core.take_acks()

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
    def _write(self, call: int, body: Body) -> None:
        """The core's way out, with the lock held; what is dropped here is sent again when reconnecting."""
        if self._sock is None:
            return
        self._send(frame(encode(Request(call, body))))

    def _send(self, data: bytes) -> None:
        """With the lock held.  `data` may be nothing but what TLS has to say."""
        assert self._sock is not None
        try:
            if self._layer is not None:
                data = self._layer.seal(data)
            if self._unsent:
                self._unsent += data
                return
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop_connection()  # the receive thread connects again
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._unsent_ready.notify_all()

    def _send_loop(self) -> None:
        """Sends what did not fit the socket, and what is due in the core."""
        while not self._closing.is_set():
            with self._send_lock:
                ended = self._tick()
                sock, piece = self._sock, bytes(memoryview(self._unsent)[:RECEIVE_BYTES])
            self._resume_all(ended)
            if sock is None or not piece:
                continue
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

    def _tick(self) -> list[Ended]:
        """With the lock held: wait for something to send or to end."""
        while not self._closing.is_set():
            ended = self._core.tick()
            if self._sock is not None and not self._core.connected:
                self._drop_connection()  # silent: the receive thread goes elsewhere
            if ended or (self._unsent and self._sock is not None):
                return ended
            due_ns = self._core.due_ns()
            self._unsent_ready.wait(None if due_ns is None else max(due_ns - time.monotonic_ns(), 0) / 1e9)
        return []

    # --- receiving -------------------------------------------------------------------------------------------------------------
    def _receive_loop(self) -> None:
        while self._failure is None:
            places = self._places.now()
            with self._send_lock:
                self._core.learn(places)
                endpoint, pause_ns, hello = self._core.endpoint, self._core.connect_ns - time.monotonic_ns(), self._core.hello()
            if pause_ns > 0 and self._closing.wait(pause_ns / 1e9 * _jitter()):
                return
            sock = None
            try:
                place = self._places.resolve(endpoint)
                sock = self._connect_to(place)
                self._serve(sock, place, Request(HELLO_CALL, hello))
            except Refused as err:
                self._note_trouble(endpoint, err)
                if WAS_REMOVED in str(err) and self.on_removed is not None:
                    self.on_removed(str(err))
            except (OSError, ProtocolError) as err:
                self._note_trouble(endpoint, err)
                with self._send_lock:
                    if self._core.endpoint == endpoint:  # or it was told already where to go
                        self._core.disconnected()
            with self._send_lock:
                self._drop_connection()
            if sock is not None:
                sock.close()

    def _note_trouble(self, endpoint: str, err: Exception) -> None:
        """Logged when it is another one than before; somebody who is asked again and again does not say so again and again."""
        told = f"{endpoint}: {err}"
        if self._closing.is_set():
            return
        if isinstance(err, Refused):
            if self.refusal is None or str(self.refusal) != str(err):
                self._log.error("the metadata service refuses this client: %s", told)
            self.refusal = err
        else:
            self._log.log(logging.DEBUG if self._sock is None else logging.WARNING, "metadata service %s", told)
        if endpoint.startswith("/") and self._core.impatient and self.trouble:
            return  # a node without a service of its own has no socket; what others say is the trouble
        self.trouble = told

    def _serve(self, sock: socket.socket, place: str, hello: Request) -> None:
        """Shake hands, greet, send everything outstanding, receive; returns when the core wants to be elsewhere."""
        sock.settimeout(CLIENT_GREETING_MS / 1_000 if self._core.impatient else GREETING_TIMEOUT_S)
        layer = self._shake(sock, place)
        greeting = frame(encode(hello))
        sock.sendall(greeting if layer is None else layer.seal(greeting))
        reader = FrameReader()
        frames: list[bytes] = []
        while not frames:
            frames = self._frames(sock, layer, reader)
        sock.settimeout(None)
        with self._send_lock:
            if self._failure is not None:
                return
            self._unsent.clear()
            self._sock, self._layer = sock, layer
            reply = decode_answer(frames.pop(0)).reply
            if not self._core.greeted(reply):
                self.trouble = f"{place}: {_nobody(reply)}"
                return
            self.trouble, self.refusal = "", None
            self._unsent_ready.notify_all()
        self._keeper.wake()
        self._greeted_term = reply.term if isinstance(reply, Welcome) else 0
        if self._on_greeted is not None:
            self._on_greeted(self._greeted_term)
        while True:
            for raw in frames:
                if not self._take(decode_answer(raw)):
                    return
            frames = self._frames(sock, layer, reader)

    def _shake(self, sock: socket.socket, place: str) -> TlsLayer | None:
        if place.startswith("/"):
            return None
        from awsomefsd.meta.tls_layer import TlsLayer

        layer = TlsLayer(self._places.tls()().client, split(place)[0])
        layer.shake(sock)
        return layer

    def _frames(self, sock: socket.socket, layer: TlsLayer | None, reader: FrameReader) -> list[bytes]:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("closed by the service")
        if layer is None:
            return reader.feed(data)
        data = layer.open(data)
        if layer.has_to_say:
            with self._send_lock:
                if self._sock is sock:
                    self._send(b"")
        return reader.feed(data) if data else []

    def _drop_connection(self) -> None:
        """With the lock held."""
        if self._sock is not None:
            self.away_ns = time.monotonic_ns()
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that receives; it closes the socket
            except OSError:
                pass
            self._sock = self._layer = None
        self._unsent.clear()

    def _take(self, answer: Answer) -> bool:
        with self._send_lock:
            ended = self._core.take(answer)
            connected = self._core.connected
            if ended is None:
                self._unsent_ready.notify_all()  # it may have paused
        if ended is not None:
            if ended.error is not None and ClientCore.doubtful(ended):
                self._keeper.doubt()
            self._resume(ended)
        return connected

    def _notify(self, event: Event) -> None:
        callback = {"fenced": self.on_fenced, "renewed": self.on_renewed, "lost": self.on_session_lost}[event]
        try:
            if callback is not None:
                callback()
        except Exception:
            self._log.exception("the callback for a session that is %s failed", event)

    def _resume_all(self, ended: Iterable[Ended]) -> None:
        for one in ended:
            self._resume(one)

    def _resume(self, ended: Ended) -> None:
        request = ended.request
        try:
            if request.repeated and request.on_repeated is not None:
                request.on_repeated()
            request.resume(ended.reply, ended.error)
        except Exception:
            self._log.exception("a continuation of %s failed", type(request.body).__name__)
