"""The RPCs about pools of node-local storage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.meta.api.messages.pools import PoolCensus, PoolDeviceInfo, StandingDrain
from awsomefsd.node.devices.pool_view import HostView, PolicyRoom, PoolView, state_of
from awsomefsd.node.pools import PoolCatalog

logger = logging.getLogger(__name__)


class PoolRpcs:
    """The RPCs about pools: each translates, calls one collaborator, and translates back."""

    def __init__(self, pools: PoolCatalog, now_ms: Callable[[], int] = lambda: time.time_ns() // NS_PER_MS) -> None:
        self._pools, self._now_ms = pools, now_ms

    @edge
    def GetPoolStatus(self, request: pb.GetPoolStatusRequest, context: grpc.ServicerContext) -> pb.PoolStatus:
        return self._status()

    @edge
    def SetPool(self, request: pb.SetPoolRequest, context: grpc.ServicerContext) -> pb.PoolStatus:
        given = {field.name: value for field, value in request.ListFields()}
        self._pools.set_pool(**given)
        logger.warning("a pool was changed", extra={f"new_{name}": value for name, value in given.items()})
        return self._status()

    def _status(self) -> pb.PoolStatus:
        pool, volumes, names = self._pools.look()
        return pool_message(PoolView(pool, volumes, names, self._now_ms()))


def pool_message(view: PoolView) -> pb.PoolStatus:
    pool, census = view.pool, view.pool.census
    return pb.PoolStatus(
        segment_bytes=pool.segment_bytes,
        raw_bytes=view.bytes_of(lambda one: one.bays),
        raw_free_bytes=view.bytes_of(lambda one: one.free),
        stale_bytes=view.bytes_of(lambda one: one.stale),
        reserved_bytes=view.reserved_bays() * pool.segment_bytes,
        total_bytes=view.volumes.total_bytes,
        free_bytes=view.volumes.free_bytes,
        promised_bytes=view.volumes.promised_bytes,
        policies=map(_policy, view.policies()),
        lacks=[
            pb.PoolLack(priority=priority, what=what, segments=count, bytes_at_most=count * pool.segment_bytes)
            for priority, what, count in view.lacks()
        ],
        lost_segments=census.lost if census is not None else 0,
        lacking_since_ms=census.since_ms if census is not None else 0,
        walks=pool.walks,
        counted_ms_ago=pool.census_ms_ago if census is not None else -1,
        healing=_healing(view, census),
        hosts=[_host(view, host, census.left_alone if census is not None else []) for host in view.hosts()],
        heal_bytes_per_s=pool.heal_bytes_per_s,
        lost_after_ms=pool.lost_after_ms,
        reserve_percent=pool.reserve_percent,
        standing=[_standing(view, device, one) for device, one in view.standing()],
    )  # fmt: skip


def _standing(view: PoolView, device: PoolDeviceInfo, one: StandingDrain) -> pb.PoolStandingDrain:
    return pb.PoolStandingDrain(
        device=one.device, node=view.name(device.home), segments=one.segments, bytes=one.segments * view.pool.segment_bytes,
        since_ms=one.since_ms, why=one.why,
    )  # fmt: skip


def _policy(room: PolicyRoom) -> pb.PoolPolicy:
    return pb.PoolPolicy(
        redundancy=room.text, volumes=room.volumes, total_bytes=room.total_bytes, free_bytes=room.free_bytes, copies=room.want.copies,
        min_copies=room.want.min_copies, domains=room.domains,
    )  # fmt: skip


def _healing(view: PoolView, census: PoolCensus | None) -> pb.PoolHealing:
    if census is None:
        return pb.PoolHealing(seconds_left=-1)
    return pb.PoolHealing(
        copies=census.copies, bytes_per_s=census.bytes_per_s, seconds_left=view.seconds_left(), asleep=census.asleep, why=census.why,
        idle_ms=census.idle_ms,
    )  # fmt: skip


def _host(view: PoolView, host: HostView, left_alone: list[int]) -> pb.PoolHost:
    return pb.PoolHost(
        host=host.host, name=host.name, maintenance_until_ms=host.maintenance_until_ms, bays=host.bays, free=host.free, stale=host.stale,
        devices=[_device(view, one, left_alone) for one in host.devices],
    )  # fmt: skip


def _device(view: PoolView, one: PoolDeviceInfo, left_alone: list[int]) -> pb.PoolDevice:
    return pb.PoolDevice(
        device=one.device, node=view.name(one.home), device_class=one.device_class, state=state_of(one), bays=one.bays, free=one.free,
        stale=one.stale, left_alone=one.device in left_alone,
    )  # fmt: skip
