"""Brings the requests of a turn to the leader: those on a connection, if its node may send them, and those of this process."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable

from awsomefsd.base.codec import encode
from awsomefsd.base.errors import ProtocolError, Unavailable
from awsomefsd.meta.api.bounds import check
from awsomefsd.meta.api.commands import OpenSession
from awsomefsd.meta.api.messages import PROTOCOL_OLDEST, Body, Failed, Hello, Propose, Reply
from awsomefsd.meta.server.authorizer import Authorizer
from awsomefsd.meta.server.connections import ClientConnection, Connections
from awsomefsd.meta.server.leader import Leader
from awsomefsd.meta.server.request import AnyRequest, Request

LOCAL_REQUESTS_MAX = 1_024


class Admission:
    """Used by the metadata thread only; nothing blocks."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def start(self, leader: Leader, connections: Connections, connection: ClientConnection) -> None:
        try:
            while not leader.is_full:
                request = connections.next_request(connection)
                if request is None:
                    break
                if self._refuse_unsound(request) or not self._admit(connections, connection, request):
                    continue
                if isinstance(request.body, Propose) and isinstance(request.body.command, OpenSession) and request.body.command.worker > 1:
                    self._end_predecessors(leader, connections, connection)
                leader.handle(request)
                if isinstance(request.body, Hello) and request.body.version < PROTOCOL_OLDEST:
                    connections.end(connection)  # after the answer that says why
        except ProtocolError as err:
            connections.blame(connection, err)
        connections.put_back(connection)

    def _refuse_unsound(self, request: AnyRequest) -> bool:
        """Answers EINVAL to a request with numbers out of their bounds, and returns True.

        The connection goes on: a client whose connection ended for it would only send the request again.
        """
        try:
            check(request.body)
        except ProtocolError as err:
            request.answer(Failed(errno.EINVAL, str(err)))
            return True
        return False

    def _admit(self, connections: Connections, connection: ClientConnection, request: AnyRequest) -> bool:
        """Returns whether the node at the other end may ask that; if not, it is answered EACCES with the reason."""
        if connection.who is None:
            return True
        reason = self._authorizer.refusal(connection.who, connection.mount, request.body)
        if not reason:
            return True
        request.answer(Failed(errno.EACCES, reason))
        if isinstance(request.body, Hello):
            connections.end(connection)
        return False

    def poll_fallen(self, connections: Connections) -> list[ClientConnection]:
        """Returns the connections of nodes that were removed or whose role changed since the last call; the caller closes them."""
        if not self._authorizer.refresh():
            return []
        return [one for one in connections.remote() if one.greeted and one.who is not None and self._authorizer.why_no_client(one.who)]

    def _end_predecessors(self, leader: Leader, connections: Connections, successor: ClientConnection) -> None:
        """Closes the older connections of a mount whose worker opens its session: what they had sent and we have not read is void.

        The successor repeats it under the same ids; were the unread copy taken after the successor had acknowledged the result, it would
        be executed twice.
        """
        for connection in connections.of_mount(successor.mount):
            if connection is not successor:
                connections.close(connection)
                leader.drop_origin(connection)


class _LocalRequest:
    """A request of this process and its answer.  Implements request.Origin."""

    mount = 0

    def __init__(self, body: Body, size: int) -> None:
        self.body = body
        self.size = size
        self.done = threading.Event()
        self.reply: Reply | None = None

    def answer(self, call: int, reply: Reply) -> None:
        self.reply = reply
        self.done.set()


class LocalRequests:
    """The requests of this process.  Any thread calls `ask` and `accepting`; the rest is the metadata thread's.

    They are accepted between `open` and `close`, which may follow each other again and again.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` ends a wait of the metadata thread."""
        self._wake = wake
        self._waiting: deque[_LocalRequest] = deque()
        self._taken: list[_LocalRequest] = []  # handed to the leader, not all of them answered yet
        self._lock = threading.Lock()  # guards _waiting against _accepting
        self._accepting = False

    @property
    def accepting(self) -> bool:
        return self._accepting

    def ask(self, body: Body, timeout_s: float) -> Reply:
        """Returns the reply to a request; Failed is one too.  Blocks at most `timeout_s` seconds.

        Raises Unavailable if there is no answer in time, or no service; a command may still be committed then.
        """
        try:
            check(body)  # before it is encoded: a number over 64 bits cannot be
        except ProtocolError as err:
            return Failed(errno.EINVAL, str(err))
        local = _LocalRequest(body, len(encode(body)))
        with self._lock:
            if not self._accepting:
                raise Unavailable("the metadata service does not run")
            if len(self._waiting) >= LOCAL_REQUESTS_MAX:
                raise Unavailable("too many requests of the daemon itself wait for the metadata service")
            self._waiting.append(local)
            self._wake()
        if not local.done.wait(timeout_s):
            raise Unavailable(f"the metadata service gave no answer within {timeout_s} s")
        if local.reply is None:
            raise Unavailable("the metadata service has ended")
        return local.reply

    def open(self) -> None:
        self._accepting = True

    @property
    def any_waiting(self) -> bool:
        return bool(self._waiting)

    def hand_in(self, leader: Leader) -> None:
        """Hands the leader what waits, as far as it takes any."""
        if self._waiting or self._taken:
            self._taken = [local for local in self._taken if not local.done.is_set()]
        while self._waiting and not leader.is_full:
            local = self._waiting.popleft()
            self._taken.append(local)
            try:
                leader.handle(Request(local, 0, local.body, local.size))
            except ProtocolError as err:
                local.answer(0, Failed(errno.EINVAL, str(err)))

    def close(self) -> None:
        """Accepts nothing more; whoever waits for an answer gets Unavailable."""
        with self._lock:
            self._accepting = False
            ended = [*self._taken, *self._waiting]
            self._waiting.clear()
        self._taken.clear()
        for local in ended:
            local.done.set()
