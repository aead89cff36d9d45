"""The shared memory of one mount: which areas there are, how large each is, and every area by its class, as a worker maps it.

The daemon asks for the areas (`worker_memfds`), the keeper holds them, workers map them.  All areas have their largest size from the start;
the memfds are sparse, so only what is used costs memory (base/shm.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import DIRTY_BYTES_MAX, OP_LOG_BYTES, OP_RECORDS_MAX, OP_RECORDS_SHARED_MAX
from awsomefsd.base.types import TRUNCATE_BIT
from awsomefsd.fuse import abi, control_area, parked_requests, slots
from awsomefsd.fuse.control_area import ControlArea
from awsomefsd.fuse.inherited_requests import UNIQUE_MASK
from awsomefsd.fuse.parked_requests import ParkArea
from awsomefsd.fuse.slots import FREE, SlotArea
from awsomefsd.io.file import dirty_log, record_ring
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.file.op_log import OpLog
from awsomefsd.keeper.mount_record import RECORD
from awsomefsd.vfs.state import open_files
from awsomefsd.vfs.state.open_files import OpenTable


def worker_memfds() -> dict[str, int]:
    """Returns the size in bytes of each area by its name."""
    areas = {
        "control": control_area.CONTROL_BYTES,
        "slots": slots.required_bytes(),
        "park": parked_requests.required_bytes(),
        "dirty": dirty_log.required_bytes(DIRTY_BYTES_MAX),
        "ops": record_ring.required_bytes(OP_LOG_BYTES),
        "opens": open_files.required_bytes(),
    }
    return {name: shm.round_up(size, shm.PAGE_BYTES) for name, size in areas.items()}


class MountMemory:
    """Areas of a mount.  `fresh` is the keeper's word that no worker has had them; a worker that died while it formatted is dealt with by
    each area on its own (no header, so nothing was in it)."""

    def __init__(self, fds: Mapping[str, int], mount: int, volume: int, *, fresh: bool, shared: bool = False) -> None:
        maps = {name: shm.map_memfd(fd, lock=name == "slots") for name, fd in fds.items() if name not in ("fuse", RECORD)}
        self.control = ControlArea(maps["control"], fresh)
        if self.control.state.dirty_log == 0:
            self.control.update(mount=mount, volume=volume, dirty_log=secrets.randbits(62) | 1)
        self.slots = SlotArea(maps["slots"], fresh=fresh)
        self.slots.prefault()
        self.park = ParkArea(maps["park"], fresh)
        self.opens = OpenTable(maps["opens"], fresh)
        self.dirty = DirtyLog(maps["dirty"], self.control.state.dirty_log, fresh, with_ops="ops" in maps)
        records_max = OP_RECORDS_SHARED_MAX if shared else OP_RECORDS_MAX
        self.ops = OpLog(maps["ops"], self.dirty, fresh, records_max=records_max) if "ops" in maps else None  # older builds have none

    def kernel_minor(self) -> int:
        """The minor version of FUSE that was agreed on with the kernel; 0 before that."""
        negotiated = self.control.state.negotiated
        return 0 if negotiated is None else negotiated.minor

    def unanswered(self) -> list[int] | None:
        """The ids of requests that a predecessor has read and perhaps not answered, with those of their second entries.

        A slot or entry is freed only behind its reply, so the kernel has the answer of every other one.  None where a damaged slot hides
        which it was.
        """
        found = {entry.unique & UNIQUE_MASK for entry in self.park.entries()}
        try:
            for slot in self.slots:
                if slot.state != FREE:
                    found.add(abi.IN_HEADER.unpack_from(slot.head)[2] & UNIQUE_MASK)
        except Corrupt:
            return None
        return sorted(found | {unique | TRUNCATE_BIT for unique in found})
