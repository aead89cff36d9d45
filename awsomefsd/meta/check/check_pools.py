"""The checks of pools: each bay is free, stale, or named by one segment; what lacks something has a need, or a walk before it."""

from __future__ import annotations

from collections.abc import Mapping

from awsomefsd.base.types import BAY_MIRROR, BAY_STALE, SEGMENT_LEASED, SEGMENT_SEALED
from awsomefsd.meta.state import keys, pools, rows
from awsomefsd.meta.state.findings import Examination


def check_pools(exam: Examination, devices: Mapping[int, rows.DeviceRow], segments: Mapping[int, rows.SegmentRow]) -> None:
    """Adds the faults of pools to the examination."""
    _Pools(exam, devices, segments).check()


class _Pools:
    def __init__(self, exam: Examination, devices: Mapping[int, rows.DeviceRow], segments: Mapping[int, rows.SegmentRow]) -> None:
        self._exam = exam
        self._devices = {number: row for number, row in devices.items() if row.pool}
        self._segments = {number: row for number, row in segments.items() if row.bays}
        self._bays = {keys.bay_place(key): row for key, row in exam.rows(keys.kind_range(0, keys.BAY), rows.BAY)}
        self._walks = [row for _, row in exam.rows(keys.kind_range(0, keys.WALK), rows.WALK)]

    def check(self) -> None:
        self._named()
        for number, device in self._devices.items():
            self._device(number, device)
        for number, row in self._segments.items():
            if all(bay.device in self._devices for bay in row.bays):
                self._segment(number, row)
        self._needs()
        for _, row in self._exam.rows(keys.kind_range(0, keys.STRIPE), rows.STRIPE):
            self._exam.fault("bay-index", "stripes", f"nothing writes stripes, and there is one: {row}")

    def _named(self) -> None:
        named: dict[tuple[int, int], tuple[int, int]] = {}
        for number, row in self._segments.items():
            for bay in row.bays:
                place = (bay.device, bay.index)
                if place in named or bay.device not in self._devices:
                    self._exam.fault("bay-index", f"device {bay.device} bay {bay.index}", f"segment {number} names it, and should not")
                named[place] = (number, bay.role)
        found = {place: (row.segment, row.role) for place, row in self._bays.items() if row.role != BAY_STALE}
        for device, index in sorted(found.keys() | named.keys()):
            place = (device, index)
            if found.get(place) != named.get(place):
                detail = f"the bay says {found.get(place)}, the segments say {named.get(place)}"
                self._exam.fault("bay-index", f"device {device} bay {index}", detail)

    def _device(self, number: int, device: rows.DeviceRow) -> None:
        where = f"device {number}"
        roles = {index: row.role for (one, index), row in self._bays.items() if one == number}
        free = {keys.bay_place(key)[1] for key, _ in self._exam.rows(keys.free_range(number), rows.FREE)}
        self._exam.equal("bay-counters", f"{where} stale", device.stale, sum(role == BAY_STALE for role in roles.values()))
        if not device.removed:
            self._exam.equal("bay-counters", f"{where} free", device.segments_free, device.segments - len(roles))
            for index in sorted(set(range(device.unused_from)) ^ (free | roles.keys()) | (free & roles.keys())):
                self._exam.fault("bay-index", f"{where} bay {index}", "it is in use and free, in neither, or was never used")
        pool: rows.PoolRow | None = self._exam.get(keys.pool(device.pool), rows.POOL)
        if pool is None or pool.segment_bytes != device.segment_bytes:
            self._exam.fault("pool-row", where, f"its pool {device.pool} is {pool}")

    def _segment(self, number: int, row: rows.SegmentRow) -> None:
        where = f"segment {number}"
        if row.want is None or row.state not in (SEGMENT_LEASED, SEGMENT_SEALED) or row.device or row.index:
            self._exam.fault("bay-segment", where, f"no segment in bays can be so: {row}")
            return
        if row.state == SEGMENT_SEALED and row.end != max(row.committed_bytes, row.footer_offset + row.footer_bytes):
            self._exam.fault("bay-segment", where, f"it ends at {row.end}, and is committed to {row.committed_bytes}")
        if not any(bay.role == BAY_MIRROR and bay.durable >= row.committed_bytes for bay in row.bays):
            self._exam.fault("bay-copies", where, "no mirror holds all that is committed")
        if any(bay.durable > row.bytes for bay in row.bays):
            self._exam.fault("bay-segment", where, "a bay is durable behind its end")
        need = pools.lack(row, self._devices.__getitem__)
        wanted = 0 if need is None else need[0] + 1
        if row.need != wanted and not pools.walks_before(row, self._walks):
            self._exam.fault("need", where, f"its need is {row.need - 1}, its bays ask for {wanted - 1} (-1: none)")

    def _needs(self) -> None:
        found = {keys.need_of(key) for key, _ in self._exam.rows(keys.kind_range(0, keys.NEED), rows.NEED)}
        named = {(row.need - 1, number) for number, row in self._segments.items() if row.need}
        for priority, number in sorted(found ^ named):
            self._exam.fault("need", f"segment {number}", f"priority {priority} stands in the row of the segment or of the need alone")
