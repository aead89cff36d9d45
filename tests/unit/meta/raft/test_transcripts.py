"""Golden conversations: tests/golden/raft/*.txt, one a function here.  Read them; AWSOMEFSD_UPDATE_GOLDEN=1 writes them anew.

Beside the text, each asserts what it is about, so a transcript that was rewritten carelessly still fails.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from awsomefsd.base.errors import NotLeading
from awsomefsd.meta.raft import messages as m
from awsomefsd.meta.raft.member import become_follower, draw_election_time
from awsomefsd.meta.raft.types import HardState, Role
from tests.unit.meta.raft.raft_transcripts import Talk

GOLDEN = Path(__file__).parents[3] / "golden" / "raft"
TALKS: set[str] = set()


def conversation(talk: Callable[[], Talk]) -> Callable[[], None]:
    """A test that holds the conversation and compares what was said with the golden file."""
    name = talk.__name__.removeprefix("test_")
    TALKS.add(name)

    @functools.wraps(talk)
    def run() -> None:
        text = talk().text((talk.__doc__ or "").strip())
        path = GOLDEN / f"{name}.txt"
        if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN") == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text, f"{path.name} differs: is this change of the conversation meant?"

    return run


# --- elections ------------------------------------------------------------------------------------------------------------------
@conversation
def test_election() -> Talk:
    """The first election of three nodes"""
    talk = Talk()
    talk.wait(1_200)
    assert talk.nodes["a"].raft.serving
    return talk


@conversation
def test_election_of_one() -> Talk:
    """A single voter needs nobody"""
    talk = Talk("a")
    talk.wait(1_150)
    talk.propose("x")
    assert talk.nodes["a"].raft.commit == 2
    return talk


@conversation
def test_split_vote() -> Talk:
    """Two candidates of four share the votes; the next timeout decides"""
    talk = Talk("a b c d")
    talk.dice_of = {"a": 0.1, "b": 0.1, "c": 0.9, "d": 0.9}
    for node in talk.nodes.values():
        node.start()
    talk.lost = lambda message: isinstance(message, m.VoteRequest) and not message.pre and message.sender[0] + message.to[0] in {"ac", "bd"}
    talk.wait(1_100)
    assert talk.leader() is None
    talk.lost = lambda message: False
    talk.dice_of["a"] = 0.0
    talk.wait(1_400)
    assert talk.leader() is not None
    return talk


@conversation
def test_prevote_saves_the_term() -> Talk:
    """A node that was cut off comes back with its old term and disturbs nobody"""
    talk = Talk()
    talk.begin()
    talk.part("c")
    talk.wait(2_500)
    talk.heal()
    talk.wait(300)
    assert {node.raft.term for node in talk.nodes.values()} == {1}
    return talk


@conversation
def test_prevote_refused_under_a_leader() -> Talk:
    """Who hears a leader refuses the prevote of a node that does not"""
    talk = Talk()
    talk.begin()
    talk.propose("x")
    talk.say("c hears nothing of a any more, but b does")
    talk.lost = lambda message: (message.sender, message.to) == ("a/1", "c/1")
    talk.wait(2_100)
    assert talk.leader() is talk.nodes["a"] and talk.nodes["a"].raft.term == 1
    return talk


@conversation
def test_old_leader_comes_back() -> Talk:
    """A leader is cut off with an entry nobody else has; what the others commit meanwhile takes its place"""
    talk = Talk()
    talk.begin()
    talk.part("a")
    talk.propose("lost")
    talk.wait(1_900)
    leader = talk.leader()
    assert leader is not None and leader.raft.term > 1
    talk.propose("kept", name=leader.id[0])
    talk.heal()
    talk.wait(500)
    assert talk.nodes["a"].state == leader.state and b"lost" not in [row[2] for row in leader.state]
    return talk


@conversation
def test_check_quorum() -> Talk:
    """A leader that hears no quorum steps down, before anybody tells it"""
    talk = Talk()
    leader = talk.begin()
    talk.part("a")
    talk.wait(1_100)
    assert leader.raft.role is Role.FOLLOWER and leader.raft.term == 1
    return talk


@conversation
def test_a_log_that_is_behind_does_not_win() -> Talk:
    """The first candidate lacks a committed entry and is refused; the other one wins"""
    talk = Talk()
    talk.begin()
    talk.part("c")
    talk.propose("x")
    talk.crash("a")
    talk.heal()
    talk.dice_of = {"b": 0.9, "c": 0.0}
    for name in "bc":
        draw_election_time(talk.nodes[name].raft.member)
    talk.wait(2_200)
    assert talk.leader() is talk.nodes["b"]
    return talk


@conversation
def test_stale_messages() -> Talk:
    """Messages of an older term: a leader's are answered with the new term, all others are not even answered"""
    talk = Talk()
    talk.begin()
    node = talk.nodes["b"]
    become_follower(node.raft.member, 5, "")
    talk.pump()
    for message in (
        m.Append("a/1", "b/1", 1, 1, 1, 1),
        m.AppendReply("c/1", "b/1", 1, 9),
        m.VoteRequest("c/1", "b/1", 3, 9, 3, 0),
        m.VoteReply("c/1", "b/1", 3, True),
        m.TimeoutNow("a/1", "b/1", 1),
    ):
        talk.network.append(message)
        talk.pump()
    talk.talk()
    assert node.raft.term >= 5 and node.raft.role is Role.FOLLOWER
    return talk


