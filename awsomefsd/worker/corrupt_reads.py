"""Reads that a checksum refused: each is counted and logged, and the place is recorded for the daemon, which shows it until it is over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from awsomefsd.base.errors import Error
from awsomefsd.io.file.damaged_reads import DamagedRead, DamagedReads
from awsomefsd.meta.client.paths import path_of
from awsomefsd.worker.service_calls import ServiceCalls

PATH_PAGES_MAX = 1_000
WAITING_MAX = 64  # places that wait to be recorded; a program that goes on reading meets the others again

log = logging.getLogger("awsomefsd.worker")


class CorruptReads:
    """`count` adds one to a figure of the mount; `records` are those of this node."""

    def __init__(self, calls: ServiceCalls, records: DamagedReads, volume: int, volume_name: str, count: Callable[[], None]) -> None:
        self._calls = calls
        self._records = records
        self._volume = volume
        self._volume_name = volume_name
        self._count = count
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, int], tuple[int, str]] = {}  # (inode, offset) → length, why
        self._busy = False

    def report(self, ino: int, offset: int, length: int, detail: str) -> None:
        """Any thread; does not wait for disk or daemon: a thread of its own finds the path and writes the record."""
        self._count()
        log.error("wrong bytes on the device; the read was refused: ino=%d offset=%d %s", ino, offset, detail)
        with self._lock:
            if len(self._waiting) < WAITING_MAX:
                self._waiting[ino, offset] = length, detail
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._record_all, name="corrupt", daemon=True).start()

    def _record_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                (ino, offset), (length, detail) = next(iter(self._waiting.items()))
            try:
                self._record(DamagedRead(self._volume, ino, offset, length, self._volume_name, "", detail, time.time_ns()))
            except (OSError, Error) as err:
                log.error("wrong bytes cannot be recorded for the daemon: %s", err)
            finally:
                with self._lock:
                    self._waiting.pop((ino, offset), None)

    def _record(self, one: DamagedRead) -> None:
        if self._records.knows(one):
            return
        path = path_of(self._calls.ask, one.volume, one.ino, PATH_PAGES_MAX)
        named = {"volume": one.volume_name, "path": path, "ino": one.ino, "offset": one.offset}
        log.error("the file with wrong bytes", extra=named)
        if not self._records.add(DamagedRead(one.volume, one.ino, one.offset, one.length, one.volume_name, path, one.what, one.seen_ns)):
            log.error("there are too many places with wrong bytes to record this one", extra=named)
