"""Simulated sockets below the production connections: meta/server/connections.py runs unchanged, on our listener and epoll."""

from __future__ import annotations

from collections import deque
from typing import Any

from tests.sim.machines.links import End, Link
from tests.sim.shims import Epoll


class ServerSocket:
    """One accepted connection."""

    def __init__(self, node: Any, number: int) -> None:
        self._node = node
        self._number = number
        self.link: Link | None = None
        self.end: End | None = None
        self.arrived: deque[bytes] = deque()
        self.eof = False

    def fileno(self) -> int:
        return self._number

    def setblocking(self, flag: bool) -> None:
        pass

    def setsockopt(self, *arguments: Any) -> None:
        pass

    def send(self, data: bytes) -> int:
        assert self.link is not None and self.end is not None
        if self.eof:
            raise ConnectionResetError
        self.link.send(self.end, bytes(data), self._node.clock.ahead_ns)
        return len(data)

    def recv(self, count: int) -> bytes:
        if not self.arrived:
            if self.eof:
                return b""
            raise BlockingIOError
        data = self.arrived.popleft()
        if self.arrived or self.eof:
            self._node.epoll.ready[self._number] = 1
        return data

    def close(self) -> None:
        assert self.link is not None and self.end is not None
        self._node.epoll.unregister(self._number)
        self.link.close(self.end)

    # --- from the link -------------------------------------------------------------------------------------------------------
    def receive(self, raw: bytes) -> None:
        self.arrived.append(raw)
        self._node.epoll.ready[self._number] = 1
        self._node.wake()

    def closed(self) -> None:
        self.eof = True
        self._node.epoll.ready[self._number] = 1
        self._node.wake()


class Listener:
    """Accepts what mounts connect."""

    NUMBER = 3

    def __init__(self, node: Any) -> None:
        self._node = node
        self._waiting: deque[ServerSocket] = deque()
        self._next = 10

    def fileno(self) -> int:
        return self.NUMBER

    def setblocking(self, flag: bool) -> None:
        pass

    def accept(self) -> tuple[ServerSocket, str]:
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.popleft(), ""

    def close(self) -> None:
        pass

    def connect(self) -> ServerSocket:
        """A new connection, in the listen queue."""
        self._next += 1
        sock = ServerSocket(self._node, self._next)
        self._waiting.append(sock)
        epoll: Epoll = self._node.epoll
        epoll.ready[self.NUMBER] = 1
        self._node.wake()
        return sock
