"""Locks between programs on three nodes: they exclude, block, wake, find deadlocks, and end with process, node and session."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools.leader import figures
from buildtools.nodes import await_true
from tests.shared.programs import Program, ProgramError, running
from tests.shared.rig import WAIT_S, Machines

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
KINDS = ("posix", "ofd", "flock")
TAKEN = (errno.EAGAIN, errno.EACCES)


@pytest.fixture
def programs(places: list[Path]) -> Iterator[list[Program]]:
    """One on each node, with the file open."""
    (places[0] / "f").write_bytes(b"x" * 100)
    with running(3) as made:
        for program, place in zip(made, places, strict=True):
            program.call("open", 0, str(place / "f"))
        yield made


def refused(program: Program, how: str, kind: int, start: int = 0, length: int = 0) -> None:
    with pytest.raises(ProgramError) as told:
        program.call("lock", 0, how, kind, start, length)
    assert told.value.errno in TAKEN, told.value


class Waits:
    """Starts calls that have to wait for a lock; that they do is what the leader says."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._programs: list[Program] = []

    def __call__(self, program: Program, how: str, kind: int, start: int = 0, length: int = 0) -> None:
        program.start("lock", 0, how, kind, start, length, True)
        self._programs.append(program)
        self.still()

    def still(self) -> None:
        """All that were started so and whose result nobody has taken wait, or begin to."""
        asked = {id(program): program for program in self._programs if program.asked}
        await_true(f"{len(asked)} calls that wait for a lock", lambda: self._count() == len(asked), WAIT_S, 0.02)
        assert not any(program.answered(0) for program in asked.values())

    def _count(self) -> int:
        leader = self._machines.cluster.leader()
        return -1 if leader is None else int(figures(leader.run / "meta.sock").get("lock_waiters", -1))


@pytest.fixture
def waits(machines: Machines) -> Waits:
    return Waits(machines)


@pytest.mark.parametrize("how", KINDS)
def test_they_exclude_block_and_wake(programs: list[Program], waits: Waits, how: str) -> None:
    one, two, three = programs
    one.call("lock", 0, how, WRITE)
    for other in (two, three):
        refused(other, how, WRITE)
        refused(other, how, READ)
    waits(two, how, READ)
    waits(three, how, READ)
    one.call("lock", 0, how, UNLOCK)
    two.result()
    three.result()
    refused(one, how, WRITE)
    waits(one, how, WRITE)
    two.call("lock", 0, how, UNLOCK)
    refused(two, how, WRITE)  # decided after the leader has tried the one that waits once more
    waits.still()
    three.call("close", 0)
    one.result()


def test_closes_end_them_for_other_nodes(programs: list[Program], places: list[Path]) -> None:
    """Classic ones with any close of the file by whoever shares the descriptors, at once; others with the last one of their handle."""
    one, two, three = programs
    one.call("open", 1, str(places[0] / "f"))
    one.call("lock", 0, "posix", WRITE, 0, 10)
    one.call("lock", 0, "ofd", WRITE, 20, 10)
    assert one.call("close_in_child", 1) == 0
    refused(two, "posix", WRITE, 0, 10)
    one.call("close_in_thread", 1)
    two.call("lock", 0, "posix", WRITE, 0, 10)
    refused(three, "ofd", READ, 20, 10)
    one.call("dup", 0, 2)
    one.call("close", 0)
    refused(three, "posix", READ, 20, 10)
    one.call("close", 2)  # does not wait for what ends them
    three.call("lock", 0, "ofd", WRITE, 20, 10, True)


