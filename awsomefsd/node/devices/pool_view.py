"""A pool as operators look at it: its room by policy and host, and what it lacks.  Pure: answers of the leader in, figures out.

What a policy makes of the room is counted as leases count it: N segments fit if no host has to hold two mirrors of one (spread.placeable).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from awsomefsd.base.types import SPREAD_DEVICE, Redundancy
from awsomefsd.config.redundancy import redundancy_text
from awsomefsd.meta.api.messages.pools import Pool, PoolDeviceInfo, PoolVolumes, StandingDrain
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine.spread import kept_for_repair, placeable
from awsomefsd.meta.state.pools import POLICY

LACKS = (  # by priority
    "have one good mirror left, or none",
    "have fewer mirrors than wanted",
    "are to be moved from drained devices",
    "have more mirrors than wanted",
    "are to be moved for balance",
)


class PolicyRoom(Struct, frozen=True):
    """What the devices that take data now make of a policy.  `domains`: hosts (or devices) that do."""

    want: Redundancy
    volumes: tuple[str, ...]
    total_bytes: int
    free_bytes: int
    domains: int

    @property
    def text(self) -> str:
        return redundancy_text(self.want)

    @property
    def what(self) -> str:
        return "devices" if self.want.spread == SPREAD_DEVICE else "hosts"

    @property
    def is_blocked(self) -> bool:
        """True: nothing can be written."""
        return self.domains < self.want.min_copies

    @property
    def is_short(self) -> bool:
        """True: what is written now gets fewer mirrors than wanted."""
        return self.want.min_copies <= self.domains < self.want.copies


class HostView(Struct, frozen=True):
    """What fails together.  `maintenance_until_ms`: 0 without one."""

    host: str
    name: str
    devices: tuple[PoolDeviceInfo, ...]
    maintenance_until_ms: int = 0

    @property
    def bays(self) -> int:
        return sum(one.bays for one in self.devices)

    @property
    def free(self) -> int:
        return sum(one.free for one in self.devices)

    @property
    def stale(self) -> int:
        return sum(one.stale for one in self.devices)


class PoolView(Struct, frozen=True):
    """`names`: of nodes and hosts for people."""

    pool: Pool
    volumes: PoolVolumes
    names: Mapping[str, str]
    now_ms: int

    # --- room -------------------------------------------------------------------------------------------------------------
    def bytes_of(self, bays: Callable[[PoolDeviceInfo], int]) -> int:
        return self.pool.segment_bytes * sum(bays(one) for one in self.pool.devices)

    def reserved_bays(self) -> int:
        """Returns how many bays are kept for repair on all hosts."""
        return sum(kept_for_repair(host.bays, self.pool.reserve_percent) for host in self.hosts())

    def policies(self) -> list[PolicyRoom]:
        """Returns the policies of the volumes, those of most volumes first."""
        volumes: dict[Redundancy, list[str]] = {}
        for volume in self.volumes.volumes:
            volumes.setdefault(volume.want, []).append(volume.name)
        order = sorted(volumes.items(), key=lambda one: (-len(one[1]), redundancy_text(one[0])))
        return [self._policy(want, sorted(names)) for want, names in order]

    def _policy(self, want: Redundancy, names: Sequence[str]) -> PolicyRoom:
        taking = [one for one in self.pool.devices if takes_data(one) and want.device_class in ("", one.device_class)]
        total = self._placed(taking, want, lambda one: one.bays)
        free = self._placed(taking, want, lambda one: one.free)
        return PolicyRoom(want, tuple(names), total, free, len({_domain(one, want) for one in taking}))

    def _placed(self, taking: Iterable[PoolDeviceInfo], want: Redundancy, bays: Callable[[PoolDeviceInfo], int]) -> int:
        by_host: dict[str, list[PoolDeviceInfo]] = {}
        for device in taking:
            by_host.setdefault(device.host, []).append(device)
        room: dict[str, int] = {}
        for there in by_host.values():
            kept = kept_for_repair(sum(one.bays for one in there), self.pool.reserve_percent)
            for device in sorted(there, key=bays):
                taken = min(kept, bays(device))
                kept -= taken
                name = _domain(device, want)
                room[name] = room.get(name, 0) + bays(device) - taken
        copies = max(want.min_copies, min(want.copies, len(room)))
        return placeable(list(room.values()), copies) * usable_bytes(self.pool.segment_bytes)

    # --- hosts ------------------------------------------------------------------------------------------------------------
    def hosts(self) -> list[HostView]:
        by_host: dict[str, list[PoolDeviceInfo]] = {}
        for device in self.pool.devices:
            by_host.setdefault(device.host, []).append(device)
        until = {host: until_ms for host, until_ms in self.pool.maintenance if until_ms > self.now_ms}
        found = [HostView(host, self.name(host), tuple(there), until.get(host, 0)) for host, there in by_host.items()]
        return sorted(found, key=lambda one: (one.name, one.host))

    def name(self, identity: str) -> str:
        return self.names.get(identity) or identity

    # --- what it lacks ------------------------------------------------------------------------------------------------------
    def lacks(self) -> list[tuple[int, str, int]]:
        """Returns (priority, what is so, how many segments) of what lacks something, by the last count."""
        census = self.pool.census
        counted = census.needs if census is not None else []
        return [(priority, LACKS[priority], count) for priority, count in enumerate(counted[: len(LACKS)]) if count]

    def standing(self) -> list[tuple[PoolDeviceInfo, StandingDrain]]:
        """Returns the drains that do not go on, with their devices; none that has been taken back since they were looked at."""
        drained = {one.device: one for one in self.pool.devices if one.draining and not one.lost}
        census = self.pool.census
        return [(drained[one.device], one) for one in (census.standing if census is not None else []) if one.device in drained]

    def left_bytes(self) -> int:
        """Returns the most that has still to be copied: a whole segment for each that lacks a mirror or has to move."""
        return self.pool.segment_bytes * sum(count for priority, _, count in self.lacks() if priority != POLICY)

    def seconds_left(self) -> int:
        """Returns for how long copying goes on at this rate; -1 where that is not known."""
        census = self.pool.census
        if census is None or (self.left_bytes() and not census.bytes_per_s):
            return -1
        return self.left_bytes() // census.bytes_per_s if self.left_bytes() else 0


def takes_data(device: PoolDeviceInfo) -> bool:
    return bool(device.server) and not (device.absent or device.lost or device.draining or device.doubted)


def state_of(device: PoolDeviceInfo) -> str:
    """Returns the state of a device in words."""
    where = "lost" if device.lost else "absent" if device.absent else "not attached" if not device.server else "ok"
    if where == "ok" and device.doubted:
        where = f"{device.doubted} bays to be looked at"
    return f"{where}, draining" if device.draining and where != "ok" else "draining" if device.draining else where


def _domain(device: PoolDeviceInfo, want: Redundancy) -> str:
    return f"device {device.device}" if want.spread == SPREAD_DEVICE else device.host
