"""A voter whose metadata thread stood still reads what came meanwhile before it does what its own time says."""

from __future__ import annotations

from typing import Any

import pytest

from awsomefsd.meta.raft.messages import VoteRequest
from tests.sim.directed import raft_of
from tests.sim.node import SimPeers
from tests.sim.simulation import Plan, Simulation
from tests.sim.world import SECOND

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
