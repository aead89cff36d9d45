"""A pool with a life: devices go, come back and are drained, while a healing plan says what is done, and a judge who looks at the rows.

The machine is the production one; copies take no time and may fail.  The judge knows nothing of the plan: he counts mirrors by himself.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from msgspec.structs import replace

from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, SEGMENT_SEALED, Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.api.messages.devices import GetBays
from awsomefsd.meta.api.messages.pools import GetNeeds, GetPool, Pool, SegmentNeed
from awsomefsd.meta.state import keys, pools, rows
from awsomefsd.node.maintenance.healing_plan import Asleep, GiveUpBay, HealingPlan, KeepBay, Later, MirrorCopy
from tests.rigs.machine_driver import SAFE, sound
from tests.rigs.pool_driver import HOST, PoolDrive

STEPS_MAX = 400  # of a pool that nobody disturbs: with more of them it turns in circles


class HealingWorld:
    def __init__(self, dice: Random, plan: type[HealingPlan] = HealingPlan) -> None:
        self.dice, self._plan = dice, plan
        self.hosts = dice.choice((2, 3, 3, 4, 6))
        copies = dice.randint(1, min(3, self.hosts))
        self.drive = PoolDrive(self.hosts, 24, Redundancy(copies, max(1, copies - 1)))
        self.devices = list(range(1, self.hosts + 1))
        self.home = {device: f"n{device}" for device in self.devices}
        if dice.random() < 0.5:  # a second device on the first host
            number = self.hosts + 1
            self.drive.add(number, "n1", 24)
            self.devices.append(number)
            self.home[number] = "n1"
        self.running: list[MirrorCopy] = []
        self.names = 0

    # --- the rows, as the judge counts them -----------------------------------------------------------------------------------
    def device(self, number: int) -> rows.DeviceRow:
        return self.drive.machine.state.device(number)

    def is_there(self, number: int) -> bool:
        row = self.device(number)
        return not row.absent and not row.lost

    def good(self, row: rows.SegmentRow) -> list[int]:
        """Devices that are there and hold all of the segment."""
        return [bay.device for bay in row.bays if bay.role == BAY_MIRROR and bay.durable >= row.end and self.is_there(bay.device)]

    def hosts_of(self, devices: list[int]) -> set[str]:
        return {self.home[device] for device in devices}

    # --- what happens ---------------------------------------------------------------------------------------------------------
    def write(self) -> None:
        """A session writes a segment on devices that take data, reaches some of the mirrors at the end only, and ends."""
        want = self.drive.machine.state.volume(self.drive.volume).want
        assert want is not None
        usable = [one for one in self.devices if self.is_there(one) and self.device(one).segments_free > 4]
        usable = [one for one in usable if not self.device(one).draining]
        chosen: list[int] = []
        for one in self.dice.sample(usable, len(usable)):
            if len(chosen) < want.copies and self.home[one] not in self.hosts_of(chosen):
                chosen.append(one)
        if len(chosen) < want.min_copies:
            return
        self.end_session()
        drive = self.drive
        self.names += 1
        drive.open(mount=1000 + self.names)
        [info] = drive.lease_bays(chosen)
        reached = self.dice.sample(chosen, self.dice.randint(want.min_copies, len(chosen)))
        drive.ok(drive.put(info, drive.create(b"f%d" % self.names), 0, 1000, *reached))
        if self.dice.random() < 0.8:
            drive.ok(c.EndSession(drive.session, drive.epoch, False), **HOST)
        drive.session = drive.epoch = drive.mount = 0

    def end_session(self) -> None:
        for session in list(self.drive.machine.live_sessions()):
            row = self.drive.machine.state.session(session)
            assert row is not None
            self.drive.ok(c.EndSession(session, row.epoch, False), **HOST)

    def disturb(self) -> None:
        one = self.dice.choice(self.devices)
        match self.dice.randrange(9):
            case 0 | 1:
                self.write()
            case 2:
                self.drive.ok(c.SetDeviceState(one, 1), **HOST)
            case 3:
                self.drive.ok(c.SetDeviceState(one, 2), **HOST)
            case 4 | 5:
                self.drive.attach(one, self.home[one])
            case 6:
                self.drive.apply(c.DrainDevice(one, self.dice.random() < 0.5), **HOST)
            case 7:
                copies = self.dice.randint(1, min(3, self.hosts))
                self.drive.ok(c.SetRedundancy(self.drive.volume, Redundancy(copies, max(1, copies - 1))), **HOST)
            case 8:
                self.find_wrong_bytes(one)
        self.drive.walk()

    def find_wrong_bytes(self, device: int) -> None:
        """Scrub finds wrong bytes in a mirror on a device, and has it count no more; the machine keeps the last one."""
        bays = [bay for bay in self.drive.ask(GetBays(device, 0, 24)).bays if bay.role == BAY_MIRROR]
        if bays and self.device(device).server:
            bay = self.dice.choice(bays)
            self.drive.ok(c.BaysWrong(self.device(device).server, device, [(bay.index, bay.segment)]), **HOST)

    def calm(self) -> None:
        """Every session ends; every device is there and takes data, but one perhaps, which is lost for good, drained, or both."""
        self.end_session()
        for one in self.devices:
            self.drive.attach(one, self.home[one])
            self.drive.ok(c.DrainDevice(one, False), **HOST)
        last, what = self.dice.choice(self.devices), self.dice.randrange(4)
        if what in (0, 2):
            self.drive.ok(c.SetDeviceState(last, 2), **HOST)
        if what in (1, 2):
            self.drive.apply(c.DrainDevice(last, True), **HOST)
        self.drive.walk()

    # --- healing --------------------------------------------------------------------------------------------------------------
    def pool(self) -> Pool:
        found: Pool = self.drive.ask(GetPool(1))
        return replace(found, devices=[replace(one, address=f"10.0.0.{one.device}:7442") for one in found.devices])

    def look(self) -> int:
        """Decides once for every need, and does it; returns how much was done."""
        plan, done = self._plan(self.pool(), list(self.running)), 0
        for need in self.drive.ask(GetNeeds(0, 0, 256)).needs:
            decided = plan.decide(need)
            if isinstance(decided, GiveUpBay):
                self._judge_drop(decided)
                self._do(c.DropBays([(decided.segment, decided.device, decided.index)]))
            elif isinstance(decided, KeepBay):
                lack = pools.lack(self.drive.row(decided.segment), self.device)
                assert lack is not None and lack[1] & (pools.NEED_SHORT | pools.NEED_DRAIN), "a copy of what lacks nothing"
                self._do(c.PlanMirror(decided.segment, decided.device, SAFE, decided.replaces))
            elif isinstance(decided, MirrorCopy):
                self._judge_copy(need, decided)
                self.running.append(decided)
            else:
                assert isinstance(decided, (Later, Asleep))
                continue
            done += 1
        return done

    def _do(self, command: object) -> None:
        reply = self.drive.apply(command, **HOST)
        assert not isinstance(reply, Failed), f"{command} is refused by the machine: {reply.detail}"

    def _judge_drop(self, drop: GiveUpBay) -> None:
        row = self.drive.row(drop.segment)
        [bay] = [one for one in row.bays if (one.device, one.index) == (drop.device, drop.index)]
        assert row.state == SEGMENT_SEALED and row.want is not None
        if bay.role == BAY_MIRROR:
            rest = self.hosts_of([one for one in self.good(row) if one != drop.device])
            assert len(rest) >= row.want.copies, f"segment {drop.segment} is left with {rest}"
        else:
            assert bay.role == BAY_COPYING and all(one.segment != drop.segment for one in self.running)

    def _judge_copy(self, need: SegmentNeed, copy: MirrorCopy) -> None:
        row = self.drive.row(copy.segment)
        assert self.is_there(copy.device), "a copy to a device that is away"
        first, *others = copy.sources
        assert first.device in self.good(row), "the first source lacks the end, or is away"
        assert all(self.is_there(bay.device) for bay in others), "a source that is away"
        into = Counter(self.home[one.device] for one in [*self.running, copy])
        out_of = Counter(self.home[one.sources[0].device] for one in [*self.running, copy])
        assert max(into.values()) <= 2 and max(out_of.values()) <= 2, "too many copies of one host"

    def end_copies(self, share: float = 1.0) -> None:
        """Some of the copies are made, or fail, where their destination is away; a copy that was overtaken is refused."""
        for copy in list(self.running):
            if self.dice.random() > share:
                continue
            self.running.remove(copy)
            if self.is_there(copy.device) and self.dice.random() < 0.9:
                made = c.MirrorMade(copy.segment, copy.device, copy.index, copy.planned, copy.end, copy.replaces)
                self.drive.apply(made, **HOST)
        for device in self.devices:
            if self.is_there(device):
                self.drive.trim(device)

    def live(self, events: int) -> None:
        """Lives, calms down, and heals: then nothing is lacking that can be had, and nobody goes on."""
        for _ in range(events):
            if self.dice.random() < 0.5:
                self.disturb()
            self.look()
            self.end_copies(0.5)
        sound(self.drive)
        self.calm()
        self.heal()
        self._judge_end()

    def heal(self) -> None:
        """Looks until nothing is left to do."""
        steps = 0
        while self.look() or self.running:
            self.end_copies()
            steps += 1
            assert steps < STEPS_MAX, "healing turns in circles"
        self.end_copies()  # a device that has just come back trims, though nothing else is left to do
        sound(self.drive)

    def _judge_end(self) -> None:
        taking = [one for one in self.devices if self.is_there(one) and not self.device(one).draining]
        if any(self.device(one).segments_free <= 4 for one in taking):
            return
        state = self.drive.machine.state
        state.write_back()
        drained = {one for one in self.devices if self.device(one).draining}  # and empty, if all that lies there could be elsewhere
        for key in state.keys_in(keys.kind_range(0, keys.SEGMENT), 1_000):
            row = state.segment(keys.last_u64(key))
            assert row is not None and row.want is not None
            good = self.good(row)
            possible = min(row.want.copies, len(self.hosts_of(taking)))
            assert len(self.hosts_of(good)) >= possible or not good, f"segment {row.segment} lacks a mirror that it could have"
            assert not good or not any(bay.role == BAY_COPYING for bay in row.bays), f"segment {row.segment} has a copy that nobody makes"
            counted = [bay for bay in row.bays if not self.device(bay.device).lost]
            assert len(counted) <= row.want.copies or len(self.hosts_of(good)) < row.want.copies, f"segment {row.segment} has too many"
            if len(self.hosts_of(taking)) >= row.want.copies and good:
                named = [bay.device for bay in row.bays]
                assert not any(self.device(one).draining for one in named), f"segment {row.segment} stays on a device that is drained"
            else:
                drained.clear()
        for one in drained:
            self.drive.ok(c.RemoveDevice(one, 1_000), **HOST)
            sound(self.drive)
