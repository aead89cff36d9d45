"""A mount that renews in time keeps its session when the leader dies or hands over; a leader that forgets who renewed is found."""

from __future__ import annotations

import pytest

from tests.sim.broken import broken
from tests.sim.episodes.directed import raft_of
from tests.sim.judges.renewal_checks import JUDGED_NS, LEADERS_CHANGED
from tests.sim.simulation import Plan, Simulation
from tests.sim.world import SECOND, Broken

FIRST_NS, SECOND_NS = JUDGED_NS + 10 * SECOND, 2 * JUDGED_NS + 20 * SECOND


def _with_two_changes(seed: int) -> Simulation:
    """The leader loses power, and later the next one hands over; nothing else happens to anybody."""
    simulation = Simulation(Plan(seed, 1.2, voters=3, mounts=2, shared=2, faults=False))
    simulation.checks.leases.device.late_share = 0.0  # a device that hangs costs sessions too

    def die() -> None:
        leader = simulation.leader()
        assert leader is not None
        leader.die_and_return(power=True, after_ns=2 * SECOND)

    def hand_over() -> None:
        leader = simulation.leader()
        assert leader is not None
        raft = raft_of(leader)
        raft.transfer(next(voter for voter in sorted(raft.membership.voters()) if voter != raft.id))
        leader.wake()

    simulation.world.after(FIRST_NS, die)
    simulation.world.after(SECOND_NS, hand_over)
    return simulation


def test_no_session_is_lost_by_a_change_of_the_leader(seed: int) -> None:
    world = _with_two_changes(seed).run()
    assert world.counts[LEADERS_CHANGED] >= 2, "the mount that shares nothing was served before and after both changes"
    assert "sessions lost" not in world.counts


def test_a_new_leader_that_forgets_the_sessions_is_found(seed: int) -> None:
    with broken("a new leader forgets the sessions"), pytest.raises(Broken, match="is refused although"):
        _with_two_changes(seed).run()
