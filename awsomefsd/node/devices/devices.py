"""The way of a device into the cluster, and the state of each device on this node.

The order of an add, and why: first the superblock (a device that is formatted and no more is recognised by the next try, and taken up),
then its path in devices.json, then the entry in the log.  The same command, given again, repairs a crash after any step.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from awsomefsd.base.errors import AlreadyExists, ConfigError, Error, FsError, NotFound, Refused
from awsomefsd.base.limits import SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN
from awsomefsd.base.sizes import format_bytes
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.identified import RECOVERED, RecoveredDevice, open_identified, other_era
from awsomefsd.io.device.signature import AlreadyFormatted, format_device
from awsomefsd.io.device.superblock import UNWRITABLE, Superblock, read_superblock, with_era, write_superblock
from awsomefsd.meta.api.commands import AddDevice, AddPoolDevice, SetDeviceEra
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.pools import PoolCatalog

OF_NODE = "of node "  # begins the state of a device that is in another node
UNSERVED = "not served by this node's segment server"  # begins the state of a device of a pool that is in order otherwise
ABSENT = "absent"  # begins the state of a device that no node sees


class NodeDevices:
    """The devices as this node uses them.

    `refused` returns why this node's last look at a device (UUID) refused it, or "", and `unserved` why its segment server does not serve
    it; they do not block.  `search` looks for the cluster's devices among those of this machine, and blocks.
    Thread-safe: the uuid in the log excludes a second add.  Methods block for devices and metadata.
    """

    def __init__(
        self, cluster_uuid: str, node_uuid: str, table: DeviceTable, catalog: Catalog, refused: Callable[[str], str] = lambda uuid: "",
        unserved: Callable[[str], str] = lambda uuid: "", search: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        self._cluster_uuid = cluster_uuid
        self._node_uuid = node_uuid
        self._table = table
        self._catalog = catalog
        self._refused, self._unserved, self._search = refused, unserved, search

    def add(self, path: str, *, shared: bool, destroy: bool) -> tuple[DeviceInfo, str]:
        """Formats a device and adds it to the cluster; returns its row and its state (as `state` does).

        Raises WouldLoseData if the device holds anything and `destroy` is false, Refused if it is in use or too small, AlreadyExists,
        FsError.
        """
        if not path.startswith("/"):
            raise Refused(f"{path!r} is not an absolute path; give one, such as /dev/disk/by-id/...")
        superblock = self._formatted(path, destroy=destroy)
        self._table.add(superblock.device_uuid, path)
        command = AddDevice(
            superblock.device_uuid,
            superblock.device_bytes,
            superblock.segment_bytes,
            superblock.segments,
            superblock.first_segment_offset,
            shared,
            "" if shared else self._node_uuid,
        )
        info = self._catalog.add_device(command)
        return info, self.state(info)

    def add_to_pool(self, path: str, pool: int, device_class: str, segment_bytes: int, *, destroy: bool) -> tuple[DeviceInfo, str]:
        """Formats a device of this node and adds it to a pool; its segment server attaches it then.

        `segment_bytes`: of the pool's first device, 0 as it fits; others have segments as that one has.  Raises as `add`, and Refused where
        the cluster acts at no level that knows pools, for another size of segments, and for what no pool takes.
        """
        if not path.startswith("/"):
            raise Refused(f"{path!r} is not an absolute path; give one, such as /dev/disk/by-id/...")
        pools = PoolCatalog(self._catalog)
        pools.require_level()
        if segment_bytes and not (SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_DEFAULT and segment_bytes.bit_count() == 1):
            raise ConfigError(
                f"segments of {format_bytes(segment_bytes)} are not possible; a power of two from {SEGMENT_BYTES_MIN >> 20} to "
                f"{SEGMENT_BYTES_DEFAULT >> 20} MiB is"
            )
        there = pools.segment_bytes(pool)
        if there and segment_bytes not in (0, there):
            raise Refused(f"segments of pool {pool} have {there >> 20} MiB; leave --segment-size out")
        superblock = self._formatted(path, destroy=destroy, segment_bytes=there or segment_bytes)
        if there and superblock.segment_bytes != there:
            raise Refused(
                f"{path} is formatted with segments of {superblock.segment_bytes >> 20} MiB, and pool {pool} has {there >> 20} MiB; "
                f"clear it with `wipefs --all {path}` and add it again"
            )
        self._table.add(superblock.device_uuid, path)
        info = self._catalog.add_device(
            AddPoolDevice(
                superblock.device_uuid, superblock.device_bytes, superblock.segment_bytes, superblock.segments,
                superblock.first_segment_offset, self._node_uuid, pool, device_class, superblock.generation,
            )
        )  # fmt: skip
        return info, self.state(info)

    def _formatted(self, path: str, *, destroy: bool, segment_bytes: int = 0) -> Superblock:
        try:
            return format_device(path, self._cluster_uuid, force=destroy, segment_bytes=segment_bytes)
        except AlreadyFormatted as err:
            return self._superblock_of(path, err)
        except OSError as err:
            number = err.errno or errno.EIO
            raise FsError(number, f"{path}: {os.strerror(number)}; check dmesg and the permissions of the device") from err

    def _superblock_of(self, path: str, err: AlreadyFormatted) -> Superblock:
        """Returns the superblock of a device that is formatted; the state has its era before the device is added.

        Raises AlreadyExists for a device of the cluster, whose path is noted, and RecoveredDevice.
        """
        found = err.superblock
        known = next((info for info in self._catalog.devices() if info.uuid == found.device_uuid), None)
        if known is None:
            if found.era:
                self._catalog.propose(SetDeviceEra(found.device_uuid, found.era))
            return found
        if found.era > known.era:
            raise RecoveredDevice(other_era(path, found.era, known.era)) from err
        if found.era < known.era:  # it was not given when the cluster was rebuilt; whoever used it before is refused it from now on
            with open_identified(path, self._cluster_uuid, found.device_uuid, found.era) as device:
                write_superblock(device, with_era(found, known.era))
        self._table.add(found.device_uuid, path)  # it may have been found under another name
        raise AlreadyExists(f"{path} is device {found.device_uuid} of this cluster already; see `awsomefsd device ls`") from err

    def all(self) -> list[tuple[DeviceInfo, str]]:
        """Returns every device of the cluster with its state on this node."""
        return [(device, self.state(device)) for device in self._catalog.devices()]

    def state(self, info: DeviceInfo) -> str:
        """Returns "ok", or why this node cannot use the device and what to do.  Reads the device, unless no node sees it."""
        if (info.absent or not info.path) and (reason := self._refused(info.uuid)).startswith(RECOVERED):
            return reason  # absent it is because the nodes that are left all refuse it
        if info.absent:
            where = "no node sees it" if info.shared else f"node {info.home} does not see it, or is gone"
            return f"{ABSENT}: {where}; nothing new is written there, and it is used again as soon as it is back"
        if not info.path and not info.shared and info.home not in ("", self._node_uuid):
            return f"{OF_NODE}{info.home}"
        if not info.path and info.shared:
            return "not found on this node; attach it here, then `awsomefsd device scan`"
        if not info.path:
            return "not found on this node; add it here with `awsomefsd device add PATH`"
        try:
            check(info.path, self._cluster_uuid, info.uuid, info.era)
        except NotFound as err:  # its path is from before this boot, or the device went away
            return f"not found on this node: {err}; attach it again, then `awsomefsd device scan`"
        except (Error, OSError) as err:
            return str(err)
        reason = self._unserved(info.uuid) if info.pool and info.home == self._node_uuid else ""
        return f"{UNSERVED}: {reason}" if reason else "ok"

    def require(self, home: str) -> None:
        """Raises Refused if `home` is "" (a volume on shared devices) and this node cannot use a shared device.

        One that is absent is no reason, unless the cluster was rebuilt from it elsewhere.  One that another node has added a moment ago is
        searched for.  Raises Unavailable while no node leads.
        """
        if home == "" and self._unusable():
            self._search()
            for info, state in self._unusable():
                raise Refused(f"the volume is on shared devices, and this node cannot use device {info.device}: {state}")

    def _unusable(self) -> list[tuple[DeviceInfo, str]]:
        """Returns the shared devices that volumes on them need here and now, and that this node cannot use, each with the reason."""
        return [(info, state) for info, state in self.all() if info.shared and state != "ok" and not state.startswith(ABSENT)]


def check(path: str, cluster_uuid: str, uuid: str, era: int | None) -> Superblock:
    """Returns the superblock of the device at `path`, which must be device `uuid`.

    Raises WrongDevice, RecoveredDevice, Refused (also for one that this build must not write to), another Error of the superblock, OSError.
    """
    with open_identified(path, cluster_uuid, uuid, era, read_only=True) as device:
        superblock = read_superblock(device)
    if not superblock.writable:
        raise Refused(f"{path}: {UNWRITABLE}")
    return superblock
