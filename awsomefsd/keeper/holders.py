"""The other holders of the mounts' descriptors (decision 146): daemon, supervisor, and the service manager (descriptor_store.py).

They keep what the keeper sends, and give it to the keeper that comes next, so keeper and worker of a mount may be killed at once.  They
never use it.  The keeper alone decides which mounts there are, and what it does not know is dropped.

A holder connects and says what it has; the keeper then sends one mount after another, each after the word that the one before has arrived.
So the buffer of the socket bounds nothing, and what has been sent is the holder's even if the keeper dies at once.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from typing import Protocol

from awsomefsd.base.errors import ProtocolError
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.descriptor_store import DescriptorStore
from awsomefsd.keeper.loop import Loop
from awsomefsd.keeper.wire import Message, say

log = logging.getLogger("awsomefsd.keeper")


class HeldMount(Protocol):
    """What holders keep of a mount: its id, and its descriptors by name, "fuse" first."""

    fds: dict[str, int]

    @property
    def id(self) -> str: ...


class _Connection:
    __slots__ = ("pid", "queue", "sock", "waiting")

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock, self.pid = sock, pid
        self.queue: dict[str, None] = {}  # ids of mounts to tell of
        self.waiting = False  # for the word that the last one has arrived


class Holders:
    """Tells every holder of the mounts there are.  The loop's thread uses it; no method blocks."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.store = DescriptorStore(loop)
        self._mounts: dict[str, HeldMount] = {}
        self._connections: dict[int, _Connection] = {}

    def keep(self, mount: HeldMount) -> None:
        """Has the mount kept by all holders, from now on and until `drop`; again is harmless."""
        if self._mounts.get(mount.id) is mount:
            return
        self._mounts[mount.id] = mount
        self.store.keep(mount.id, mount.fds)
        self._tell_all(mount.id)

    def drop(self, mount: HeldMount) -> None:
        """Has the mount dropped by all holders.  Its descriptors are open still."""
        if self._mounts.get(mount.id) is not mount:
            return
        del self._mounts[mount.id]
        self.store.drop(mount.id, mount.fds)
        self._tell_all(mount.id)

    def attend(self, sock: socket.socket, pid: int, held: Iterable[str]) -> None:
        """Takes the connection of a holder, which has the mounts `held`; it is sent all that there are, and told what it shall drop."""
        connection = _Connection(sock, pid)
        connection.queue = dict.fromkeys([*self._mounts, *held])
        self._connections[sock.fileno()] = connection
        self._loop.watch(sock.fileno(), lambda: self._read(connection))
        say(log, logging.INFO, "holder connected", peer=pid, mounts=len(self._mounts))
        self._tell(connection)

    def _tell_all(self, mount: str) -> None:
        for connection in list(self._connections.values()):
            connection.queue[mount] = None
            self._tell(connection)

    def _tell(self, connection: _Connection) -> None:
        if connection.waiting or not connection.queue:
            return
        mount = next(iter(connection.queue))
        del connection.queue[mount]
        known = self._mounts.get(mount)
        fds = {} if known is None else known.fds
        try:
            wire.send(connection.sock, {"op": "keep" if fds else "drop", "mount": mount, "fds": list(fds)}, list(fds.values()))
            connection.waiting = True
        except (OSError, ProtocolError) as error:  # it connects again, and is sent everything
            say(log, logging.WARNING, "holder not told", peer=connection.pid, mount=mount, why=error)
            self._hang_up(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            received: tuple[Message, list[int]] | None = wire.receive(connection.sock)
        except BlockingIOError:
            return
        except (ProtocolError, OSError) as error:
            say(log, logging.WARNING, "holder dropped", peer=connection.pid, why=error)
            received = None
        if received is None:
            self._hang_up(connection)
            return
        wire.close_all(received[1])
        connection.waiting = False
        self._tell(connection)

    def _hang_up(self, connection: _Connection) -> None:
        self._loop.unwatch(connection.sock.fileno())
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()
