"""Decides what is done next for a segment of a pool that lacks something.  Pure: rows in, orders out; times and failures are handed in.

A segment lacks mirrors, has too many, or has one on a device that is drained (meta/state/pools.py).  The order: what is missing is copied
first, what is too much goes then, and a mirror moves from a drained device last.  For a copy a bay is kept (KeepBay); the server of that
bay makes the copy (MirrorCopy), which becomes a mirror; a bay that is of no use any more is given up (GiveUpBay).  All of it is computed
anew from the rows each time, so it does not matter which leader began what.

A mirror on an absent device counts, and is neither a source nor a reason to give another one up.  One on a lost device does not count, and
stays named: it counts again the moment its device is attached, and then the one on the fullest host goes.  One on a device that is lost and
drained is not waited for: it is given up when enough others are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, SEGMENT_SEALED, SPREAD_DEVICE, SegmentBay
from awsomefsd.meta.api.messages.pools import Pool, PoolDeviceInfo, SegmentNeed

COPIES_PER_HOST = 2  # into it, and out of it
BAYS_PER_SEGMENT_MAX = 16  # as meta/machine/bays.py has it
LOST_KEPT = 4  # mirrors of a segment on lost devices that stay named
KEPT_FOR_COLLECTION = 1  # bays of each host that healing leaves alone
RESERVE_BAYS_MIN = 2  # of a host, that only what is missing may take (meta/machine/spread.py)
NOWHERE = (0, 0)


class KeepBay(Struct, frozen=True):
    """A bay of `device` is kept for a copy, which replaces the bay `replaces` when it is made."""

    segment: int
    device: int
    replaces: tuple[int, int]


class MirrorCopy(Struct, frozen=True):
    """The copy that entry `planned` has begun goes on.  `sources`: the best first.

    `replaces_absent`: the mirror that it replaces is away now and comes back; what is wrong in all sources may be right there.
    """

    segment: int
    incarnation: int
    device: int
    index: int
    planned: int
    end: int
    footer: int
    priority: int
    sources: tuple[SegmentBay, ...]
    replaces: tuple[int, int]
    replaces_absent: bool = False


class GiveUpBay(Struct, frozen=True):
    """The segment gives a bay up."""

    segment: int
    device: int
    index: int


class Later(Struct, frozen=True):
    """Something can be done when copies that are under way have ended."""


class Asleep(Struct, frozen=True):
    """Nothing can be done before an entry changes the segment or a device."""

    why: str


Decision = KeepBay | MirrorCopy | GiveUpBay | Later | Asleep


class HealingPlan:
    """What can be done now.  `decide` is called with the most urgent need first; what it decides takes part of what is there.

    `running`: copies that are under way.  `left_alone`: devices that get no copies now.  `failed`: (segment, device) to which copies of
    that segment failed too often.
    """

    def __init__(
        self, pool: Pool, running: Iterable[MirrorCopy] = (), left_alone: frozenset[int] | set[int] = frozenset(),
        failed: frozenset[tuple[int, int]] | set[tuple[int, int]] = frozenset(),
    ) -> None:  # fmt: skip
        self._pool = pool
        self._devices = {device.device: device for device in pool.devices}
        self._running: set[int] = set()
        self._left_alone, self._failed = left_alone, failed
        self._free = {device.device: device.free for device in pool.devices}
        self._bays_of_host: Counter[str] = Counter()
        self._free_of_host: Counter[str] = Counter()
        for device in pool.devices:
            self._bays_of_host[device.host] += device.bays
            self._free_of_host[device.host] += device.free
        self._into: Counter[str] = Counter()
        self._out_of: Counter[str] = Counter()
        for copy in running:
            self._take(copy)

    def _take(self, copy: MirrorCopy) -> None:
        self._running.add(copy.segment)
        self._into[self._devices[copy.device].host if copy.device in self._devices else ""] += 1
        for source in copy.sources[:1]:
            self._out_of[self._devices[source.device].host if source.device in self._devices else ""] += 1

    @property
    def is_full(self) -> bool:
        """True: no copy can begin now."""
        return all(self._into[device.host] >= COPIES_PER_HOST for device in self._devices.values() if self._is_there(device.device))

    def decide(self, need: SegmentNeed) -> Decision:
        """Returns what is done for a segment now."""
        if need.segment in self._running:
            return Later()
        if need.state != SEGMENT_SEALED:
            return Asleep("it is being written")
        if any(bay.role == BAY_MIRROR and self._is_doubted(bay) for bay in need.bays):
            return Asleep("the cluster's state went back, and its mirrors are looked at first")
        copying = next((bay for bay in need.bays if bay.role == BAY_COPYING), None)
        if copying is not None:
            return self._go_on(need, copying)
        if self._missing(need) > 0:
            return self._begin(need, moves=False)
        surplus = self._surplus(need)
        if surplus is not None:
            return GiveUpBay(need.segment, surplus.device, surplus.index)
        return self._begin(need, moves=True) if self._drained(need) else Asleep("mirrors on devices that are away are kept")

    def drained(self, need: SegmentNeed) -> list[int]:
        """Returns the devices that mirrors of a segment have to leave because they are drained."""
        return [bay.device for bay in self._drained(need)]

    # --- what there is ------------------------------------------------------------------------------------------------------
    def _is_there(self, number: int) -> bool:
        device = self._devices.get(number)
        return device is not None and bool(device.server) and not device.absent and not device.lost

    def _counts(self, number: int) -> bool:
        device = self._devices.get(number)
        return device is not None and not device.lost

    def _is_doubted(self, bay: SegmentBay) -> bool:
        return self._counts(bay.device) and bay.index < self._devices[bay.device].doubted

    def _domain(self, need: SegmentNeed, number: int) -> str:
        return f"device {number}" if need.want.spread == SPREAD_DEVICE else self._devices[number].host

    def _whole(self, need: SegmentNeed) -> list[SegmentBay]:
        """Returns the mirrors that count."""
        return [bay for bay in need.bays if bay.role == BAY_MIRROR and bay.durable >= need.end and self._counts(bay.device)]

    def _domains(self, need: SegmentNeed, bays: Iterable[SegmentBay]) -> set[str]:
        return {self._domain(need, bay.device) for bay in bays}

    def _missing(self, need: SegmentNeed) -> int:
        return need.want.copies - len(self._domains(need, self._whole(need)))

    def _drained(self, need: SegmentNeed) -> list[SegmentBay]:
        """Returns the mirrors that are to be moved."""
        mirrors = [bay for bay in need.bays if bay.role == BAY_MIRROR]
        return [bay for bay in mirrors if self._counts(bay.device) and self._devices[bay.device].draining]

    def _sources(self, need: SegmentNeed) -> list[SegmentBay]:
        """Returns the mirrors that can be copied from, those of the least busy hosts first."""
        there = [bay for bay in self._whole(need) if self._is_there(bay.device) and self._devices[bay.device].address]
        return sorted(there, key=lambda bay: (self._out_of[self._devices[bay.device].host], bay.device))

    def _last_resort(self, need: SegmentNeed) -> list[SegmentBay]:
        """Returns mirrors that do not count, and may have what turns out to be wrong in all that do: each frame is checked."""
        partial = [bay for bay in need.bays if bay.role == BAY_MIRROR and bay.durable < need.end]
        return [bay for bay in partial if self._is_there(bay.device) and self._devices[bay.device].address]

    # --- copies -------------------------------------------------------------------------------------------------------------
    def _go_on(self, need: SegmentNeed, copying: SegmentBay) -> Decision:
        """Returns what becomes of a copy that was begun."""
        moves = self._missing(need) <= 0
        replaces = self._replaced(need, copying.device, moves)
        wanted = not moves or (bool(self._drained(need)) and self._surplus(need) is None)
        if not wanted or replaces is None or not self._takes(need, copying.device):
            return GiveUpBay(need.segment, copying.device, copying.index)
        sources = self._sources(need)
        if not sources:
            return Asleep("no mirror that can be copied from is there")
        if self._into[self._devices[copying.device].host] >= COPIES_PER_HOST or self._is_busy(sources[0]):
            return Later()
        copy = MirrorCopy(
            need.segment, need.incarnation, copying.device, copying.index, need.planned, need.end, need.footer_offset, need.priority,
            (*sources, *self._last_resort(need)), replaces, self._counts(replaces[0]) and not self._is_there(replaces[0]),
        )  # fmt: skip
        self._take(copy)
        return copy

    def _is_busy(self, source: SegmentBay) -> bool:
        return self._out_of[self._devices[source.device].host] >= COPIES_PER_HOST

    def _begin(self, need: SegmentNeed, *, moves: bool) -> Decision:
        """Returns where a copy is made, the emptiest device in a zone without a mirror first."""
        if not self._sources(need):
            return Asleep("no mirror that can be copied from is there")
        if len(need.bays) >= BAYS_PER_SEGMENT_MAX:
            return Asleep("it has as many bays as a segment may have")
        kept = self._whole(need)
        zones = {self._devices[bay.device].zone for bay in kept}
        found: list[tuple[bool, float, int, tuple[int, int]]] = []
        for device in self._devices.values():
            replaces = self._replaced(need, device.device, moves)
            if replaces is not None and self._takes(need, device.device) and self._has_room(device, moves):
                found.append((device.zone in zones, -self._free[device.device] / device.bays, device.device, replaces))
        if not found:
            return Asleep("no device has room for it that fails apart from the others")
        idle = [one for one in found if self._into[self._devices[one[2]].host] < COPIES_PER_HOST]
        if not idle:
            return Later()
        _, _, number, replaces = min(idle)
        self._free[number] -= 1
        self._free_of_host[self._devices[number].host] -= 1
        self._into[self._devices[number].host] += 1
        return KeepBay(need.segment, number, replaces)

    def _takes(self, need: SegmentNeed, number: int) -> bool:
        device = self._devices.get(number)
        return (
            device is not None and self._is_there(number) and not (device.draining or device.doubted) and number not in self._left_alone
            and (need.segment, number) not in self._failed and need.want.device_class in ("", device.device_class)
        )  # fmt: skip

    def _has_room(self, device: PoolDeviceInfo, moves: bool) -> bool:
        reserve = max(-(-self._bays_of_host[device.host] * self._pool.reserve_percent // 100), RESERVE_BAYS_MIN)
        kept = reserve if moves else KEPT_FOR_COLLECTION
        return self._free[device.device] > 0 and self._free_of_host[device.host] > kept

    def _replaced(self, need: SegmentNeed, number: int, moves: bool) -> tuple[int, int] | None:
        """Returns the bay that a copy on this device takes the place of, NOWHERE for none; None if there may be no copy.

        What is moved leaves a drained device; what is missing takes the place of a mirror that lacks its end, if there is one.
        """
        if number not in self._devices:
            return None
        mirrors = [bay for bay in need.bays if bay.role == BAY_MIRROR]
        goes = self._drained(need) if moves else [bay for bay in mirrors if bay.durable < need.end]
        own = [bay for bay in mirrors if bay.device == number]
        if len(own) > 1 or (own and own[0] not in goes):
            return None
        near = [bay for bay in goes if bay.device in self._devices and self._domain(need, bay.device) == self._domain(need, number)]
        gone = next(iter(own or near or goes), None)
        staying = self._domains(need, [bay for bay in self._whole(need) if bay != gone])
        if self._domain(need, number) in staying:
            return None
        return (gone.device, gone.index) if gone is not None else NOWHERE

    # --- too many -----------------------------------------------------------------------------------------------------------
    def _surplus(self, need: SegmentNeed) -> SegmentBay | None:
        """Returns the mirror that goes, if there are more than enough; those that are left are there, and fail apart from each other."""
        mirrors = [bay for bay in need.bays if bay.role == BAY_MIRROR]
        there = [bay for bay in self._whole(need) if self._is_there(bay.device)]
        lost = [bay for bay in mirrors if not self._counts(bay.device)]
        given_up = lost if len(lost) > LOST_KEPT else [bay for bay in lost if self._does_not_return(bay.device)]
        if len(mirrors) - len(lost) <= need.want.copies and not given_up:
            return None
        partial = [bay for bay in mirrors if bay not in lost and bay.durable < need.end]
        whole = sorted(there, key=lambda bay: self._goes_first(need, bay, there))
        candidates = [*partial, *whole, *given_up]
        for bay in candidates:
            if len(self._domains(need, [one for one in there if one != bay])) >= need.want.copies:
                return bay
        return None

    def _does_not_return(self, number: int) -> bool:
        """Returns whether an operator has said of a lost device that it goes."""
        return number in self._devices and self._devices[number].draining

    def _goes_first(self, need: SegmentNeed, bay: SegmentBay, there: list[SegmentBay]) -> tuple[bool, bool, float, int]:
        """Returns what surplus is sorted by: drained devices, then two mirrors that fail together, then the fullest host."""
        device = self._devices[bay.device]
        together = sum(self._domain(need, one.device) == self._domain(need, bay.device) for one in there) > 1
        on_host = [one for one in self._devices.values() if one.host == device.host]
        empty = sum(one.free for one in on_host) / max(sum(one.bays for one in on_host), 1)
        return not device.draining, not together, empty, bay.device
