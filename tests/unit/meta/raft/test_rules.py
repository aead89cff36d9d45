"""Rules of the Raft core, one by one."""

from __future__ import annotations

import pytest

from awsomefsd.base.errors import Corrupt, NotLeading
from awsomefsd.base.limits import RAFT_ELECTION_MS_MAX, RAFT_ELECTION_MS_MIN, RAFT_HEARTBEAT_MS
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.raft import messages as m
from awsomefsd.meta.raft.membership import ChangeRefused, Member, Membership
from awsomefsd.meta.raft.types import HardState, Ready, Role
from awsomefsd.meta.voter.raft_entries import RaftEntries
from tests.unit.meta.raft.raft_group import Rig


def voters(names: str) -> list[Member]:
    return [Member(name, "1", True) for name in names.split()]


# --- entries ------------------------------------------------------------------------------------------------------------------
def test_raft_entries_are_known_again() -> None:
    entries = RaftEntries(lambda: (77, 88), 3)
    membership = Membership(voters("a b"), voters("c"))
    payload = entries.membership(5, 2, membership)
    decoded = c.entry_decode(payload)
    assert (decoded.index, decoded.term, decoded.stamp, decoded.time_ns, decoded.site) == (5, 2, 77, 88, 3)
    assert entries.membership_of(payload) == membership
    assert entries.membership_of(entries.noop(5, 2)) is None
    named = c.entry_encode(c.Entry(5, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, [], c.Unlink(1, 1, b"x\x92\x47y")))
    assert b"\x92\x47" in named and entries.membership_of(named) is None
    with pytest.raises(Corrupt):
        entries.membership_of(b"\x92\x47")


# --- a single voter -------------------------------------------------------------------------------------------------------------
def test_a_single_voter_elects_itself_and_commits_what_it_stored() -> None:
    rig = Rig("a")
    node = rig.nodes["a"]
    assert node.raft.next_deadline_ms() is not None
    rig.now = 2_000
    node.raft.tick(rig.now)
    ready = node.raft.ready()
    assert ready.hard_state == HardState(1, "a/1") and ready.leader_changed
    assert [entry[:2] for entry in ready.entries] == [(1, 1)] and ready.committed == []
    assert node.raft.commit == 0, "not stored yet"
    node.log.append(ready.entries)
    node.raft.stored(1, 1)
    assert node.raft.commit == 1 and not node.raft.serving
    assert [entry[0] for entry in node.raft.ready().committed] == [1]
    node.raft.applied(1)
    assert node.raft.serving
    rig.now += 70
    node.raft.tick(rig.now)
    assert node.raft.quorum_contact_ms == rig.now
    node.raft.read_index(9)
    assert node.raft.ready().reads == [(9, 1)]


def test_a_node_without_membership_never_campaigns() -> None:
    rig = Rig("+a")
    rig.advance(10_000)
    assert rig.nodes["a"].raft.role is Role.FOLLOWER and rig.nodes["a"].raft.next_deadline_ms() is None
    assert not rig.network


# --- durability -----------------------------------------------------------------------------------------------------------------
def test_votes_and_acknowledgements_wait_for_the_store() -> None:
    rig = Rig("a b c")
    node = rig.nodes["b"]
    rig.pump()
    node.raft.step(m.VoteRequest("a/1", "b/1", 1, 0, 0, 0))
    ready = node.raft.ready()
    assert ready.hard_state == HardState(1, "a/1") and not ready.messages
    assert [type(message) for message in ready.messages_after_store] == [m.VoteReply]
    node.raft.step(m.Append("a/1", "b/1", 1, 0, 0, 1, [(1, 1, b"x")]))
    ready = node.raft.ready()
    assert ready.entries == [(1, 1, b"x")] and not ready.messages and not ready.committed
    assert [message.index for message in ready.messages_after_store if isinstance(message, m.AppendReply)] == [1]


