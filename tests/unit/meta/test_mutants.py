"""Wrong drivers around the Raft core, and variants that no seed of the simulator finds: each is found by the test that is named here.

raft/test_mutants.py has those of the core, tests/sim/known_seeds.py those that seeds find.  Two of them lose nothing as long as the other
voters have it, so only a test that looks at this voter finds them: a journal that drops what its store does not hold, and one that does not
follow the state snapshot of its store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Done, Failed
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.machine import bays, machine, pools
from awsomefsd.meta.replica import open_voter
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.server.leader import Leader
from awsomefsd.meta.server.session_clock import Renewals
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state import pools as pool_rows
from awsomefsd.meta.voter.voter import Voter
from buildtools.say import CHECKOUT
from tests.sim.broken import VARIANTS, Patch
from tests.sim.known_seeds import FOUND, FOUND_BY_TESTS
from tests.unit.meta.log import test_journal
from tests.unit.meta.machine import test_bays, test_pools
from tests.unit.meta.raft import test_mutants as core
from tests.unit.meta.replica import test_commits, test_replica
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


def _journal_drops_what_the_store_has_not() -> list[Patch]:
    def commit(self: Any) -> None:
        self.log.compact(self.machine.applied_index + 1)
        if self.commits % 3 == 0:
            self._begin_commit()
            self._settle(wait=True)
        else:
            self._uncommitted = 0
            self.commits += 1

    return [(Replica, "commit", commit)]


def _journal_does_not_follow_a_snapshot() -> list[Patch]:
    return [(open_voter, "_follow_state_snapshot", lambda journal, store: None)]


def _compaction_by_the_applied_index() -> list[Patch]:
    def compact(self: Any) -> None:
        self.log.compact(self.machine.applied_index + 1)

    return [(Replica, "_compact", compact)]


def _rows_are_forgotten_before_they_are_seen() -> list[Patch]:
    return [(Store, "renew", lambda self: None)]


def _rule(command: type[c.Command], wrong: Callable[[Any, Any, Any], Any]) -> list[Patch]:
    return [(machine, "_RULES", {**machine._RULES, command: wrong})]


def _a_commit_needs_no_min() -> list[Patch]:
    return [(bays, "check_progress", lambda row, step: None)]


def _length_of_the_shortest_mirror() -> list[Patch]:
    def sealed(state: Any, row: Any) -> None:
        row.end = min(bay.durable for bay in row.bays)
        bays.note_need(state, row)

    return [(bays, "sealed", sealed)]


def _freed_without_a_trim() -> list[Patch]:
    def freed(state: Any, row: Any, bay: Any, index: int) -> None:
        row.bays = [one for one in row.bays if one != bay]
        state.txn.delete(keys.bay(bay.device, bay.index))
        state.write(keys.free(bay.device, bay.index), rows.FreeRow(0, index), rows.FREE)
        device = state.device(bay.device)
        device.segments_free += 1
        state.save_device(device)

    return [(bays, "make_stale", freed)]


def _mirror_made_without_comparing() -> list[Patch]:
    def made(state: Any, entry: Any, command: Any) -> Any:
        planned = state.read(keys.bay(command.device, command.index), rows.BAY)
        return bays.mirror_made(state, entry, replace(command, planned=planned.index if planned else 0))

    return _rule(c.MirrorMade, made)


def _trimmed_without_comparing() -> list[Patch]:
    def trimmed(state: Any, entry: Any, command: Any) -> Any:
        found = [(index, state.read(keys.bay(command.device, max(index, 0)), rows.BAY)) for index, _, _ in command.bays]
        return bays.trimmed(state, entry, replace(command, bays=[(index, row.segment, row.index) for index, row in found if row]))

    return _rule(c.BaysTrimmed, trimmed)


def _hosts_are_not_counted() -> list[Patch]:
    return [(pool_rows, "domain", lambda device, want: f"device {device.device}")]


def _generation_is_not_compared() -> list[Patch]:
    def attach(state: Any, entry: Any, command: Any) -> Any:
        return pools.attach(state, entry, replace(command, generation=state.device(command.device).generation + 1))

    return _rule(c.AttachDevice, attach)


def _needs_are_not_written() -> list[Patch]:
    return [(bays, "note_need", lambda state, row: state.save_segment(row))]


def _the_last_mirror_goes() -> list[Patch]:
    return [(pool_rows, "is_there", lambda device: True)]


def _with_voters(finder: Callable[[Any], None]) -> Callable[[Path], None]:
    @functools.wraps(finder)
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
    return functools.wraps(finder)(lambda _: finder())


MUTANTS: dict[str, tuple[Callable[[], list[Patch]], Callable[[Path], None]]] = {
    "a truncation is not durable": (_truncation_is_not_durable, test_journal.test_truncate_survives_reopening),
    "the journal is compacted by the applied index": (
        _compaction_by_the_applied_index, test_commits.test_the_journal_keeps_what_the_store_lacks,
    ),
    "the snapshot is not renewed": (
        _rows_are_forgotten_before_they_are_seen, test_commits.test_the_journal_keeps_what_the_store_lacks,
    ),
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
    "the journal drops what the store does not hold": (
        _journal_drops_what_the_store_has_not, test_replica.test_the_journal_drops_only_what_the_store_holds,
    ),
    "the journal does not follow a snapshot": (
        _journal_does_not_follow_a_snapshot,
        _with_voters(test_voter.test_killed_between_the_state_of_a_snapshot_and_the_journal_behind_it),
    ),
    "a stale grant is accepted": (
        VARIANTS["a stale grant is accepted"],
        _alone(test_lease_table.test_grants_that_come_after_a_newer_recall_or_term_give_nothing),
    ),
    "old connections are read": (
        VARIANTS["old connections are read"], _alone(test_leader.test_copies_left_on_older_connections_are_never_executed),
    ),
    "a commit needs no `min`": (
        _a_commit_needs_no_min, _alone(test_bays.test_a_commit_that_fewer_bays_reached_than_have_to_is_refused),
    ),
    "a segment is as long as its shortest mirror": (
        _length_of_the_shortest_mirror, _alone(test_bays.test_one_mirror_left_is_the_most_urgent_need),
    ),
    "a bay is freed without a trim": (
        _freed_without_a_trim, _alone(test_bays.test_a_copy_of_a_segment_that_died_is_stale_until_it_is_trimmed),
    ),
    "MirrorMade without compare-and-swap": (_mirror_made_without_comparing, _alone(test_bays.test_a_copy_counts_by_compare_and_swap)),
    "BaysTrimmed without compare-and-swap": (
        _trimmed_without_comparing, _alone(test_bays.test_a_bay_is_freed_by_its_server_and_by_compare_and_swap),
    ),
    "hosts are not counted": (_hosts_are_not_counted, _alone(test_bays.test_two_devices_of_one_host_are_one)),
    "the generation of a device is not compared": (
        _generation_is_not_compared, _alone(test_pools.test_a_device_that_was_rolled_back_is_not_attached),
    ),
    "needs are not written": (_needs_are_not_written, _alone(test_bays.test_one_mirror_left_is_the_most_urgent_need)),
    "a mirror on a device that is away counts as one that is there": (
        _the_last_mirror_goes, _alone(test_bays.test_the_last_mirror_that_is_complete_and_there_is_never_dropped),
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


def _table() -> Iterator[str]:
    for name, found in FOUND.items():
        focus = f' with `--focus "{found.focus}"`' if found.focus else ""
        yield f"| {name} | seed {found.seed}{focus} |"
    for name, (_, finder) in {**core.MUTANTS, **MUTANTS}.items():
        yield f"| {name} | `{finder.__module__.replace('.', '/')}.py::{finder.__name__}` |"


def test_the_documentation_says_what_finds_each() -> None:
    """docs/TESTING.md, "Broken variants"."""
    text = (CHECKOUT / "docs" / "TESTING.md").read_text()
    expected = "\n".join(["| broken | found by |", "| --- | --- |", *_table(), "\n"])
    assert expected in text, f"the table has to be\n{expected}"
