"""A leader that begins takes up the write leases of before a bounded number a turn, and rules by all of them from its first turn on."""

from __future__ import annotations

from typing import Any

import pytest

from awsomefsd.base.types import LEASE_NONE, LEASE_WRITE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.server.leases import lease_requests
from tests.unit.meta.server.leader_group import Cluster
from tests.unit.meta.server.leases.test_lease_table import Mount, settle

COUNT = 2
FILES = 9


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many write leases were asked of the state at once, each time."""
    counts: list[int] = []
    write_leases = Machine.write_leases

    def watched(self: Machine, after: bytes, count: int) -> Any:
        counts.append(count)
        return write_leases(self, after, count)

    monkeypatch.setattr(lease_requests, "LEASES_LOADED_A_TURN", COUNT)
    monkeypatch.setattr(Machine, "write_leases", watched)
    return counts


def _written() -> tuple[Cluster, Mount, Mount, list[int]]:
    cluster = Cluster()
    one, other = Mount(cluster, 1), Mount(cluster, 2)
    inos = []
    for number in range(FILES):
        create = c.Create(1, 1, b"%d" % number, 0o100644, 0, 0, lease=True)
        found = one.wire.ask(m.Propose(10 + number, one.session, one.epoch, [], create))
        one.holder.granted(found.attr.ino, found.leased)
        inos.append(found.attr.ino)
    settle(one, other)
    return cluster, one, other, inos


def _new_leader(cluster: Cluster, *mounts: Mount) -> Any:
    """n2 leads, and has not taken up anything yet."""
    for voter in cluster.voters.values():
        voter.log.leading = False
    leader = cluster.lead("n2").leader
    for mount in mounts:
        assert mount.connect("n2")
    return leader


def test_each_turn_takes_up_a_bounded_number(asked: list[int]) -> None:
    cluster, _, _, inos = _written()
    asked.clear()
    leader = _new_leader(cluster)
    for _ in range(FILES):
        cluster.turn()
    assert asked and set(asked) == {COUNT}
    assert not leader._leases.is_loading and set(leader._leases._table.grants.writers) == {(1, ino) for ino in inos}
    assert leader.idle_ms() > 0


def test_what_is_not_taken_up_yet_holds_all_the_same(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, one, other, inos = _written()
    monkeypatch.setattr(lease_requests.LeaseRequests, "load", lambda self: None)  # it comes to none of them
    leader = _new_leader(cluster, one, other)
    assert leader._leases.is_loading and leader.idle_ms() == 0
    one.greet()
    other.greet()
    settle(one, other)
    ino = inos[-1]
    one.slow = True
    wire = cluster.wire("n2", 9, 1)
    question = wire.send(m.GetAttr(1, ino))
    settle(one, other)
    assert question not in wire.answers and one.recalled, "another mount may buffer it"
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert question in wire.answers
    listing = wire.ask(m.ReadDir(1, 1, 0, 100, True))
    hidden = [entry.ino for entry in listing.entries if entry.attr is None]
    assert set(inos[:-1]) <= set(hidden)


def test_a_lease_that_ends_before_it_is_taken_up_is_not_taken_up(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, one, other, inos = _written()
    load = lease_requests.LeaseRequests.load
    monkeypatch.setattr(lease_requests.LeaseRequests, "load", lambda self: None)
    leader = _new_leader(cluster, one, other)
    one.greet()
    other.greet()
    settle(one, other)
    other.send(m.GetLease(other.session, other.epoch, 1, inos[0], LEASE_WRITE, 0))
    settle(one, other)
    settle(one, other)
    assert one.holder.mode(inos[0]) == LEASE_NONE
    monkeypatch.setattr(lease_requests.LeaseRequests, "load", load)
    for _ in range(FILES):
        cluster.turn()
    writers = leader._leases._table.grants.writers
    assert writers[(1, inos[0])][0] == other.session and writers[(1, inos[1])][0] == one.session and len(writers) == FILES
    holders = leader._leases._table.holders
    assert (holders[one.session].writes, holders[other.session].writes) == (FILES - 1, 1)