def test_a_leader_counts_itself_when_its_entries_are_stored() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    before = leader.raft.commit
    leader.raft.propose([b"x"])
    ready = leader.raft.ready()
    assert {message.to for message in ready.messages} == {"b/1", "c/1"}, "sent before it is stored"
    index = ready.entries[-1][0]
    leader.raft.step(m.AppendReply("b/1", "a/1", leader.raft.term, index))
    assert leader.raft.commit == before, "one of three has it stored"
    leader.log.append(ready.entries)
    leader.raft.stored(index, leader.raft.term)
    assert leader.raft.commit == index


def test_two_followers_commit_without_the_leaders_disk() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    leader.raft.propose([b"x"])
    index = leader.raft.ready().entries[-1][0]
    for follower in ("b/1", "c/1"):
        leader.raft.step(m.AppendReply(follower, "a/1", leader.raft.term, index))
    assert leader.raft.commit == index
    assert leader.raft.ready().committed == [], "but the leader applies only what it has stored"


def test_stored_is_ignored_for_what_was_cut_off() -> None:
    rig = Rig("a b c")
    node = rig.nodes["c"]
    node.raft.step(m.Append("a/1", "c/1", 1, 0, 0, 0, [(1, 1, b"x"), (2, 1, b"y")]))
    first = node.raft.ready()
    node.raft.step(m.Append("b/1", "c/1", 2, 1, 1, 2, [(2, 2, b"z")]))
    node.log.append(first.entries)
    node.raft.stored(2, 1)
    ready = node.raft.ready()
    assert (ready.truncate_after, ready.entries, ready.committed) == (1, [(2, 2, b"z")], [])
    node.log.truncate_after(1)
    node.log.append(ready.entries)
    node.raft.stored(2, 2)
    assert [entry[2] for entry in node.raft.ready().committed] == [b"x", b"z"]


# --- safety of the log ------------------------------------------------------------------------------------------------------------
def test_a_follower_commits_only_what_matches() -> None:
    rig = Rig("a b c")
    node = rig.nodes["c"]
    node.raft.step(m.Append("a/1", "c/1", 1, 0, 0, 0, [(1, 1, b"x"), (2, 1, b"old"), (3, 1, b"old")]))
    node.raft.step(m.Append("b/1", "c/1", 2, 1, 1, 3))
    assert node.raft.commit == 1, "entries behind the match may be another leader's"


def test_another_leaders_entry_in_the_place_of_a_committed_one_is_damage() -> None:
    rig = Rig("a b c")
    node = rig.nodes["c"]
    node.raft.step(m.Append("a/1", "c/1", 1, 0, 0, 2, [(1, 1, b"x"), (2, 1, b"y")]))
    node.raft.log.commit = 0
    node.raft.step(m.Append("a/1", "c/1", 1, 0, 0, 2))
    node.raft.log.commit = 2
    with pytest.raises(Corrupt):
        node.raft.log.accept([(2, 2, b"z")])


def test_hint_skips_a_term_at_a_time() -> None:
    rig = Rig("a b c")
    node = rig.nodes["c"]
    node.raft.step(m.Append("a/1", "c/1", 3, 0, 0, 0, [(i, term, b"") for i, term in enumerate([1, 1, 2, 2, 2, 3], 1)]))
    assert node.raft.log.hint(6, 2) == (5, 2)
    assert node.raft.log.hint(9, 1) == (2, 1)
    assert node.raft.log.hint(4, 9) == (4, 2)
    assert node.raft.log.hint(4, 0) == (0, 0)


# --- leadership -------------------------------------------------------------------------------------------------------------------
def test_followers_refuse_proposals_and_name_the_leader() -> None:
    rig = Rig("a b c")
    rig.elect("a")
    for call in (lambda raft: raft.propose([b"x"]), lambda raft: raft.read_index(1), lambda raft: raft.transfer("a/1")):
        with pytest.raises(NotLeading) as refused:
            call(rig.nodes["b"].raft)
        assert refused.value.leader == "a"


def test_a_read_lost_with_the_leadership_is_said_to_be_lost() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    leader.raft.read_index(5)
    leader.raft.step(m.AppendReply("b/1", "a/1", 9, 0, True))
    rig.settle(lambda message: False)
    assert leader.raft.role is Role.FOLLOWER and leader.reads_lost == [5] and not leader.reads


