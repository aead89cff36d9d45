"""The rules behind the health codes of pools: what an operator is told of devices that are away, of missing mirrors, and of room.  Pure.

A device that the daemon of its own node does not see has codes of its own already (rules.py); here is what the cluster as a whole knows.
Nothing is said of needs before the node that leads has counted them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from awsomefsd.base.sizes import format_bytes
from awsomefsd.io.pool.server_state import DeviceState
from awsomefsd.meta.api.messages.pools import PoolCensus
from awsomefsd.meta.state.pools import FEWER, LAST_MIRROR
from awsomefsd.node.devices.pool_view import HostView, PolicyRoom, PoolView
from awsomefsd.node.health.codes import HealthFinding

NEARLY_FULL_PERCENT = 90
STALLED_MS = 600_000  # no copy was made for so long, and some are needed
STANDING_MS = 30_000  # a drain does not go on for so long; bays that were freed are trimmed within seconds
SLOW_MS = {"read": 500, "write": 500, "flush": 1_000}  # what one usually takes on a disk that holds others up
_NAMES_SHOWN = 5


def of_pool(view: PoolView, voters: int, carriers: int) -> Iterator[HealthFinding]:
    """Yields the findings about a pool.  `voters` of the metadata, and nodes that could be one."""
    yield from _of_devices(view)
    yield from _of_hosts(view)
    for policy in view.policies():
        yield from _of_policy(policy)
    if view.pool.census is not None:
        yield from _of_needs(view, view.pool.census)
        yield from _of_drains(view, view.pool.census)
    if voters == 1 and len(view.hosts()) > 1:
        more = "" if carriers > 2 else "; with a third node, all three would"
        what = f"the pool is on {len(view.hosts())} hosts, and one node alone votes on the metadata{more}"
        yield HealthFinding("METADATA_ONE_COPY", what)


def of_served(devices: Sequence[DeviceState]) -> Iterator[HealthFinding]:
    """Yields the findings about the devices that this node's segment server serves."""
    for one in devices:
        for kind, work in one.work.items():
            usual_ms = work.usual_us / 1_000
            if usual_ms > SLOW_MS.get(kind, usual_ms):
                yield HealthFinding("DEVICE_SLOW", f"device {one.device} ({one.path}) usually takes {usual_ms:.0f} ms for a {kind}")


def _of_devices(view: PoolView) -> Iterator[HealthFinding]:
    for one in view.pool.devices:
        where = f"device {one.device} of node {view.name(one.home)}"
        held = format_bytes((one.bays - one.free) * view.pool.segment_bytes)
        if one.lost:
            fix = f"bring it back; if it is gone for good: awsomefsd device drain {one.device}, then awsomefsd device remove {one.device}"
            yield HealthFinding("DEVICE_LOST", f"{where} counts as lost, with {held}; mirrors elsewhere take its place", fix)
        elif one.absent and not _maintained(view, one.host):
            after = view.pool.lost_after_ms // 1_000
            yield HealthFinding(
                "DEVICE_ABSENT", f"{where} is away, with {held}; its mirrors on other hosts serve, and after {after} s they are copied",
                f"start node {view.name(one.home)} and its segment server; if it will be away longer: awsomefsd node maintenance",
            )  # fmt: skip


def _maintained(view: PoolView, host: str) -> bool:
    return any(one.host == host and one.maintenance_until_ms for one in view.hosts())


def _of_hosts(view: PoolView) -> Iterator[HealthFinding]:
    hosts = view.hosts()
    for host in hosts:
        if host.maintenance_until_ms:
            left_s = (host.maintenance_until_ms - view.now_ms) // 1_000
            yield HealthFinding("NODE_MAINTENANCE", f"host {host.name} is under maintenance for {left_s} s more")
    whole = [host for host in hosts if not any(one.lost or one.absent for one in host.devices)]
    widest = max((one.want.copies for one in view.policies()), default=0)
    if len(whole) > widest > 0:  # with as many hosts as mirrors nothing can be made good before another host is there
        fullest = max(whole, key=_used)
        room = sum(host.free for host in whole if host is not fullest) - len(whole) + 1  # a bay of each is collection's
        if _used(fullest) > room:
            missing = format_bytes((_used(fullest) - room) * view.pool.segment_bytes)
            yield HealthFinding("POOL_CANNOT_HEAL", f"if host {fullest.name} is lost, the others lack {missing} to take what it has")
    if view.volumes.total_bytes and view.volumes.free_bytes * 100 <= view.volumes.total_bytes * (100 - NEARLY_FULL_PERCENT):
        left = format_bytes(view.volumes.free_bytes)
        yield HealthFinding("POOL_NEARLY_FULL", f"the pool has {left} left of {format_bytes(view.volumes.total_bytes)}")


def _used(host: HostView) -> int:
    return host.bays - host.free - host.stale


def _of_policy(policy: PolicyRoom) -> Iterator[HealthFinding]:
    names = ", ".join(policy.volumes[:_NAMES_SHOWN]) + (" and others" if len(policy.volumes) > _NAMES_SHOWN else "")
    volumes = f"volume{'s' if len(policy.volumes) > 1 else ''} {names} ({policy.text})"
    if policy.is_blocked:
        few = f"{policy.domains} {policy.what} take data, {policy.want.min_copies} have to"
        yield HealthFinding("POOL_BLOCKED", f"nothing can be written to {volumes}: {few}")
    elif policy.is_short:
        yield HealthFinding(
            "WRITES_AT_RISK", f"what is written to {volumes} gets {policy.domains} of {policy.want.copies} mirrors: so many {policy.what} "
            "take data",
        )  # fmt: skip


def _of_needs(view: PoolView, census: PoolCensus) -> Iterator[HealthFinding]:
    needs = [*census.needs, 0, 0][: FEWER + 1]
    last, fewer = needs[LAST_MIRROR] - census.lost, needs[FEWER]
    if census.lost:
        yield HealthFinding("POOL_LOST_DATA", f"nothing is left of {_counted(census.lost)}; reading files there answers EIO")
    if last > 0:
        yield HealthFinding("POOL_AT_RISK", f"{_counted(last)} {_has(last)} one good mirror left")
    if fewer:
        yield HealthFinding("POOL_DEGRADED", f"{_counted(fewer)} {_has(fewer)} fewer mirrors than wanted")
    if census.idle_ms >= STALLED_MS and not census.copies and last + fewer > 0:
        why = f": {census.why}" if census.why else ""
        yield HealthFinding("HEAL_STALLED", f"mirrors are missing, and none was made for {census.idle_ms // 60_000} min{why}")


def _of_drains(view: PoolView, census: PoolCensus) -> Iterator[HealthFinding]:
    if census.copies:
        return  # when these have ended, more may be possible
    for device, one in view.standing():
        if view.now_ms - one.since_ms >= STANDING_MS:
            where, bays = f"device {one.device} of node {view.name(device.home)}", format_bytes(one.segments * view.pool.segment_bytes)
            fix = "add a device on another host, bring back one that is away, or delete files; to end the drain: awsomefsd device drain"
            what = f"{where} is drained, and {_counted(one.segments)} there ({bays} of bays) cannot move: {one.why}"
            yield HealthFinding("DRAIN_STALLED", what, f"{fix} {one.device} --undo")


def _counted(count: int) -> str:
    return "1 segment" if count == 1 else f"{count} segments"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"
