"""The drain and the removal of devices of pools: their mirrors are moved by healing, and their superblocks belong to their segment servers.

drain    Checked first, by the rows (pool_leaving.py): a drain that cannot end is refused, with what is missing.  Then the entry.
remove   The entry, which the machine refuses while a row names a bay of the device; then the segment server leaves the device, and the
         superblock is wiped under the lock that the server had.  A device that is lost, or away, is removed without that.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from awsomefsd.base.errors import Error, FsError, Refused, WouldLoseData
from awsomefsd.base.types import DeviceInfo, SegmentInBays, bays_of
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.identified import open_identified
from awsomefsd.io.device.superblock import read_superblock, wipe_superblock
from awsomefsd.meta.api.commands import DrainPoolDevices, RemoveDevice
from awsomefsd.meta.api.messages.nodes import ListNodes
from awsomefsd.meta.api.messages.pools import GetPool, GetPoolVolumes, Pool, PoolDeviceInfo, StandingDrain
from awsomefsd.meta.api.messages.scrub import GetLiveSegments
from awsomefsd.meta.machine.devices import ROWS_REMOVED_MAX
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.devices.pool_leaving import Leaving

LEAVES_WAIT_S = 20.0  # for the segment server to give the device up: it looks every 2 s, and ends what is under way
_PAUSE_S = 0.2
_DRAIN_LOOKS_MAX = 5  # at what is in the pool, before a drain: another one may begin meanwhile
_PAGE = 4_096

log = logging.getLogger(__name__)


class PoolOperations:
    """Thread-safe as far as its parts are; every method blocks for metadata and devices."""

    def __init__(
        self, cluster: str, ask: Callable[[Any], Any], catalog: Catalog, monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._cluster, self._ask, self._catalog, self._monotonic, self._sleep = cluster, ask, catalog, monotonic, sleep

    def leaving(self, pool: int, devices: Iterable[int]) -> Leaving:
        """Returns what it means that these devices of a pool go.  Reads the rows of all live segments."""
        return self._leaving(self._ask(GetPool(pool)), pool, devices)

    def _leaving(self, found: Pool, pool: int, devices: Iterable[int]) -> Leaving:
        named = {row.node: row.name for row in self._ask(ListNodes()).nodes}
        return Leaving(found, devices, self._ask(GetPoolVolumes(pool)).volumes, self._segments(), named)

    def _segments(self) -> Iterator[SegmentInBays]:
        start = 0
        while True:
            page = self._ask(GetLiveSegments(start, _PAGE))
            yield from (cast(SegmentInBays, row) for row in page.segments if bays_of(row))
            start = page.after
            if not start:
                return

    def drain(self, pool: int, devices: Iterable[int]) -> None:
        """Begins to drain devices of a pool, all or none.  Raises Refused, with the reason, if that would never end.

        One that is lost may always be drained: it does not come back then.  The entry names what was looked at, and is refused where that
        has changed meanwhile; then it is looked at again.
        """
        named, why = set(devices), ""
        for _ in range(_DRAIN_LOOKS_MAX):
            found: Pool = self._ask(GetPool(pool))  # before the segments: what changes while these are read is found by the entry
            lost = [one.device for one in found.devices if one.device in named and one.lost]
            going = sorted(named.difference(lost))
            leaving = self._leaving(found, pool, going) if going else None
            if leaving is not None and (why := leaving.drain_refusal()):
                raise Refused(why)
            try:
                self._catalog.propose(
                    DrainPoolDevices(pool, going, lost, leaving.taking if leaving else [], leaving.emptied if leaving else [])
                )
                return
            except FsError as err:
                if err.errno == errno.ENOSPC:
                    raise Refused(str(err)) from err
                if err.errno != errno.ESTALE:
                    raise
                why = str(err)
        raise Refused(f"the devices of the pool change all the time ({why}); run the command again")

    def standing(self, info: DeviceInfo) -> StandingDrain | None:
        """Returns what keeps the drain of a device from going on, by the last look of the daemon that leads; None if nothing does."""
        census = self._told(info)[0].census
        return next((one for one in census.standing if one.device == info.device), None) if census is not None else None

    def used(self, info: DeviceInfo) -> int:
        """Returns how many bays of a device have to become free before it can be removed."""
        device = self._told(info)[1]
        return device.bays - device.free - (device.stale if device.lost else 0)

    def hosts(self, info: DeviceInfo) -> set[str]:
        """Returns what the device fails together with."""
        return {self._told(info)[1].host}

    def _told(self, info: DeviceInfo) -> tuple[Pool, PoolDeviceInfo]:
        pool: Pool = self._ask(GetPool(info.pool))
        device = next((one for one in pool.devices if one.device == info.device), None)
        if device is None:
            raise FsError(errno.ENOENT, f"there is no device {info.device}")
        return pool, device

    # --- remove -----------------------------------------------------------------------------------------------------------
    def remove(self, info: DeviceInfo) -> str:
        """Removes a device on which nothing lies; returns what was done, in words.

        Raises WouldLoseData while data is on it, Refused while something else has to come first.
        """
        if not info.path and not (info.absent or info.lost):
            raise Refused(f"device {info.device} is served by another node; run the command there (`awsomefsd device show {info.device}`)")
        try:
            while self._catalog.propose(RemoveDevice(info.device, ROWS_REMOVED_MAX)).number:
                pass
        except FsError as err:
            if err.errno in (errno.ENOTEMPTY, errno.EBUSY):
                raise self._refusal(info) from err
            raise
        return f"device {info.device} is removed, {self.wipe(info.path, info.uuid, info.era)}"

    def _refusal(self, info: DeviceInfo) -> Refused:
        device = self._told(info)[1]
        why, loses = self.leaving(info.pool, [info.device]).removal_refusal(device)
        return WouldLoseData(why) if loses else Refused(why)

    def wipe(self, path: str, uuid: str, era: int) -> str:
        """Wipes the superblock of a device that was removed, when its segment server has left it; returns what became of it, in words."""
        if not path:
            return "its superblock could not be wiped: this node does not see it"
        try:
            with open_identified(path, self._cluster, uuid, era) as device:
                self._lock(device)
                wipe_superblock(device, read_superblock(device))
        except (Error, OSError) as err:
            log.warning("the superblock of a removed device is not wiped: %s", err, extra={"path": path})
            return f"its superblock could not be wiped: {err}; before it is used again: awsomefsd device remove {path}"
        return "its superblock is wiped"

    def _lock(self, device: Device) -> None:
        """Locks a device when its segment server has left it.  Raises Refused if that takes too long."""
        until = self._monotonic() + LEAVES_WAIT_S
        while True:
            try:
                device.lock()
                return
            except Refused:
                if self._monotonic() >= until:
                    raise
            self._sleep(_PAUSE_S)
