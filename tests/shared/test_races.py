"""Programs look on every node all the time; what has returned on one node is seen by the next look on another, whatever was on its way.

A reply that was computed before a change and arrives after it must not stay: neither a page, nor a size, nor a name.  So the lookers keep
requests under way while the changes happen, and the test asks right after each change, on another node, in a random way.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shared import rig
from tests.shared.programs import ANSWER_S, running

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
everywhere = pytest.mark.parametrize("shared_volume", rig.all_modes(), indirect=True)
NAMES = ["one", "two"]
BYTES_MAX = 60_000
# Not lseek to the end and not mappings: both take the size that this node's kernel believes, and of two answers under way at the same
# time the kernel may keep the older one (docs/KNOWN-ISSUES.md).
WAYS = ("pread", "read", "fstat", "stat")


def await_all(marks: list[Path]) -> None:
    end = time.monotonic() + ANSWER_S
    while missing := [mark.name for mark in marks if not mark.exists()]:
        assert time.monotonic() < end, f"after {ANSWER_S:.0f} s {missing} has not looked once"
        time.sleep(0.005)


@pytest.fixture
def looked_at(places: list[Path], tmp_path: Path) -> Iterator[list[Path]]:
    for name in NAMES:
        (places[0] / name).touch()
    begun, over = [tmp_path / f"begun-{node}" for node in range(3)], tmp_path / "over"
    with running(3) as made:
        for program, place, mark in zip(made, places, begun, strict=True):
            program.start("hammer", str(place), NAMES, str(mark), str(over))
        await_all(begun)
        yield places
        over.touch()
        for program in made:
            program.result()


class Race:
    def __init__(self, places: list[Path], seed: int) -> None:
        self.dice, self.places, self.seed = random.Random(seed), places, seed
        self.bytes = {name: bytearray() for name in NAMES}
        self.names = set(NAMES)
        self.fds = [{name: os.open(place / name, os.O_RDWR) for name in NAMES} for place in places]
        self.history: list[str] = []

    def close(self) -> None:
        for mine in self.fds:
            for fd in mine.values():
                os.close(fd)

    def step(self) -> None:
        node, other = self.dice.sample(range(3), 2)
        kind, name = self.dice.choice(("write", "write", "write", "append", "cut", "make", "remove", "rename")), self.dice.choice(NAMES)
        self.history.append(f"{kind} {name} on {node}, looked at on {other}")
        if kind in ("write", "append", "cut"):
            self.change(kind, name, node)
            self.look(name, other)
        else:
            self.move(kind, node)
            shown = set(os.listdir(self.places[other]))
            assert shown == self.names, (shown ^ self.names, self.seed, self.history[-5:])
            extra = f"extra{self.dice.randrange(4)}"
            assert os.path.lexists(self.places[other] / extra) == (extra in self.names), (extra, self.seed, self.history[-5:])

    def change(self, kind: str, name: str, node: int) -> None:
        model, fd = self.bytes[name], self.fds[node][name]
        if kind == "cut":
            size = self.dice.randrange(len(model) + 5_000)
            os.ftruncate(fd, size)
            self.bytes[name] = model[:size] + bytes(max(0, size - len(model)))
            return
        at = len(model) if kind == "append" else self.dice.randrange(BYTES_MAX // 2)
        data = self.dice.randbytes(self.dice.choice((1, 300, 9_000)))
        if kind == "append" and len(model) + len(data) <= BYTES_MAX:
            with (self.places[node] / name).open("ab", buffering=0) as file:
                assert file.write(data) == len(data)
        else:
            at = min(at, BYTES_MAX // 2)
            assert os.pwrite(fd, data, at) == len(data)
        model += bytes(max(0, at - len(model)))
        model[at : at + len(data)] = data

    def move(self, kind: str, node: int) -> None:
        place, extra = self.places[node], f"extra{self.dice.randrange(4)}"
        if extra not in self.names:
            (place / extra).touch()
            self.names.add(extra)
        elif kind == "rename":
            target = f"extra{self.dice.randrange(4)}"
            os.rename(place / extra, place / target)
            self.names = self.names - {extra} | {target}
        else:
            (place / extra).unlink()
            self.names.remove(extra)

    def look(self, name: str, node: int) -> None:
        way = self.dice.choice(WAYS)
        if not self.right(way, name, node):
            ways = {again: self.right(again, name, node) for again in (way, *WAYS)}
            raise AssertionError(f"{way} of {name} on node {node} shows something old, then {ways}; seed {self.seed}: {self.history[-5:]}")

    def right(self, way: str, name: str, node: int) -> bool:
        fd, path, model = self.fds[node][name], self.places[node] / name, bytes(self.bytes[name])
        if way == "pread":
            return os.pread(fd, BYTES_MAX * 2, 0) == model
        if way == "read":
            return path.read_bytes() == model
        return (os.fstat(fd) if way == "fstat" else path.stat()).st_size == len(model)


def raced(looked_at: list[Path], seed: int, steps: int) -> None:
    race = Race(looked_at, seed)
    try:
        for _ in range(steps):
            race.step()
    finally:
        race.close()


@everywhere
def test_nothing_old_is_seen_while_all_look(looked_at: list[Path], seed: int) -> None:
    raced(looked_at, seed, 80)
