"""The shared memory of one mount as a worker maps it: every area by its class (layout.py says how large each is)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from awsomefsd import shm
from awsomefsd.errors import Corrupt
from awsomefsd.fuse import abi
from awsomefsd.fuse.control import Control
from awsomefsd.fuse.held import UNIQUE_MASK
from awsomefsd.fuse.opens import OpenTable
from awsomefsd.fuse.park import ParkArea
from awsomefsd.fuse.slots import FREE, SlotArea
from awsomefsd.io.dirty import DirtyLog


class MountMemory:
    """Areas of a mount.  `fresh` is the keeper's word that no worker has had them; a worker that died while it formatted is dealt with by
    each area on its own (no header, so nothing was in it)."""

    def __init__(self, fds: Mapping[str, int], mount: int, volume: int, *, fresh: bool) -> None:
        maps = {name: shm.map_memfd(fd, lock=name == "slots") for name, fd in fds.items() if name != "fuse"}
        self.control = Control(maps["control"], fresh)
        if self.control.state.dirty_log == 0:
            self.control.update(mount=mount, volume=volume, dirty_log=secrets.randbits(62) | 1)
        self.slots = SlotArea(maps["slots"], fresh=fresh)
        self.slots.prefault()
        self.park = ParkArea(maps["park"], fresh)
        self.opens = OpenTable(maps["opens"], fresh)
        self.dirty = DirtyLog(maps["dirty"], self.control.state.dirty_log, fresh)

    def unanswered(self) -> list[int] | None:
        """Requests that a predecessor has read and perhaps not answered: a slot or entry is freed only behind its reply, so the kernel has
        the answer of every other one.  None where a damaged slot hides which it was."""
        found = {entry.unique & UNIQUE_MASK for entry in self.park.entries()}
        try:
            for slot in self.slots:
                if slot.state != FREE:
                    found.add(abi.IN_HEADER.unpack_from(slot.head)[2] & UNIQUE_MASK)
        except Corrupt:
            return None
        return sorted(found)
