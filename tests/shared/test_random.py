"""The stateful random test of tests/posix/test_differential.py with each operation on a random node, beside ext4.

A "user" of the machine is a user on a node: a process on ext4 and one on that node's mount, so open files, umasks and locks stay with it.
Around every tenth step the tree is compared as one node in turn shows it, at the end of an example as all three show it, contents
included.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential import machine, strategies
from tests.differential.rig import missing
from tests.differential.sides import USERS, Directory, Process, ext4
from tests.shared.rig import SharedVolume

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]
NODES = range(3)
EXAMPLES, STEPS, EVERY = 100, 50, 10
SHARE, ROUNDS_MAX = 0.7, 6  # of the steps that must have been done; in so many rounds at most


class Spread(Directory):
    """Users on several nodes.  The root of the first one keeps the frame of an example."""

    def __init__(self, name: str, bases: list[Path]) -> None:
        self.name = name
        self.actors = {f"{user} on {node}": Process(bases[node], USERS[user]) for node in NODES for user in USERS}
        self.actors["root"] = self.actors["root on 0"]
        self.entered = ""
        self.turn = itertools.count()
        self.same = len(set(bases)) == 1

    def tree(self, full: bool) -> machine.Tree:
        if not full or self.same:
            return self.of(0 if self.same else next(self.turn) % len(NODES), full)
        trees = [self.of(node, True) for node in NODES]
        assert trees[0] == trees[1] == trees[2], f"{self.name}: the nodes show different trees"
        return trees[0]

    def of(self, node: int, full: bool) -> machine.Tree:
        found = self.call(f"root on {node}", "tree", full)
        assert isinstance(found, dict), f"{self.name}: {found}"
        return found

    def begin(self, name: str, mode: int) -> None:
        assert self.call("root", "make", name, mode) is None
        for user in self.users():
            assert self.call(user, "enter", name) is None
        self.entered = name

    def finish(self) -> None:
        for user in self.users():
            assert self.call(user, "leave") is None
        assert self.call("root", "remove", self.entered) is None

    def users(self) -> list[str]:
        return [user for user in self.actors if user != "root"]

    def close(self) -> None:
        for user in self.users():
            self.actors[user].close()


@pytest.fixture
def sides(shared_volume: SharedVolume, tmp_path: Path) -> Iterator[list[Spread]]:
    with ext4(tmp_path) as reference:
        made = [Spread("ext4", [reference] * 3)]
        try:
            made.append(Spread("mount", shared_volume.places("random")))
            yield made
        finally:
            for side in made:
                side.close()


def run(sides: list[Spread], seed: int, figures: list[str], examples: int, steps: int) -> None:
    """Examples end where they like.  With few of them they may be short by chance, and then there are as many again."""
    left_out = {kind for kinds in missing(sides[1]).values() for kind in kinds}
    left_out.add("remount")  # it would be one node's mount
    kinds = tuple(kind for kind in strategies.ARGUMENTS if kind not in left_out)
    bench = machine.Bench(sides, kinds, users=tuple(sides[1].users()), every=EVERY)
    began = time.monotonic()
    try:
        for again in range(ROUNDS_MAX):
            machine.explore(bench, seed + again, examples, steps)
            if bench.steps >= examples * steps * SHARE:
                break
    finally:
        took = time.monotonic() - began
        done = f"{bench.examples} examples, {bench.steps} steps in {took:.0f} s"
        figures.append(f"random operations on three nodes beside ext4: {done}, seed {seed}")
    assert bench.steps >= examples * steps * SHARE


def test_operations_on_random_nodes_are_as_on_ext4(sides: list[Spread], seed: int, figures: list[str]) -> None:
    run(sides, seed, figures, EXAMPLES, STEPS)