# --- the log --------------------------------------------------------------------------------------------------------------------
@conversation
def test_replication() -> Talk:
    """A batch goes out before it is stored, and is committed when a majority has stored it"""
    talk = Talk()
    talk.begin()
    talk.propose("x", "y", "z")
    talk.wait(200)
    assert {node.raft.commit for node in talk.nodes.values()} == {4}
    return talk


def history(talk: Talk, name: str, terms: list[int]) -> None:
    """A stored log of given terms."""
    node = talk.nodes[name]
    node.log.rows = [(index, term, f"{name}{index}".encode() if index > 3 else b"common") for index, term in enumerate(terms, 1)]
    node.hard_state = HardState(max(terms), "")
    node.start()
    talk.say(f"{name} has entries of the terms {' '.join(map(str, terms))}")


@conversation
def test_fast_backtracking() -> Talk:
    """Logs that differ over several terms: one refusal passes all of them"""
    talk = Talk()
    history(talk, "a", [1, 1, 1, 4, 4, 5, 5, 6, 6, 6])
    history(talk, "b", [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    history(talk, "c", [1, 1, 1])
    talk.wait(1_200)
    assert talk.nodes["a"].log.rows == talk.nodes["b"].log.rows == talk.nodes["c"].log.rows
    refusals = [line for line in talk.lines if "b → a  AppendReply" in line and "no match" in line]
    assert len(refusals) == 1, "not one for every entry, and not even one for every term"
    return talk


@conversation
def test_figure_8() -> Talk:
    """Figure 8 of the paper: an entry of term 2 on a majority is not committed until one of the leader's own term is"""
    talk = Talk("a b c d e")
    for name in "abcde":
        talk.nodes[name].log.rows = [(1, 1, b"x")]
        talk.nodes[name].hard_state = HardState(3, "")
    for name in "ab":
        talk.nodes[name].log.rows.append((2, 2, b"two"))
    talk.nodes["e"].log.rows.append((2, 3, b"three"))
    for name in "abcde":
        talk.nodes[name].start()
    talk.say("entry 2 of term 2 is on a and b, another one of term 3 on e")
    talk.lost = lambda message: (isinstance(message, m.AppendReply) and not message.refused and message.index > 2) or "e" in message.to
    talk.config["append_bytes_max"] = 1
    talk.nodes["a"].start()
    talk.wait(1_150)
    leader = talk.nodes["a"].raft
    assert leader.role is Role.LEADER and leader.commit == 0
    assert sum(node.log.term(2) == 2 for node in talk.nodes.values()) >= 3, "a majority has it, and yet it is not committed"
    talk.say("now a hears that entry 3, of its own term, is on the others")
    talk.lost = lambda message: "e" in message.to
    talk.wait(500)
    assert leader.commit == 3
    return talk


@conversation
def test_duplicates_and_reordering() -> Talk:
    """Appends that arrive twice and in the wrong order change nothing"""
    talk = Talk()
    leader = talk.begin()
    for payload in ("x", "y", "z"):
        leader.raft.propose([payload.encode()])
        leader.turn()
    talk.say("three Appends are on the way to b; they arrive backwards, and each twice")
    appends = [message for message in talk.network if isinstance(message, m.Append) and message.to == "b/1"]
    others = [message for message in talk.network if message not in appends]
    talk.network = [*reversed(appends), *reversed(appends), *others]
    talk.talk()
    talk.wait(600)
    assert talk.nodes["b"].state == leader.state
    return talk


@conversation
def test_flow_control() -> Talk:
    """A follower that does not answer fills its window; more is sent when it answers"""
    talk = Talk("a b c", inflight_messages_max=3, append_bytes_max=4)
    leader = talk.begin()
    talk.lost = lambda message: message.sender == "c/1" and not isinstance(message, m.HeartbeatReply)
    talk.propose(*[f"e{number:03}" for number in range(6)])
    status = {peer.id: peer for peer in leader.raft.peers()}
    assert status["c/1"].inflight_messages == 3 and status["c/1"].match == 1 and status["b/1"].match == 7
    talk.heal()
    talk.wait(600)
    assert talk.nodes["c"].state == leader.state
    return talk


@conversation
def test_lost_append() -> Talk:
    """An Append is lost: the next one is refused, and the leader goes back"""
    talk = Talk()
    leader = talk.begin()
    talk.lost = lambda message: message.to == "c/1" and isinstance(message, m.Append)
    talk.propose("x")
    talk.heal()
    talk.propose("y")
    talk.wait(200)
    assert talk.nodes["c"].state == leader.state
    return talk


@conversation
def test_lost_last_append() -> Talk:
    """An Append is lost and nothing follows: the heartbeats find out"""
    talk = Talk(beats=True)
    leader = talk.begin()
    talk.lost = lambda message: message.to == "c/1" and isinstance(message, m.Append)
    talk.propose("x")
    talk.heal()
    talk.wait(600)
    assert talk.nodes["c"].state == leader.state
    return talk


@conversation
def test_leader_restarts_before_storing() -> Talk:
    """A leader dies with entries sent and not stored; the others have committed them, so it gets them back"""
    talk = Talk()
    leader = talk.begin()
    talk.say("a is given x, sends it and dies before its disk has it")
    leader.raft.propose([b"x"])
    leader.turn(crash_after="send")
    talk.talk()
    assert leader.log.last_index == 1
    talk.wait(2_000)
    talk.restart("a")
    talk.wait(500)
    assert [row[2] for row in talk.nodes["a"].state][:2] == [b"noop", b"x"]
    return talk


# --- reads ----------------------------------------------------------------------------------------------------------------------
@conversation
def test_read_index() -> Talk:
    """Two reads share a round of heartbeats; one that comes meanwhile waits for the next"""
    talk = Talk(beats=True)
    leader = talk.begin()
    talk.say("a is asked for reads 1 and 2")
    leader.raft.read_index(1)
    leader.raft.read_index(2)
    talk.pump()
    talk.say("and for read 3")
    leader.raft.read_index(3)
    talk.talk()
    assert leader.reads == [(1, 1), (2, 1), (3, 1)]
    return talk


@conversation
def test_read_without_quorum() -> Talk:
    """A leader that is cut off answers no read, although it does not know yet that another leads"""
    talk = Talk()
    leader = talk.begin()
    talk.part("a")
    leader.raft.read_index(1)
    talk.wait(1_900)
    other = talk.leader()
    assert other is not None and other is not leader
    assert leader.reads == [] and leader.reads_lost == [1]
    return talk


@conversation
def test_read_after_partition() -> Talk:
    """The new leader answers with everything the old one committed, but not before its own first entry is committed"""
    talk = Talk()
    talk.begin()
    talk.propose("x")
    talk.crash("a")
    talk.lost = lambda message: isinstance(message, m.AppendReply)
    talk.wait(1_700)
    leader = talk.leader()
    assert leader is not None
    talk.say(f"{leader.id[0]} is asked for read 1; replies to its Appends are lost")
    leader.raft.read_index(1)
    talk.wait(400)
    assert leader.reads == []
    talk.heal()
    talk.wait(400)
    assert leader.reads == [(1, 3)]
    return talk


# --- membership -----------------------------------------------------------------------------------------------------------------
@conversation
def test_add_learner_and_promote() -> Talk:
    """A new node comes as a learner, catches up and becomes a voter through a joint configuration"""
    talk = Talk("a b c +d")
    leader = talk.begin()
    talk.propose("x", "y")
    talk.members("a b c d?")
    talk.wait(200)
    assert leader.raft.commit == 4 and talk.nodes["d"].raft.last_index == 4
    talk.members("a b c d")
    talk.wait(400)
    assert talk.nodes["d"].raft.membership.voters() == {"a/1", "b/1", "c/1", "d/1"}
    return talk


@conversation
def test_learner_is_not_counted() -> Talk:
    """A learner's acknowledgement commits nothing"""
    talk = Talk("a b c +d")
    leader = talk.begin()
    talk.members("a b c d?")
    talk.wait(200)
    before = leader.raft.commit
    talk.part("b")
    talk.part("c")
    talk.propose("x")
    assert leader.raft.commit == before
    return talk


@conversation
def test_remove_voter() -> Talk:
    """A voter is removed; later it asks for votes and is refused"""
    talk = Talk()
    leader = talk.begin()
    talk.members("a b")
    talk.wait(3_000)
    assert talk.leader() is leader and leader.raft.term == 1
    return talk


@conversation
def test_leader_removes_itself() -> Talk:
    """The leader is voted out: it goes when that is committed, and lets another one be elected at once"""
    talk = Talk()
    leader = talk.begin()
    talk.members("b c")
    talk.wait(100)
    other = talk.leader()
    assert other is not None and other is not leader and not other.raft.membership.joint
    return talk


def joint_without(*names: str) -> Talk:
    talk = Talk("a b c +d +e")
    leader = talk.begin()
    talk.members("a b c d? e?")
    talk.wait(200)
    for name in names:
        talk.part(name)
    talk.members("a d e")
    assert leader.raft.membership.joint and leader.raft.commit == 2, "only one half of the joint has it"
    talk.heal()
    talk.wait(450)
    assert not leader.raft.membership.joint and leader.raft.commit == 4
    return talk


@conversation
def test_joint_without_the_old_voters() -> Talk:
    """All of the new voters have the joint configuration: that does not commit it"""
    return joint_without("b", "c")


@conversation
def test_joint_without_the_new_voters() -> Talk:
    """All of the old voters have the joint configuration: that does not commit it"""
    return joint_without("d", "e")


@conversation
def test_leader_dies_in_a_joint() -> Talk:
    """The leader dies with a joint configuration half replicated; its successor completes the change"""
    talk = Talk("a b c +d +e")
    talk.begin()
    talk.members("a b c d? e?")
    talk.wait(200)
    talk.lost = lambda message: isinstance(message, m.AppendReply)
    talk.members("a d e")
    talk.crash("a")
    talk.heal()
    talk.wait(3_500)
    leader = talk.leader()
    assert leader is not None and leader.raft.membership.voters() == {"a/1", "d/1", "e/1"} and not leader.raft.membership.joint
    return talk


@conversation
def test_voted_out_but_needed() -> Talk:
    """Only the node that is voted out has the entry that says so: it must be able to lead once more (thesis 4.2.2)"""
    talk = Talk("a b")
    leader = talk.begin()
    talk.lost = lambda message: isinstance(message, m.Append) and any(row[2][-2:-1] == b"\x90" for row in message.entries)
    talk.members("b a?")
    assert not leader.raft.membership.joint and talk.nodes["b"].raft.membership.joint
    talk.crash("a")
    talk.restart("a")
    talk.heal()
    talk.wait(4_000)
    assert talk.leader() is talk.nodes["b"] and not talk.nodes["b"].raft.membership.joint
    return talk


@conversation
def test_replace_a_lost_journal() -> Talk:
    """A voter loses its journal: it comes back as another member, first a learner, then a voter"""
    talk = Talk()
    leader = talk.begin()
    talk.propose("x")
    talk.say("c loses its journal and begins a new one")
    talk.add("c", "2")
    talk.wait(400)
    assert talk.nodes["c"].raft.term == 0, "nothing that is meant for the lost journal reaches the new one"
    talk.members("a b c/2?")
    talk.wait(300)
    talk.members("a b c/2")
    talk.wait(300)
    assert talk.nodes["c"].state == leader.state and leader.raft.membership.voters() == {"a/1", "b/1", "c/2"}
    return talk


@conversation
def test_the_old_journal_is_refused() -> Talk:
    """The vote, the acknowledgement and the request of a journal that was replaced count for nothing"""
    talk = Talk()
    leader = talk.begin()
    talk.members("a b c/2?")
    talk.add("c", "2")
    talk.wait(300)
    talk.part("b")
    talk.propose("x")
    before = leader.raft.commit
    for message in (
        m.AppendReply("c/1", "a/1", 1, leader.raft.last_index),
        m.VoteRequest("c/1", "a/1", 9, 99, 9, 0, False, True),
        m.AppendReply("c/1", "a/1", 9, 0, True),
    ):
        talk.network.append(message)
        talk.apart, sides = [], talk.apart
        talk.talk()
        talk.apart = sides
    assert leader.raft.commit == before
    assert leader.raft.role is Role.LEADER and leader.raft.term == 1
    return talk


# --- snapshots ------------------------------------------------------------------------------------------------------------------
def behind_a_snapshot(**config: int) -> Talk:
    talk = Talk(chunk_bytes=60, **config)
    talk.begin()
    talk.crash("c")
    talk.propose(*[f"entry number {number}" for number in range(8)])
    talk.compact()
    return talk


@conversation
def test_snapshot_in_chunks() -> Talk:
    """A follower needs what is compacted away: it gets a snapshot in chunks, then the log"""
    talk = behind_a_snapshot()
    talk.restart("c")
    talk.wait(650)
    assert talk.nodes["a"].state_snapshot_wanted
    talk.make_state_snapshot()
    talk.propose("later")
    talk.wait(400)
    assert talk.nodes["c"].state == talk.nodes["a"].state
    return talk


@conversation
def test_snapshot_resumed() -> Talk:
    """A chunk and a reply are lost: the transfer goes on where it was"""
    talk = behind_a_snapshot()
    talk.restart("c")
    talk.wait(650)
    lost: list[m.AnyRaftMessage] = []

    def once(message: m.AnyRaftMessage) -> bool:
        meant = (isinstance(message, m.StateSnapshotChunk) and message.offset == 60 and len(lost) == 0) or (
            isinstance(message, m.StateSnapshotReply) and message.offset == 120 and len(lost) == 1
        )
        if meant:
            lost.append(message)
        return meant

    talk.lost = once
    talk.make_state_snapshot()
    talk.wait(3_000)
    assert len(lost) == 2 and talk.nodes["c"].state == talk.nodes["a"].state
    return talk


@conversation
def test_snapshot_of_a_newer_leader() -> Talk:
    """The leader dies in a transfer: the follower gives up what it has for the snapshot of the next leader"""
    talk = behind_a_snapshot()
    talk.wait(250)
    talk.compact("b")
    talk.restart("c")
    talk.wait(650)
    talk.lost = lambda message: isinstance(message, m.StateSnapshotReply) and message.offset >= 120
    talk.make_state_snapshot()
    talk.crash("a")
    talk.heal()
    talk.wait(3_000)
    assert talk.leader() is talk.nodes["b"]
    assert talk.nodes["b"].state_snapshot_wanted
    talk.make_state_snapshot("b")
    talk.wait(1_500)
    assert any("c: installs the snapshot b/1" in line for line in talk.lines)
    assert talk.nodes["c"].state == talk.nodes["b"].state
    return talk


@conversation
def test_snapshot_refused() -> Talk:
    """What arrived does not pass the check: nothing is installed, and the transfer begins anew"""
    talk = behind_a_snapshot()
    talk.restart("c")
    talk.nodes["c"].refuse_installs = True
    talk.wait(650)
    talk.lost = lambda message: isinstance(message, m.StateSnapshotReply) and message.refused
    talk.make_state_snapshot()
    assert talk.nodes["c"].state[-1][0] == 1
    talk.nodes["c"].refuse_installs = False
    talk.heal()
    talk.wait(2_500)
    assert talk.nodes["c"].state == talk.nodes["a"].state
    return talk


# --- transfer -------------------------------------------------------------------------------------------------------------------
@conversation
def test_transfer() -> Talk:
    """The leadership is handed to a follower that has everything"""
    talk = Talk()
    leader = talk.begin()
    talk.say("a is to hand over to c")
    leader.raft.transfer("c/1")
    talk.talk()
    assert talk.leader() is talk.nodes["c"] and talk.nodes["c"].raft.term == 2
    return talk


@conversation
def test_transfer_to_a_slow_follower() -> Talk:
    """The target gets first what it lacks; proposals are refused meanwhile"""
    talk = Talk()
    leader = talk.begin()
    talk.lost = lambda message: message.to == "c/1" and isinstance(message, m.Append)
    talk.propose("x")
    talk.heal()
    talk.say("a is to hand over to c")
    leader.raft.transfer("c/1")
    with pytest.raises(NotLeading):
        leader.raft.propose([b"y"])
    talk.wait(600)
    assert talk.leader() is talk.nodes["c"]
    return talk


@conversation
def test_transfer_given_up() -> Talk:
    """The target is dead: after an election timeout the leader takes proposals again"""
    talk = Talk()
    leader = talk.begin()
    talk.crash("c")
    talk.say("a is to hand over to c")
    leader.raft.transfer("c/1")
    talk.wait(1_000)
    assert leader.raft.role is Role.LEADER
    talk.propose("x")
    assert leader.raft.commit == 2
    return talk


# --- five nodes -----------------------------------------------------------------------------------------------------------------
@conversation
def test_five_nodes_two_dead() -> Talk:
    """Three of five go on"""
    talk = Talk("a b c d e")
    leader = talk.begin()
    talk.crash("d")
    talk.crash("e")
    talk.propose("x")
    assert leader.raft.commit == 2
    return talk


@conversation
def test_five_nodes_minority() -> Talk:
    """The leader is left with one of five: nothing is committed there, the three elect another"""
    talk = Talk("a b c d e")
    leader = talk.begin()
    talk.part("a", "b")
    talk.propose("lost")
    talk.wait(2_300)
    other = talk.leader()
    assert other is not None and other.id[0] in "cde" and leader.raft.role is not Role.LEADER
    talk.propose("kept", name=other.id[0])
    talk.heal()
    talk.wait(700)
    assert len({tuple(node.state) for node in talk.nodes.values()}) == 1
    return talk


# --- and that is all --------------------------------------------------------------------------------------------------------------
def test_every_transcript_has_its_conversation() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == TALKS
    assert len(TALKS) >= 25
