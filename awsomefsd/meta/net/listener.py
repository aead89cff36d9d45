"""The metadata port: one TCP listener for voters and clients of other nodes; a connection is handed on when it has proved its node.

Everything here is done on the metadata thread, in small steps, and strangers can connect.  So a handshake has a deadline.  There is a bound
on their number: over it the oldest of the address that has the most is given up (base/sources.py), since an honest peer is done in a few
round trips, and one that only occupies places loses them.  One turn makes no more than a few steps of them, since each costs
cryptography.  A peer that sends nonsense, no certificate, or one that is not the cluster's, has failed its handshake: it is dropped and
counted, and logged once a second at most.  Without free descriptors the listener rests for a second while the kernel's queue keeps those
that wait; asking it all the time would take the whole thread.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable

from awsomefsd.base.limits import HANDSHAKE_MS_MAX, HANDSHAKES_MAX, HANDSHAKES_PER_TURN, NS_PER_MS, PORT_DEAF_MS, PORT_QUEUE
from awsomefsd.base.sources import gives_place
from awsomefsd.base.tls import CLIENT_PROTOCOL, PEER_PROTOCOL, TlsNow
from awsomefsd.config import ports
from awsomefsd.meta.net.connection import Wire, prepare
from awsomefsd.meta.net.traffic import Tally

log = logging.getLogger(__name__)
_ACCEPTS_PER_TURN = 16
_LOG_NS = 1_000_000_000


class MetadataPort:
    """The listener and the handshakes on it.  One thread uses it; nothing blocks.  `fd` is readable when `poll` has something to do."""

    def __init__(self, listener: socket.socket, tls: TlsNow | None, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._listener = listener
        self._tls = tls
        self._monotonic_ns = monotonic_ns
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        self._shaking: dict[int, tuple[Wire, int, str]] = {}  # descriptor → wire, since when, from where; the oldest first
        self._deaf_ns = 0  # until when the listener rests
        self._logged_ns = 0
        self.accepted = self.failed = self.crowded_out = self.deaf = 0
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    @classmethod
    def listen(cls, at: tuple[str, int], tls: TlsNow | None) -> MetadataPort:
        """Returns a port that listens at (host, port).  Raises OSError, which names the setting and who has the port."""
        family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
        try:
            listener = socket.create_server(at, family=family, backlog=PORT_QUEUE)
        except OSError as err:
            raise OSError(err.errno, ports.taken("metadata.listen", f"{at[0]}:{at[1]}", err)) from err
        try:
            return cls(listener, tls)
        except BaseException:
            listener.close()
            raise

    @property
    def address(self) -> tuple[str, int]:
        """The (host, port) at which it listens."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def poll(self) -> list[Wire]:
        """Returns connections that have proved their node; `Wire.protocol` says whether a voter or a client dialled.

        The caller owns them.
        """
        done: list[Wire] = []
        steps = 0
        for fd, _events in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif steps < HANDSHAKES_PER_TURN and fd in self._shaking:
                steps += 1
                self._step(fd, done)
        return done

    def tick(self) -> None:
        """Gives up handshakes that are too old, and listens again after a rest."""
        now = self._monotonic_ns()
        late = now - HANDSHAKE_MS_MAX * NS_PER_MS
        for fd, (_, since_ns, _) in list(self._shaking.items()):
            if since_ns > late:
                break
            self._drop(fd, "no handshake in time")
        if self._deaf_ns and now >= self._deaf_ns:
            self._deaf_ns = 0
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def next_deadline_ns(self) -> int | None:
        """Returns the monotonic time at which `tick` is due; None if only an event makes it due."""
        times = [since_ns + HANDSHAKE_MS_MAX * NS_PER_MS for _, since_ns, _ in list(self._shaking.values())[:1]]
        if self._deaf_ns:
            times.append(self._deaf_ns)
        return min(times, default=None)

    def figures(self) -> dict[str, int]:
        """Returns the figures for metrics: name → count."""
        return {
            "port_accepted": self.accepted,
            "port_handshakes": len(self._shaking),
            "port_handshakes_failed": self.failed,
            "port_crowded_out": self.crowded_out,
            "port_deaf": self.deaf,
        }

    def close(self) -> None:
        for wire, _, _ in self._shaking.values():
            wire.close()
        self._shaking.clear()
        self._listener.close()
        self._epoll.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, place = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as err:
                log.warning("cannot accept a connection of another node: %s", err)
                self.deaf += 1
                self._deaf_ns = self._monotonic_ns() + PORT_DEAF_MS * NS_PER_MS
                self._epoll.unregister(self._listener.fileno())
                return
            self.accepted += 1
            if len(self._shaking) >= HANDSHAKES_MAX:
                self.crowded_out += 1
                addresses = {fd: remote for fd, (_, _, remote) in self._shaking.items()}
                self._drop(gives_place(addresses, str(place[0])), "too many unauthenticated connections at once")
            try:
                prepare(sock)
                tls = self._tls().server if self._tls else None
                wire = Wire(sock, tls, dialled=False, name="", tally=Tally())  # nobody's bytes until the peer has greeted
            except OSError as err:
                self._failed(str(place[0]), str(err))
                sock.close()
                continue
            self._shaking[wire.fd] = (wire, self._monotonic_ns(), str(place[0]))
            self._epoll.register(wire.fd, wire.events)

    def _step(self, fd: int, done: list[Wire]) -> None:
        wire = self._shaking[fd][0]
        try:
            if not wire.advance():
                self._epoll.modify(fd, wire.events)
                return
        except OSError as err:
            self._drop(fd, str(err))
            return
        if wire.protocol not in (PEER_PROTOCOL, CLIENT_PROTOCOL):
            self._drop(fd, "it offers no protocol that this node speaks")
            return
        if self._tls is not None and wire.identity is None:
            self._drop(fd, "its certificate does not name one node")
            return
        del self._shaking[fd]
        self._epoll.unregister(fd)
        done.append(wire)

    def _drop(self, fd: int, why: str) -> None:
        wire, _, place = self._shaking.pop(fd)
        self._failed(place, why)
        wire.close()

    def _failed(self, place: str, why: str) -> None:
        self.failed += 1
        now = self._monotonic_ns()
        if now - self._logged_ns >= _LOG_NS:
            self._logged_ns = now
            log.warning("a connection to the metadata port failed", extra={"from": place, "reason": why, "failed": self.failed})
