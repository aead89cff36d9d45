"""The holder in the node daemon and in the supervisor: keeps the descriptors of this host's mounts for the keeper that comes next.

keeper/holders.py says why.  A thread connects to the keeper, gives it what it has, and keeps what it is sent.  When the keeper dies the
thread connects to the next one.  A keeper of a build before decision 146 refuses, and may replace workers without telling us: everything is
dropped then.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from pathlib import Path

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import RECONNECT_MS_MAX
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.wire import say

log = logging.getLogger("awsomefsd.mount_holder")

REFUSED_PAUSE_S = 5.0


class MountHolder:
    """Holds the descriptors of the mounts of one keeper, from `start` to `close`, which blocks.  Any thread may call its methods."""

    def __init__(self, run_dir: Path | str) -> None:
        self._path = Path(run_dir).absolute() / wire.SOCKET_NAME
        self._held: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()  # of _sock, against `close`
        self._sock: socket.socket | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mount-holder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and closes everything that is held."""
        with self._lock:
            self._ended.set()
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._drop_all()

    def held(self) -> list[str]:
        """Returns the ids of the mounts that are held."""
        return list(self._held)

    def _run(self) -> None:
        while not self._ended.is_set():
            pause_s = RECONNECT_MS_MAX / 1_000
            try:
                sock = wire.connect(self._path)
            except OSError:
                self._ended.wait(pause_s)  # there is no event for a socket that does not exist yet
                continue
            with self._lock:
                self._sock = sock
            try:
                if not self._ended.is_set() and not self._hold(sock):
                    pause_s = REFUSED_PAUSE_S
            except (OSError, ProtocolError) as error:
                say(log, logging.WARNING, "keeper dropped", why=error)
            with self._lock:
                self._sock = None
                sock.close()
            self._ended.wait(pause_s)

    def _hold(self, sock: socket.socket) -> bool:
        """Serves one connection to its end; returns False if the keeper knows no holders.  Raises OSError and ProtocolError."""
        for mount, fds in self._held.items():
            wire.send(sock, {"op": "held", "mount": mount, "fds": list(fds)}, list(fds.values()))
        wire.send(sock, {"op": "hold", "mounts": list(self._held)})
        while (received := wire.receive(sock)) is not None:
            message, descriptors = received
            op, mount = message.get("op"), str(message.get("mount"))
            names = message.get("fds", [])
            if op not in ("keep", "drop") or len(names) != len(descriptors):
                wire.close_all(descriptors)
                say(log, logging.INFO, "the keeper has no use for a holder", why=message.get("error"))
                self._drop_all()
                return False
            before = self._held.get(mount, {})
            if op == "keep":  # one that is kept already does not look dropped meanwhile
                self._held[mount] = dict(zip(names, descriptors, strict=True))
            wire.close_all(list(before.values()))
            if op == "drop":
                self._held.pop(mount, None)
            wire.send(sock, {"op": "kept", "mount": mount})
        return True

    def _drop_all(self) -> None:
        for fds in self._held.values():
            wire.close_all(list(fds.values()))
        self._held = {}
