"""The descriptor store of the service manager as a holder of the mounts: FDSTORE of sd_notify(3), and sd_listen_fds(3) after a restart.

A stored descriptor has the name `<mount>.<name>`.  The keeper never waits for the manager: what its socket does not take now is sent later.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping

from awsomefsd.base.sockets import notify_systemd
from awsomefsd.keeper.loop import Loop

AGAIN_MS = 50
_FIRST_PASSED = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class DescriptorStore:
    """Without a service manager it does nothing.  The loop's thread uses it; no method blocks."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._unsent: deque[tuple[str, list[int]]] = deque()  # states, and duplicates of the descriptors that go with them

    def keep(self, mount: str, fds: Mapping[str, int]) -> None:
        """Has the descriptors of a mount stored.  The manager drops one that it has already.  Raises OSError without free descriptors."""
        if "NOTIFY_SOCKET" in os.environ:
            self._send([(f"FDSTORE=1\nFDPOLL=0\nFDNAME={mount}.{name}", [os.dup(fd)]) for name, fd in fds.items()])

    def drop(self, mount: str, names: Iterable[str]) -> None:
        """Has a mount taken out of the store."""
        if "NOTIFY_SOCKET" in os.environ:
            self._send([(f"FDSTOREREMOVE=1\nFDNAME={mount}.{name}", []) for name in names])

    def ready(self) -> None:
        """Tells the manager that this process serves."""
        self._send([("READY=1", [])])

    def _send(self, states: Iterable[tuple[str, list[int]]]) -> None:
        waits = bool(self._unsent)
        self._unsent.extend(states)
        if not waits:
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self._unsent:
            state, fds = self._unsent[0]
            try:
                notify_systemd(state, fds, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._loop.later(AGAIN_MS, self._send_waiting)
                return
            self._unsent.popleft()
            for fd in fds:
                os.close(fd)


def from_service_manager() -> dict[str, dict[str, int]]:
    """Returns the descriptors that the service manager has stored, by mount and name; close-on-exec, the caller owns them.

    Any other that it passes is closed.  Called once, before any process is started.
    """
    passed = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if passed["LISTEN_PID"] != str(os.getpid()) or not passed["LISTEN_FDS"].isdecimal():
        return {}
    found: dict[str, dict[str, int]] = {}
    names = passed["LISTEN_FDNAMES"].split(":")
    for index in range(int(passed["LISTEN_FDS"])):
        fd = _FIRST_PASSED + index
        mount, _, name = (names[index] if index < len(names) else "").partition(".")
        if not name or name in found.get(mount, {}):
            with contextlib.suppress(OSError):
                os.close(fd)
            continue
        os.set_inheritable(fd, False)
        found.setdefault(mount, {})[name] = fd
    return {mount: dict(sorted(fds.items(), key=lambda item: item[0] != "fuse")) for mount, fds in found.items()}
