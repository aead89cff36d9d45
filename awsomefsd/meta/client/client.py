"""Asks the metadata service for a worker or a daemon: requests from many threads, one connection, one thread that receives.

core.ClientCore decides what is sent, when and to whom; here are its lock and its threads.  endpoints.py says where to ask, and
connection.py moves the bytes.  No submitter blocks: a frame is sent from the submitting thread, and what the socket does not take is left
to a sender thread.

The session's lease is kept by session_renewer.SessionRenewer, which renews through this client.

Resumes and callbacks run with no lock held.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from awsomefsd.base import clock
from awsomefsd.base.codec import encode
from awsomefsd.base.errors import WAS_REMOVED, Error, ProtocolError, Unavailable
from awsomefsd.base.frames import frame
from awsomefsd.base.limits import CLIENT_GREETING_MS, NS_PER_MS
from awsomefsd.base.types import BACKGROUND_BIT
from awsomefsd.base.wait import Resume, Signal, Wait, block_on
from awsomefsd.meta.api.commands import AnyCommand, EndSession, OpenSession, SetLock
from awsomefsd.meta.api.messages import Answer, Body, Cancel, NotLeader, Propose, Reply, RequestEnvelope, SessionOpened, WaitLock, Welcome
from awsomefsd.meta.client.connection import ServiceConnection, connect
from awsomefsd.meta.client.core import HELLO_CALL, ClientCore, EndedRequest, GreetingRefused, Outstanding
from awsomefsd.meta.client.endpoints import Endpoints, OnThisHost
from awsomefsd.meta.client.session_events import IgnoredEvents, SessionEvents
from awsomefsd.meta.client.session_lease import Event
from awsomefsd.meta.client.session_renewer import SessionRenewer

GREETING_TIMEOUT_S = 10
_SESSION_BIT = 1 << 61  # in the ids of OpenSession, apart from those of a worker's counter

_IGNORED = IgnoredEvents()

_decode = msgspec.msgpack.Decoder(Answer).decode


def decode_answer(raw: bytes) -> Answer:
    """Returns the decoded answer.  Raises ProtocolError for anything that is none."""
    try:
        answer: Answer = _decode(raw)
        return answer
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"not an answer: {err}") from err


def _jitter() -> float:
    """Returns a factor from 0.5 to 1: clients that lost the same leader are not to come back at the same moment."""
    return 0.5 + os.urandom(1)[0] / 512


def _nobody(reply: Reply) -> str:
    if isinstance(reply, NotLeader) and reply.node:
        return f"node {reply.node} leads the metadata"
    return "this node knows no leader of the metadata"


class _Ask:
    """A Wait for one request, built when it starts, so that it carries the session of that moment.  `repeated`: see wait.was_repeated."""

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
    """Every method may be called from any thread; none blocks unless it says so.

    `start` begins to connect, for ever; `close` ends that.  `places` says where the service may be; a path, or several to be tried in turn,
    are sockets on this host.  `lease_options` are SessionRenewer's.
    """

    def __init__(
        self,
        places: Endpoints | Path | str | Sequence[Path | str],
        mount: int,
        *,
        log: Any = None,
        boot_ns: Callable[[], int] = clock.boot_ns,
        wall_ns: Callable[[], int] = clock.wall_ns,
        connect: Callable[[str], socket.socket] = connect,
        **lease_options: Any,
    ) -> None:
        self.mount = mount
        self._events: SessionEvents = _IGNORED  # until `start`
        self.session = self.epoch = 0
        self._log = log or logging.getLogger(__name__)
        self._boot_ns = boot_ns
        self._connect_to = connect
        if not isinstance(places, Endpoints):
            places = OnThisHost([places] if isinstance(places, (str, Path)) else places)
        self._places = places
        self._send_lock = threading.Lock()  # guards the core, the connection and why there is none
        self._core = ClientCore(mount, places.now(), self._write, time.monotonic_ns, secrets.randbits(62) + 1)
        self._connection: ServiceConnection | None = None  # that has greeted
        self.trouble = ""  # why there is no connection now
        self.refusal: GreetingRefused | None = None  # what was said to the newest greeting that was answered
        self.away_ns = time.monotonic_ns()  # since when, if there is none
        self._unsent_ready = threading.Condition(self._send_lock)
        self._looks_ns: int | None = None  # when the sending thread looks again by itself, monotonic; None: not before it is told to
        self._closing = threading.Event()
        self._failure: Error | None = None  # what everything ends with
        self._threads: list[threading.Thread] = []
        self._keeper = SessionRenewer(self, boot_ns, self._notify, wall_ns=wall_ns, **lease_options)
        self.lease_left_ns = self._keeper.left_ns  # what is left of the session's lease; 0: the session is fenced, or there is none
        self._opening: tuple[OpenSession, int, Signal] | None = None  # an OpenSession without an answer, when it was sent

    @property
    def cluster_uuid(self) -> str:
        """ "" before the first connection."""
        return self._core.cluster_uuid

    @property
    def connected(self) -> bool:
        """True: a leader has greeted this client and takes requests."""
        return self._connection is not None and self._core.connected

    @property
    def reconnects(self) -> int:
        return self._core.connections

    # --- life -----------------------------------------------------------------------------------------------------------------
    def start(self, events: SessionEvents = _IGNORED) -> None:
        """Begins to connect, to send and to renew, on three threads; once.  What was submitted before is sent then.

        `events` hears of the session and the connection from now on; it may be made of parts that were built with this client.
        """
        assert not self._threads, "a client starts once"
        self._events = events
        for name, target in (("meta-receive", self._receive_loop), ("meta-send", self._send_loop), ("meta-renew", self._keeper.run)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Ends the threads and waits for them, unless one of them calls; what is outstanding ends with Unavailable."""
        self._closing.set()
        self.fail(Unavailable("the metadata client is closed"))
        self._keeper.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def fail(self, error: Error) -> None:
        """Ends what is outstanding with this error, and so whatever is asked from now on; nobody is asked any more."""
        with self._send_lock:
            self._failure = self._failure or error
            self._drop_connection()
            self._unsent_ready.notify_all()
            ended = self._core.close(error)
        self._resume_all(ended)

    # --- requests --------------------------------------------------------------------------------------------------------------
    def submit(self, body: Body, resume: Resume, timeout_ms: int | None = None, on_repeated: Callable[[], None] | None = None) -> None:
        """Asks; `resume(reply, None)` or `resume(None, error)` follows, once, on this or a client's thread.

        The error is FsError for a Failed, OutcomeUnknown after `timeout_ms`, Overloaded where too many wait, or what the client ended with.
        `on_repeated` is called before `resume` if the request was sent more than once.
        """
        deadline_ns = None if timeout_ms is None else time.monotonic_ns() + timeout_ms * NS_PER_MS
        request = Outstanding(body, resume, deadline_ns, on_repeated)
        with self._send_lock:
            ended = self._core.submit(request) if self._failure is None else EndedRequest(request, None, self._failure)
            if deadline_ns is not None and (self._looks_ns is None or deadline_ns < self._looks_ns):
                self._unsent_ready.notify_all()
        if ended is not None:
            self._resume(ended)

    def ask(self, body: Body) -> Wait:
        return _Ask(self, lambda: body)

    def call(self, body: Body, timeout_s: float | None) -> Reply:
        """Asks and blocks until the reply is there.  Raises FsError for a Failed, TimeoutError after `timeout_s` seconds."""
        reply: Reply = block_on(self.ask(body), timeout_s)
        return reply

    def session_token(self) -> tuple[int, int]:
        """Returns (session, epoch) as they are now, for `propose`."""
        return self.session, self.epoch

    def propose(self, command: AnyCommand, unique: int, token: tuple[int, int] | None = None) -> Wait:
        """Returns a Wait for the reply to a command under the request id `unique`; `ack` that id afterwards.

        With a `token` it is for that session or none (ESTALE once it has ended), else for the one that there is when the Wait starts.
        """
        if type(command) is EndSession and command.session == self.session:
            self._keeper.end()  # or its next renewal would find it gone and report a loss
        return _Ask(self, lambda: Propose(self._core.register(unique), *(token or (self.session, self.epoch)), self._take_acks(), command))

    def identified(self, body: Propose, unique: int) -> Propose:
        """Returns the proposal with that id and the acknowledgements that wait; `ack` the id afterwards."""
        return Propose(self._core.register(unique), body.session, body.epoch, self._take_acks(), body.command)

    def wait_lock(self, command: SetLock, unique: int, no_deadlock: bool = False) -> Wait:
        """Returns a Wait as `propose`, which ends when the lock is granted, with EINTR after `cancel(unique)`, or with EDEADLK."""
        register = self._core.register
        return _Ask(self, lambda: WaitLock(register(unique), self.session, self.epoch, self._copy_acks(), command, no_deadlock))

    def tell(self, body: Cancel) -> None:
        """Sends what has no answer."""
        self.cancel(body.unique)

    def cancel(self, unique: int) -> None:
        """Ends the wait_lock of that id, if it still waits."""
        with self._send_lock:
            self._core.cancel(unique)

    def ack(self, unique: int) -> None:
        """Acknowledges the result of a request with a later proposal: it is not needed any more.  Most requests never had one."""
        if self._core.is_registered(unique):
            with self._send_lock:
                self._core.ack(unique)

    def ack_inherited(self, unique: int) -> None:
        """As `ack`, for a request that a predecessor may have proposed."""
        with self._send_lock:
            self._core.ack_inherited(unique)

    def _take_acks(self) -> list[int]:
        if not self._core.acks_waiting:
            return []
        with self._send_lock:
            return self._core.take_acks()

    def _copy_acks(self) -> list[int]:
        with self._send_lock:
            return self._core.copy_acks()

    # --- the session -----------------------------------------------------------------------------------------------------------
    def doubt_session(self) -> None:
        """Renews at once, because something was refused as of an ended session."""
        self._keeper.doubt()

    def seen_index(self) -> int:
        return self._events.seen_index()

    def start_session(self, command: OpenSession, timeout_s: float | None = None) -> SessionOpened:
        """Opens the session and begins to renew it; blocks until there is an answer.

        Raises FsError(EBUSY) while another mount holds the volume, Unavailable after `timeout_s` seconds.

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
            raise Unavailable("the metadata service does not answer") from err
        except Error:
            self._opening = None
            raise
        self._opening = None
        assert isinstance(reply, SessionOpened)
        self.set_session(reply.session, reply.epoch, sent_ns)
        return reply

    def set_session(self, session: int, epoch: int, since_ns: int | None = None) -> None:
        """Lets proposals be this session's from now on; its lease counts from `since_ns` (before its opening was sent)."""
        self.session, self.epoch = session, epoch
        self._keeper.begin(self._boot_ns() if since_ns is None else since_ns)

    def end_session(self) -> None:
        """Stops renewing; no later proposal is this session's."""
        self.session = self.epoch = 0
        self._keeper.end()

    # --- sending ---------------------------------------------------------------------------------------------------------------
    def _write(self, call: int, body: Body) -> None:
        """Sends for the core, with the lock held; what is dropped here is sent again after reconnecting."""
        if self._connection is not None:
            self._send(frame(encode(RequestEnvelope(call, body))))

    def _send(self, data: bytes) -> None:
        """Sends `data`, with the lock held.  Without any, what TLS has to say."""
        assert self._connection is not None
        try:
            if not self._connection.send(data):
                self._unsent_ready.notify_all()
        except OSError:
            self._drop_connection()  # the receive thread connects again

    def _send_loop(self) -> None:
        """Sends what did not fit the socket, and what is due in the core."""
        while not self._closing.is_set():
            with self._send_lock:
                ended = self._tick()
                connection = self._connection
                piece = b"" if connection is None else connection.first_waiting
            self._resume_all(ended)
            if connection is None or not piece:
                continue
            try:
                sent = connection.send_waiting(piece)
            except OSError:
                sent = -1
            with self._send_lock:
                if connection is self._connection:
                    if sent < 0:
                        self._drop_connection()
                    else:
                        connection.taken(sent)

    def _tick(self) -> list[EndedRequest]:
        """Waits for something to send or to end, with the lock held."""
        while not self._closing.is_set():
            ended = self._core.tick()
            if self._connection is not None and not self._core.connected:
                self._drop_connection()  # silent: the receive thread goes elsewhere
            if ended or (self._connection is not None and self._connection.any_waiting):
                return ended
            due_ns = self._core.due_ns()
            self._looks_ns = due_ns
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
                self._serve(sock, place, RequestEnvelope(HELLO_CALL, hello))
            except GreetingRefused as err:
                self._note_trouble(endpoint, err)
                if WAS_REMOVED in str(err):
                    self._events.removed(str(err))
            except (OSError, ProtocolError) as err:
                self._note_trouble(endpoint, err)
                with self._send_lock:
                    if self._core.endpoint == endpoint:  # or it was told already where to go
                        self._core.on_disconnected()
            with self._send_lock:
                self._drop_connection()
            if sock is not None:
                sock.close()

    def _note_trouble(self, endpoint: str, err: Exception) -> None:
        """Notes why there is no connection.  A refusal is logged only when it differs from the one before."""
        trouble = f"{endpoint}: {err}"
        if self._closing.is_set():
            return
        if isinstance(err, GreetingRefused):
            if self.refusal is None or str(self.refusal) != str(err):
                self._log.error("the metadata service refuses this client: %s", trouble)
            self.refusal = err
        else:
            self._log.log(logging.DEBUG if self._connection is None else logging.WARNING, "metadata service %s", trouble)
        if endpoint.startswith("/") and self._core.impatient and self.trouble:
            return  # a node without a service of its own has no socket; what others say is the trouble
        self.trouble = trouble

    def _serve(self, sock: socket.socket, place: str, hello: RequestEnvelope) -> None:
        """Shakes hands, greets, sends everything outstanding and receives; returns when the core wants to be elsewhere."""
        timeout_s = CLIENT_GREETING_MS / 1_000 if self._core.impatient else GREETING_TIMEOUT_S
        connection = ServiceConnection(sock, place, self._places.tls, timeout_s)
        frames = connection.greet(frame(encode(hello)))
        with self._send_lock:
            if self._failure is not None:
                return
            self._connection = connection
            reply = decode_answer(frames.pop(0)).reply
            if not self._core.on_greeting(reply):
                self.trouble = f"{place}: {_nobody(reply)}"
                return
            self.trouble, self.refusal = "", None
            self._unsent_ready.notify_all()
        self._keeper.wake()
        assert isinstance(reply, Welcome), "the core takes nothing else for a greeting"
        self._events.greeted(reply.term)
        while True:
            for raw in frames:
                if not self._take(decode_answer(raw)):
                    return
            frames = connection.receive()
            if connection.tls_has_to_say:
                with self._send_lock:
                    if self._connection is connection:
                        self._send(b"")

    def _drop_connection(self) -> None:
        """With the lock held."""
        if self._connection is not None:
            self.away_ns = time.monotonic_ns()
            self._connection.shut_down()  # wakes the thread that receives; it closes the socket
            self._connection = None

    def _take(self, answer: Answer) -> bool:
        with self._send_lock:
            ended = self._core.take(answer)
            connected = self._core.connected
            if ended is None:
                self._unsent_ready.notify_all()  # it may have paused
        if ended is not None:
            if ended.error is not None and ClientCore.is_doubtful(ended):
                self._keeper.doubt()
            self._resume(ended)
        return connected

    def _notify(self, event: Event) -> None:
        callback = {"fenced": self._events.fenced, "renewed": self._events.renewed, "lost": self._events.lost}[event]
        try:
            callback()
        except Exception:
            self._log.exception("the callback for a session that is %s failed", event)

    def _resume_all(self, ended: Iterable[EndedRequest]) -> None:
        for one in ended:
            self._resume(one)

    def _resume(self, ended: EndedRequest) -> None:
        request = ended.request
        try:
            if request.repeated and request.on_repeated is not None:
                request.on_repeated()
            request.resume(ended.reply, ended.error)
        except Exception as error:  # whoever waits behind it waits for ever now: for a worker that is the end, and its successor asks again
            self._log.exception("a continuation of %s failed", type(request.body).__name__)
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread())))
