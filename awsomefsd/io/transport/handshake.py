"""The handshake of a connection to a segment server of another node: TLS 1.3, then keys for sealed records on the same socket.

Both sides show their certificates, as on the metadata port, and name the protocol (ALPN): a certificate alone does not get a stranger's
protocol onto this port, nor this one onto another.  The dialler checks that the certificate is of the node that it means to reach.  Then
each side sends 32 random bytes inside TLS, the dialler first, and that is the last that TLS carries.

    dialler                         acceptor
    handshake            ⇄          handshake
    32 random bytes      →
                         ←          32 random bytes
    sealed records       ⇄          sealed records

Nothing of TLS may be left in the stream behind that: no session tickets are sent (`base/tls.py`), no close_notify; whoever sends more than
its 32 bytes, or anything before it could know the other's, has broken the protocol.  TLS has memory on both sides, so that what was read
beyond the handshake is seen, and refused, and does not disappear in a buffer of OpenSSL.

What TLS allows beside that (empty records, new keys, a hello in a thousand pieces) is bounded by the bytes of all of it, and by the
deadline, which passes also for whoever always has more to say.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import time
from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import NS_PER_MS, SEGMENT_HANDSHAKE_BYTES_MAX
from awsomefsd.base.tls import SEGMENT_PROTOCOL, PeerIdentity, identity_of
from awsomefsd.io.transport.seal import RANDOM_BYTES, Keys, draw, keys_of

_RECEIVE_BYTES = 16 << 10


def deadline_after(ms: int) -> int:
    """Returns the monotonic time so many milliseconds from now, in nanoseconds."""
    return time.monotonic_ns() + ms * NS_PER_MS


def wait_for(sock: socket.socket, event: int, deadline_ns: int | None) -> None:
    """Blocks until the socket is ready for `event` (of poll), or at its end.  Raises TimeoutError at the deadline (None: never)."""
    poll = select.poll()
    poll.register(sock.fileno(), event)
    left_ms = None if deadline_ns is None else max(0, (deadline_ns - time.monotonic_ns() + NS_PER_MS - 1) // NS_PER_MS)
    if not poll.poll(left_ms):
        raise TimeoutError(errno.ETIMEDOUT, "no progress in time")


class _Shaking:
    """One side of the handshake, on a socket that does not block."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, node: str | None, deadline_ns: int) -> None:
        self._sock = sock
        self._deadline_ns = deadline_ns
        self._received = 0
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=node is None, server_hostname=node)

    def shake(self) -> PeerIdentity:
        """Returns the node that the other side has proved to be.  Raises TimeoutError at the deadline."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._say()
                self._listen()
            except OSError:
                self._say()  # the alert, so that the other side knows why
                raise
            else:
                self._say()
                break
        if self._tls.selected_alpn_protocol() != SEGMENT_PROTOCOL:
            raise ProtocolError("it does not speak the protocol of segment servers")
        certificate: Any = self._tls.getpeercert()
        found = identity_of(certificate)
        if found is None:
            raise ProtocolError("its certificate does not name one node")
        return found

    def send(self, random: bytes) -> None:
        self._tls.write(random)
        self._say()

    def receive(self) -> bytes:
        """Returns the 32 bytes of the other side, behind which there may be nothing.  Raises TimeoutError at the deadline."""
        got = b""
        while len(got) < RANDOM_BYTES:
            try:
                got += self._tls.read(RANDOM_BYTES + 1 - len(got))
            except ssl.SSLWantReadError:
                self._listen()
        if len(got) != RANDOM_BYTES or self._tls.pending() or self._incoming.pending:
            raise ProtocolError("there is more inside the handshake than belongs there")
        return got

    def _say(self) -> None:
        data = memoryview(self._outgoing.read())
        while data:
            wait_for(self._sock, select.POLLOUT, self._deadline_ns)
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                pass

    def _listen(self) -> None:
        if time.monotonic_ns() >= self._deadline_ns:  # although there may be something to read
            raise TimeoutError(errno.ETIMEDOUT, "the handshake was not over in time")
        wait_for(self._sock, select.POLLIN, self._deadline_ns)
        try:
            raw = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not raw:
            raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
        self._received += len(raw)
        if self._received > SEGMENT_HANDSHAKE_BYTES_MAX:
            raise ProtocolError(f"more than {SEGMENT_HANDSHAKE_BYTES_MAX} bytes for a handshake")
        self._incoming.write(raw)


def dial(sock: socket.socket, context: ssl.SSLContext, node: str, own: str, deadline_ns: int) -> Keys:
    """Shakes hands on a connected socket with the node `node` (a UUID), as node `own`.  Returns the keys of this side.

    Blocks until the deadline at most.  Raises OSError (ssl.SSLError is one) or ProtocolError: the connection is over.
    """
    sock.setblocking(False)
    shaking = _Shaking(sock, context, node, deadline_ns)
    shaking.shake()
    ours = draw()
    shaking.send(ours)
    return keys_of(ours, shaking.receive(), own, node, dialled=True)


def accept(sock: socket.socket, context: ssl.SSLContext, own: str, deadline_ns: int) -> tuple[PeerIdentity, Keys]:
    """Shakes hands on an accepted socket, as node `own`.  Returns who dialled, and the keys of this side.  Blocks and raises as `dial`."""
    sock.setblocking(False)
    shaking = _Shaking(sock, context, None, deadline_ns)
    peer = shaking.shake()
    theirs = shaking.receive()
    ours = draw()
    shaking.send(ours)
    return peer, keys_of(theirs, ours, peer.node, own, dialled=False)
