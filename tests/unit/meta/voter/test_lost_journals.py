"""Two voters lose their journals at the same moment: a majority that is left takes them in anew; without one nobody decides anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.meta.voter.test_voter import Node, Rig, voters

FIVE, THREE = 5, 3
QUIET_TURNS = 2_000  # 20 s, some dozens of elections that come to nothing


@pytest.fixture
def make_rig(tmp_path: Path, seed: int) -> Iterator[list[Rig]]:
    made: list[Rig] = [Rig(tmp_path / "five", seed, FIVE), Rig(tmp_path / "three", seed, THREE)]
    yield made
    for rig in made:
        for node in rig.all.values():
            node.stop()


def two(rig: Rig) -> list[Node]:
    """Any; the leader is among them more often than not."""
    return rig.rng.sample([*rig.all.values()], 2)


def test_two_of_five_come_back_as_other_members(make_rig: list[Rig]) -> None:
    rig = make_rig[0]
    rig.start()
    rig.propose(50)
    rig.until(rig.same)
    lost = two(rig)
    before = {node.voter._id for node in lost}
    for node in lost:
        node.stop()
        shutil.rmtree(node.directory / "journal")
    for node in lost:
        node.start()
    after = {node.voter._id for node in lost}
    assert not before & after
    newest = rig.propose(20)
    rig.until(lambda: len(voters(rig.led())) == FIVE and after <= voters(rig.led()) and not before & voters(rig.led()))
    rig.until(rig.same)
    assert all(node.replica.machine.applied_index >= newest for node in rig.all.values())


def test_two_of_three_neither_lead_nor_vote_and_go_on_with_what_they_had(make_rig: list[Rig], tmp_path: Path) -> None:
    """With fresh journals they would be a majority that knows nothing.

    Where the one that is left led, it may take one of them in until it steps down, and tell it what was committed before.  It decides
    nothing.
    """
    rig = make_rig[1]
    rig.start()
    newest = rig.propose(50)
    rig.until(rig.same)
    lost = two(rig)
    kept = next(node for node in rig.all.values() if node not in lost)
    for node in lost:
        node.stop()
        shutil.move(node.directory, tmp_path / f"kept-{node.uuid}")
        node.start()
    members, decided = kept.voter._raft.membership.ids(), kept.voter.committed
    for _ in range(QUIET_TURNS):
        rig.turn()
        assert kept.voter.committed == decided and all(node.voter.committed <= decided for node in lost)
        assert rig.leader() in (None, kept)
    assert rig.leader() is None and kept.voter._raft.membership.ids() >= members
    for node in lost:
        node.stop()
        shutil.rmtree(node.directory)
        shutil.move(tmp_path / f"kept-{node.uuid}", node.directory)
        node.start()
    rig.propose(20)
    rig.until(lambda: rig.same() and voters(rig.led()) == members)
    assert rig.led().replica.machine.applied_index > newest
