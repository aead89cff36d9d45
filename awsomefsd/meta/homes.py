"""Which devices a volume's data may lie on, while not every node sees every device.  Pure.

A device is shared (every node sees it) or has a home, the node it is in.  The data of a volume is all on shared devices, or all on the
devices of one node; which, is settled when it is mounted first, and the volume can be mounted where its devices are.  So no file ever has
bytes that the node that serves it cannot reach, and space is promised only where it can be used.

`home` of a volume: UNDECIDED, "" (shared devices, and those of a state that knew no homes), or the node.
"""

from __future__ import annotations

import errno

from awsomefsd.errors import FsError
from awsomefsd.meta import keys, rows
from awsomefsd.meta.state import State

UNDECIDED = "*"


def of_device(device: rows.DeviceRow) -> str:
    return "" if device.shared else device.home


def devices_of(state: State, home: str) -> list[rows.DeviceRow]:
    return [device for device in state.devices() if of_device(device) == home]


def leasable(devices: list[rows.DeviceRow]) -> list[rows.DeviceRow]:
    """Those that take new data."""
    return [device for device in devices if not device.draining]


def settle(state: State, volume: rows.VolumeRow, node: str) -> None:
    """For a session on `node`.  Raises FsError(ENXIO) where the volume cannot be served."""
    if volume.home == UNDECIDED:
        homes = {of_device(device) for device in state.devices()}
        for home in ("", node):
            if home in homes:
                volume.home = home
                state.save_volume(volume)
                return
        if homes:
            raise FsError(errno.ENXIO, f"node {node} sees no device; add one there with `awsomefsd device add`, or mount on another node")
    elif volume.home not in ("", node):
        raise FsError(errno.ENXIO, f"the data of volume {volume.name} is on devices of node {volume.home}; mount it there")


def check_shared(state: State, volume: rows.VolumeRow) -> None:
    """Raises FsError(ENXIO) unless every node that sees the shared devices can serve the volume."""
    if volume.home not in ("", UNDECIDED):
        raise FsError(errno.ENXIO, f"the data of volume {volume.name} is on devices of node {volume.home}; mount it there alone")
    if not devices_of(state, ""):
        raise FsError(errno.ENXIO, "there is no shared device; add one with `awsomefsd device add --shared`, on each node that mounts")


def of_session(state: State, session: rows.SessionRow) -> str:
    """Where a session's volume has its data; UNDECIDED without any device yet."""
    volume = state.volume(session.volume)
    if volume is None:
        return UNDECIDED
    settle(state, volume, session.node)
    return volume.home


def one_for_all(state: State) -> bool:
    """All devices are of one kind and take data: the cluster's totals are its totals."""
    devices = state.devices()
    return len({of_device(device) for device in devices}) <= 1 and not any(device.draining for device in devices)


def reserved_bytes(state: State, home: str) -> int:
    """Promised to sessions whose volumes have their data there."""
    of_volumes = {row.volume for row in state.scan(keys.kind_range(0, keys.VOLUME), rows.VOLUME) if row.home == home}
    sessions = state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION)
    return sum(row.reserved_bytes for row in sessions if row.volume in of_volumes)


def move_all(state: State, node: str) -> None:
    """After a recovery: `node` is the only one there is, and has what devices there are."""
    for device in state.devices():
        if not device.shared and device.home not in ("", node):
            device.home = node
            state.save_device(device)
    for number in range(1, state.cluster.next_volume):
        volume = state.volume(number)
        if volume is not None and volume.home not in ("", UNDECIDED, node):
            volume.home = node
            state.save_volume(volume)
