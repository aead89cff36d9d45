"""Wrong Raft cores: each is found by the test that is named here, which would else say nothing about its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from awsomefsd.meta.raft import proposals, replication
from awsomefsd.meta.raft.log import RaftLog
from awsomefsd.meta.raft.membership import Membership, Quorum
from awsomefsd.meta.raft.types import MembershipAt
from tests.unit.meta.raft import test_membership, test_rules

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
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_each_wrong_core_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, finder = MUTANTS[name]
    finder()
    monkeypatch.setattr(*patch())
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        finder()
