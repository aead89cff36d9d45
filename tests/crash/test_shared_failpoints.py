"""A worker dies at each failpoint that only shared mounts have; programs on three nodes append and read meanwhile, and notice nothing.

Each program appends lines to a file of its own and to one that all of them append to, through descriptors that stay open, and reads what
the others have appended: so write leases move all the time.  At the end each line is there once, in the order of its writer.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from awsomefsd.base.failpoints import POINTS, FailpointControl
from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.network_namespaces import found_on_one_disk

SHARED = [name for name in POINTS if POINTS[name] == "shared"]
MODES = {"cached": "shared", "uncached": "shared,cache=none"}
WAIT_S = 60.0
PROGRAM = r"""
import os, random, sys
directory, own, other, told, seed = *sys.argv[1:5], int(sys.argv[5])
choose = random.Random(f"{seed} {own}")
fds = [os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in (own, "all")]
with open(told, "a", buffering=1) as manifest:
    for number in range(1 << 30):
        line = f"{own} {number} {'x' * choose.choice((0, 10, 5_000))}\n".encode()
        for fd in fds:
            assert os.write(fd, line) == len(line)
        if choose.random() < 0.1:
            os.fsync(fds[0])
        if choose.random() < 0.3:
            with open(os.path.join(directory, choose.choice((other, "all"))), "a+b") as file:
                file.seek(max(0, file.tell() - 20_000))
                file.read()
        manifest.write(f"{number}\n")
"""


class Program:
    def __init__(self, directory: Path, own: str, other: str, told: Path, seed: int) -> None:
        self.name, self.told = own, told
        self.log = told.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(directory), own, other, str(told), str(seed)], stderr=log)

    def lines(self) -> int:
        """How many it has said to have written; the last number may have been cut."""
        return self.told.read_text().count("\n") if self.told.exists() else 0

    def await_more(self) -> None:
        before = self.lines()
        await_true(f"lines of {self.name}", lambda: self.process.poll() is not None or self.lines() > before, WAIT_S, 0.02)
        assert self.process.poll() is None, self.log.read_text()


@pytest.fixture
def control(tmp_path: Path) -> FailpointControl:
    return FailpointControl(tmp_path / "failpoints")


@pytest.fixture
def nodes(make_cluster: Callable[..., Cluster], control: FailpointControl) -> Iterator[list[Node]]:
    cluster = make_cluster(3)
    for node in cluster.nodes:
        node.failpoints = control.path
    found_on_one_disk(cluster)
    for mode, options in MODES.items():
        cluster.nodes[0].cli("volume", "create", mode)
        for node in cluster.nodes:
            (node.directory / mode).mkdir()
            node.cli("mount", mode, str(node.directory / mode), "-O", options)
    yield cluster.nodes
    for node in cluster.nodes:
        for mode in MODES:
            node.cli("umount", str(node.directory / mode), timeout_s=WAIT_S)
    cluster.stop()
    for node in cluster.nodes:
        assert "clean" in node.cli("fsck", timeout_s=WAIT_S)


def wrong_lines(content: bytes, counts: dict[str, int]) -> list[str]:
    """Lines that are missing, there twice, or out of the order of their writer."""
    following, found = dict.fromkeys(counts, 0), []
    for line in content.decode().splitlines():
        name, number, _ = line.split(" ")
        if int(number) != following[name]:
            found.append(f"{name}: {number} where {following[name]} follows")
        following[name] = int(number) + 1
    return found + [f"{name}: {following[name]} of {count} lines" for name, count in counts.items() if following[name] < count]


@pytest.mark.root
@pytest.mark.timeout(1_200)
def test_a_death_at_each_failpoint_of_a_shared_mount(
    nodes: list[Node], control: FailpointControl, figures: list[str], seed: int, tmp_path: Path
) -> None:
    dice, began = Random(seed), time.monotonic()
    programs = {
        mode: [
            Program(node.directory / mode, f"{mode}-{number}", f"{mode}-{(number + 1) % len(nodes)}", tmp_path / f"{mode}-{number}", seed)
            for number, node in enumerate(nodes)
        ]
        for mode in MODES
    }
    every = [program for group in programs.values() for program in group]
    try:
        for name in dice.sample(SHARED, len(SHARED)):
            control.arm(name, dice.randint(1, 20))
            await_true(f"a death at {name}", lambda name=name: control.fired(name), WAIT_S, 0.02)
            pid = control.died(name)
            await_true(f"the end of {pid}", lambda pid=pid: not procs.alive(pid), WAIT_S, 0.02)
            for program in every:
                program.await_more()
    finally:
        for program in every:
            program.process.kill()
            program.process.wait(WAIT_S)
    for mode, group in programs.items():
        for node in nodes:
            for program in group:
                assert wrong_lines((node.directory / mode / program.name).read_bytes(), {program.name: program.lines()}) == []
            counts = {program.name: program.lines() for program in group}
            assert wrong_lines((node.directory / mode / "all").read_bytes(), counts) == []
    lines = sum(program.lines() for program in every)
    figures.append(f"failpoints of shared mounts: {len(SHARED)} kills, {lines:,} lines, {time.monotonic() - began:.0f} s")
