"""The locality of a volume decides on which devices its data may lie, while not every node sees every device.  Pure.

A device is shared (every node sees it) or has a home node, the node it is in.  The data of a volume is all on shared devices, or all on the
devices of one node; the first mount decides which, and the volume can be mounted where its devices are.  So no file ever has
bytes that the node that serves it cannot reach, and space is promised only where it can be used.

`home` of a volume: UNDECIDED, "" (shared devices, and those of a state that knew no homes), the node, or "pool N": the bays of a pool,
which every node reaches (pools.py).
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import is_pool
from awsomefsd.meta.api.commands import UNDECIDED
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import NotKept
from awsomefsd.meta.state.rows_cache import State


def of_device(device: rows.DeviceRow) -> str:
    """Returns the home node of a device, "" for a shared one; of a device in a pool what is the home of the pool's volumes."""
    if device.pool:
        return pool_home(device.pool)
    return "" if device.shared else device.home


def pool_home(pool: int) -> str:
    """Returns `home` of the volumes whose data is in a pool; no node is called so."""
    return f"pool {pool}"


def devices_of(state: State, home_node: str) -> list[rows.DeviceRow]:
    """Returns the devices of a home node ("" for the shared ones)."""
    return [device for device in state.devices() if of_device(device) == home_node]


def leasable(devices: list[rows.DeviceRow]) -> list[rows.DeviceRow]:
    """Returns the devices that take new data: those that are neither drained nor absent."""
    return [device for device in devices if takes_data(device)]


def takes_data(device: rows.DeviceRow) -> bool:
    """Returns False for a device that is being drained, or that no node sees."""
    return not device.draining and not device.absent and not device.lost


def check_present(devices: list[rows.DeviceRow]) -> None:
    """Raises NotKept(EIO) if none of the devices takes data, and one of them would if it were not absent."""
    if any(device.absent and not device.draining for device in devices) and not leasable(devices):
        raise NotKept(errno.EIO, "the devices that take data of this volume are absent: no node sees them")


def seen(devices: list[rows.DeviceRow], avoid: list[int]) -> list[rows.DeviceRow]:
    """Returns the devices that a node sees: all but `avoid`.  Raises NotKept(EIO) if there are some, and it sees none of them."""
    unseen = set(avoid)
    found = [device for device in devices if device.device not in unseen]
    if devices and not found:
        raise NotKept(errno.EIO, "this node sees none of the devices that take data of this volume")
    return found


def settle(state: State, volume: rows.VolumeRow, node: str) -> None:
    """Decides the locality of a volume when the first session opens it, on `node`.

    Raises FsError(ENXIO) where the volume cannot be served.
    """
    if volume.home == UNDECIDED:
        home_nodes = {of_device(device) for device in state.devices()}
        for home_node in ("", node):
            if home_node in home_nodes:
                volume.home = home_node
                state.save_volume(volume)
                return
        if home_nodes:
            raise FsError(errno.ENXIO, f"node {node} sees no device; add one there with `awsomefsd device add`, or mount on another node")
    elif volume.home not in ("", node) and not is_pool(volume.home):
        raise FsError(errno.ENXIO, f"the data of volume {volume.name} is on devices of node {volume.home}; mount it there")


def check_shared(state: State, volume: rows.VolumeRow) -> None:
    """Raises FsError(ENXIO) unless every node that sees the shared devices can serve the volume."""
    if is_pool(volume.home):
        return
    if volume.home not in ("", UNDECIDED):
        raise FsError(errno.ENXIO, f"the data of volume {volume.name} is on devices of node {volume.home}; mount it there alone")
    if not devices_of(state, ""):
        raise FsError(errno.ENXIO, "there is no shared device; add one with `awsomefsd device add --shared`, on each node that mounts")


def of_session(state: State, session: rows.SessionRow) -> str:
    """Returns the home node of a session's volume, "" for shared devices; UNDECIDED without any device yet."""
    volume = state.volume(session.volume)
    if volume is None:
        return UNDECIDED
    settle(state, volume, session.node)
    return volume.home


def is_uniform(state: State) -> bool:
    """Returns True if all devices are of one kind and take data, so that the cluster's totals are theirs."""
    devices = state.devices()
    kinds = {of_device(device) for device in devices}
    return len(kinds) <= 1 and not any(map(is_pool, kinds)) and all(takes_data(device) for device in devices)


def reserved_bytes(state: State, home_node: str) -> int:
    """Returns the bytes promised to sessions whose volumes have their data on that node."""
    of_volumes = {row.volume for row in state.scan(keys.kind_range(0, keys.VOLUME), rows.VOLUME) if row.home == home_node}
    sessions = state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION)
    return sum(row.reserved_bytes for row in sessions if row.volume in of_volumes)


def move_all(state: State, node: str) -> None:
    """Makes `node` the home node of all devices and volumes: after a recovery it is the only one, and has all devices."""
    for device in state.devices():
        if not device.shared and not device.pool and device.home not in ("", node):
            device.home = node
            state.save_device(device)
    for number in range(1, state.cluster.next_volume):
        volume = state.volume(number)
        if volume is not None and volume.home not in ("", UNDECIDED, node) and not is_pool(volume.home):
            volume.home = node
            state.save_volume(volume)
