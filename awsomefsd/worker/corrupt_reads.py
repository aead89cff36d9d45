"""Reads that a checksum refused: each is counted and logged, and the file is named in the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from awsomefsd.meta.client.paths import path_of
from awsomefsd.worker.service_calls import ServiceCalls

PATH_PAGES_MAX = 1_000

log = logging.getLogger("awsomefsd.worker")


class CorruptReads:
    """`count` adds one to a figure of the mount."""

    def __init__(self, calls: ServiceCalls, volume: int, volume_name: str, count: Callable[[], None]) -> None:
        self._calls = calls
        self._volume = volume
        self._volume_name = volume_name
        self._count = count
        self._naming = threading.Lock()

    def report(self, ino: int, offset: int, detail: str) -> None:
        """Any thread; does not wait for the daemon.  One file at a time is named; others found meanwhile have their number only."""
        self._count()
        log.error("wrong bytes on the device; the read was refused: ino=%d offset=%d %s", ino, offset, detail)
        if self._naming.acquire(blocking=False):
            threading.Thread(target=self._name, args=(ino, offset), name="corrupt", daemon=True).start()

    def _name(self, ino: int, offset: int) -> None:
        try:
            path = path_of(self._calls.ask, self._volume, ino, PATH_PAGES_MAX)
            log.error("the file with wrong bytes", extra={"volume": self._volume_name, "path": path, "ino": ino, "offset": offset})
        finally:
            self._naming.release()
