"""The space of a pool is counted so that what `df` shows there can be written, on hosts of any sizes.

Segments are counted, not bays: of a policy with n mirrors, N segments fit if no host has to hold two mirrors of one (spread.placeable).
Each host keeps its reserve for repair.  Where volumes of a pool want different numbers of mirrors, all is counted as the widest of them
wants it, so no promise depends on who writes first; where fewer hosts are there than it wants, as many mirrors as there are hosts, which
is what a lease takes there.
"""

from __future__ import annotations

from awsomefsd.base.types import Redundancy
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine.spread import kept_for_repair, placeable
from awsomefsd.meta.state import keys, pools, rows
from awsomefsd.meta.state.rows_cache import State

_ONE = Redundancy(1, 1)


def free_bytes(state: State, devices: list[rows.DeviceRow], home: str) -> int:
    """Returns the bytes of segments that fit the free bays of these devices, all of the pool that is called `home`."""
    return _bytes(state, devices, home, {device.device: device.segments_free for device in devices})


def total_bytes(state: State, devices: list[rows.DeviceRow], home: str) -> int:
    """Returns the bytes of segments that fit all bays of these devices."""
    return _bytes(state, devices, home, {device.device: device.segments for device in devices})


def _bytes(state: State, devices: list[rows.DeviceRow], home: str, bays: dict[int, int]) -> int:
    if not devices:
        return 0
    pool: rows.PoolRow | None = state.read(keys.pool(devices[0].pool), rows.POOL)
    assert pool is not None, "a device names a pool that does not exist"
    want = _widest(state, home)
    by_host: dict[str, list[rows.DeviceRow]] = {}
    for device in devices:
        by_host.setdefault(device.host, []).append(device)
    free: dict[str, int] = {}
    for there in by_host.values():
        kept = kept_for_repair(sum(device.segments for device in there), pool.reserve_percent)
        for device in sorted(there, key=lambda one: bays[one.device]):
            taken = min(kept, bays[device.device])
            kept -= taken
            name = pools.domain(device, want)
            free[name] = free.get(name, 0) + bays[device.device] - taken
    copies = max(want.min_copies, min(want.copies, len(free)))
    return placeable(list(free.values()), copies) * usable_bytes(pool.segment_bytes)


def _widest(state: State, home: str) -> Redundancy:
    volumes = state.scan(keys.kind_range(0, keys.VOLUME), rows.VOLUME)
    wants = [row.want for row in volumes if row.home == home and row.want is not None and not row.deleted]
    return max(wants, key=lambda want: (want.copies, want.min_copies, -want.spread), default=_ONE)
