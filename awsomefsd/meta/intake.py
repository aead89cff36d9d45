"""From a connection to the leader: which of the requests that have come are handed in, and whose are not."""

from __future__ import annotations

import errno

from awsomefsd.errors import ProtocolError
from awsomefsd.meta.commands import OpenSession
from awsomefsd.meta.guard import Guard
from awsomefsd.meta.leader import Leader
from awsomefsd.meta.messages import PROTOCOL_OLDEST, Failed, Hello, Propose, Request
from awsomefsd.meta.ranges import check
from awsomefsd.meta.service_connections import Connection, Connections


class Intake:
    """Used by the metadata thread only."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def start(self, leader: Leader, connections: Connections, connection: Connection) -> None:
        try:
            while not leader.full:
                found = connections.next_request(connection)
                if found is None:
                    break
                request, size = found
                if self._refused(connection, request) or not self._allowed(connections, connection, request):
                    continue
                if isinstance(request.body, Propose) and isinstance(request.body.command, OpenSession) and request.body.command.worker > 1:
                    self._end_predecessors(leader, connections, connection)
                leader.handle(connection, request.call, request.body, size)
                if isinstance(request.body, Hello) and request.body.version < PROTOCOL_OLDEST:
                    connections.end(connection)  # after the answer that says why
        except ProtocolError as err:
            connections.blame(connection, err)
        connections.put_back(connection)

    def _refused(self, connection: Connection, request: Request) -> bool:
        """Numbers that cannot be are this request's error alone: a client whose connection ended for it would only send it again."""
        try:
            check(request.body)
        except ProtocolError as err:
            connection.answer(request.call, Failed(errno.EINVAL, str(err)))
            return True
        return False

    def _allowed(self, connections: Connections, connection: Connection, request: Request) -> bool:
        """Whether the node at the other end may ask that; it is told why not."""
        if connection.who is None:
            return True
        reason = self._guard.refusal(connection.who, connection.mount, request.body)
        if not reason:
            return True
        connection.answer(request.call, Failed(errno.EACCES, reason))
        if isinstance(request.body, Hello):
            connections.end(connection)
        return False

    def fallen(self, connections: Connections) -> list[Connection]:
        """Connections of nodes that were removed, or whose role changed."""
        if not self._guard.look():
            return []
        return [one for one in connections.remote() if one.greeted and one.who is not None and self._guard.no_client(one.who)]

    def _end_predecessors(self, leader: Leader, connections: Connections, successor: Connection) -> None:
        """A worker opens its mount's session: what an earlier one of the mount had sent and we have not read is void.

        The successor repeats it under the same ids; were the unread copy taken after the successor had acknowledged the result, it would
        be executed twice.
        """
        for connection in connections.of_mount(successor.mount):
            if connection is not successor:
                connections.close(connection)
                leader.drop_origin(connection)
