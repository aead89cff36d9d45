"""Connections of mounts to the metadata service that are cut again and again, and whose answers come late or not at all.

A cut behind the service's apply and before its answer is what matters: the client sends the request again on its next connection, and is
told a result that was kept since.  Others go on meanwhile, so that result may be old when it comes.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

AWAY_S_MAX = 0.02  # before a connection is made again, beside the client's own pause
LATE_S_MAX = 0.01


class Cuts:
    """`connect` is for MetaClient; nothing happens but while `chance` (of each transfer) is above 0."""

    def __init__(self, connect: Callable[[str], socket.socket], seed: int) -> None:
        self._connect = connect
        self._dice = random.Random(seed)
        self.chance = 0.0
        self.done: Counter[str] = Counter()

    def connect(self, place: str) -> Any:
        if self.chance and self._dice.random() < 0.5:
            time.sleep(self._dice.random() * AWAY_S_MAX)
        return Cut(self._connect(place), self)

    def falls(self, what: str, share: float = 1.0) -> bool:
        fell = self.chance > 0 and self._dice.random() < self.chance * share
        if fell:
            self.done[what] += 1
        return fell

    def late(self) -> None:
        time.sleep(self._dice.random() * LATE_S_MAX)


class Cut:
    """A connected socket that ends before a request went out, behind it, or with answers that nobody reads."""

    def __init__(self, sock: socket.socket, cuts: Cuts) -> None:
        self._sock = sock
        self._cuts = cuts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def _end(self, what: str) -> OSError:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        return ConnectionResetError(errno.ECONNRESET, f"cut: {what}")

    def send(self, data: Any, flags: int = 0) -> int:
        if self._cuts.falls("request lost", 0.3):
            raise self._end("request lost")
        sent = self._sock.send(data, flags)
        if self._cuts.falls("cut behind a request"):
            self._end("cut behind a request")  # it is read to its end all the same
        return sent

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = self._sock.recv(size, flags)
        if data and self._cuts.falls("answer late", 2):
            self._cuts.late()
        if data and self._cuts.falls("answer lost"):
            raise self._end("answer lost")
        return data
