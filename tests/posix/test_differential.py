"""The same random operations of several users on ext4 and on a mount: results, errnos, attributes, times and trees must be the same."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from awsomefsd.vfs.state.atimes import NOATIME
from tests.differential import machine, strategies, vfs_side
from tests.differential.rig import Pair, pair
from tests.differential.vfs_side import VfsSide
from tests.rigs.mount_without_kernel import Rig, rig

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def both(make_node, tmp_path_factory) -> Iterator[Pair]:
    with pair(make_node, tmp_path_factory.mktemp("differential")) as made:
        yield made


def run(bench: machine.Bench, both: Pair, seed: int, figures: list[str], examples: int, steps: int) -> None:
    began = time.monotonic()
    try:
        machine.explore(bench, seed, examples, steps)
    finally:
        kills = f", {bench.kills} kills" if bench.kill else ""
        took = time.monotonic() - began
        figures.append(f"differential: {bench.examples} examples, {bench.steps} steps{kills} in {took:.0f} s, seed {seed}{both.left_out()}")


def test_several_users_see_the_same_as_on_ext4(both, seed, figures):
    bench = both.bench()
    run(bench, both, seed, figures, 125, 50)
    assert bench.steps >= 100 * 50 and bench.mounts


def test_several_users_see_the_same_while_the_worker_is_killed(both, seed, figures):
    bench = both.bench(kills=True)
    run(bench, both, seed, figures, 45, 50)
    assert bench.kills > 20 and len(set(both.killed)) == len(both.killed) == bench.kills


# Random examples hardly ever have it.  The kernel answers; the filesystem is not asked.
A_WHITEOUT_IS_OPENED = [("root", "open", 0, "a", 66, 420), ("root", "rename", "a", "b", 4), ("root", "open", 0, "a", 66, 420)]


def test_the_vfs_without_a_kernel(both, seed, figures, tmp_path, monkeypatch):
    """ext4, vfs and mount: what a kernel adds or hides differs from what ours decides.  All three are without atimes."""
    monkeypatch.setattr(Rig, "atime", (NOATIME, False))
    with rig(tmp_path) as made:
        side = VfsSide(made)
        kinds = tuple(kind for kind in strategies.ARGUMENTS if kind in vfs_side.kinds())
        bench = machine.Bench([both.sides[0], side, both.sides[1]], kinds, users=("root",), plain=True)
        machine.replay(bench, 0o777, A_WHITEOUT_IS_OPENED)
        run(bench, both, seed, figures, 80, 50)
        assert bench.steps >= 60 * 50
        made.unmount()
        made.check()
