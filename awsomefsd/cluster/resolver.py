"""The addresses of host names, without waiting: a thread looks a name up, and the last result stays until that is done.

This is for the metadata thread, which answers heartbeats and must not wait for a name server.  A name that cannot be resolved (any more)
keeps the address it had; a name that never could has none yet.  Of several addresses (IPv4 and IPv6) each has its turn: it is not known
which of them the node listens on, and a connection that stands is not given up for another address.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable

from awsomefsd.base.limits import NAME_LOOK_MS

log = logging.getLogger(__name__)


def look_up(host: str) -> list[str]:
    """Returns the addresses of a host.  Blocks for the name server; raises OSError."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except UnicodeError as err:  # Python says so of a name that no host can have
        raise OSError(errno.EINVAL, f"{host!r} is not the name of a host: {err}") from None


class Resolver:
    """The addresses for one thread, which never waits; another thread runs for as long as names are looked up."""

    def __init__(self, look: Callable[[str], list[str]] = look_up, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._monotonic = monotonic
        self._found: dict[str, str] = {}
        self._turn = 0
        self._due: dict[str, float] = {}
        self._thread: threading.Thread | None = None

    def address(self, host: str) -> str:
        """Returns the address of a host, "" while it is not known.  Does not block."""
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            self._due.setdefault(host, 0.0)
            self._begin()
            return self._found.get(host, "")

    def _begin(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        now = self._monotonic()
        late = [host for host, due in self._due.items() if due <= now]
        if late:
            self._due.update(dict.fromkeys(late, now + NAME_LOOK_MS / 1_000))
            self._thread = threading.Thread(target=self._run, args=(late,), name="names", daemon=True)
            self._thread.start()

    def _run(self, hosts: list[str]) -> None:
        self._turn += 1
        for host in hosts:
            try:
                found = self._look(host)
                self._found[host] = found[self._turn % len(found)]
            except (OSError, UnicodeError) as err:
                log.warning("the name of a node cannot be looked up", extra={"host": host, "reason": str(err)})
