"""Devices grow, are drained, and are removed while the cluster runs.  Pure.

Growing adds a run of segments (device_numbers.py) that were never leased.  On a drained device nothing is leased, its free room is promised
to no writer, workers seal what they had leased there (they learn it when they next ask for the devices), and collection empties the rest.
What was promised to writers must fit the other devices of its kind from that entry on, so a device is drained only where it does.

Whether the mirrors of a pool's device find places elsewhere is too much to look at in an entry: it takes the rows of all segments.  So the
node that asks looks at them, and DrainPoolDevices names what it went by: the devices that would take the mirrors, and those that are being
emptied already.  The entry is refused where that has changed.  So of two drains that begin at once the later entry is looked at again, and
with it the mirrors of the first.

Removing needs a drained device without a single segment in use.  The row stays, marked `removed` and with no segments: numbers of devices
and segments never come again, so nothing that was written there can be taken for anything else, and a check of the state sees no gap.
The rows of its segments go a bounded number an entry; until the last is gone the command is repeated, and a state in between is whole.
A device of a pool that is lost may have stale bays: its server, which would trim them, does not come back.

A device that no node sees is *absent*: it takes no data, as one that is drained, and what it holds stays where it is.  Promises may be
more than the others have room for then; what was written waits in its mount until there is some.  It ends when a node sees the device.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.meta.api.commands import DrainPoolDevices, Entry
from awsomefsd.meta.api.commands.devices import DrainDevice, GrowDevice, RemoveDevice, SetAbsent, SetDeviceEra
from awsomefsd.meta.api.messages import Done, Made, Reply
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine import bays, locality, pools
from awsomefsd.meta.machine.device_numbers import number_of
from awsomefsd.meta.machine.quota import device_bytes_unpromised
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State

ROWS_REMOVED_MAX = 4_096  # in one entry
_UUID_BYTES_MAX = 64


def _existing(state: State, number: int) -> rows.DeviceRow:
    for device in state.devices():
        if device.device == number:
            return device
    raise FsError(errno.ENOENT, f"there is no device {number}")


def grow(state: State, entry: Entry, command: GrowDevice) -> Reply:
    """Adds segments at the end of a device."""
    device = _existing(state, command.device)
    added = command.segments - device.segments
    if not added and command.bytes == device.bytes:
        return Done()
    end = device.first_segment_offset + command.segments * device.segment_bytes
    if added < 0 or command.bytes < device.bytes or end > command.bytes:
        raise FsError(errno.EINVAL, f"device {device.device} has {device.bytes} bytes in {device.segments} segments; it can only grow")
    if added and not device.pool:
        device.grown = [*device.grown, (device.segments, state.cluster.next_segment)]
        state.cluster.next_segment += added
    usable = usable_bytes(device.segment_bytes) * added
    device.bytes, device.segments = command.bytes, command.segments
    device.segments_free += added
    if not device.pool:
        state.cluster.total_bytes += usable
        state.cluster.free_bytes += usable
    state.save_device(device)
    return Done()


def drain(state: State, entry: Entry, command: DrainDevice) -> Reply:
    """Begins or ends draining a device."""
    device = _existing(state, command.device)
    if device.draining == command.draining:
        return Done()
    device.draining = command.draining
    try:
        if command.draining and not (device.pool and (device.absent or device.lost)):  # nothing is promised of what is away
            _check_rest(state, device)
    except FsError:
        device.draining = False
        raise
    state.save_device(device)
    if device.pool:
        pools.begin_walk(state, entry, device=device.device)
    return Done()


def drain_of_pool(state: State, entry: Entry, command: DrainPoolDevices) -> Reply:
    """Begins to drain devices of a pool, all or none, if what was found of the pool before still holds."""
    going = [bays.pool_device(state, number) for number in (*command.devices, *command.lost)]
    if not going or len({one.device for one in going}) != len(going) or any(one.pool != command.pool for one in going):
        raise FsError(errno.EINVAL, f"devices of pool {command.pool}, each once, are to be named")
    begun = [one for one in going if not one.draining]
    if not begun:
        return Done()
    _check_premises(state, command)
    try:
        for device in begun:
            device.draining = True
        for device in begun:
            if not (device.absent or device.lost):  # nothing is promised of what is away
                _check_rest(state, device)
    except FsError:
        for device in begun:
            device.draining = False
        raise
    for device in begun:
        state.save_device(device)
        pools.begin_walk(state, entry, device=device.device)
    return Done()


def _check_premises(state: State, command: DrainPoolDevices) -> None:
    """Raises FsError(ESTALE) unless the devices of a pool are as they were when places were looked for, or there are more places now."""
    going = {*command.devices, *command.lost}
    there = {one.device: one for one in state.devices() if one.pool == command.pool and not one.removed}
    if gone := [number for number in command.taking if number in going or number not in there or not bays.takes_bays(there[number])]:
        raise FsError(errno.ESTALE, f"device {gone[0]} takes no new data any more; look again where the mirrors can go")
    emptied = {number for number, one in there.items() if one.draining and not one.lost and number not in going}
    if command.devices and (others := emptied.difference(command.draining)):
        raise FsError(errno.ESTALE, f"device {min(others)} is drained too by now; look again whether there is room for both")
    if back := [number for number in command.lost if not there[number].lost]:
        raise FsError(errno.ESTALE, f"device {back[0]} is back; look again where its mirrors can go")


def set_absent(state: State, entry: Entry, command: SetAbsent) -> Reply:
    """Makes a device absent, or present again."""
    device = _existing(state, command.device)
    if device.absent != command.absent:
        device.absent = command.absent
        state.save_device(device)
    return Done()


def _check_rest(state: State, device: rows.DeviceRow) -> None:
    """Raises FsError(ENOSPC) unless the other devices have room for all promises; `device` is marked already."""
    kind = locality.of_device(device)
    in_use = device.segments_free < device.segments
    if in_use and not locality.leasable(locality.devices_of(state, kind)):
        raise FsError(errno.ENOSPC, f"device {device.device} is the only one of its kind that takes data; add another one first")
    missing = -device_bytes_unpromised(state, 0, kind)
    if missing > 0 and locality.reserved_bytes(state, kind) + state.cluster.allocated_bytes:
        raise FsError(errno.ENOSPC, f"the other devices have {missing} bytes too few for what writers were promised; add another one")


def era_of(state: State, uuid: str) -> int:
    """Returns the era of a device; 0 for one that was never recovered, or that nobody knows."""
    found: rows.DeviceEraRow | None = state.read(keys.device_era(uuid), rows.DEVICE_ERA)
    return 0 if found is None else found.era


def set_era(state: State, entry: Entry, command: SetDeviceEra) -> Reply:
    """Sets the era that the superblock of a device has.  It never becomes smaller: nodes of before could use the device again."""
    if not 0 < len(command.uuid.encode()) <= _UUID_BYTES_MAX or not max(1, era_of(state, command.uuid)) <= command.era < 1 << 63:
        raise FsError(errno.EINVAL, f"{command.era} is no era for device {command.uuid[:_UUID_BYTES_MAX]}: an era never becomes smaller")
    state.write(keys.device_era(command.uuid), rows.DeviceEraRow(command.uuid, command.era), rows.DEVICE_ERA)
    return Done()


def remove(state: State, entry: Entry, command: RemoveDevice) -> Reply:
    """Removes a drained, empty device; answered by Made(rows that are left to remove)."""
    if not 0 < command.device < state.cluster.next_device or command.count <= 0:
        raise FsError(errno.ENOENT, f"there is no device {command.device}")
    device = state.device(command.device)
    if not device.removed:
        if not device.draining:
            raise FsError(errno.EBUSY, f"device {device.device} is in use; drain it first")
        used = device.segments - device.segments_free - (device.stale if device.pool and device.lost else 0)
        if used:
            raise FsError(errno.ENOTEMPTY, f"{used} segments of device {device.device} are in use")
        usable = 0 if device.pool else usable_bytes(device.segment_bytes) * device.segments
        state.cluster.total_bytes -= usable
        state.cluster.free_bytes -= usable
        device.segments = device.segments_free = 0
        device.removed = True
    for _ in range(min(command.count, ROWS_REMOVED_MAX, device.unused_from)):
        device.unused_from -= 1
        if device.pool:
            bays.forget_stale(state, device, device.unused_from)
        else:
            state.drop(keys.segment(number_of(device, device.unused_from)))
        state.txn.delete(keys.free(device.device, device.unused_from))
    state.save_device(device)
    state.cluster.segment_bytes_max = max((one.segment_bytes for one in state.devices() if not one.pool), default=0)
    return Made(device.unused_from)
