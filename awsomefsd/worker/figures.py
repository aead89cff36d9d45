"""The figures that a worker reports every few seconds, for metrics and `status`."""

from __future__ import annotations

from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.vfs.state.mount_state import MountState
from awsomefsd.worker.memory import MountMemory
from awsomefsd.worker.memory_budget import MemoryBudget


def figures(memory: MountMemory, mount: MountState, budget: MemoryBudget, workers: int) -> dict[str, int]:
    """Returns counters that outlive the worker, and how things stand now.  `workers`: how many this mount has had.

    Any thread; does not block.
    """
    dirty = memory.dirty
    return {
        **memory.control.counters(),
        **memory.control.latencies.figures(),
        **budget.figures(),
        **mount.names_figures(),
        "workers": workers,
        "open_files": len(memory.opens),
        "inodes_cached": len(mount.caches.names),
        "dirty_bytes": dirty.dirty_bytes,
        "dirty_used_bytes": dirty.used_bytes,
        "parked_requests": len(memory.park),
        "reserved_bytes_left": max(mount.buffered.reservation.left_bytes, 0),
        "flush_batches": mount.buffered.flusher.batches,
        "lease_left_ms": mount.session.lease.left_ns() // NS_PER_MS,
    }
