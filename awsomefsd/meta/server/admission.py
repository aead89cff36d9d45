"""Reads the requests that have arrived on a connection, refuses those its node may not send, and hands the rest to the leader."""

from __future__ import annotations

import errno

from awsomefsd.base.errors import ProtocolError
from awsomefsd.meta.api.bounds import check
from awsomefsd.meta.api.commands import OpenSession
from awsomefsd.meta.api.messages import PROTOCOL_OLDEST, Failed, Hello, Propose
from awsomefsd.meta.server.authorizer import Authorizer
from awsomefsd.meta.server.connections import ClientConnection, Connections
from awsomefsd.meta.server.leader import Leader
from awsomefsd.meta.server.request import AnyRequest


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
