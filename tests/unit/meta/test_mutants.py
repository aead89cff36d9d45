"""Wrong drivers around the Raft core, and variants that no seed of the simulator finds: each is found by the test that is named here.

raft/test_mutants.py has those of the core, tests/sim/known_seeds.py those that seeds find.  Not here, because two things keep each of them
from harm: a journal that does not follow the state snapshot of its store, and one that is cut off before its entries are committed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.api.messages import Done, Failed
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.server.leader import Leader
from awsomefsd.meta.server.session_clock import Renewals
from awsomefsd.meta.voter.voter import Voter
from tests.sim.broken import VARIANTS, Patch
from tests.sim.known_seeds import FOUND, FOUND_BY_TESTS
from tests.unit.meta.log import test_journal
from tests.unit.meta.server import test_leader, test_service
from tests.unit.meta.server.leases import test_lease_table
from tests.unit.meta.voter import test_voter


def _truncation_is_not_durable() -> list[Patch]:
    return [(Journal, "truncate_after", lambda self, index: self._forget_after(index, self._terms.of(index)))]


def _damage_is_taken_for_a_torn_write() -> list[Patch]:
    return [(Journal, "_check_tail", lambda self, file, raw, end, newest: setattr(self, "torn", True))]


def _renewals_without_a_quorum() -> list[Patch]:
    def renew(self: Any, request: Any) -> None:
        request.answer(Done() if self._extend(request.body) else Failed(116, "the session has ended"))

    return [(Leader, "_renew", renew)]


def _no_look_for_jumps_of_the_clock() -> list[Patch]:
    def expired(self: Any, now_ns: int) -> list[tuple[int, int]]:
        return [(session, live.epoch) for session, live in self._live.items() if live.deadline_ns <= now_ns]

    return [(Renewals, "take_expired", expired)]


def _no_doubt_about_a_torn_journal() -> list[Patch]:
    tick = Voter.tick

    def sure(self: Any, now_ns: int) -> None:
        self._doubt_until_ns = 0
        tick(self, now_ns)

    return [(Voter, "tick", sure), (Voter, "_check_acknowledged", lambda self, message: None)]


def _with_voters(finder: Callable[[Any], None]) -> Callable[[Path], None]:
    def find(directory: Path) -> None:
        rig = test_voter.Rig(directory, 1)
        try:
            with mock.patch.object(test_voter, "COPY_S", 0):  # what never comes to be so is given up by turns
                finder(rig)
        finally:
            for node in rig.all.values():
                node.stop()

    return find


def _alone(finder: Callable[[], None]) -> Callable[[Path], None]:
    return lambda _: finder()


MUTANTS: dict[str, tuple[Callable[[], list[Patch]], Callable[[Path], None]]] = {
    "a truncation is not durable": (_truncation_is_not_durable, test_journal.test_truncate_survives_reopening),
    "damage is taken for a torn write": (
        _damage_is_taken_for_a_torn_write, test_journal.test_damage_before_the_last_file_is_corrupt_even_at_its_end,
    ),
    "a renewal without a quorum": (
        _renewals_without_a_quorum, _alone(test_leader.test_renewals_in_an_isolated_leader_are_not_acknowledged),
    ),
    "no look for jumps of the clock": (_no_look_for_jumps_of_the_clock, _alone(test_service.test_renewals_after_a_jump_of_the_clock)),
    "no doubt about a torn journal": (
        _no_doubt_about_a_torn_journal, _with_voters(test_voter.test_an_end_that_was_acknowledged_and_is_gone_ends_the_membership),
    ),
    "a stale grant is accepted": (
        VARIANTS["a stale grant is accepted"],
        _alone(test_lease_table.test_grants_that_come_after_a_newer_recall_or_term_give_nothing),
    ),
    "old connections are read": (
        VARIANTS["old connections are read"], _alone(test_leader.test_copies_left_on_older_connections_are_never_executed),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_each_wrong_part_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, finder = MUTANTS[name]
    for directory in ("right", "wrong"):
        (tmp_path / directory).mkdir()
    finder(tmp_path / "right")
    for patch in patches():
        monkeypatch.setattr(*patch)
    with pytest.raises((AssertionError, Corrupt, pytest.fail.Exception)):
        finder(tmp_path / "wrong")


def test_each_variant_of_the_simulator_has_a_finder() -> None:
    assert VARIANTS.keys() == FOUND.keys() | FOUND_BY_TESTS
    assert not FOUND.keys() & FOUND_BY_TESTS and MUTANTS.keys() >= FOUND_BY_TESTS
