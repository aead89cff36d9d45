"""One connection of a client to a metadata service: socket, TLS where the service is another node's, and what the socket did not take yet.

The service is this node's, over its unix socket, or another node's, over TLS (tls_layer.py; loaded when that is needed first).  A frame is
sent without waiting.  When the socket is full, the rest waits here, and later frames queue behind it; a thread that may wait sends it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from awsomefsd.base import sockets
from awsomefsd.base.frames import FrameReader
from awsomefsd.base.limits import CLIENT_CONNECT_MS, CLIENT_STUCK_MS_MAX
from awsomefsd.meta.client.endpoints import split

if TYPE_CHECKING:
    from awsomefsd.base.tls import TlsNow
    from awsomefsd.meta.client.tls_layer import TlsLayer

RECEIVE_BYTES = 64 << 10  # the C library maps and unmaps larger buffers anew: three system calls for each answer
SEND_BYTES = 256 << 10


def connect(endpoint: str) -> socket.socket:
    """Connects to a metadata service, without a handshake; endpoints.py says what an endpoint is.

    Blocks at most CLIENT_CONNECT_MS.  Raises OSError.
    """
    if endpoint.startswith("/"):
        return sockets.connect_unix(Path(endpoint))
    _, host, port = split(endpoint)
    sock = sockets.connect_tcp(host, port, CLIENT_CONNECT_MS / 1_000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLIENT_STUCK_MS_MAX)
    return sock


class ServiceConnection:
    """Two threads use it: one receives, one at a time sends; the client's lock guards what is unsent.

    Methods but `shut_down` may raise OSError (ssl.SSLError is one), those that receive also ProtocolError: the connection is over.
    """

    def __init__(self, sock: socket.socket, endpoint: str, tls: Callable[[], TlsNow], timeout_s: float) -> None:
        """Takes a connected socket to `endpoint`, and shakes hands over a network; blocks at most `timeout_s` for each step of that."""
        self._sock = sock
        self._reader = FrameReader()
        self._unsent = bytearray()
        sock.settimeout(timeout_s)
        self._layer = None if endpoint.startswith("/") else _shaken(sock, tls, split(endpoint)[0])

    def greet(self, greeting: bytes) -> list[bytes]:
        """Sends the first frame and returns those that answer it, at least one; blocks as the constructor does."""
        self._sock.sendall(greeting if self._layer is None else self._layer.seal(greeting))
        frames: list[bytes] = []
        while not frames:
            frames = self.receive()
        self._sock.settimeout(None)
        return frames

    def receive(self) -> list[bytes]:
        """Returns the whole frames that have come; blocks until there is something.  Raises ConnectionResetError at the end."""
        data = self._sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("closed by the service")
        if self._layer is not None:
            data = self._layer.open(data)
        return self._reader.feed(data) if data else []

    @property
    def tls_has_to_say(self) -> bool:
        """True: `send(b"")` is due, because TLS itself was asked something (a change of keys)."""
        return self._layer is not None and self._layer.has_to_say

    # --- sending, with the client's lock held -------------------------------------------------------------------------------------
    def send(self, data: bytes) -> bool:
        """Sends what the socket takes now; without data, what TLS itself has to say.

        False: some of it waits now where nothing waited before, so `send_waiting` is due.
        """
        if self._layer is not None:
            data = self._layer.seal(data)
        if self._unsent:
            self._unsent += data
            return True
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
        return sent == len(data)

    @property
    def any_waiting(self) -> bool:
        return bool(self._unsent)

    @property
    def first_waiting(self) -> bytes:
        """The first bytes that wait; b"" if none do."""
        return bytes(memoryview(self._unsent)[:SEND_BYTES])

    def taken(self, count: int) -> None:
        """The socket has taken so many of the bytes that wait (`send_waiting`)."""
        del self._unsent[:count]

    # --- with no lock held ----------------------------------------------------------------------------------------------------------
    def send_waiting(self, piece: bytes) -> int:
        """Sends the first bytes that wait, and returns how many the socket took; blocks until it takes some."""
        return self._sock.send(piece)

    def shut_down(self) -> None:
        """Ends it: whoever receives or sends here wakes up with an error.  Never raises."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def _shaken(sock: socket.socket, tls: Callable[[], TlsNow], node: str) -> TlsLayer:
    from awsomefsd.meta.client.tls_layer import TlsLayer

    layer = TlsLayer(tls()().client, node)
    layer.shake(sock)
    return layer
