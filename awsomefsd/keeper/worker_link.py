"""The worker's end of the keeper protocol: takes the descriptors over, and brings them back to the keeper that comes next.

The worker never waits for the keeper: when the keeper dies a thread connects to its socket again and again and hands
everything over ("adopt"), while requests are served as before.  The adopt message repeats what the worker has reported before
(ready, answered), so no report to a dead keeper is lost.  A keeper that refuses has another worker for this mount: two must never read
one descriptor, so this process ends at once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from awsomefsd import __version__
from awsomefsd.base import program
from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import RECONNECT_MS_MAX, RECONNECT_MS_MIN
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.mount_record import MEMORY_FORMAT, RECORD, MountRecord
from awsomefsd.keeper.wire import Message, say

log = logging.getLogger("awsomefsd.keeper_link")

EAGER_MS = 5_000  # a keeper that was killed is back within this, as a rule: ask it often
EAGER_RECONNECT_MS_MAX = 100
ADOPT_S_MAX = 10.0
REFUSED_EXIT_CODE = 75
_PROGRAM = {"version": __version__, "home": program.HOME}


class KeeperLink:
    """The connection of a worker with its keeper.  Any thread may call its methods.

    The constructor blocks until the start message is there (a standby waits long), and raises ProtocolError or OSError if none comes; from
    then on a thread listens.  `fds` are "fuse" and the memfds by name, owned by this object for the life of the process.
    """

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._sock: socket.socket | None = socket.socket(fileno=fd)
        self._sock.setblocking(True)
        wire.send(self._sock, {"op": "loaded", "memory_format": MEMORY_FORMAT})  # a successor waits here until its predecessor is gone
        received = wire.receive(self._sock)
        if received is None:
            raise ProtocolError("the keeper ended before it said start")
        self.start_message, descriptors = received
        names = self.start_message.get("fds", [])
        if self.start_message.get("op") != "start" or len(names) != len(descriptors):
            wire.close_all(descriptors)
            raise ProtocolError("the first message of the keeper is not a start with its descriptors")
        self.fds: dict[str, int] = dict(zip(names, descriptors, strict=True))
        self._record = MountRecord(self.fds[RECORD]) if RECORD in self.fds else None  # a keeper of an earlier build has none
        if self._record is not None and not self._record.lock():
            self._refused("a process that was given its descriptors lives")
        self._lock = threading.Lock()  # of _sock and of what was said
        self._ready = False
        self._answered = False
        self._ended = False
        self._on_flush: Callable[[bool], None] = _not_serving
        threading.Thread(target=self._listen, name="keeper-link", daemon=True).start()

    def ready(self, on_flush: Callable[[bool], None]) -> None:
        """Reports that this worker is about to read requests (and has read none).

        `on_flush(tell)` makes everything durable or raises; with `tell` for somebody who is to hear of conflicts too.  Each call has a
        thread of its own.  The keeper asks for no flush before this.
        """
        with self._lock:
            self._on_flush = on_flush
            self._ready = True
            if self._record is not None:
                self._record.set_served()
            self._say({"op": "ready", **_PROGRAM})

    def needs(self, memory_format: int) -> bool:
        """Notes which format of the areas a program has to know to serve this mount; returns False if no keeper would look at that.

        Raised before the areas get the format, lowered when they have lost it.  Raises OSError.
        """
        if self._record is None or (memory_format and not self.start_message.get("needs")):
            return False
        self._record.set_needs(memory_format)
        return True

    def answered(self) -> None:
        """Reports, once, that a request was answered; later calls cost next to nothing."""
        if self._answered:
            return
        with self._lock:
            if not self._answered:
                self._answered = True
                self._say({"op": "answered"})

    def bye(self, clean: bool) -> None:
        """Reports that the kernel has unmounted and that this process exits next; without a keeper only the record says so."""
        with self._lock:
            self._ended = True
            if self._record is not None:
                self._record.set_ended(clean)
            self._say({"op": "bye", "clean": clean})

    def _say(self, message: Message) -> None:
        """Sends a message; the caller holds the lock.  If the keeper is gone, the adopt message of the next connection repeats it."""
        if self._sock is not None:
            try:
                wire.send(self._sock, message)
            except OSError as error:
                say(log, logging.INFO, "keeper not told", op=message["op"], why=error)

    # --- the thread --------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self._ended:
            sock = self._sock
            if sock is None:
                self._reconnect()
                continue
            try:
                received = wire.receive(sock)
            except (ProtocolError, OSError) as error:
                say(log, logging.WARNING, "keeper dropped", why=error)
                received = None
            if received is None:
                self._lose(sock)
                continue
            message, descriptors = received
            wire.close_all(descriptors)
            self._heard(message)

    def _heard(self, message: Message) -> None:
        op = message.get("op")
        if op == "flush":
            given = str(message.get("id")), bool(message.get("tell"))
            threading.Thread(target=self._flush, args=given, name="keeper-flush", daemon=True).start()
        elif op == "refused":
            self._refused(str(message.get("error")))
        elif op != "adopted":
            say(log, logging.WARNING, "keeper said what we do not know", op=op)

    def _flush(self, request_id: str, tell: bool) -> None:
        try:
            self._on_flush(tell)
        except Exception as error:
            say(log, logging.ERROR, "flush failed", request_id=request_id, why=error)
            answer = {"op": "flush_failed", "id": request_id, "error": str(error) or type(error).__name__}
        else:
            answer = {"op": "flushed", "id": request_id}
        with self._lock:
            self._say(answer)

    def _lose(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = None
            sock.close()
        say(log, logging.WARNING, "keeper gone, serving on without one", mount=self.start_message["mount"])

    def _reconnect(self) -> None:
        path = Path(self.start_message["keeper"])
        began, delay_ms = time.monotonic(), RECONNECT_MS_MIN
        while not self._ended:
            try:
                sock = wire.connect(path, ADOPT_S_MAX)
            except OSError:
                time.sleep(delay_ms / 1000)  # there is no event for a socket that does not exist yet
                eager = (time.monotonic() - began) * 1000 < EAGER_MS
                delay_ms = min(delay_ms * 2, EAGER_RECONNECT_MS_MAX if eager else RECONNECT_MS_MAX)
                continue
            if self._be_adopted(sock):
                say(log, logging.INFO, "adopted by a new keeper", mount=self.start_message["mount"])
                return
            time.sleep(delay_ms / 1000)

    def _be_adopted(self, sock: socket.socket) -> bool:
        try:
            with self._lock:  # nothing may be sent between this message and the moment when this is the connection
                said = {"pid": os.getpid(), "ready": self._ready, "answered": self._answered, **_PROGRAM}
                wire.send(sock, {**self.start_message, "op": "adopt", **said}, list(self.fds.values()))
                received = wire.receive(sock)
                if received is not None and received[0].get("op") == "adopted":
                    sock.settimeout(None)
                    self._sock = sock
                    return True
        except (ProtocolError, OSError) as error:
            say(log, logging.WARNING, "not adopted", why=error)
            received = None
        sock.close()
        if received is not None and received[0].get("op") == "refused":
            self._refused(str(received[0].get("error")))
        return False

    def _refused(self, why: str) -> None:
        say(log, logging.CRITICAL, "another worker has this mount; ending", mount=self.start_message["mount"], why=why)
        os._exit(REFUSED_EXIT_CODE)


def _not_serving(tell: bool) -> None:
    raise RuntimeError("this worker does not serve yet")
