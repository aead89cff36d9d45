"""The budget of a worker's memory (`memory.worker`): what it uses as a whole, and what gives way when that is too much.

Counted are the private pages of the process and the pages of its mount's memfds, mapped or not; neither knows of the other.  Every LOOK_S
the sum is compared.  Over the budget, the share of their bounds that names, layouts and checksums may use is halved, down to SHARE_MIN, and
the allocator is asked to give back what is free; below CALM_PERCENT of it, the share doubles again.  The dirty log gets a fixed part of the
budget, because what it holds is acknowledged and cannot be given up, and the rest of a mount's memfds is small.

The budget is kept by giving up speed only.  If the smallest share is not enough, the figures say so and the node is degraded; a worker is
not killed for it.  Rejected: a cgroup, whose limit would end the worker and be met by its successor again.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterable
from typing import Protocol

from awsomefsd.base.limits import DIRTY_BYTES_MAX

LOOK_S = 1.0
SHARE_MIN = 1 / 64
CALM_PERCENT = 70
DIRTY_PART = 3 / 8
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

log = logging.getLogger("awsomefsd.memory")


class Cache(Protocol):
    def bound(self, share: float) -> None:
        """Keep no more than this share of its bound from now on."""


class Ring(Protocol):
    def bound(self, limit_bytes: int) -> None: ...


class MemoryBudget:
    """Its owner calls `poll` every LOOK_S."""

    def __init__(self, budget_bytes: int, memfds: Iterable[int], caches: Iterable[Cache], ring: Ring) -> None:
        self.budget_bytes = budget_bytes
        self._memfds = list(memfds)
        self._caches = list(caches)
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # held: a process out of descriptors still looks
        self._looking = threading.Lock()  # nobody closes it under a poll
        self.share = 1.0
        self.used_bytes = 0
        ring.bound(min(int(budget_bytes * DIRTY_PART), DIRTY_BYTES_MAX))

    def poll(self) -> None:
        with self._looking:
            if self._statm >= 0:
                self._poll()

    def close(self) -> None:
        """Polls after this do nothing."""
        with self._looking:
            if self._statm >= 0:
                os.close(self._statm)
                self._statm = -1

    def _poll(self) -> None:
        self.used_bytes = private_bytes(self._statm) + sum(os.fstat(fd).st_blocks * 512 for fd in self._memfds)
        before = self.share
        if self.used_bytes > self.budget_bytes:
            self.share = max(before / 2, SHARE_MIN)
        elif before < 1 and self.used_bytes * 100 < self.budget_bytes * CALM_PERCENT:
            self.share = before * 2
        for cache in self._caches:
            cache.bound(self.share)
        if self.used_bytes > self.budget_bytes:
            _give_back()
            if before != self.share:
                log.warning("over the memory budget: used=%d budget=%d caches=%d%%", self.used_bytes, self.budget_bytes, self.share * 100)

    def figures(self) -> dict[str, int]:
        return {
            "memory_bytes": self.used_bytes,
            "memory_budget_bytes": self.budget_bytes,
            "memory_cache_percent": int(self.share * 100),
        }


def private_bytes(statm: int) -> int:
    """Resident pages of this process that nobody shares; memfds are counted apart."""
    resident, shared = os.pread(statm, 128, 0).split()[1:3]
    return (int(resident) - int(shared)) * _PAGE_BYTES


def _give_back() -> None:
    """What is free below the top of glibc's heap goes to the system; other libraries do without."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
