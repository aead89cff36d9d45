"""Wrong Raft cores: each is found by the test that is named here, which would else say nothing about its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from awsomefsd.meta.raft import election, proposals, read_index, replication
from awsomefsd.meta.raft.log import RaftLog
from awsomefsd.meta.raft.member import require_leader, require_leading
from awsomefsd.meta.raft.membership import Membership, Quorum, step_to
from awsomefsd.meta.raft.types import MembershipAt
from tests.unit.meta.raft import test_membership, test_rules, test_transcripts

Patch = tuple[Any, str, Any]


def _snapshot_without_its_membership() -> Patch:
    reset = RaftLog.reset
    return RaftLog, "reset", lambda self, index, membership: reset(self, index, MembershipAt(0, self._memberships[0].membership))


def _joint_counts_the_new_half_only() -> Patch:
    def init(self: Any, membership: Membership) -> None:
        self._halves = [half for half in (membership.voters(),) if half]

    return Quorum, "__init__", init


def _cut_keeps_memberships() -> Patch:
    cut = RaftLog._cut

    def keeping(self: Any, index: int) -> bool:
        saved = list(self._memberships)
        found = cut(self, index)
        self._memberships = saved
        return found

    return RaftLog, "_cut", keeping


def _leader_counts_what_it_has_not_stored() -> Patch:
    def advance(member: Any) -> None:
        matches = {peer: progress.match for peer, progress in member.progress.items()} | {member.id: member.log.last_index}
        index = member.quorum.value(matches)
        if index > member.log.commit and replication._may_commit(member, index):
            member.log.commit_to(index)
            replication._committed(member)

    return replication, "advance_commit", advance


def _stored_ignores_the_term() -> Patch:
    def stored(self: Any, index: int, term: int) -> bool:
        if self.stable >= index:
            return False
        self.stable = min(index, self.last_index)
        return True

    return RaftLog, "stored", stored


def _change_before_an_own_entry() -> Patch:
    return proposals, "is_own_term_committed", lambda member: True


def _no_joint_step() -> Patch:
    return proposals, "step_to", lambda now, target: Membership(list(target), generation=now.generation)


def _change_while_one_is_not_committed() -> Patch:
    def propose(member: Any, members: Any) -> int:
        require_leading(member)
        newest = member.log.membership.membership
        following = step_to(Membership(newest.members, generation=newest.generation), members)
        index = member.log.last_index + 1
        replication.append_own(member, [(index, member.term, member.codec.membership(index, member.term, following))])
        return index

    return proposals, "propose_membership", propose


def _append_cuts_what_agrees() -> Patch:
    def accept(self: Any, entries: Any) -> bool:
        changed = self._cut(entries[0][0]) if entries[0][0] <= self.last_index else False
        return self.append(entries) or changed

    return RaftLog, "accept", accept


def _reads_before_an_own_entry() -> Patch:
    return read_index, "is_own_term_committed", lambda member: True


def _new_leader_believes_that_all_have_its_log() -> Patch:
    become = election._become_leader

    def hasty(member: Any) -> None:
        last = member.log.last_index
        become(member)
        for progress in member.progress.values():
            progress.match = last

    return election, "_become_leader", hasty


def _applies_what_is_not_stored() -> Patch:
    def take(self: Any) -> Any:
        entries = self.slice(self._applying + 1, self._config.apply_bytes_max, self.commit)
        if entries:
            self._applying = entries[-1][0]
        return entries

    return RaftLog, "take_committed", take


def _votes_twice_in_a_term() -> Patch:
    return election, "_vote_is_free", lambda member, request: request.term > member.term if request.pre else True


def _votes_under_a_leader() -> Patch:
    return election, "has_live_leader", lambda member: False


def _proposals_while_handing_over() -> Patch:
    return proposals, "require_leading", require_leader


MUTANTS: dict[str, tuple[Callable[[], Patch], Callable[[], None]]] = {
    "snapshot without its membership": (_snapshot_without_its_membership, test_rules.test_a_snapshot_brings_the_membership_of_its_entry),
    "a joint counts the new half only": (_joint_counts_the_new_half_only, test_membership.test_a_joint_needs_both_majorities),
    "a cut keeps memberships": (_cut_keeps_memberships, test_rules.test_a_membership_that_is_cut_off_is_not_in_force_any_more),
    "the leader counts what it has not stored": (
        _leader_counts_what_it_has_not_stored, test_rules.test_a_leader_counts_itself_when_its_entries_are_stored,
    ),
    "stored ignores the term": (_stored_ignores_the_term, test_rules.test_stored_is_ignored_for_what_was_cut_off),
    "a change before an own entry is committed": (
        _change_before_an_own_entry, test_rules.test_no_change_before_an_entry_of_the_own_term_is_committed,
    ),
    "a change of voters without a joint step": (_no_joint_step, test_transcripts.test_leader_dies_in_a_joint),
    "a change while one is not committed": (_change_while_one_is_not_committed, test_rules.test_changes_that_are_refused),
    "an Append cuts what agrees": (_append_cuts_what_agrees, test_transcripts.test_duplicates_and_reordering),
    "reads before an own entry is committed": (_reads_before_an_own_entry, test_transcripts.test_read_after_partition),
    "a new leader believes that all have its log": (
        _new_leader_believes_that_all_have_its_log, test_transcripts.test_a_log_that_is_behind_does_not_win,
    ),
    "what is not stored is applied": (_applies_what_is_not_stored, test_rules.test_two_followers_commit_without_the_leaders_disk),
    "a vote is given twice in a term": (_votes_twice_in_a_term, test_transcripts.test_split_vote),
    "a vote although a leader is heard": (_votes_under_a_leader, test_transcripts.test_prevote_refused_under_a_leader),
    "proposals while the leader hands over": (_proposals_while_handing_over, test_transcripts.test_transfer_to_a_slow_follower),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_each_wrong_core_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, finder = MUTANTS[name]
    monkeypatch.delenv("AWSOMEFSD_UPDATE_GOLDEN", raising=False)  # what a wrong core says is no transcript
    finder()
    monkeypatch.setattr(*patch())
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        finder()
