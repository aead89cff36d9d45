"""One connection between two nodes: bytes and TLS, no protocol.

Nothing blocks; bytes that the socket does not take wait in a bounded buffer.  A TLS socket may want to read before it can write and the
other way round; so every event leads to the same three steps: connect or shake hands if that is not done, read what there is, write what
waits.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from typing import Any

from awsomefsd.base.frames import FrameReader, pack_length
from awsomefsd.base.limits import GREETING_BYTES_MAX, PEER_QUEUE_BYTES_MAX, PEER_STUCK_MS_MAX, RPC_FRAME_BYTES_MAX
from awsomefsd.base.tls import PEER_PROTOCOL, PeerIdentity, identity_of
from awsomefsd.meta.net.traffic import Tally

RECEIVE_BYTES = 64 << 10
RECEIVES_PER_EVENT = 16  # then the others have their turn
_WAITING = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def prepare(sock: socket.socket) -> None:
    """Sets the socket's options: no blocking, no delay for small frames; a peer that acknowledges nothing for PEER_STUCK_MS_MAX is gone."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_STUCK_MS_MAX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Wire:
    """A connection, TLS or (`tls` None) plain TCP.  One thread uses it; nothing blocks.

    Every method may raise OSError (ssl.SSLError is one): the connection is over.
    """

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None, *, dialled: bool, name: str, tally: Tally) -> None:
        """`name`: the node that the other side must prove to be, if we `dialled`.  Its bytes count in `tally`."""
        self._tcp_connecting = dialled
        if tls is not None:
            hostname = name if dialled else None
            sock = tls.wrap_socket(sock, server_side=not dialled, do_handshake_on_connect=False, server_hostname=hostname)
        self.sock = sock
        self.fd = sock.fileno()
        self._shaking = tls is not None
        self._tls = tls is not None
        self._reader = FrameReader(GREETING_BYTES_MAX)
        self._out = bytearray()
        self._write_wanted = dialled
        self._tally = tally

    @property
    def connected(self) -> bool:
        """True when the connection stands and the handshake is done."""
        return not self._tcp_connecting and not self._shaking

    @property
    def queued_bytes(self) -> int:
        """The bytes that `put` took and the socket did not."""
        return len(self._out)

    @property
    def events(self) -> int:
        """The epoll events to wait for now."""
        return select.EPOLLIN | (select.EPOLLOUT if self._write_wanted or (self._out and self.connected) else 0)

    @property
    def protocol(self) -> str:
        """The protocol that the other side named (ALPN), "" if it named none; without TLS there are voters only."""
        return (self.sock.selected_alpn_protocol() or "") if isinstance(self.sock, ssl.SSLSocket) else PEER_PROTOCOL

    @property
    def identity(self) -> PeerIdentity | None:
        """The identity that the peer's certificate proves; None without TLS, or when it names no node."""
        if not isinstance(self.sock, ssl.SSLSocket):
            return None
        certificate: Any = self.sock.getpeercert()
        return identity_of(certificate)

    def greeted(self, tally: Tally) -> None:
        """Allows large frames from now on, and counts in `tally`, that of its node: the peer has greeted."""
        self._reader.bytes_max = RPC_FRAME_BYTES_MAX
        self._tally = tally

    def put(self, body: bytes) -> bool:
        """Queues one frame; returns False if it was dropped because too much waits."""
        if len(self._out) + len(body) > PEER_QUEUE_BYTES_MAX:
            return False
        self._out += pack_length(len(body))
        self._out += body
        return True

    def advance(self) -> bool:
        """Connects and shakes hands as far as it goes now; returns True when it is done."""
        if self._tcp_connecting:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            try:
                self.sock.getpeername()
            except OSError as err:
                if err.errno == errno.ENOTCONN:
                    return False
                raise
            self._tcp_connecting = self._write_wanted = False
        if self._shaking:
            assert isinstance(self.sock, ssl.SSLSocket)
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                self._write_wanted = False
                return False
            except ssl.SSLWantWriteError:
                self._write_wanted = True
                return False
            self._shaking = self._write_wanted = False
        return True

    def receive(self) -> list[bytes]:
        """Returns the whole frames that have come.

        Raises ConnectionResetError at the end of the stream, ProtocolError for a frame over the bound.
        """
        frames: list[bytes] = []
        for _ in range(RECEIVES_PER_EVENT):
            try:
                data = self.sock.recv(RECEIVE_BYTES)
            except _WAITING:
                break
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
            self._tally.received += len(data)
            frames += self._reader.feed(data)
            if len(data) < RECEIVE_BYTES and not self._tls:
                break
        return frames

    def flush(self) -> bool:
        """Sends what the socket takes; returns True if it took something."""
        moved = False
        while self._out:
            try:
                sent = self.sock.send(self._out)
            except _WAITING:
                break
            self._tally.sent += sent
            del self._out[:sent]
            moved = True
        return moved

    @property
    def pending(self) -> bool:
        """True if decrypted bytes wait for which no event will come."""
        return isinstance(self.sock, ssl.SSLSocket) and self.connected and self.sock.pending() > 0

    def close(self) -> None:
        self.sock.close()
