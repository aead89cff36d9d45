"""A voter whose thread stood still reads what came meanwhile before it does what its own time says, and answers nothing by itself."""

from __future__ import annotations

from typing import Any

import pytest

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.raft.messages import VoteRequest
from tests.sim.broken import broken
from tests.sim.episodes.directed import raft_of
from tests.sim.node import SimPeers
from tests.sim.simulation import Plan, Simulation
from tests.sim.world import MS, SECOND

AT_NS = 20 * SECOND
STALL_NS = 3 * SECOND  # longer than any election timeout


def test_a_follower_that_stood_still_does_not_take_that_for_the_silence_of_its_leader(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(Plan(seed, 0.5, voters=3, mounts=1, shared=0, faults=False))
    terms: list[int] = []
    asked: list[VoteRequest] = []
    send = SimPeers.send

    def watched(self: SimPeers, node: str, message: Any) -> None:
        if terms and isinstance(message, VoteRequest):
            asked.append(message)
        send(self, node, message)

    def stall() -> None:
        leader = simulation.leader()
        assert leader is not None
        terms.append(raft_of(leader).term)
        next(node for node in simulation.nodes if node is not leader).pause(STALL_NS)

    monkeypatch.setattr(SimPeers, "send", watched)
    simulation.world.after(AT_NS, stall)
    simulation.run()
    leader = simulation.leader()
    assert leader is not None and [raft_of(leader).term] == terms
    assert not asked, "it asked for votes although its leader had spoken"


class _StoppedLeader:
    """A leader that is stopped until another one leads and has written, and what was asked of it meanwhile."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(Plan(seed, 0.6, voters=3, mounts=2, shared=2, faults=False))
        self.simulation.checks.leases.device.late_share = 0.0  # a device that hangs costs sessions too
        self.answers: list[m.Reply] = []  # to a read and a renewal
        self.written: list[m.Reply] = []
        self.simulation.world.after(AT_NS, self._stop)

    def _stop(self) -> None:
        leader = self.simulation.leader()
        assert leader is not None
        self.old, self.term = leader, raft_of(leader).term
        leader.pause(STALL_NS)
        self._look()

    def _look(self) -> None:
        """Asked while nobody reads it, behind a change that the next leader has made."""
        new = next((node for node in self.simulation.nodes if node is not self.old and node.leading), None)
        if new is None:
            self.simulation.world.after(10 * MS, self._look)
            return
        self.value = self.simulation.checks.new_value()
        new.ask(c.SetVolume(1, -1, self.value), self._ask)

    def _ask(self, reply: m.Reply) -> None:
        self.written.append(reply)
        mount = self.simulation.hosts[0].mount
        assert mount is not None and mount.session
        self.old.request(m.GetVolumes("register1"), self.answers.append)
        self.old.request(m.Renew(mount.session, mount.epoch, 0), self.answers.append)


def test_a_leader_that_stood_still_neither_answers_nor_renews_by_what_it_knew(seed: int) -> None:
    stopped = _StoppedLeader(seed)
    world = stopped.simulation.run()
    assert [type(reply) for reply in stopped.written] == [m.Done]
    assert [type(reply) for reply in stopped.answers] == [m.NotLeader, m.NotLeader]
    assert "sessions lost" not in world.counts, "the next leader gave everybody a full TTL"


def test_a_leader_that_believes_itself_is_found(seed: int) -> None:
    with broken("read index without confirmation"):
        stopped = _StoppedLeader(seed)
        stopped.simulation.run()
    assert [type(reply) for reply in stopped.answers] != [m.NotLeader, m.NotLeader]
