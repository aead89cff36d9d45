"""Random commands on a pool, right ones and wrong ones.  After each of them the rows are sound, no bay has two holders, and every committed
byte that was not destroyed is in a mirror that the rows name.

What bays hold is kept apart from the machine, as on disks: a mirror holds of a segment what was written and synced to it, a copy what its
source had, and nothing is there after the bay was trimmed.  So a length that is taken from the wrong mirror, a bay that is freed early, and
a copy that counts before it was made all lose something that this sees.
"""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, SEGMENT_SEALED, Redundancy, SegmentInBays
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.state import keys, rows
from tests.rigs.machine_driver import SAFE, sound
from tests.rigs.pool_driver import HOST, PoolDrive

HOSTS = 4
PICK = st.integers(0, 1 << 16)


class PoolModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.disks: dict[tuple[int, int], tuple[int, int]] = {}  # (device, index) -> (segment, bytes of it that are on the disk)
        self.leased: list[SegmentInBays] = []
        self.planned: list[tuple[int, int, int, int, int, tuple[int, int]]] = []
        self.names = 0
        self.removed: set[int] = set()

    @initialize(copies=st.integers(1, 3), least=st.integers(1, 3))
    def begin(self, copies: int, least: int) -> None:
        self.drive = PoolDrive(HOSTS, bays=8, want=Redundancy(copies, min(copies, least)))
        self.drive.add(HOSTS + 1, "n1", bays=8)  # a second device on the first host
        self._open()

    def _open(self) -> None:
        self.drive.open(mount=7 + self.names)
        self.names += 1
        self.leased = []

    def _segments(self) -> list[rows.SegmentRow]:
        return [row for row in self.drive.machine.state.scan(keys.kind_range(0, keys.SEGMENT), rows.SEGMENT) if row.bays]

    # --- writing ------------------------------------------------------------------------------------------------------
    @rule(devices=st.lists(st.integers(1, HOSTS + 1), min_size=1, max_size=4))
    def lease(self, devices: list[int]) -> None:
        reply = self.drive.apply(c.LeaseBays(1, SAFE, [], [devices]))
        if isinstance(reply, m.BaysLeased):
            [info] = reply.segments
            self.drive.frames[info.segment] = 0
            self.leased.append(info)
            for bay in info.bays:
                assert (bay.device, bay.index) not in self.disks, "a bay that holds bytes was leased"
                self.disks[bay.device, bay.index] = (info.segment, 0)

    @rule(pick=PICK, reached=st.integers(0, 15), sealed=st.booleans())
    def write(self, pick: int, reached: int, sealed: bool) -> None:
        if not self.leased:
            return
        info = self.leased[pick % len(self.leased)]
        before = self.drive.frames[info.segment]
        if before > info.bytes // 2:
            return
        devices = [bay.device for at, bay in enumerate(info.bays) if reached >> at & 1]
        self.names += 1
        ino = self.drive.create(b"f%d" % self.names)
        command = self.drive.put(info, ino, 0, 1000, *(devices or [99]), sealed=sealed)
        end = self.drive.frames[info.segment]
        if isinstance(self.drive.apply(command), m.Failed):
            self.drive.frames[info.segment] = before
            return
        assert len(devices) >= self.drive.want.min_copies, "acknowledged, and fewer mirrors than have to be hold it"
        for bay in info.bays:
            if bay.device in devices:
                self.disks[bay.device, bay.index] = (info.segment, end)
        if sealed:
            self.leased.remove(info)

    @rule(clean=st.booleans())
    def end_session(self, clean: bool) -> None:
        self.drive.ok(c.EndSession(self.drive.session, self.drive.epoch, clean), **HOST)
        self._open()

    @rule(pick=PICK)
    def unlink(self, pick: int) -> None:
        self.drive.apply(c.Unlink(self.drive.volume, 1, b"f%d" % (pick % (self.names + 1))))

    # --- healing ------------------------------------------------------------------------------------------------------
    @rule(pick=PICK, device=st.integers(1, HOSTS + 1), replaced=st.integers(-1, 3))
    def plan(self, pick: int, device: int, replaced: int) -> None:
        found = self._segments()
        if not found:
            return
        row = found[pick % len(found)]
        old = row.bays[replaced] if 0 <= replaced < len(row.bays) else None
        replaces = (0, 0) if old is None else (old.device, old.index)
        reply = self.drive.apply(c.PlanMirror(row.segment, device, SAFE, replaces), **HOST)
        if isinstance(reply, m.Made):
            assert (device, reply.number) not in self.disks, "a bay that holds bytes is copied to"
            self.disks[device, reply.number] = (row.segment, row.end)  # the server copies it at once; the leader learns it later
            self.planned.append((row.segment, device, reply.number, self.drive.index, row.end, replaces))

    @rule(pick=PICK, again=st.booleans())
    def made(self, pick: int, again: bool) -> None:
        if self.planned:
            order = self.planned[pick % len(self.planned)]
            if not again:
                self.planned.remove(order)
            self.drive.apply(c.MirrorMade(*order), **HOST)

    @rule(pick=PICK, count=st.integers(1, 3))
    def drop(self, pick: int, count: int) -> None:
        found = self._segments()
        if found:
            row = found[pick % len(found)]
            self.drive.apply(c.DropBays([(row.segment, bay.device, bay.index) for bay in row.bays[:count]]), **HOST)

    @rule(device=st.integers(1, HOSTS + 1), late=st.integers(0, 1))
    def trim(self, device: int, late: int) -> None:
        """The server trims what the log calls stale, and says so, perhaps of something else too."""
        if device in self.removed:
            return
        found = self.drive.stale(device)
        wrong = [(index, segment, entry - late) for index, segment, entry in found]
        if not late:
            for index, _, _ in found:
                self.disks.pop((device, index), None)
        node = self.drive.machine.state.device(device).server
        reply = self.drive.apply(c.BaysTrimmed(node, device, wrong), **HOST)
        assert not isinstance(reply, m.Made) or reply.number == (0 if late else len(found))

    # --- devices and policies -----------------------------------------------------------------------------------------
    @rule(device=st.integers(1, HOSTS), state=st.integers(0, 2))
    def set_state(self, device: int, state: int) -> None:
        self.drive.apply(c.SetDeviceState(device, state), **HOST)

    @rule(device=st.integers(1, HOSTS))
    def attach(self, device: int) -> None:
        if device not in self.removed:
            self.drive.attach(device)

    @rule(device=st.integers(HOSTS, HOSTS + 1), count=st.integers(1, 8))
    def remove(self, device: int, count: int) -> None:
        """A device goes with what no row names, a bounded number of rows at once; it does not come back."""
        if isinstance(self.drive.apply(c.RemoveDevice(device, count), **HOST), m.Made):
            self.removed.add(device)
            self.disks = {place: held for place, held in self.disks.items() if place[0] != device}
            reply = self.drive.apply(c.AttachDevice(device, 1 << 32, f"n{device}", True), **HOST)
            assert isinstance(reply, m.Failed), "a device that was removed is attached"

    @rule(device=st.integers(1, HOSTS + 1), draining=st.booleans())
    def drain(self, device: int, draining: bool) -> None:
        self.drive.apply(c.DrainDevice(device, draining), **HOST)

    @rule(devices=st.lists(st.integers(1, HOSTS + 1), max_size=3), taking=st.lists(st.integers(1, HOSTS + 1), max_size=3))
    def drain_of_pool(self, devices: list[int], taking: list[int]) -> None:
        """All or none, and only if what was looked at before still holds."""
        state = self.drive.machine.state
        before = {one.device: one.draining for one in state.devices()}
        lost = [one.device for one in state.devices() if one.device in devices and one.lost]
        going = [one for one in devices if one not in lost]
        takes = {one.device for one in state.devices() if not (one.absent or one.lost or one.draining or one.removed)}
        others = [one.device for one in state.devices() if one.draining and not (one.lost or one.removed or one.device in devices)]
        reply = self.drive.apply(c.DrainPoolDevices(1, going, lost, taking, []), **HOST)
        after = {one.device: one.draining for one in self.drive.machine.state.devices()}
        if isinstance(reply, m.Failed):
            assert after == before, "some are drained, and others are not"
        else:
            assert all(after[one] for one in devices)
            begun = [one for one in devices if not before[one]]
            assert not begun or takes.issuperset(taking), "a device was to take mirrors that takes none"
            assert not begun or not going or not others, "another device is emptied too, and nobody has looked at both"

    @rule(count=st.integers(1, 4))
    def walk(self, count: int) -> None:
        self.drive.ok(c.NeedSegments(count), **HOST)

    @rule(copies=st.integers(1, 4))
    def policy(self, copies: int) -> None:
        self.drive.want = Redundancy(copies, min(copies, self.drive.want.min_copies))
        self.drive.ok(c.SetRedundancy(self.drive.volume, self.drive.want), **HOST)

    # --- what holds ---------------------------------------------------------------------------------------------------
    @invariant()
    def rows_are_sound(self) -> None:
        if hasattr(self, "drive"):
            sound(self.drive)

    @invariant()
    def what_counts_is_on_a_disk(self) -> None:
        for row in self._segments() if hasattr(self, "drive") else []:
            for bay in row.bays:
                segment, held = self.disks.get((bay.device, bay.index), (0, -1))
                assert segment == row.segment, f"segment {row.segment} names a bay that holds segment {segment}"
                if bay.role == BAY_MIRROR:
                    assert held >= bay.durable, f"the row counts {bay.durable} bytes of {held}"
                assert bay.role != BAY_COPYING or row.state == SEGMENT_SEALED
            assert any(bay.role == BAY_MIRROR and bay.durable >= row.committed_bytes for bay in row.bays), "committed, and nowhere"


TestPool = PoolModel.TestCase
TestPool.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
