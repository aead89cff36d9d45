"""The state of a cluster goes back, and the disks of its pool do not: what the state names and a disk still holds stays.

The machine and the healing plan are the production ones.  Disks are kept apart from them, in true time, and so is what servers remember of
copies that they have made.  A state that was kept is put back by Recover once or twice in a life; devices are attached one after the other,
and their servers look at what is doubted, in parts, while files are written and deleted and healing goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from awsomefsd.base.types import BAY_MIRROR, BAY_STALE, SEGMENT_SEALED, Redundancy
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.api.messages.devices import GetBays
from awsomefsd.meta.api.messages.pools import GetNeeds, GetPool
from awsomefsd.meta.machine import bays, doubt
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.state import keys, pools, rows
from awsomefsd.node.maintenance.healing_plan import GiveUpBay, HealingPlan, KeepBay, MirrorCopy
from tests.rigs.machine_driver import SAFE, sound
from tests.rigs.memory_txn import MemTxn
from tests.rigs.pool_driver import HOST, PoolDrive

HOSTS, BAYS = 4, 6
LIVES, STEPS = 25, 120
Place = tuple[int, int]


class Kept(NamedTuple):
    """A state that may be put back."""

    rows: dict[bytes, bytes]
    index: int
    running: list[MirrorCopy]


class RollbackWorld:
    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.drive = PoolDrive(HOSTS, BAYS, Redundancy(2, 1))
        self.disks: dict[Place, tuple[int, int]] = {}  # (segment, incarnation) of which a bay holds all
        self.running: list[MirrorCopy] = []
        self.made: set[tuple[int, int, int, int, int]] = set()  # copies that servers remember
        self.kept: Kept | None = None
        self.gone: set[tuple[int, int]] = set()  # segments that no disk held when the state went back
        self.newest = self.names = 0

    # --- what there is --------------------------------------------------------------------------------------------------------
    def segments(self) -> list[rows.SegmentRow]:
        state = self.drive.machine.state
        return [row for row in state.scan(keys.kind_range(0, keys.SEGMENT), rows.SEGMENT) if row.state == SEGMENT_SEALED]

    def holds(self, row: rows.SegmentRow, device: int, index: int) -> bool:
        return self.disks.get((device, index)) == (row.segment, row.incarnation)

    def held(self, row: rows.SegmentRow) -> bool:
        """Returns whether a mirror that the row names, and that may count, is what the row says."""
        return any(bay.role == BAY_MIRROR and self.holds(row, bay.device, bay.index) for bay in row.bays)

    def judge(self) -> None:
        for row in self.segments():
            if (row.segment, row.incarnation) not in self.gone:
                assert self.held(row), f"segment {row.segment} was there, and none of its mirrors holds it any more"

    # --- what happens ---------------------------------------------------------------------------------------------------------
    def write(self) -> None:
        drive = self.drive
        self.names += 1
        drive.open(mount=1_000 + self.names)
        reply = drive.apply(c.LeaseBays(1, SAFE, [], [self.dice.sample(range(1, HOSTS + 1), 2)]))
        if not isinstance(reply, Failed):
            [info] = reply.segments
            drive.frames[info.segment] = 0
            self.newest = max(self.newest, info.incarnation)
            reached = self.dice.sample([bay.device for bay in info.bays], self.dice.choice((1, 2, 2)))
            drive.ok(drive.put(info, drive.create(b"f%d" % self.names), 0, 1000, *reached, sealed=True))
            for bay in info.bays:
                if bay.device in reached:
                    self.disks[bay.device, bay.index] = info.segment, info.incarnation
                else:
                    self.disks.pop((bay.device, bay.index), None)
        drive.ok(c.EndSession(drive.session, drive.epoch, True), **HOST)
        drive.session = drive.epoch = drive.mount = 0

    def unlink(self) -> None:
        self.drive.apply(c.Unlink(self.drive.volume, 1, b"f%d" % self.dice.randint(1, self.names + 1)), **HOST)

    def drain(self) -> None:
        self.drive.apply(c.DrainDevice(self.dice.randint(1, HOSTS), self.dice.random() < 0.4), **HOST)
        self.drive.walk()

    def trim(self) -> None:
        """The server of a device closes what is stale; the bytes stay where nothing is discarded."""
        device = self.dice.randint(1, HOSTS)
        server = self.drive.machine.state.device(device).server
        stale = self.drive.stale(device)
        if server and stale:
            for index, _, _ in stale if self.dice.random() < 0.5 else ():
                self.disks.pop((device, index), None)
            self.drive.ok(c.BaysTrimmed(server, device, stale), **HOST)

    def attach(self) -> None:
        self.drive.attach(self.dice.randint(1, HOSTS))

    def see(self) -> None:
        """The server of a device looks at some bays that are doubted."""
        device = self.dice.randint(1, HOSTS)
        told = self.drive.ask(GetBays(device, 0, BAYS))
        if not told.doubted or not self.drive.machine.state.device(device).server:
            return
        first = self.dice.randrange(told.doubted)
        wrong = [
            (bay.index, bay.segment) for bay in told.bays
            if first <= bay.index < told.doubted and bay.role == BAY_MIRROR and bay.durable and self.disks.get((device, bay.index)) !=
            (bay.segment, bay.incarnation)
        ]  # fmt: skip
        self.drive.ok(c.BaysSeen(f"n{device}", device, told.generation, told.doubted, first, wrong), **HOST)

    # --- back -----------------------------------------------------------------------------------------------------------------
    def keep(self) -> None:
        self.drive.machine.flush()
        self.kept = Kept(dict(self.drive.txn.rows), self.drive.index, list(self.running))

    def go_back(self) -> None:
        """The kept state is put back.  What healing had begun then, it takes up again: servers answer what they remember."""
        if self.kept is None:
            return
        drive = self.drive
        drive.txn = MemTxn(self.kept.rows)
        drive.machine, drive.index, self.running = Machine(drive.txn, drive.known), self.kept.index, list(self.kept.running)
        drive.ok(c.Recover(self.newest, "nobody"), **HOST)
        self.gone |= {(row.segment, row.incarnation) for row in self.segments() if not self.held(row)}
        self.kept = None

    # --- healing --------------------------------------------------------------------------------------------------------------
    def heal(self) -> int:
        """Decides once for every need, and does it; returns how much was done."""
        found = self.drive.ask(GetPool(1))
        pool = replace(found, devices=[replace(one, address=f"10.0.0.{one.device}:7442") for one in found.devices])
        plan, done = HealingPlan(pool, list(self.running)), 0
        for need in self.drive.ask(GetNeeds(0, 0, 256)).needs:
            decided = plan.decide(need)
            if isinstance(decided, GiveUpBay):
                reply = self.drive.apply(c.DropBays([(decided.segment, decided.device, decided.index)]), **HOST)
                assert not isinstance(reply, Failed), f"healing asks for what is refused: {reply.detail}"
            elif isinstance(decided, KeepBay):
                reply = self.drive.apply(c.PlanMirror(decided.segment, decided.device, SAFE, decided.replaces), **HOST)
                assert not isinstance(reply, Failed), f"healing asks for what is refused: {reply.detail}"
            elif isinstance(decided, MirrorCopy):
                self.running.append(decided)
            else:
                continue
            done += 1
        return done

    def end_copy(self) -> None:
        if not self.running:
            return
        copy = self.running.pop(self.dice.randrange(len(self.running)))
        name = copy.segment, copy.incarnation, copy.device, copy.index, copy.planned
        bay = self.drive.bay(copy.device, copy.index)
        if name not in self.made:
            if bay is None or bay.role == BAY_STALE or (bay.segment, bay.index) != (copy.segment, copy.planned):
                return  # the server has asked
            whole = any(self.disks.get((one.device, one.index)) == (copy.segment, copy.incarnation) for one in copy.sources)
            self.disks[copy.device, copy.index] = (copy.segment, copy.incarnation) if whole else (0, 0)
            self.made.add(name)
        if self.dice.random() < 0.8:
            self.drive.apply(
                c.MirrorMade(copy.segment, copy.device, copy.index, copy.planned, copy.end, copy.replaces), **HOST
            )  # fmt: skip

    # --- a life ---------------------------------------------------------------------------------------------------------------
    def live(self) -> None:
        doings: list[Callable[[], object]] = [
            *[self.write] * 4, *[self.unlink] * 3, *[self.trim] * 3, self.drain, self.attach, *[self.see] * 4, *[self.heal] * 4,
            *[self.end_copy] * 4,
        ]  # fmt: skip
        for _ in range(2):
            for step in range(STEPS):
                if step == STEPS // 4:
                    self.keep()
                elif step == STEPS // 2:
                    self.go_back()
                self.dice.choice(doings)()
                self.judge()
            sound(self.drive)
        self.end()

    def end(self) -> None:
        """All devices are attached and looked at, and healing ends: what counts then is there, of all that was."""
        for device in range(1, HOSTS + 1):
            self.drive.attach(device)
            self.drive.ok(c.DrainDevice(device, False), **HOST)
        self.drive.walk()
        for _ in range(1_000):
            for doing in (self.see, self.trim, self.end_copy):
                doing()
            busy = self.heal() or self.running or any(one.doubted for one in self.drive.ask(GetPool(1)).devices)
            if not busy:
                break
            self.judge()
        else:
            raise AssertionError("healing turns in circles")
        for row in self.segments():
            if (row.segment, row.incarnation) not in self.gone:
                for bay in pools.complete(row):
                    assert self.holds(row, bay.device, bay.index), f"segment {row.segment}: a mirror counts that holds something else"
        sound(self.drive)


def test_what_is_left_of_an_older_state_stays(seed: int) -> None:
    for life in range(LIVES):
        RollbackWorld(Random(f"{seed} {life}")).live()


def _no_doubt(patch: pytest.MonkeyPatch) -> None:
    def begin(state: object) -> None:
        real(state)  # type: ignore[arg-type]
        for device in state.devices():  # type: ignore[attr-defined]
            device.doubted = 0
            state.save_device(device)  # type: ignore[attr-defined]

    real = doubt.begin
    patch.setattr(doubt, "begin", begin)


def _given_up_for_the_sake_of_doubted_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pools, "is_doubted", lambda _bay, _devices: False)
    patch.setattr(HealingPlan, "_is_doubted", lambda _self, _bay: False)


def _copied_while_doubted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bays, "_check_seen", lambda _state, _row: None)
    patch.setattr(HealingPlan, "_is_doubted", lambda _self, _bay: False)
    patch.setattr(pools, "seen", lambda row, devices: [bay for bay in pools.complete(row) if pools.is_there(devices(bay.device))])


def _copies_of_before_go_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(doubt, "BAY_COPYING", -1)


def _all_is_well(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(doubt, "_has_other", lambda _state, _row, _bay: False)


BROKEN = [_no_doubt, _given_up_for_the_sake_of_doubted_ones, _copied_while_doubted, _copies_of_before_go_on, _all_is_well]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__.strip("_"))
def test_what_is_wrong_on_purpose_is_found(
    broken: Callable[[pytest.MonkeyPatch], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    for life in range(60 * LIVES):
        try:
            RollbackWorld(Random(f"{seed} {life}")).live()
        except AssertionError:
            return
    pytest.fail(f"{broken.__name__} was not found")
