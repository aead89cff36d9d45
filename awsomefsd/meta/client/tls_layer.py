"""Puts TLS between a client's frames and its socket: bytes in, bytes out.  Imported only where there is another node to talk to.

An SSLSocket must not be read by one thread while another writes: they share OpenSSL's state.  Here that state has memory on both sides
instead of a socket, and a lock around each step; no step waits for the network.  So a client's threads send and receive as they do on a
unix socket: whoever sends seals a frame and sends the result, in the same order, under the client's own lock.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading

RECEIVE_BYTES = 64 << 10


class TlsLayer:
    """Thread-safe after `shake`.  Every method may raise OSError (ssl.SSLError is one): the connection is over."""

    def __init__(self, context: ssl.SSLContext, node: str) -> None:
        """`node`: the UUID that the other side's certificate must name."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._lock = threading.Lock()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=False, server_hostname=node)

    def shake(self, sock: socket.socket) -> None:
        """Shakes hands; blocks as long as the socket's time-out lets it."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._say(sock)
                raw = sock.recv(RECEIVE_BYTES)
                if not raw:
                    raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake") from None
                self._incoming.write(raw)
            except OSError:
                self._say(sock)  # the alert, so that the other side knows why
                raise
            else:
                self._say(sock)
                return

    def _say(self, sock: socket.socket) -> None:
        if self._outgoing.pending:
            sock.sendall(self._outgoing.read())

    def seal(self, data: bytes) -> bytes:
        """Returns what to send for `data`, and whatever else TLS has to say; it must be sent before anything sealed later."""
        with self._lock:
            if data:
                self._tls.write(data)
            return self._outgoing.read()

    def open(self, raw: bytes) -> bytes:
        """Returns the data in what was received; b"" if none is complete."""
        pieces: list[bytes] = []
        with self._lock:
            self._incoming.write(raw)
            while True:
                try:
                    piece = self._tls.read(RECEIVE_BYTES)
                except ssl.SSLWantReadError:
                    return b"".join(pieces)
                if not piece:
                    raise ConnectionResetError(errno.ECONNRESET, "closed by the service")
                pieces.append(piece)

    @property
    def has_to_say(self) -> bool:
        """True: an answer of TLS itself (to a change of keys) waits for `seal`."""
        return self._outgoing.pending > 0
