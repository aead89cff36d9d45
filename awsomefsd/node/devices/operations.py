"""The operations on devices of the cluster: grow, drain, remove and identify, and the checks before each.

grow     The superblock comes first (second copy at the new end, then the one at the start), then the entry.  A crash in between leaves a
         superblock that promises more than the state uses; this is harmless, and the same command continues from there.  Every node that
         sees the device must see its new size before: it would refuse a device that is smaller than its superblock says.
drain    The entry is all; collection and the workers move the data.  Devices of pools: pool_operations.py.
remove   The entry comes first, then the superblock goes.  A crash in between leaves a superblock whose device is not in the cluster any
         more: no node takes it up, and `remove PATH` wipes it when it is called again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from awsomefsd.base.errors import FsError, NotFound, Refused, WouldLoseData
from awsomefsd.base.limits import DEVICE_REPORT_MS
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.block_devices import names_of, serial_of
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.identified import open_identified
from awsomefsd.io.device.superblock import Superblock, grown, read_superblock, wipe_superblock, write_superblock
from awsomefsd.meta.api.commands import DrainDevice, GrowDevice, RemoveDevice
from awsomefsd.meta.api.messages.devices import SeenDevice, Sightings
from awsomefsd.meta.api.messages.scrub import GetLiveSegments
from awsomefsd.meta.api.report_pages import all_sightings
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine.devices import ROWS_REMOVED_MAX
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.devices.device_scan import OK
from awsomefsd.node.devices.device_watch import DeviceWatch
from awsomefsd.node.devices.pool_operations import PoolOperations

_PAGE = 4_096
_PAUSE_S = 0.25


class DrainProgress(Struct, frozen=True):
    """The progress of a drain.  `used`: segments that are not free; `live_bytes` in those that are collected.

    `standing`: segments of a device of a pool that cannot leave it now; why, of one of them.
    """

    device: DeviceInfo
    used: int
    live_bytes: int
    standing: int = 0
    why: str = ""


class DeviceOperations:
    """Grow, drain, remove and identify.  Thread-safe as far as its parts are; every method blocks for metadata and devices."""

    def __init__(self, cluster: str, ask: Callable[[Any], Any], catalog: Catalog, table: DeviceTable, watch: DeviceWatch) -> None:
        self._cluster = cluster
        self._ask = ask
        self._catalog = catalog
        self._table = table
        self._watch = watch
        self._pools = PoolOperations(cluster, ask, catalog)

    def find(self, which: str) -> DeviceInfo:
        """Returns the device with this number, UUID, or path on this node.  Raises NotFound, which lists the existing devices."""
        devices = self._catalog.devices()
        for info in devices:
            if which in (str(info.device), info.uuid, info.path) or (info.path and os.path.realpath(which) == os.path.realpath(info.path)):
                return info
        known = ", ".join(info.path or info.uuid for info in devices) or "none"
        raise NotFound(f"there is no device {which} (devices: {known}); see `awsomefsd device ls`")

    def seen(self) -> Sightings:
        """Returns which nodes see which devices; empty where this node may not ask, or the leader is of an older build."""
        try:
            return all_sightings(self._ask)
        except FsError as err:
            if err.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                raise
            return Sightings([], [], {})

    def seen_of(self, uuid: str) -> list[SeenDevice]:
        return [one for one in self.seen().seen if one.uuid == uuid]

    def _here(self, info: DeviceInfo) -> str:
        if not info.path:
            raise Refused(
                f"this node does not see device {info.device}; run the command on a node that does "
                f"(`awsomefsd device show {info.device}` lists them)"
            )
        return info.path

    # --- grow ----------------------------------------------------------------------------------------------------------------
    def grow(self, which: str) -> DeviceInfo:
        """Takes the present size of an enlarged device into use; returns its row.

        Raises NotFound, and Refused if it has not grown by a segment, is another device, or a node still sees its old size; also OSError,
        EROFS where a newer build uses it.
        """
        info = self.find(which)
        with open_identified(self._here(info), self._cluster, info.uuid, info.era, read_only=True) as device:
            size = device.bytes
            self._grown(info, device, size)
        self._check_others(info, size)
        info = self.find(info.uuid)  # others may have been waited for: it may be removed by now, and another's
        with open_identified(self._here(info), self._cluster, info.uuid, info.era) as device:
            superblock, wanted = self._grown(info, device, min(size, device.bytes))
            if wanted.segments > superblock.segments:
                write_superblock(device, wanted)
            self._catalog.propose(GrowDevice(info.device, wanted.device_bytes, wanted.segments))
        return self.find(info.uuid)

    def _grown(self, info: DeviceInfo, device: Device, size: int) -> tuple[Superblock, Superblock]:
        """Returns the superblock as it is, and for the size.  Raises Refused where that gives no segment more."""
        superblock = read_superblock(device)
        wanted = grown(superblock, size)
        if wanted.segments <= info.segments:
            raise Refused(f"{device.path} has {size} bytes, which give no segment beyond its {info.segments}; enlarge it first")
        return superblock, wanted

    def _check_others(self, info: DeviceInfo, size: int) -> None:
        """Raises Refused.  Nodes that were rescanned just before report it in DEVICE_REPORT_MS: they are waited for."""
        self._watch.poll()
        until = time.monotonic() + 3 * DEVICE_REPORT_MS / 1_000
        while behind := [one.name for one in self.seen_of(info.uuid) if one.bytes and one.bytes < size]:
            if time.monotonic() < until:
                time.sleep(_PAUSE_S)
                continue
            raise Refused(
                f"{', '.join(behind)} see the device at its old size; rescan it there first (`awsomefsd device show {info.device}`)"
            )

    # --- drain ---------------------------------------------------------------------------------------------------------------
    def drain(self, which: str, *, undo: bool) -> DrainProgress:
        """Begins to drain a device, or ends that with `undo`; returns the progress.

        Raises NotFound, and Refused if the others have no room.
        """
        info = self.find(which)
        if info.pool and not undo:
            self._drain_of_pool(info)
            return self.progress(info.uuid)
        if not undo and not info.draining:
            self._check_room(info)
        try:
            self._catalog.propose(DrainDevice(info.device, not undo))
        except FsError as err:
            if err.errno == errno.ENOSPC:
                raise Refused(str(err)) from err
            raise
        return self.progress(info.uuid)

    def _drain_of_pool(self, info: DeviceInfo) -> None:
        if info.draining:
            return
        try:
            self._pools.drain(info.pool, [info.device])
        except Refused as err:
            raise Refused(f"device {info.device} cannot be drained: {err}") from err

    def _check_room(self, info: DeviceInfo) -> None:
        others = [one for one in self._catalog.devices() if one.device != info.device and _takes_data(one) and _kind(one) == _kind(info)]
        room = sum(one.segments_free * usable_bytes(one.segment_bytes) for one in others)
        live = self._live(info.device)
        if live > room:
            raise Refused(f"{live >> 20} MiB live on device {info.device}, the others have room for {room >> 20} MiB; add one first")

    def progress(self, which: str) -> DrainProgress:
        """Returns how far a drain has come.  Reads all live segments of the cluster.  Raises NotFound."""
        info = self.find(which)
        if info.pool:
            live = self._pools.leaving(info.pool, [info.device]).live_bytes
            standing = self._pools.standing(info) if info.draining else None
            if standing is not None:
                return DrainProgress(info, self._pools.used(info), live, standing.segments, standing.why)
            return DrainProgress(info, self._pools.used(info), live)
        return DrainProgress(info, info.segments - info.segments_free, self._live(info.device))

    def _live(self, device: int) -> int:
        return sum(segment.live_bytes for segment in self._segments() if segment.device == device)

    def _segments(self) -> Iterator[Any]:
        start = 0
        while True:
            page = self._ask(GetLiveSegments(start, _PAGE))
            yield from page.segments
            start = page.after
            if not start:
                return

    # --- remove --------------------------------------------------------------------------------------------------------------
    def remove(self, which: str) -> str:
        """Removes an empty device and wipes its superblock; returns what was done, in words.  Raises WouldLoseData while data is on it."""
        try:
            info = self.find(which)
        except NotFound:
            if which.startswith("/") and self._left_behind(which):
                return f"{which} was removed before; its superblock is wiped now"
            raise
        if info.pool:
            done = self._pools.remove(info)
            self._table.forget(info.uuid)
            return done
        path = self._here(info)
        try:
            while self._catalog.propose(RemoveDevice(info.device, ROWS_REMOVED_MAX)).number:
                pass
        except FsError as err:
            if err.errno in (errno.ENOTEMPTY, errno.EBUSY):
                used = info.segments - info.segments_free
                raise WouldLoseData(
                    f"device {info.device} has {used} segments in use{'' if info.draining else ' and takes new data'}: "
                    f"awsomefsd device drain {info.device}"
                ) from err
            raise
        self._wipe(path, info.uuid, info.era)
        self._table.forget(info.uuid)
        return f"device {info.device} ({path}) is removed, its superblock is wiped"

    def _left_behind(self, path: str) -> bool:
        try:
            with Device.open(path, read_only=True) as device:
                superblock = read_superblock(device, self._cluster)
        except (NotFound, OSError):
            return False
        for info in self._catalog.devices():
            if info.uuid == superblock.device_uuid:  # another way to a device that is in use
                raise Refused(f"{path} is device {info.device} of the cluster; name it by its number")
        self._wipe(path, superblock.device_uuid, superblock.era)
        return True

    def _wipe(self, path: str, uuid: str, era: int) -> None:
        with open_identified(path, self._cluster, uuid, era) as device:
            wipe_superblock(device, read_superblock(device))

    # --- identify ------------------------------------------------------------------------------------------------------------
    def identify(self, which: str) -> list[tuple[str, str]]:
        """Returns (name, value) pairs that tell which piece of hardware a device is.

        Raises NotFound, and an Error or OSError of its superblock.
        """
        info = self.find(which)
        facts = [("device", str(info.device)), ("uuid", info.uuid), ("shared", "yes" if info.shared else "no")]
        if info.path:
            facts += [("path", info.path), ("real path", os.path.realpath(info.path))]
            facts += [("name", name) for name in names_of(info.path)]
            facts += [("serial", serial_of(info.path) or "unknown")]
            sighting = self._watch.sighting(info)
            facts += [("bytes", str(sighting.bytes)), ("state", sighting.state)]
            if sighting.state == OK:
                facts += _superblock(info.path, self._cluster)
        facts += [(f"node {one.name}", f"{one.path} ({one.bytes} bytes): {one.state}") for one in self.seen_of(info.uuid)]
        return facts


def _takes_data(info: DeviceInfo) -> bool:
    return not info.draining and not info.absent


def _kind(info: DeviceInfo) -> str:
    return "" if info.shared else info.home


def _superblock(path: str, cluster: str) -> list[tuple[str, str]]:
    with Device.open(path, read_only=True) as device:
        found = read_superblock(device, cluster)
    size = f"{found.segments} segments of {found.segment_bytes >> 20} MiB, {found.device_bytes} bytes"
    era = [("recovered", f"era {found.era}")] if found.era else []
    return [("superblock", f"generation {found.generation}, {size}"), ("cluster", found.cluster_uuid), *era]
