"""Obstacles to a drain or a removal of devices of a pool are found by the rows, and put into words.  Pure: rows in, sentences out.

A drain moves mirrors; so each of them needs a place that fails apart from the mirrors that stay.  Whether there are enough is found by
placing them one after the other, those with the fewest hosts to choose from first, each on the host with the most room, as healing does.
Healing leaves each host its reserve when it moves something.  What is on devices that are being drained already has to move as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from awsomefsd.base.sizes import format_bytes
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_LEASED, SPREAD_DEVICE, Redundancy, SegmentBay, SegmentInBays
from awsomefsd.meta.api.messages.pools import Pool, PoolDeviceInfo, PoolVolume
from awsomefsd.meta.machine.spread import kept_for_repair
from awsomefsd.node.devices.pool_view import takes_data

_NAMES_SHOWN = 5


class PlaceForMirrors(Struct, frozen=True):
    """A segment with mirrors that have to move: how many, and the devices that may take one, by what fails together."""

    copies: int
    devices: tuple[tuple[int, ...], ...]


class Leaving:
    """The devices `leaving` of a pool, which are being given up.  `segments`: all that have a mirror there; others are passed over.

    `named`: the names of hosts for people.
    """

    def __init__(
        self, pool: Pool, leaving: Iterable[int], volumes: Sequence[PoolVolume], segments: Iterable[SegmentInBays],
        named: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._named = named or {}
        self._pool = pool
        self._devices = {device.device: device for device in pool.devices}
        self._leaving = frozenset(leaving)
        self._volumes = {volume.volume: volume for volume in volumes}
        self._moving = [row for row in segments if any(self._goes(bay) for bay in row.bays)]
        self.segments = [row for row in self._moving if self._is_own(row)]
        self._taking = [one for one in pool.devices if one.device not in self._leaving and takes_data(one)]

    @property
    def taking(self) -> list[int]:
        """The devices that take what has to move."""
        return [one.device for one in self._taking]

    @property
    def emptied(self) -> list[int]:
        """The other devices that are drained, and of which something may have to move too."""
        return [one.device for one in self._devices.values() if one.device not in self._leaving and one.draining and not one.lost]

    def _goes(self, bay: SegmentBay) -> bool:
        device = self._devices.get(bay.device)
        return bay.device in self._leaving or (device is not None and device.draining and not device.lost)

    def _is_own(self, row: SegmentInBays) -> bool:
        return any(bay.device in self._leaving for bay in row.bays)

    @property
    def live_bytes(self) -> int:
        return sum(row.live_bytes for row in self.segments)

    def counted(self) -> str:
        """Returns how many segments have a mirror there, in words."""
        return _counted(len(self.segments))

    # --- drain ------------------------------------------------------------------------------------------------------------
    def drain_refusal(self) -> str:
        """Returns why these devices cannot be emptied by a drain, and what to do; "" if they can."""
        return self._too_few_hosts() or self._no_place()

    def _too_few_hosts(self) -> str:
        for volume in self._volumes.values():
            left = {_domain(one, volume.want) for one in self._taking if _is_of_class(one, volume.want)}
            if len(left) < volume.want.min_copies:
                kind, things = _kind_of(volume.want), "devices" if volume.want.spread == SPREAD_DEVICE else "hosts"
                there = f" ({', '.join(sorted(self._named.get(one, one) for one in left))})" if left else ""
                return (
                    f"volume {volume.name} is written only where {volume.want.min_copies} {things} take its mirrors, and {len(left)} would "
                    f"be left{there}; add a device on another {kind} first"
                )
        return ""

    def _no_place(self) -> str:
        nowhere = crowded = 0
        found = [(place, self._is_own(row)) for row in self._moving if (place := self._moves(row)) is not None]
        places = sorted(found, key=lambda one: len(one[0].devices))
        room = _Room(self._pool, self._taking)
        for place, is_own in places:
            placed = room.take(place)
            if len(place.devices) < place.copies:
                nowhere += is_own
            elif placed < place.copies:
                crowded += 1
        size = self._pool.segment_bytes
        if nowhere:
            return (
                f"{_counted(nowhere)} ({format_bytes(nowhere * size)}) cannot move: every other host that takes data has a mirror of each "
                "of them already; add a device on another host first"
            )
        if crowded:
            return (
                f"{format_bytes(len(places) * size)} of mirrors have to move, and the other devices have no room for "
                f"{format_bytes(crowded * size)} of them; add a device first"
            )
        return ""

    def _moves(self, row: SegmentInBays) -> PlaceForMirrors | None:
        """Returns what has to move of a segment; None where nothing does."""
        volume = self._volumes.get(row.volume)
        if volume is None:
            return None
        want = volume.want
        mirrors = [bay for bay in _complete(row) if bay.device in self._devices]
        staying = {_domain(self._devices[bay.device], want) for bay in mirrors if self._is_elsewhere(bay) and not self._goes(bay)}
        going = {bay.device for bay in mirrors if self._goes(bay)}
        copies = min(len(going), want.copies - len(staying))
        if copies <= 0:
            return None
        fitting: dict[str, list[int]] = {}
        for one in self._taking:
            if _is_of_class(one, want) and (domain := _domain(one, want)) not in staying:
                fitting.setdefault(domain, []).append(one.device)
        return PlaceForMirrors(copies, tuple(tuple(devices) for _, devices in sorted(fitting.items())))

    # --- removal ----------------------------------------------------------------------------------------------------------
    def only_here(self) -> list[SegmentInBays]:
        """Returns the segments of which these devices have all that is committed, and no other device that is not lost has."""
        return [row for row in self._kept_nowhere_else() if any(bay.device in self._leaving for bay in _up_to_date(row))]

    def _kept_nowhere_else(self) -> list[SegmentInBays]:
        return [row for row in self.segments if not any(self._is_elsewhere(bay) for bay in _up_to_date(row))]

    def _only_on_lost(self) -> str:
        """Returns which segments only other devices have all of, which are lost, in words; "" if there are none."""
        only = {row.segment for row in self.only_here()}
        rows = [row for row in self._kept_nowhere_else() if row.segment not in only and _up_to_date(row)]
        if not rows:
            return ""
        where = sorted({bay.device for row in rows for bay in _up_to_date(row)})
        lost = f"device {where[0]}, which is" if len(where) == 1 else f"devices {', '.join(map(str, where))}, which are"
        has = "has" if len(where) == 1 else "have"
        return f"only {lost} lost, {has} all of {_counted(len(rows))} of {self.names(rows)}; bring that back"

    def _is_elsewhere(self, bay: SegmentBay) -> bool:
        device = self._devices.get(bay.device)
        return device is not None and bay.device not in self._leaving and not device.lost

    def loss(self) -> str:
        """Returns what would be lost with these devices as they are now, in words that "nowhere else" ends; "" if nothing would be."""
        only = self.only_here()
        if not only:
            return ""
        live = sum(row.live_bytes for row in only)
        return f"{_counted(len(only))} with {format_bytes(live)} of {self.names(only)} {_is(len(only))}"

    def names(self, segments: Iterable[SegmentInBays]) -> str:
        """Returns the volumes of segments, in words."""
        found = sorted({self._volumes[row.volume].name if row.volume in self._volumes else "deleted volumes" for row in segments})
        more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
        return f"volume{'s' if len(found) > 1 else ''} {', '.join(found[:_NAMES_SHOWN])}{more}"

    def stays(self) -> str:
        """Returns why what is on these devices does not move away though they are drained, in words; "" if it does."""
        away = [one for one in self._devices.values() if one.device in self._leaving and (one.absent or one.lost)]
        if away and (loss := self.loss()):
            return f"{loss} nowhere else; bring {'the device' if len(away) == 1 else 'the devices'} back"
        return self._only_on_lost() or self._too_few_hosts() or self._no_place()

    def rest(self, again: str) -> str:
        """Returns what bays of these devices wait for that are not free, where no segment with data has one there, in words."""
        devices = [one for one in self._devices.values() if one.device in self._leaving]
        if used := sum(one.bays - one.free - one.stale for one in devices):
            there = [one.device for one in devices if one.bays - one.free - one.stale]
            return f"{_bays(used)} of {_named(there)} {_is(used)} leased to mounts, which leave them within seconds; {again}"
        waiting = [one for one in devices if one.stale and not one.lost]
        if away := [one for one in waiting if one.absent or not one.server]:
            its, stale = "its" if len(away) == 1 else "their", sum(one.stale for one in away)
            lost = "the device counts" if len(away) == 1 else "the devices count"
            return (
                f"{_bays(stale)} of {_named([one.device for one in away])} can be trimmed only by the segment server of {its} node, which "
                f"is away; start it, or wait until {lost} as lost ({self._lost_after(away)})"
            )
        stale = sum(one.stale for one in waiting)
        return f"{_bays(stale)} of {_named([one.device for one in waiting])} {_is(stale)} being trimmed, which takes seconds; {again}"

    def _lost_after(self, away: Sequence[PoolDeviceInfo]) -> str:
        they, their = ("it", "its") if len(away) == 1 else ("they", "their")
        maintained = any(host == one.host for one in away for host, _until_ms in self._pool.maintenance)
        return f"{self._pool.lost_after_ms // 1_000} s after {f'{their} maintenance has ended' if maintained else f'{they} went'}"

    def removal_refusal(self, device: PoolDeviceInfo) -> tuple[str, bool]:
        """Returns why this device cannot be removed yet, with what to do, and whether data would be lost."""
        number = device.device
        if not device.draining:
            return f"device {number} is in use and takes new data: awsomefsd device drain {number}", True
        if (device.lost or device.absent) and (loss := self.loss()):
            return f"device {number} is {_state(device)}, and {loss} nowhere else; bring the device back", True
        if self.segments:
            why = self.stays()
            one = len(self.segments) == 1
            wait = f"to wait until {'it is' if one else 'they are'} moved: awsomefsd device drain {number} --wait"
            there = f"{_counted(len(self.segments))} of {self.names(self.segments)} {'lies' if one else 'lie'} on device {number}"
            return f"{there}; {why or wait}", True
        return self.rest("try again"), False


class _Room:
    """Free bays of devices, without what each host keeps for repair."""

    def __init__(self, pool: Pool, taking: Iterable[PoolDeviceInfo]) -> None:
        self._host = {device.device: device.host for device in pool.devices}
        self._free = {device.device: device.free + device.stale for device in taking}
        bays: Counter[str] = Counter()
        for device in pool.devices:
            bays[device.host] += device.bays
        self._of_host: Counter[str] = Counter()
        for number, free in self._free.items():
            self._of_host[self._host[number]] += free
        for host in self._of_host:
            self._of_host[host] -= kept_for_repair(bays[host], pool.reserve_percent)

    def take(self, place: PlaceForMirrors) -> int:
        """Takes room for the mirrors of a segment, which fail apart from each other; returns for how many there was some."""
        left = list(place.devices)
        for taken in range(place.copies):
            room = [(self._of_host[self._host[one]], self._free[one], one, devices) for devices in left for one in devices]
            found = max((one for one in room if one[0] > 0 and one[1] > 0), default=None)
            if found is None:
                return taken
            _, _, number, devices = found
            left.remove(devices)
            self._free[number] -= 1
            self._of_host[self._host[number]] -= 1
        return place.copies


def _domain(device: PoolDeviceInfo, want: Redundancy) -> str:
    return f"device {device.device}" if want.spread == SPREAD_DEVICE else device.host


def _kind_of(want: Redundancy) -> str:
    return "disk" if want.spread == SPREAD_DEVICE else "host"


def _is_of_class(device: PoolDeviceInfo, want: Redundancy) -> bool:
    return want.device_class in ("", device.device_class)


def _complete(row: SegmentInBays) -> list[SegmentBay]:
    """Returns the mirrors that hold all of a segment; of one that is being written, all."""
    return [bay for bay in row.bays if bay.role == BAY_MIRROR] if row.state == SEGMENT_LEASED else _up_to_date(row)


def _up_to_date(row: SegmentInBays) -> list[SegmentBay]:
    """Returns the mirrors that hold all that is committed of a segment: while it is written, one that has failed is behind the others."""
    end = max(row.committed_bytes, row.footer_offset + row.footer_bytes)
    return [bay for bay in row.bays if bay.role == BAY_MIRROR and bay.durable >= end]


def _named(devices: Sequence[int]) -> str:
    return f"device {devices[0]}" if len(devices) == 1 else f"devices {', '.join(map(str, devices))}"


def _state(device: PoolDeviceInfo) -> str:
    return "lost" if device.lost else "absent"


def _counted(count: int) -> str:
    return "1 segment" if count == 1 else f"{count} segments"


def _bays(count: int) -> str:
    return "1 bay" if count == 1 else f"{count} bays"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
