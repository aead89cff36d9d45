"""The shared memory of one mount: which areas there are and how large, said once for the daemon that asks for them.

All areas have their largest size from the start; the memfds are sparse, so only what is used costs memory (see shm.py).
"""

from __future__ import annotations

from awsomefsd import shm
from awsomefsd.fuse import control, opens, park, slots
from awsomefsd.io import dirty
from awsomefsd.limits import DIRTY_BYTES_MAX


def worker_memfds() -> dict[str, int]:
    """Bytes of each area by its name."""
    areas = {
        "control": control.CONTROL_BYTES,
        "slots": slots.required_bytes(),
        "park": park.required_bytes(),
        "dirty": dirty.required_bytes(DIRTY_BYTES_MAX),
        "opens": opens.required_bytes(),
    }
    return {name: shm.round_up(size, shm.PAGE_BYTES) for name, size in areas.items()}