def test_a_patient_read_waits_for_the_regular_heartbeat() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    rig.settle()
    leader.raft.read_index(5, patient=True)
    assert not leader.raft.has_ready(), "it is no reason to send anything"
    rig.now += RAFT_HEARTBEAT_MS
    leader.raft.tick(rig.now)
    rig.settle(lambda message: not isinstance(message, m.HeartbeatReply))
    assert not leader.reads, "nobody has said yet that a leads"
    rig.now += RAFT_HEARTBEAT_MS
    leader.raft.tick(rig.now)
    rig.settle()
    assert [ticket for ticket, _ in leader.reads] == [5]


def test_a_patient_read_is_confirmed_with_one_that_hurries_and_lost_with_the_leadership() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    rig.settle()
    leader.raft.read_index(5, patient=True)
    leader.raft.read_index(6)
    rig.settle()
    assert [ticket for ticket, _ in leader.reads] == [5, 6]
    leader.raft.read_index(7, patient=True)
    leader.raft.step(m.AppendReply("b/1", "a/1", 9, 0, True))
    rig.settle(lambda message: False)
    assert leader.raft.role is Role.FOLLOWER and leader.reads_lost == [7]


def test_quorum_contact_is_the_time_of_sending() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    rig.now += 300
    leader.raft.tick(rig.now)
    sent_at = rig.now
    leader.turn()
    rig.now += 500
    leader.raft.tick(rig.now)
    assert leader.raft.quorum_contact_ms != sent_at
    rig.settle(lambda message: message.sender != "c/1")
    assert leader.raft.quorum_contact_ms == rig.now, "the round of the second tick was answered"
    leader.raft.step(m.AppendReply("b/1", "a/1", 9, 0, True))
    assert leader.raft.quorum_contact_ms is None


# --- membership -------------------------------------------------------------------------------------------------------------------
def test_changes_that_are_refused() -> None:
    rig = Rig("a b c +d")
    leader = rig.elect("a")
    with pytest.raises(ChangeRefused, match="caught up"):
        leader.raft.propose_membership(voters("a b c d"))
    leader.raft.propose_membership(voters("a b"))
    with pytest.raises(ChangeRefused, match="not committed"):
        leader.raft.propose_membership(voters("a b c"))
    with pytest.raises(ChangeRefused, match="no other voter"):
        leader.raft.transfer("d/1")


def test_no_change_before_an_entry_of_the_own_term_is_committed() -> None:
    rig = Rig("a b c")
    leader = rig.nodes["a"]
    rig.now = leader.raft.member.election_at_ms
    leader.raft.tick(rig.now)
    rig.settle(lambda message: not isinstance(message, m.Append))
    assert leader.raft.role is Role.LEADER
    with pytest.raises(ChangeRefused):
        leader.raft.propose_membership(voters("a b"))


def test_a_membership_that_is_cut_off_is_not_in_force_any_more() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    leader.raft.propose_membership([*voters("a b c"), Member("d", "1", False)])
    rig.settle(lambda message: False)
    assert leader.raft.membership.find("d/1") is not None
    rig.advance(5_000, passes=lambda message: "a/1" not in (message.sender, message.to))
    other = rig.leader()
    assert other is not None and other is not leader
    other.raft.propose([b"x"])
    rig.advance(500)
    assert leader.raft.membership.find("d/1") is None


# --- snapshots --------------------------------------------------------------------------------------------------------------------
def test_a_snapshot_that_is_dropped_is_replaced() -> None:
    rig = Rig("a b c", chunk_bytes=20)
    leader = rig.elect("a")
    rig.nodes["c"].alive = False
    leader.raft.propose([b"0123456789"] * 5)
    rig.settle()
    meta = leader.make_state_snapshot()
    leader.log.compact(meta.index)
    leader.raft.log._cache.clear()
    leader.raft.log._start = meta.index + 1
    rig.nodes["c"].start()
    rig.advance(1_000, passes=lambda message: not (isinstance(message, m.StateSnapshotReply) and message.offset >= 40))
    assert [peer.state for peer in leader.raft.peers()] == ["replicate", "snapshot"]
    assert leader.raft.peers()[0].inflight_messages == 0
    leader.raft.state_snapshot_dropped(meta.name)
    rig.pump()
    assert leader.state_snapshot_wanted >= meta.index
    leader.raft.propose([b"more"])
    rig.settle()
    leader.make_state_snapshot()
    rig.advance(3_000)
    assert rig.nodes["c"].state == leader.state
    assert leader.raft.peers()[1].state == "replicate"


