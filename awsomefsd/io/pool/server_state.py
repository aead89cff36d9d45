"""The state that a segment server tells its own node: how each device is, and why one is not served.

On a unix socket of its own (run_dir/segments.sock), for root: whoever connects gets one JSON object, and the connection ends.  It is apart
from the socket on which bays are read and written, so that it answers whatever is under way there.  Daemon and server may be of different
builds: a key that is missing has its default, one that is not known is ignored.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.sockets import connect_unix, listen_unix, peer_of

log = logging.getLogger(__name__)
STATE_SOCKET = "segments.sock"  # in the run directory
BAYS_SOCKET = "bays.sock"  # there too: records, for processes of this node
OK = "ok"
ATTACHING = "it is being attached"  # the state of a device that is about to be served
ROLLED_BACK = "rolled back: "  # begins the message of RolledBack (attach.py); a health code goes by it
_TIMEOUT_S = 2.0
_BYTES_MAX = 1 << 20


class WorkState(msgspec.Struct, frozen=True):
    """Reads, writes or flushes of a device since it was attached.  `usual_us`: how long one takes, the newest counting most; 0: none."""

    done: int = 0
    ns: int = 0
    bytes: int = 0
    errors: int = 0
    usual_us: int = 0


class CopyState(msgspec.Struct, frozen=True):
    """A copy into bay `index` that is under way: `done` of `end` bytes of a segment."""

    index: int
    segment: int
    done: int
    end: int


class DeviceState(msgspec.Struct, frozen=True):
    """`state`: OK, or why the device is not served.  `opened`: bays that are being written to.  `work`: by kind (read, write, flush)."""

    device: int
    uuid: str
    path: str = ""
    state: str = ""
    generation: int = 0
    bays: int = 0
    opened: int = 0
    copying: list[CopyState] = []
    work: dict[str, WorkState] = {}


class ServerState(msgspec.Struct, frozen=True):
    """`address`: where other nodes reach it, "" where they do not.  `trouble`: of the server itself, in words.  `figures`: for metrics.

    `unreachable`: the part of the trouble for which other nodes cannot reach it.
    """

    pid: int
    version: str
    devices: list[DeviceState]
    address: str = ""
    trouble: str = ""
    figures: dict[str, int] = {}
    unreachable: str = ""


def ask_state(run_dir: Path) -> ServerState:
    """Returns what the segment server of this node says.  Blocks for 2 s at most.  Raises Unavailable with the reason."""
    raw = b""
    try:
        with connect_unix(run_dir / STATE_SOCKET, _TIMEOUT_S) as sock:
            while len(raw) <= _BYTES_MAX and (piece := sock.recv(1 << 16)):
                raw += piece
        return msgspec.json.decode(raw, type=ServerState)
    except (OSError, msgspec.DecodeError) as err:
        raise Unavailable(f"the segment server of this node does not answer: {err}") from None


class StateSocket:
    """Answers whoever asks, one after another, on a thread that sleeps otherwise.  `state` may be called on that thread."""

    def __init__(self, run_dir: Path, state: Callable[[], ServerState]) -> None:
        self._state = state
        self._listener = listen_unix(run_dir / STATE_SOCKET, 0o600)
        self._listener.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="segments-state", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._listener.close()
        os.close(self._wake)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not any(fd == self._wake for fd, _ in poll.poll()):
            try:
                sock, _ = self._listener.accept()
            except OSError as err:
                if not isinstance(err, BlockingIOError):
                    log.warning("cannot answer how the devices are: %s", err)
                    threading.Event().wait(1.0)  # no free descriptors
                continue
            with sock:
                self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        try:
            if peer_of(sock).uid == 0:
                sock.settimeout(_TIMEOUT_S)
                sock.sendall(msgspec.json.encode(self._state()))
        except OSError:
            pass  # it asked and did not wait
