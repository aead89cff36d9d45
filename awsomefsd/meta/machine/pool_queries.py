"""Answers what the daemon of the leader asks about pools: the devices, what lacks something, and what may be trimmed.

Each answer looks at a bounded number of rows and says where to go on.
"""

from __future__ import annotations

import errno
from itertools import islice

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import BAYS_PER_ANSWER_MAX, NEEDS_COUNTED_MAX, NEEDS_PER_ANSWER_MAX, STALE_BAYS_LOOKED_AT_MAX
from awsomefsd.base.types import BAY_COPYING, BAY_STALE
from awsomefsd.meta.api.messages.pools import (
    CountNeeds,
    GetNeeds,
    GetPool,
    GetPoolVolumes,
    GetStaleBays,
    NeedsCounted,
    NeedsFound,
    Pool,
    PoolDeviceInfo,
    PoolVolume,
    PoolVolumes,
    SegmentNeed,
    StaleBays,
)
from awsomefsd.meta.machine import bays, locality, nodes, pool_space, pools
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.pools import LAST_MIRROR, NEED_PRIORITIES, complete, counts
from awsomefsd.meta.state.rows_cache import State


def get_pool(state: State, body: GetPool) -> Pool:
    """Answers GetPool, without the safe index, which the leader knows."""
    pool = _existing(state, body.pool)
    devices = [_device(state, row) for row in state.devices() if row.pool == pool.pool and not row.removed]
    return Pool(
        pool.segment_bytes, pool.heal_bytes_per_s, pool.lost_after_ms, pool.reserve_percent, pool.maintenance,
        len(pools.walks_of(state)), devices,
    )  # fmt: skip


def _existing(state: State, number: int) -> rows.PoolRow:
    pool = pools.of_number(state, number) if 0 < number < 1 << 16 else None
    if pool is None:
        raise FsError(errno.ENOENT, f"there is no pool {number}")
    return pool


def get_volumes(state: State, body: GetPoolVolumes) -> PoolVolumes:
    """Answers GetPoolVolumes."""
    home = locality.pool_home(_existing(state, body.pool).pool)
    there = [row for row in state.scan(keys.kind_range(0, keys.VOLUME), rows.VOLUME) if row.home == home and not row.deleted]
    devices = locality.leasable(locality.devices_of(state, home))
    return PoolVolumes(
        [PoolVolume(row.volume, row.name, row.want) for row in there if row.want is not None],
        pool_space.total_bytes(state, devices, home), pool_space.free_bytes(state, devices, home), locality.reserved_bytes(state, home),
    )  # fmt: skip


def _device(state: State, row: rows.DeviceRow) -> PoolDeviceInfo:
    server, home = nodes.find(state, row.server), nodes.find(state, row.home)
    return PoolDeviceInfo(
        row.device, row.segments, row.segments_free, row.stale, row.home, row.host,
        home.labels.get("zone", "") if home is not None else "", row.device_class, row.server,
        server.segments if server is not None else "", row.absent, row.lost, row.draining, row.doubted,
    )  # fmt: skip


def get_needs(state: State, body: GetNeeds) -> NeedsFound:
    """Answers GetNeeds."""
    if not 0 <= body.priority < 1 << 8 or not 0 <= body.segment < 1 << 63 or body.count <= 0:
        raise FsError(errno.EINVAL, "no needs asked for")
    count = min(body.count, NEEDS_PER_ANSWER_MAX)
    span = keys.need(body.priority, body.segment), keys.kind_range(0, keys.NEED)[1]
    found = list(islice(state.txn.scan(*span), count + 1))
    told = [_need(state, keys.need_of(key), rows.NEED.loads(raw)) for key, raw in found[:count]]
    return NeedsFound(told, keys.need_of(found[count][0]) if len(found) > count else (-1, 0))


def count_needs(state: State, body: CountNeeds) -> NeedsCounted:
    """Answers CountNeeds."""
    if not 0 <= body.priority < 1 << 8 or not 0 <= body.segment < 1 << 63:
        raise FsError(errno.EINVAL, "no needs asked for")
    found, lost, since_ms = [0] * NEED_PRIORITIES, 0, 0
    span = keys.need(body.priority, body.segment), keys.kind_range(0, keys.NEED)[1]
    for looked, (key, raw) in enumerate(state.txn.scan(*span)):
        priority, number = keys.need_of(key)
        if looked == NEEDS_COUNTED_MAX:
            return NeedsCounted(found, lost, since_ms, (priority, number))
        need: rows.NeedRow = rows.NEED.loads(raw)
        found[priority] += 1
        since_ms = min(since_ms or need.since_ms, need.since_ms)
        lost += priority == LAST_MIRROR and _is_lost(state, number)
    return NeedsCounted(found, lost, since_ms, (-1, 0))


def _is_lost(state: State, number: int) -> bool:
    """Returns whether no mirror that counts has all of a segment."""
    row = state.segment(number)
    return row is not None and bool(row.live_bytes) and not any(counts(state.device(bay.device)) for bay in complete(row))


def _need(state: State, place: tuple[int, int], need: rows.NeedRow) -> SegmentNeed:
    priority, number = place
    row = state.segment(number)
    assert row is not None and row.want is not None, "a need is of a segment in bays"
    copying = next((bay for bay in row.bays if bay.role == BAY_COPYING), None)
    planned: rows.BayRow | None = state.read(keys.bay(copying.device, copying.index), rows.BAY) if copying is not None else None
    return SegmentNeed(
        priority, need.reasons, need.since_ms, number, row.incarnation, row.state, row.bytes, row.end, row.footer_offset, row.volume,
        row.want, row.bays, planned.index if planned is not None else 0,
    )  # fmt: skip


def get_stale(state: State, body: GetStaleBays) -> StaleBays:
    """Answers GetStaleBays."""
    device = bays.pool_device(state, body.device)
    if not 0 <= body.first < 1 << 32 or body.count <= 0:
        raise FsError(errno.EINVAL, "no bays asked for")
    count = min(body.count, BAYS_PER_ANSWER_MAX)
    found: list[tuple[int, int, int]] = []
    for looked, (key, raw) in enumerate(state.txn.scan(*keys.bays_range(device.device, body.first))):
        index = keys.bay_place(key)[1]
        if len(found) == count or looked == STALE_BAYS_LOOKED_AT_MAX:
            return StaleBays(found, index)
        row: rows.BayRow = rows.BAY.loads(raw)
        if row.role == BAY_STALE:
            found.append((index, row.segment, row.index))
    return StaleBays(found, -1)