@pytest.mark.parametrize("how", ["posix", "ofd"])
def test_ranges(programs: list[Program], waits: Waits, how: str) -> None:
    one, two, three = programs
    one.call("lock", 0, how, WRITE, 10, 20)
    two.call("lock", 0, how, WRITE, 30, 5)
    two.call("lock", 0, how, READ, 0, 10)
    three.call("lock", 0, how, READ, 0, 10)
    refused(three, how, READ, 29, 1)
    refused(three, how, READ, 30, 1)
    refused(one, how, WRITE, 9, 1)
    one.call("lock", 0, how, UNLOCK, 15, 5)  # the middle of its range
    three.call("lock", 0, how, WRITE, 15, 5)
    refused(two, how, READ, 14, 1)
    refused(two, how, READ, 20, 1)
    waits(two, how, WRITE, 15, 1)
    three.call("lock", 0, how, UNLOCK, 0, 0)
    two.result()


def test_deadlocks_are_found_across_nodes(programs: list[Program], waits: Waits) -> None:
    for number, program in enumerate(programs):
        program.call("lock", 0, "posix", WRITE, number, 1)
    waits(programs[0], "posix", WRITE, 1, 1)
    waits(programs[1], "posix", WRITE, 2, 1)
    with pytest.raises(ProgramError) as told:
        programs[2].call("lock", 0, "posix", WRITE, 0, 1, True)
    assert told.value.errno == errno.EDEADLK
    programs[2].call("lock", 0, "posix", UNLOCK, 2, 1)
    programs[1].result()
    programs[1].call("lock", 0, "posix", UNLOCK, 1, 1)
    programs[0].result()


@pytest.mark.parametrize("how", KINDS)
def test_they_end_with_their_process_and_not_with_the_worker(
    machines: Machines, programs: list[Program], waits: Waits, how: str
) -> None:
    one, two, three = programs
    one.call("lock", 0, how, WRITE)
    waits(two, how, WRITE)
    machines.nodes[0].strike(["worker"])
    machines.nodes[1].strike(["worker"])
    refused(three, how, READ)
    waits.still()
    one.kill()
    two.result()
    refused(three, how, READ)


def test_a_leader_that_dies_keeps_them_and_the_waits(machines: Machines, programs: list[Program], waits: Waits) -> None:
    one, two, three = programs
    for how, start in (("posix", 0), ("ofd", 50)):
        one.call("lock", 0, how, WRITE, start, 10)
    waits(two, "posix", WRITE, 5, 1)
    waits(three, "ofd", READ, 50, 1)
    machines.nodes[machines.leader()].strike(["daemon"])
    waits.still()
    one.call("lock", 0, "posix", UNLOCK, 0, 10)
    two.result()
    one.call("lock", 0, "ofd", UNLOCK, 50, 10)
    three.result()


def test_they_end_with_the_session_of_a_node_that_is_stopped(machines: Machines, places: list[Path], waits: Waits) -> None:
    """Stopped for longer than its session lasts: another has the lock; the old holder is told when it goes on."""
    (places[0] / "f").write_bytes(b"x")
    with running(2) as (holder, heir):
        holder.call("open", 0, str(places[2] / "f"))
        holder.call("lock", 0, "posix", WRITE)
        heir.call("open", 0, str(places[0] / "f"))
        waits(heir, "posix", WRITE)
        machines.cluster.pause(machines.nodes[2])
        try:
            heir.result()
        finally:
            machines.cluster.resume(machines.nodes[2])
        with pytest.raises(ProgramError) as told:
            holder.call("pread", 0, 1, 0)
        assert told.value.errno == errno.EIO
        holder.call("close", 0)
        holder.call("open", 0, str(places[2] / "f"))
        assert holder.call("pread", 0, 1, 0) == b"x"
        refused(holder, "posix", WRITE)


def test_they_end_with_the_node(machines: Machines, places: list[Path], waits: Waits) -> None:
    (places[0] / "f").write_bytes(b"x")
    with running(2) as (holder, heir):
        holder.call("open", 0, str(places[1] / "f"))
        holder.call("lock", 0, "flock", WRITE)
        heir.call("open", 0, str(places[2] / "f"))
        waits(heir, "flock", WRITE)
        machines.kill(1)
        heir.result()
        holder.kill()
        machines.revive(1)
    assert (places[1] / "f").read_bytes() == b"x"
