"""Drives a machine with a pool in tests: a device a host, volumes with mirrors, segments in bays."""

from __future__ import annotations

from awsomefsd.base.rule_levels import POOLS
from awsomefsd.base.types import BAY_COPYING, BAY_STALE, Redundancy, SegmentInBays, SegmentProgress
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages.devices import GetBays
from awsomefsd.meta.state import keys, rows
from tests.rigs.machine_driver import MIB, SAFE, SEGMENT_BYTES, START_NS, Drive

HOST = {"session": 0, "epoch": 0, "mount": 0}


class PoolDrive(Drive):
    """`hosts` nodes n1, n2 … with a device of `bays` bays each, attached, and a volume that wants `want`."""

    def __init__(self, hosts: int = 3, bays: int = 16, want: Redundancy | None = None) -> None:
        super().__init__(device=False, level=POOLS)
        self.want = want or Redundancy(3, 2)
        self.generation: dict[int, int] = {}
        for number in range(1, hosts + 1):
            self.add(number, f"n{number}", bays)
        self.make_volume()
        self.ok(c.SetRedundancy(self.volume, self.want), **HOST)
        self.walk()

    def add(self, number: int, node: str, bays: int = 16, device_class: str = "ssd") -> None:
        size = bays * SEGMENT_BYTES + MIB
        made = self.ok(c.AddPoolDevice(f"uuid-{number}", size, SEGMENT_BYTES, bays, MIB, node, 1, device_class, 1), **HOST)
        assert made.number == number
        self.generation[number] = 1
        self.attach(number, node)

    def attach(self, device: int, node: str = "", **fields: bool) -> None:
        self.generation[device] += 1
        self.ok(c.AttachDevice(device, self.generation[device], node or f"n{device}", **fields), **HOST)

    def walk(self, count: int = 512) -> None:
        """Moves all walks to their ends."""
        while self.ok(c.NeedSegments(count), **HOST).number:
            pass

    def lease_bays(self, *ensembles: list[int], safe_index: int = SAFE) -> list[SegmentInBays]:
        leased: list[SegmentInBays] = self.ok(c.LeaseBays(len(ensembles), safe_index, [], list(ensembles))).segments
        self.frames.update((info.segment, 0) for info in leased)
        return leased

    def report(self, segment: SegmentInBays, *devices: int, sealed: bool = False) -> SegmentProgress:
        """All that was framed in the segment, durable on these devices; on all of it without any."""
        end = self.frames[segment.segment]
        reached = [(bay.device, bay.index, end) for bay in segment.bays if not devices or bay.device in devices]
        return SegmentProgress(segment.segment, segment.incarnation, end, sealed, 0, 0, reached)

    def put(self, segment: SegmentInBays, ino: int, offset: int, length: int, *devices: int, sealed: bool = False) -> c.Commit:
        """A commit of one write that is durable on these devices; `apply` it."""
        extent = self.frame(segment, offset, length)
        step = c.InodeCommit(ino, 1, self.sequence, offset + length, START_NS, [extent])
        return c.Commit(self.volume, [step], 0, [self.report(segment, *devices, sealed=sealed)])

    # --- what the rows say ------------------------------------------------------------------------------------------------
    def row(self, segment: int) -> rows.SegmentRow:
        row = self.machine.state.segment(segment)
        assert row is not None
        return row

    def bay(self, device: int, index: int) -> rows.BayRow | None:
        row: rows.BayRow | None = self.machine.state.read(keys.bay(device, index), rows.BAY)
        return row

    def needs(self) -> dict[int, tuple[int, int]]:
        """Segment -> (priority, reasons)."""
        found = self.machine.state.txn.scan(*keys.kind_range(0, keys.NEED))
        return {keys.need_of(key)[1]: (keys.need_of(key)[0], rows.NEED.loads(raw).reasons) for key, raw in found}

    def stale(self, device: int) -> list[tuple[int, int, int]]:
        """(index, segment, entry) of the stale bays, as BaysTrimmed names them."""
        return [(bay.index, bay.segment, bay.entry) for bay in self.ask(GetBays(device, 0, 1 << 20)).bays if bay.role == BAY_STALE]

    def trim(self, device: int) -> int:
        found = self.stale(device)
        node = self.machine.state.device(device).server
        freed: int = self.ok(c.BaysTrimmed(node, device, found), **HOST).number if found else 0
        return freed

    def heal(self, segment: int, device: int, replaces: tuple[int, int] = (0, 0)) -> None:
        """Copies a segment to a device, as healing does."""
        index = self.ok(c.PlanMirror(segment, device, SAFE, replaces), **HOST).number
        [copying] = [bay for bay in self.row(segment).bays if bay.role == BAY_COPYING]
        assert (copying.device, copying.index) == (device, index)
        planned = self.bay(device, index)
        assert planned is not None
        self.ok(c.MirrorMade(segment, device, index, planned.index, self.row(segment).end, replaces), **HOST)
