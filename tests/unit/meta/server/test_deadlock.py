"""EDEADLK: the search for circles, and the leader that asks for it."""

from __future__ import annotations

import errno
import random

import pytest

from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import SetLock
from awsomefsd.meta.server.deadlock import closes_circle
from tests.rigs.metadata_service import Wire, create, host

READ, WRITE, UNLOCK = 0, 1, 2


def search(edges: dict[int, list[int]], start: int, bound: int = 1_000) -> bool:
    """Owners are numbers, each waits once for all of `edges`."""
    return closes_circle(
        start, lambda owner: (1, owner), lambda owner: [(1, other) for other in edges.get(owner, [])],
        lambda owner: [owner[1]] if owner[1] in edges else [], bound,
    )  # fmt: skip


def test_circles():
    assert search({1: [2], 2: [1]}, 1)
    assert search({1: [2], 2: [3], 3: [1]}, 3)
    assert not search({1: [2], 2: [3]}, 1)
    assert search({1: [9, 2], 2: [8, 3], 3: [7, 1]}, 2), "not only the first in the way"
    assert not search({1: [2], 2: [3], 3: [2]}, 1), "a circle of others is not ours, and the search ends"
    assert not search({1: [2], 2: [1]}, 1, bound=1)


def test_circles_are_what_a_transitive_closure_finds(seed):
    dice = random.Random(seed)
    for _ in range(200):
        edges = {owner: dice.sample(range(9), dice.randrange(4)) for owner in range(dice.randrange(1, 9))}
        edges = {owner: [other for other in others if other != owner] for owner, others in edges.items()}
        reach = {owner: set(others) for owner, others in edges.items()}
        for _ in range(9):
            for owner in reach:
                reach[owner] |= set().union(*(reach.get(other, set()) for other in reach[owner]))
        for owner in edges:
            assert search(edges, owner) == (owner in reach[owner]), (seed, edges, owner)


class Owners:
    """Requests of several owners over one connection."""

    def __init__(self, node) -> None:
        self.node = node
        self.wire = Wire(node.socket_path)
        self.opened = self.wire.open_session()
        self.unique = 100
        self.inos = [self.wire.ask(create(self.opened, 10 + number, b"f%d" % number)).attr.ino for number in range(4)]

    def _command(self, owner, file, start, end, kind, space=0):
        self.unique += 1
        return SetLock(1, self.inos[file], space, owner, owner, kind, start, end)

    def lock(self, owner, file, start=0, end=99, kind=WRITE, space=0):
        command = self._command(owner, file, start, end, kind, space)
        return self.wire.ask(m.Propose(self.unique, self.opened.session, self.opened.epoch, [], command))

    def wait(self, owner, file, start=0, end=99, kind=WRITE, *, space=0, no_deadlock=False) -> int:
        command = self._command(owner, file, start, end, kind, space)
        body = m.WaitLock(self.unique, self.opened.session, self.opened.epoch, [], command, no_deadlock)
        (call,) = self.wire.send(body)
        return call

    def release(self, owner, file) -> int:
        command = self._command(owner, file, 0, 99, UNLOCK)
        (call,) = self.wire.send(m.Propose(self.unique, self.opened.session, self.opened.epoch, [], command))
        return call

    def look(self, waits: int) -> tuple[int, int]:
        """Waits until the leader has taken up so many waits in all; returns how many are left, and how many of them closed a circle."""
        while True:
            figures = self.node.figures()
            if figures["lock_waiters"] + figures["lock_deadlocks"] >= waits:
                return figures["lock_waiters"], figures["lock_deadlocks"]

    def answers(self, count: int) -> dict[int, int]:
        """call -> errno"""
        return {answer.call: getattr(answer.reply, "errno", 0) for answer in self.wire.receive(count)}


@pytest.fixture
def owners(tmp_path):
    with host(tmp_path) as node:
        owners = Owners(node)
        yield owners
        owners.wire.close()


@pytest.mark.parametrize("parties", [2, 3, 4])
@pytest.mark.parametrize("files", ["one", "several"])
def test_the_wait_that_closes_a_circle_fails(owners, parties, files):
    def of(party):
        party %= parties
        return (party, 0, 9) if files == "several" else (0, party * 10, party * 10 + 9)

    for party in range(parties):
        assert owners.lock(party, *of(party)) == m.Done()
    waits = [owners.wait(party, *of(party + 1)) for party in range(parties - 1)]
    assert owners.look(parties - 1) == (parties - 1, 0)
    last = owners.wait(parties - 1, *of(parties))
    assert owners.answers(1) == {last: errno.EDEADLK}
    assert owners.look(parties) == (parties - 1, 1)
    owners.release(parties - 1, of(parties - 1)[0])
    answers = owners.answers(2)
    assert answers[waits[-1]] == 0, "the owner that was refused lets go, and the one before it goes on"


def test_a_circle_is_found_behind_any_of_several_readers(owners):
    for reader in (1, 2, 3):
        owners.lock(reader, 0, kind=READ)
    owners.lock(9, 1)
    owners.wait(3, 1)
    call = owners.wait(9, 0)
    assert owners.answers(1) == {call: errno.EDEADLK}


def test_who_lost_a_race_for_a_lock_is_looked_at_again(owners):
    """1 waits for 9, who waits for nothing.  9 lets go, and 2, who waits for 1 elsewhere, gets it before 1: now 1 waits for 2."""
    owners.lock(9, 0)
    owners.lock(1, 1)
    early = owners.wait(2, 0)  # a thread of 2, first in the queue
    owners.wait(2, 1)  # another thread of 2
    late = owners.wait(1, 0)
    assert owners.look(3) == (3, 0), "so far nobody waits for itself"
    unlock = owners.release(9, 0)
    assert owners.answers(3) == {unlock: 0, early: 0, late: errno.EDEADLK}


def test_flock_and_open_file_descriptions_wait(owners):
    owners.lock(1, 0, space=1)
    owners.lock(2, 1, space=1)
    owners.wait(1, 1, space=1)
    owners.wait(2, 0, space=1)
    owners.lock(3, 2)
    owners.lock(4, 3)
    owners.wait(3, 3, no_deadlock=True)
    owners.wait(4, 2)  # not even a classic lock: the circle needs the other one
    owners.wait(5, 2)
    assert owners.look(5) == (5, 0)
