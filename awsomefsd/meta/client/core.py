"""Decides which requests of a metadata client are open, what is sent when, and to whom: no thread, no socket.  Pure.

Answers and the passing of time come in; `send` (handed in) takes out what goes onto the present connection, and requests that have ended
are returned, for the caller to resume with no lock held.  client.py drives it with a socket and two threads, the simulator with messages.

Exactly once.  What has no answer stays outstanding, over any number of connections and leaders, and is sent again in order with the same
request id; whoever leads finds the stored result or commits it for the first time.  That needs one thing of the sender: a copy that was
left behind on an older connection must never be executed after its result was acknowledged.  So every connection of a mount has a number
(Hello.connection), and a leader that greets the next one reads nothing more from those before it; a leader that steps down ends all of
them, and one that does not lead greets nobody.

Following the leader.  NotLeader names the endpoint to go to; what is outstanding goes there.  Where nobody is named (an election), or the
named one cannot be reached, the configured endpoints are tried in turn, with a pause that grows.  With more than one place to go, or over
a network, a connection that owes an answer and says nothing for CLIENT_SILENCE_MS is given up: its node may be cut off from the others, or
be gone without a word.  A local socket ends with its daemon.

Bounds.  RPC_INFLIGHT_MAX requests are with the service at most, the others queue here; all together are CLIENT_QUEUED_MAX at most.  What
may wait there for long (_WAITING) is not counted, and what keeps the session and its leases does not queue (_UNCOUNTED): a thousand locks
that wait must not hold up a renewal, or the unlock for which they wait.  All that is said of leases passes the queue, so it stays in order.

Acknowledgements.  A proposal takes along those that wait.  One that was refused before it could be an entry brings them back.  A lock that
waits may never become an entry: it takes copies, and they wait on until it is granted.

Time-outs.  A request with a deadline ends with OutcomeUnknown: it may have been executed, or may yet be.  Nothing else times out.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from awsomefsd.base.errors import Error, FsError, Overloaded, Unavailable
from awsomefsd.base.limits import (
    ACKS_PER_REQUEST_MAX,
    CLIENT_QUEUED_MAX,
    CLIENT_SILENCE_MS,
    NS_PER_MS,
    RECONNECT_MS_MAX,
    RECONNECT_MS_MIN,
    RECONNECT_REMOTE_MS_MAX,
    RPC_INFLIGHT_MAX,
)
from awsomefsd.base.wait import Resume
from awsomefsd.meta.api.messages import (
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    Answer,
    AnswerRecall,
    AwaitRecalls,
    AwaitSpaceRecall,
    Body,
    Cancel,
    ExtendRecall,
    Failed,
    Follow,
    GetLease,
    Hello,
    NotLeader,
    Propose,
    ReleaseLeases,
    Renew,
    Reply,
    ReportLeases,
    ReturnLeases,
    WaitLock,
    Welcome,
)
from awsomefsd.meta.api.messages.snapshots import AnswerFlush, FlushVolumes
from awsomefsd.meta.client.endpoints import endpoint_of

RETRY_PAUSE_MS = 20
HELLO_CALL = 0
# an answer to these is owed only when something happens
_WAITING = frozenset({WaitLock, Follow, GetLease, AwaitRecalls, AwaitSpaceRecall, FlushVolumes})
_UNCOUNTED = _WAITING | {Renew, ReportLeases, AnswerRecall, ExtendRecall, ReleaseLeases, ReturnLeases, AnswerFlush}
_NO_ENTRY = frozenset({errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP})  # with these a proposal is refused before it is an entry


class GreetingRefused(Error):
    """The service does not speak our protocol version, or our node is not (any more) of its cluster; going on would not help."""

    def __init__(self, detail: str, number: int = errno.EPROTO) -> None:
        super().__init__(detail)
        self.errno = number


class OutcomeUnknown(Unavailable):
    """No answer before the deadline; the request may have been executed, or may yet be."""


class Outstanding:
    """One request until its final answer."""

    __slots__ = ("body", "cancelled", "deadline_ns", "on_repeated", "repeated", "resume", "sent", "sent_ns")

    def __init__(
        self, body: Body, resume: Resume, deadline_ns: int | None = None, on_repeated: Callable[[], None] | None = None
    ) -> None:
        """`on_repeated` is called before `resume` if the request was sent more than once."""
        self.body = body
        self.resume = resume
        self.deadline_ns = deadline_ns
        self.cancelled = False
        self.sent = self.repeated = False  # repeated: sent more than once, so the answer may be a result that was kept since the first time
        self.on_repeated = on_repeated
        self.sent_ns = 0  # told only where silence means something


class EndedRequest(NamedTuple):
    request: Outstanding
    reply: Reply | None
    error: BaseException | None


class ClientCore:
    """The caller calls one method at a time; none blocks.  `monotonic_ns` is only asked for pauses and deadlines."""

    def __init__(
        self,
        mount: int,
        endpoints: Sequence[str],
        send: Callable[[int, Body], None],
        monotonic_ns: Callable[[], int],
        client: int = 0,
    ) -> None:
        """`client`: a random number, which tells the leader whose connections are counted."""
        self.mount = mount
        self._client = client
        self.endpoint = endpoints[0]  # where to connect now
        self.connect_ns = 0  # when
        self.cluster_uuid = ""
        self.connections = 0  # greeted ones
        self._endpoints = list(endpoints)
        self._send = send
        self._now_ns = monotonic_ns
        self._connected = False
        self._numbers = 0
        self._turn = 0  # of the configured endpoints
        self._pause_ms = 0
        self._calls = HELLO_CALL
        self._outstanding: dict[int, Outstanding] = {}  # with the service, in order
        self._uncounted = 0  # of those, how many are of _UNCOUNTED
        self._queue: deque[Outstanding] = deque()  # over RPC_INFLIGHT_MAX
        self._retries: deque[tuple[int, Outstanding]] = deque()  # (when, refused request)
        self._waiting_locks: dict[int, Outstanding] = {}  # unique → WaitLock
        self._timed = 0  # how many open requests have a deadline
        self._acks: list[int] = []
        self._unacknowledged: set[int] = set()  # ids proposed here; what never was must not stand in the way of what makes room
        self._heard_ns = 0  # the last answer

    # --- requests ---------------------------------------------------------------------------------------------------------------
    def submit(self, request: Outstanding) -> EndedRequest | None:
        """Sends the request, or keeps it for later.  Returns its end if there is no room for it, else None."""
        if type(request.body) is WaitLock:
            self._waiting_locks[request.body.unique] = request
        if request.deadline_ns is not None:
            self._timed += 1
        if len(self._queue) + self._uncounted >= CLIENT_QUEUED_MAX:
            return self._end(request, None, Overloaded(f"{CLIENT_QUEUED_MAX} requests wait"))
        self._admit(request)
        return None

    def cancel(self, unique: int) -> None:
        """Ends the WaitLock of that id, if it still waits."""
        request = self._waiting_locks.get(unique)
        if request is not None:
            request.cancelled = True
            if self._connected:
                self._send(0, Cancel(unique))

    def register(self, unique: int) -> int:
        """Notes that a proposal with this id is made here and will be acknowledged some day; returns the id."""
        self._unacknowledged.add(unique)
        return unique

    def is_registered(self, unique: int) -> bool:
        """Returns whether a result of this id is to be acknowledged; most requests never had one."""
        return unique in self._unacknowledged

    def ack(self, unique: int) -> None:
        """Acknowledges the result of a registered id with a later proposal: it is not needed any more."""
        if unique in self._unacknowledged:
            self._unacknowledged.discard(unique)
            self._acks.append(unique)

    def ack_inherited(self, unique: int) -> None:
        """As `ack`, for a request that a predecessor may have proposed."""
        self._acks.append(unique)

    @property
    def acks_waiting(self) -> int:
        """Returns how many acknowledgements wait for a proposal."""
        return len(self._acks)

    def take_acks(self, count: int = ACKS_PER_REQUEST_MAX) -> list[int]:
        """Returns at most `count` acknowledgements for the next proposal; they wait no more."""
        if not self._acks:
            return []
        acks, self._acks = self._acks[:count], self._acks[count:]
        return acks

    def copy_acks(self) -> list[int]:
        """Returns acknowledgements for a WaitLock; they wait on until it is granted."""
        return self._acks[:ACKS_PER_REQUEST_MAX]

    def close(self, error: Error) -> list[EndedRequest]:
        """Ends everything that is open with that error; returns the ends."""
        ended = [*self._outstanding.values(), *self._queue, *(request for _, request in self._retries)]
        self._outstanding.clear()
        self._uncounted = 0
        self._queue.clear()
        self._retries.clear()
        return [self._end(request, None, error) for request in ended]

    # --- the connection ---------------------------------------------------------------------------------------------------------
    def learn(self, endpoints: Sequence[str]) -> None:
        """Takes the endpoints to ask from now on when nobody names the leader."""
        self._endpoints = list(endpoints)

    def hello(self) -> Hello:
        """Returns the first request for a new connection; its call is HELLO_CALL."""
        self._numbers += 1
        return Hello(PROTOCOL_VERSION, self.mount, 0, self._numbers, self._client)

    def on_greeting(self, reply: Reply) -> bool:
        """Takes the answer to `hello`.  True: everything outstanding was sent again.  False: close the connection and go to `endpoint`.

        Raises GreetingRefused where going on would not help.
        """
        if isinstance(reply, NotLeader):
            self._follow(reply)
            return False
        if not isinstance(reply, Welcome):
            self.on_disconnected()
            raise GreetingRefused(reply.detail, reply.errno) if isinstance(reply, Failed) else GreetingRefused(str(reply))
        if not PROTOCOL_OLDEST <= reply.version <= PROTOCOL_VERSION:
            self.on_disconnected()
            spoken = f"{PROTOCOL_OLDEST} to {PROTOCOL_VERSION}"
            raise GreetingRefused(f"protocol {reply.version}; this process speaks {spoken}: upgrade the older one")
        self.cluster_uuid = reply.cluster_uuid
        self.connections += 1
        self._connected = True
        self._pause_ms = 0
        self._heard_ns = self._now_ns()
        for call, request in self._outstanding.items():
            self._write(call, request)
        return True

    def on_disconnected(self) -> None:
        """Decides where (`endpoint`) and when (`connect_ns`) to try next: the connection ended, or could not be made."""
        self._connected = False
        if self.endpoint in self._endpoints and len(self._endpoints) > 1:
            self._turn = self._endpoints.index(self.endpoint) + 1
        self._go(self._endpoints[self._turn % len(self._endpoints)])

    def _follow(self, reply: NotLeader) -> None:
        endpoint = endpoint_of(reply.node, reply.address)
        if endpoint and endpoint != self.endpoint:
            self._connected = False
            self._go(endpoint)
        else:
            self.on_disconnected()

    def _go(self, endpoint: str) -> None:
        """Goes there at once the first time; later ones pause longer and longer, until somebody greets."""
        self.endpoint = endpoint
        self.connect_ns = self._now_ns() + self._pause_ms * NS_PER_MS
        pause_ms_max = RECONNECT_REMOTE_MS_MAX if "@" in endpoint else RECONNECT_MS_MAX
        self._pause_ms = min(max(self._pause_ms * 2, RECONNECT_MS_MIN), pause_ms_max)

    @property
    def connected(self) -> bool:
        """False after a NotLeader or a silence: close the connection, go to `endpoint` at `connect_ns`."""
        return self._connected

    # --- answers and time ---------------------------------------------------------------------------------------------------------
    def take(self, answer: Answer) -> EndedRequest | None:
        """Takes an answer of the present connection and returns what it ended, if anything.  Read `connected` afterwards."""
        request = self._outstanding.pop(answer.call, None)
        if request is None:
            return None
        reply = answer.reply
        if self.impatient:
            self._heard_ns = self._now_ns()
        if type(reply) is NotLeader:
            self._outstanding[answer.call] = request  # sent again, in its order, to whoever leads
            self._outstanding = dict(sorted(self._outstanding.items()))
            if self._connected:
                self._follow(reply)
            return None
        self._uncounted -= type(request.body) in _UNCOUNTED
        if self._connected:
            self._enter_queued()
        if type(reply) is Failed and reply.retry:
            self._retry_later(request)
            return None
        if type(reply) is Failed:
            return self._end(request, None, FsError(reply.errno, reply.detail))
        return self._end(request, reply, None)

    def tick(self) -> list[EndedRequest]:
        """Sends again what has paused long enough, gives up a silent connection, and returns what passed its deadline."""
        now = self._now_ns()
        while self._retries and self._retries[0][0] <= now:
            self._admit(self._retries.popleft()[1])
        if self._connected and self.impatient and self._patience_ns() <= now:
            self.on_disconnected()
        return self._time_out(now) if self._timed else []

    def due_ns(self) -> int | None:
        """Returns when `tick` is needed next, in ns of the monotonic clock; None: not before something else happens."""
        times = [self._retries[0][0]] if self._retries else []
        if self._timed:
            times += [request.deadline_ns for request in self._open() if request.deadline_ns is not None]
        if self._connected and self.impatient:
            times.append(self._patience_ns())
        return min(times, default=None)

    @property
    def impatient(self) -> bool:
        """True: there is another place to ask, or a network in between, so silence counts."""
        return len(self._endpoints) > 1 or self.endpoint != self._endpoints[0] or not self.endpoint.startswith("/")

    def _patience_ns(self) -> int:
        """Returns until when the present connection may say nothing."""
        owed = next((request.sent_ns for request in self._outstanding.values() if type(request.body) not in _WAITING), self._now_ns())
        return max(self._heard_ns, owed) + CLIENT_SILENCE_MS * NS_PER_MS

    def _open(self) -> list[Outstanding]:
        return [*self._outstanding.values(), *self._queue, *(request for _, request in self._retries)]

    def _time_out(self, now: int) -> list[EndedRequest]:
        late = [request for request in self._open() if request.deadline_ns is not None and request.deadline_ns <= now]
        if not late:
            return []
        gone = set(map(id, late))
        self._outstanding = {call: request for call, request in self._outstanding.items() if id(request) not in gone}
        self._uncounted = sum(type(request.body) in _UNCOUNTED for request in self._outstanding.values())
        self._queue = deque(request for request in self._queue if id(request) not in gone)
        self._retries = deque(item for item in self._retries if id(item[1]) not in gone)
        self._enter_queued()
        return [self._end(request, None, OutcomeUnknown("no answer in time; it may have been executed")) for request in late]

    # --- inside -------------------------------------------------------------------------------------------------------------------
    def _admit(self, request: Outstanding) -> None:
        if type(request.body) in _UNCOUNTED or self._has_room:
            self._enter(request)
        else:
            self._queue.append(request)

    @property
    def _has_room(self) -> bool:
        return len(self._outstanding) - self._uncounted < RPC_INFLIGHT_MAX

    def _enter_queued(self) -> None:
        while self._queue and self._has_room:
            self._enter(self._queue.popleft())

    def _enter(self, request: Outstanding) -> None:
        """Numbers the request and sends it, if there is a connection."""
        self._calls += 1
        self._uncounted += type(request.body) in _UNCOUNTED
        self._outstanding[self._calls] = request
        if self._connected:
            self._write(self._calls, request)

    def _write(self, call: int, request: Outstanding) -> None:
        if self.impatient:
            request.sent_ns = self._now_ns()
        request.sent, request.repeated = True, request.sent
        self._send(call, request.body)
        if request.cancelled and type(request.body) is WaitLock:
            self._send(0, Cancel(request.body.unique))

    def _retry_later(self, request: Outstanding) -> None:
        """Sends a refused request again after a pause; a proposal takes along the acknowledgements that came up since, which make room."""
        body = request.body
        if type(body) is Propose and self._acks:
            more = self.take_acks(ACKS_PER_REQUEST_MAX - len(body.acks))
            request.body = Propose(body.unique, body.session, body.epoch, body.acks + more, body.command)
        elif type(body) is WaitLock:
            request.body = replace(body, acks=self.copy_acks())
        self._retries.append((self._now_ns() + RETRY_PAUSE_MS * NS_PER_MS, request))

    def _end(self, request: Outstanding, reply: Reply | None, error: BaseException | None) -> EndedRequest:
        if request.deadline_ns is not None:
            self._timed -= 1
        body = request.body
        if type(body) is WaitLock:
            if self._waiting_locks.get(body.unique) is request:
                del self._waiting_locks[body.unique]
            if error is None and body.acks and not request.repeated:
                carried = set(body.acks)
                self._acks = [unique for unique in self._acks if unique not in carried]
        elif type(body) is Propose and (request.repeated or (isinstance(error, FsError) and error.errno in _NO_ENTRY)):
            self._acks += body.acks  # of a repeated one: the leader may have answered with the result that it kept of an earlier copy
        return EndedRequest(request, reply, error)

    @staticmethod
    def is_doubtful(ended: EndedRequest) -> bool:
        """True: a proposal was refused as of an ended session."""
        error = ended.error
        return isinstance(error, FsError) and error.errno == errno.ESTALE and type(ended.request.body) in (Propose, WaitLock)
