"""A mount that decides names by itself answers as one whose names are durable, whatever becomes of its connection, its leader, its session,
its worker and the rows that it may remember."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.meta.client.connection import connect
from awsomefsd.vfs.state import overlay_state
from awsomefsd.vfs.state.atimes import NOATIME
from tests.differential import machine, strategies, vfs_side
from tests.differential.vfs_side import VfsSide
from tests.rigs.delegated_mount import replace_session
from tests.rigs.mount_without_kernel import Rig
from tests.unit.vfs.connection_cuts import Cuts

pytestmark = pytest.mark.timeout(1200)
CHANCE = 0.03  # of each transfer, to end the connection
ROWS_MIN = 8


class Durable(Rig):
    atime = (NOATIME, False)


class Delegated(Durable):
    delegated = True


class Disturbed:
    """Both mounts, and what happens to them between two steps."""

    def __init__(self, durable: Rig, delegated: Rig, cuts: Cuts, seed: int) -> None:
        self.rigs = durable, delegated
        self.sides = [VfsSide(rig) for rig in self.rigs]
        self.cuts = cuts
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.decided = 0
        self.ways: list[Callable[[], None]] = [self.worker, self.leader, self.session, self.memory]

    def look(self) -> None:
        names = self.rigs[1].worker.names
        assert names is not None and names.decides, "a record was refused"
        assert names.shipper.differing == 0, "the leader's rows are others after a record than this mount's"

    def once(self, _milliseconds: int) -> None:
        self.look()
        way = self.chance.choice(self.ways)
        self.done[way.__name__] += 1
        way()

    def worker(self) -> None:
        self.decided += self.rigs[1].worker.names.decided  # type: ignore[union-attr]
        for rig in self.rigs:
            rig.restart()

    def leader(self) -> None:
        host = self.rigs[1].host
        host.crash()
        host.start()

    def session(self) -> None:
        """While a file without a name is open it depends on the moment whether it ends with the session, so none is."""
        durable = self.sides[0]
        if any(not durable.rig.attr(file.ino).nlink for file in durable.files.values()):
            return
        for rig in self.rigs:
            rig.end_session()
            replace_session(rig)

    def memory(self) -> None:
        self.rigs[1].worker.names.bound(self.chance.choice((0.0, 1.0)))  # type: ignore[union-attr]


@pytest.fixture
def disturbed(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disturbed]:
    monkeypatch.setattr(overlay_state, "ROWS_MIN", ROWS_MIN)
    made: list[Rig] = []
    cuts = Cuts(connect, seed)
    try:
        for kind in (Durable, Delegated):
            folder = tmp_path / kind.__name__
            folder.mkdir()
            made.append(kind(folder))
        made[1].client_options = {"connect": cuts.connect}
        for rig in made:
            rig.hold_lease_clock()
            rig.start()
        yield Disturbed(made[0], made[1], cuts, seed)
    finally:
        cuts.chance = 0.0
        for rig in made:
            rig.close()


def test_it_answers_as_a_mount_with_durable_names(disturbed: Disturbed, seed: int, figures: list[str]) -> None:
    sides = disturbed.sides
    sides[0].name, sides[1].name = "durable", "mount"
    kinds = tuple(kind for kind in strategies.ARGUMENTS if kind in vfs_side.kinds())
    bench = machine.Bench(sides, kinds, disturbed.once, users=("root",), plain=True)
    disturbed.cuts.chance = CHANCE
    machine.explore(bench, seed, 25, 40)
    disturbed.look()
    disturbed.cuts.chance = 0.0
    assert disturbed.decided > 20 and len(disturbed.done) == len(disturbed.ways), "otherwise this shows nothing"
    figures.append(f"disturbed mounts: {bench.steps} steps, {dict(disturbed.done)}, {dict(disturbed.cuts.done)}")
    for rig in disturbed.rigs:
        rig.unmount()
        rig.check()
