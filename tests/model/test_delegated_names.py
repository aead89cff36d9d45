"""A mount that decides names by itself answers as one whose names are durable, and leaves the same tree, whoever dies."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.vfs.state.atimes import NOATIME
from tests.differential import machine, strategies, vfs_side
from tests.differential.vfs_side import VfsSide
from tests.rigs.mount_without_kernel import Rig

pytestmark = pytest.mark.timeout(1200)


class Durable(Rig):
    atime = (NOATIME, False)


class Delegated(Durable):
    delegated = True


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[tuple[Rig, Rig]]:
    made: list[Rig] = []
    try:
        for kind in (Durable, Delegated):
            folder = tmp_path / kind.__name__
            folder.mkdir()
            made.append(kind(folder))
            made[-1].hold_lease_clock()
            made[-1].start()
        yield made[0], made[1]
    finally:
        for rig in made:
            rig.close()
        made.clear()
        gc.collect()  # workers are circles of objects that hold descriptors


def explored(rigs: tuple[Rig, Rig], seed: int, *, kills: bool) -> machine.Bench:
    sides = [VfsSide(rig) for rig in rigs]
    sides[0].name, sides[1].name = "durable", "mount"
    kinds = tuple(kind for kind in strategies.ARGUMENTS if kind in vfs_side.kinds())

    decided = 0

    def look() -> None:
        nonlocal decided
        names = rigs[1].worker.names
        assert names is not None and names.decides, "a record was refused"
        assert names.shipper.differing == 0, "the leader's rows are others after a record than this mount's"
        decided += names.decided

    def kill(_milliseconds: int) -> None:
        look()
        rigs[1].restart()

    bench = machine.Bench(sides, kinds, kill if kills else None, users=("root",), plain=True)
    machine.explore(bench, seed, 25, 40)
    look()
    assert decided > 20, "otherwise this shows nothing"
    for rig in rigs:
        rig.unmount()
        rig.check()
    return bench


def test_it_answers_as_a_mount_with_durable_names(rigs: tuple[Rig, Rig], seed: int) -> None:
    assert explored(rigs, seed, kills=False).steps > 400


def test_it_does_so_while_its_worker_is_killed(rigs: tuple[Rig, Rig], seed: int) -> None:
    assert explored(rigs, seed, kills=True).kills > 5
