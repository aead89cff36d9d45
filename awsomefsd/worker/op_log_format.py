"""This module says which programs may serve a mount with an op log.

The keeper hears of a format before the areas get it, and when they have lost it.
"""

from __future__ import annotations

import logging
import threading

from awsomefsd.base.power_cut import Why
from awsomefsd.keeper.mount_record import FORMAT_IN_DOUBT, FORMAT_WITH_OPS
from awsomefsd.keeper.worker_link import KeeperLink
from awsomefsd.worker.memory import MountMemory

log = logging.getLogger("awsomefsd.names")


class OpLogFormat:
    """Thread-safe: a session may be replaced while the worker still begins.  Of a mount without an op log every method does nothing."""

    def __init__(self, memory: MountMemory, link: KeeperLink) -> None:
        self._ops = memory.ops
        self._dirty = memory.dirty
        self._link = link
        self._lock = threading.Lock()

    def begin(self) -> Why:
        """Lets records be stored; returns DECIDES, or why there may be none."""
        with self._lock:
            if self._ops is None or not self._needs(FORMAT_IN_DOUBT if self._ops.is_doubted else FORMAT_WITH_OPS):
                return Why.KEEPER
            if not self._ops.begin():
                self._needs(0)
                return Why.DIRTY
        return Why.DECIDES

    def end(self) -> None:
        """Lets every program serve the mount again, if no record is left."""
        with self._lock:
            if self._ops is not None and self._ops.end():
                self._needs(0)

    def doubted(self) -> None:
        """Others may have had the volume since what is left in the logs: only a program that reads the note of it may go on with that."""
        with self._lock:
            if self._ops is not None and self._ops.is_begun and (self._ops.used_bytes or self._dirty.dirty_bytes):
                self._needs(FORMAT_IN_DOUBT)
                self._ops.doubted()

    def trusted(self) -> None:
        """What is left is of the present session, or nobody had the volume since."""
        with self._lock:
            if self._ops is not None and self._ops.is_doubted:
                self._ops.trusted()
                self._needs(FORMAT_WITH_OPS)

    def _needs(self, memory_format: int) -> bool:
        try:
            return self._link.needs(memory_format)
        except OSError as err:
            log.warning("the record of this mount cannot be written: %s", err)
            return False