def test_a_snapshot_brings_the_membership_of_its_entry() -> None:
    """Who was away during a change of the membership gets it with the state, for no entry will tell it."""
    rig = Rig("a b c +d", chunk_bytes=20)
    leader = rig.elect("a")
    rig.nodes["c"].alive = False
    changed = leader.raft.propose_membership([*voters("a b c"), Member("d", "1", False)])
    rig.settle()
    leader.raft.propose([b"0123456789"] * 5)
    rig.settle()
    meta = leader.make_state_snapshot()
    leader.log.compact(meta.index)
    leader.raft.log._cache.clear()
    leader.raft.log._start = meta.index + 1
    late = rig.nodes["c"]
    late.start()
    rig.advance(3_000)
    assert late.state == leader.state
    assert late.raft.log.membership == leader.raft.log.membership and late.raft.log.membership.index == changed


def test_nothing_to_do_after_everything_was_done() -> None:
    rig = Rig("a b c")
    rig.elect("a")
    rig.settle()
    assert not any(node.raft.has_ready() for node in rig.nodes.values())
    assert rig.nodes["a"].raft.ready() == Ready()


def test_a_learner_knows_of_no_leader_when_none_speaks_to_it_any_more() -> None:
    """The entry that took it in may be lost with the leader that wrote it; only without a leader does it say again that it is there."""
    rig = Rig("a b c")
    leader = rig.elect("a")
    node = rig.add("d", membership=Membership())
    leader.raft.propose_membership([*leader.raft.membership.members, Member("d", "1", False)])
    rig.settle()
    rig.advance(200)
    assert node.raft.leader == leader.raft.id and node.raft.membership.find(node.raft.id)
    rig.advance(5_000, passes=lambda message: message.to != node.raft.id)
    assert node.raft.leader == "" and node.raft.role is Role.FOLLOWER
    rig.advance(1_000)
    assert node.raft.leader


@pytest.mark.parametrize("stall_ms", [1_000, 3_000])
def test_a_leader_that_stood_still_judges_the_silence_by_what_it_has_not_read_yet(stall_ms: int) -> None:
    """Its own stop is no silence of the others: it leads on until it hears that they have another leader."""
    for answered in (True, False):
        rig = Rig("a b c")
        leader = rig.elect("a")
        rig.now += RAFT_HEARTBEAT_MS
        leader.raft.tick(rig.now)
        answers = []
        for beat in leader.raft.ready().messages:
            follower = rig.nodes[beat.to[0]].raft
            follower.step(beat)
            ready = follower.ready()
            answers += [*ready.messages, *ready.messages_after_store]
        assert {answer.sender for answer in answers} == {"b/1", "c/1"}
        rig.now += stall_ms
        leader.raft.pass_time(rig.now)
        for answer in answers if answered else ():
            leader.raft.step(answer)
        leader.raft.tick(rig.now)
        assert leader.raft.role is (Role.LEADER if answered else Role.FOLLOWER)
        assert not answered or {beat.to for beat in leader.raft.ready().messages} == {"b/1", "c/1"}, "and says so at once"


def test_followers_elect_nobody_while_a_leader_stands_still_for_less_than_the_shortest_timeout() -> None:
    rig = Rig("a b c")
    leader = rig.elect("a")
    rig.advance(RAFT_HEARTBEAT_MS)
    term, leader.alive = leader.raft.term, False
    rig.advance(RAFT_ELECTION_MS_MIN - RAFT_HEARTBEAT_MS - 1)
    leader.alive = True
    rig.advance(RAFT_ELECTION_MS_MAX)
    assert leader.raft.role is Role.LEADER and {node.raft.term for node in rig.nodes.values()} == {term}
