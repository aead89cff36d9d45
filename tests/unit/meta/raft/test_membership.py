"""Rules of the membership and of its majorities, and that every message survives the wire."""

from __future__ import annotations

import pytest

from awsomefsd.meta.raft import messages as m
from awsomefsd.meta.raft.membership import ChangeRefused, Member, Membership, Quorum, leave_joint, step_to


def voter(node: str, incarnation: str = "1") -> Member:
    return Member(node, incarnation, True)


def learner(node: str, incarnation: str = "1") -> Member:
    return Member(node, incarnation, False)


THREE = Membership([voter("a"), voter("b"), voter("c")])


def test_quorum_of_three_and_of_nobody() -> None:
    quorum = Quorum(THREE)
    assert quorum.reached({"a/1", "b/1"}.__contains__)
    assert not quorum.reached({"a/1", "d/1"}.__contains__)
    assert quorum.impossible({"a/1", "b/1"}.__contains__)
    assert not quorum.impossible({"a/1"}.__contains__)
    assert quorum.value({"a/1": 7, "b/1": 5, "c/1": 3}) == 5
    assert quorum.value({"a/1": 7}) == 0
    nobody = Quorum(Membership())
    assert not nobody.reached(lambda _: True) and nobody.value({"a/1": 3}) == 0


def test_four_voters_need_three() -> None:
    quorum = Quorum(Membership([voter(node) for node in "abcd"]))
    assert not quorum.reached({"a/1", "b/1"}.__contains__)
    assert quorum.impossible({"a/1", "b/1"}.__contains__)
    assert quorum.value({"a/1": 9, "b/1": 8, "c/1": 2, "d/1": 1}) == 2


def test_learners_are_not_counted() -> None:
    quorum = Quorum(Membership([voter("a"), learner("b"), learner("c")]))
    assert quorum.reached({"a/1"}.__contains__)
    assert not quorum.reached({"b/1", "c/1"}.__contains__)


def test_a_joint_needs_both_majorities() -> None:
    joint = step_to(THREE, [voter("a"), voter("d"), voter("e")])
    assert joint.joint
    quorum = Quorum(joint)
    assert not quorum.reached({"a/1", "b/1", "c/1"}.__contains__)
    assert not quorum.reached({"a/1", "d/1", "e/1"}.__contains__)
    assert quorum.reached({"a/1", "b/1", "d/1"}.__contains__)
    assert quorum.value({"a/1": 9, "d/1": 9, "e/1": 9, "b/1": 4}) == 4
    assert leave_joint(joint) == Membership([voter("a"), voter("d"), voter("e")])
    with pytest.raises(ChangeRefused):
        step_to(joint, [voter("a")])


def test_another_incarnation_is_another_voter() -> None:
    joint = step_to(THREE, [voter("a"), voter("b"), learner("c", "2")])
    assert joint.joint
    assert joint.ids() == {"a/1", "b/1", "c/1", "c/2"}
    assert not Quorum(joint).reached({"a/1", "c/2"}.__contains__)
    found = joint.find("c/1")
    assert found is not None and found.voter
    assert joint.find("d/1") is None


def test_a_learner_comes_without_a_joint() -> None:
    wanted = [*THREE.members, learner("d")]
    assert step_to(THREE, wanted) == Membership(wanted)


@pytest.mark.parametrize("target", [[], [learner("a")], [voter("a"), learner("a", "2")]])
def test_refused_targets(target: list[Member]) -> None:
    with pytest.raises(ChangeRefused):
        step_to(THREE, target)


META = m.StateSnapshot(7, 2, THREE, 3, 100, "snap")


@pytest.mark.parametrize(
    "message",
    [
        m.Append("a/1", "b/1", 3, 6, 2, 5, [(7, 3, b"x"), (8, 3, b"")]),
        m.AppendReply("b/1", "a/1", 3, 6, True, 4, 2),
        m.Heartbeat("a/1", "b/1", 3, 9, 5),
        m.HeartbeatReply("b/1", "a/1", 3, 9),
        m.VoteRequest("a/1", "b/1", 4, 6, 2, 1, True, False),
        m.VoteReply("b/1", "a/1", 4, True, True),
        m.TimeoutNow("a/1", "b/1", 4),
        m.StateSnapshotChunk("a/1", "b/1", 4, META, 90, 10, b"0123456789"),
        m.StateSnapshotReply("b/1", "a/1", 4, "snap", 90, False),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_survive_the_wire(message: m.AnyRaftMessage) -> None:
    assert m.raft_decode(m.raft_encode(message)) == message


def test_the_last_chunk_knows_it() -> None:
    assert m.StateSnapshotChunk("a/1", "b/1", 4, META, 90, 10).last
    assert not m.StateSnapshotChunk("a/1", "b/1", 4, META, 80, 10).last
