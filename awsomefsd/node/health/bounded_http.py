"""An HTTP server for whoever reaches its address: what strangers can make it cost is bounded.

At most `connections_max` are served at a time, each for `connection_s` at most, whatever it does.  One more takes the place of another, the
oldest of the source that has the most (base/sources.py).  Each connection has a thread; one that has lost its place gets a moment to end.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from awsomefsd.base.sources import gives_place

LEAVE_S = 1.0  # for so long a new connection waits for the thread of one that has lost its place


class BoundedHttpServer(ThreadingHTTPServer):
    """The server on a listening socket, which it owns.  `serve_forever` runs on a thread of its owner; any thread may call `shutdown`."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler], connections_max: int, connection_s: float) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.connection_s = connection_s
        self._connections_max = connections_max
        self._lock = threading.Condition()  # guards _places and _ends; told when a connection has left
        self._places: dict[socket.socket, str] = {}  # those that are served, with their addresses, oldest first
        self._ends: dict[socket.socket, float] = {}  # those and the ones whose thread has yet to end; 0: has lost its place
        self.turned_away = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        """Called by the thread that accepts: gives the connection a place and a thread."""
        remote = str(client_address[0]) if client_address else ""  # a unix peer has none
        with self._lock:
            if len(self._places) >= self._connections_max:
                self._drop(gives_place(self._places, remote))
            refused = not self._lock.wait_for(lambda: len(self._ends) < 2 * self._connections_max, LEAVE_S)
            if not refused:
                self._places[request] = remote
                self._ends[request] = time.monotonic() + self.connection_s
        if refused:
            self.turned_away += 1
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def _drop(self, connection: socket.socket) -> None:
        """Ends a connection; its thread finds that out."""
        del self._places[connection]
        self._ends[connection] = 0.0
        self.turned_away += 1
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS too the plain one: what its thread still sends goes nowhere

    def service_actions(self) -> None:
        """Called by the thread that accepts, twice a second: ends what has lasted too long."""
        now = time.monotonic()
        with self._lock:
            for connection in [one for one, end in self._ends.items() if 0 < end < now]:
                self._drop(connection)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._places.pop(request, None)
            self._ends.pop(request, None)
            self._lock.notify_all()
        super().shutdown_request(request)
