"""The simulator over many seeds; AWSOMEFSD_SEED moves them.  `python -m tests.sim.run` runs as many and as long ones as you like."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from awsomefsd.base.levels import LEVEL
from awsomefsd.meta.machine.machine import Machine
from tests.sim import run
from tests.sim.episodes.named import COUNTS_IN_ALL_SEEDS, COUNTS_OF_EPISODES, EPISODES, LOST_IN_JOINT
from tests.sim.episodes.upgrades import MIXED, NEW, RAISED
from tests.sim.known_seeds import FOUND, REGRESSIONS

SEEDS = 45  # two minutes of CPU
EPISODE_SEEDS, EPISODE_SEEDS_MAX = 3, 20  # more where no run had what is wanted: about every second one has
EPISODE_MINUTES = 1.0
MINUTES = 3.0
KNOWN_MINUTES = 2.0  # of seeds that were found once, and of broken variants
GROWING_SEEDS, GROWING_MINUTES = 16, 1.0
UPGRADE_SEEDS, UPGRADE_MINUTES = 12, 1.5


def test_two_runs_of_a_seed_are_the_same_run():
    """Also under another hash order: nothing in it depends on more than the seed."""
    digests = set()
    for hash_seed in ("1", "2"):
        words = [sys.executable, "-m", "tests.sim.run", "--seed", "5", "--minutes", "1"]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": hash_seed}, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        digests.add(next(row for row in done.stdout.splitlines() if row.startswith("digest")))
    assert len(digests) == 1, digests


def test_what_ran_before_in_the_process_changes_nothing():
    """Objects lie elsewhere in memory each time; connections that ended together once ended in the order of their addresses."""
    assert len({run.one(1, 1.5).digest for _ in range(4)}) == 1


def _all_hold(seeds: range, figures: list[str]) -> list[run.Outcome]:
    outcomes = run.many(seeds, MINUTES)
    figures += [f"simulator: {row}" for row in run.summary(outcomes)]
    failed = [outcome for outcome in outcomes if outcome.error]
    assert not failed, run.report(failed[0], MINUTES) + f"\nfailed seeds: {[outcome.seed for outcome in failed]}"
    return outcomes


@pytest.mark.timeout(1800)
def test_seeds(seed, figures):
    outcomes = _all_hold(range(seed * 1000, seed * 1000 + SEEDS), figures)
    for what in COUNTS_IN_ALL_SEEDS:
        assert sum(outcome.counts.get(what, 0) for outcome in outcomes), f"none: {what}"


@pytest.mark.parametrize("focus", sorted(EPISODES))
def test_episodes_by_themselves(focus, seed):
    """Production code under each kind of episode, played again and again; one that does not come about as it should is given up."""
    ended = tried = 0
    wanted = COUNTS_OF_EPISODES.get(focus, "episodes")
    for number in range(seed * 1000, seed * 1000 + EPISODE_SEEDS_MAX):
        outcome = run.one(number, EPISODE_MINUTES, focus=focus)
        assert not outcome.error, run.report(outcome, EPISODE_MINUTES, focus)
        tried += outcome.counts.get(wanted, 0)
        ended += outcome.counts["episodes"] - outcome.counts.get("episodes given up", 0)
        if tried and ended and number >= seed * 1000 + EPISODE_SEEDS - 1:
            break
    assert ended, "none came to its end"
    assert tried, f"none: {wanted}"


def test_a_journal_is_lost_inside_a_joint_change():
    outcome = run.one(1, EPISODE_MINUTES, focus="a fault inside a joint change")
    assert not outcome.error, run.report(outcome, EPISODE_MINUTES, "a fault inside a joint change")
    assert outcome.counts[LOST_IN_JOINT]


@pytest.mark.parametrize("name", sorted(REGRESSIONS))
def test_what_was_found_once(name):
    """Seeds that failed before something was fixed."""
    for seed in REGRESSIONS[name]:
        outcome = run.one(seed, KNOWN_MINUTES)
        assert not outcome.error, run.report(outcome, KNOWN_MINUTES)


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("variant", sorted(FOUND))
def test_a_broken_variant_is_found(variant):
    """With the seed that is known to find it; when the simulator changed so that it does not, a few others are tried."""
    seed, focus = FOUND[variant]
    found, what, _ = run.first_found(variant, [seed, *range(1, 40)], KNOWN_MINUTES, focus)
    assert found, f"{variant} was not found"
    assert what


def test_one_voter_becomes_several_among_faults(seed, figures):
    """The membership is in the log, and the policy brings in whoever is new, wiped or was taken out."""
    outcomes = run.many(range(seed * 1000, seed * 1000 + GROWING_SEEDS), GROWING_MINUTES, grows=True)
    figures += [f"simulator, growing: {row}" for row in run.summary(outcomes)]
    failed = [outcome for outcome in outcomes if outcome.error]
    assert not failed, run.report(failed[0], GROWING_MINUTES) + f"\nwith --grows; failed seeds: {[outcome.seed for outcome in failed]}"
    counts = [outcome.counts for outcome in outcomes if "steps of the membership asked for" in outcome.counts]
    assert len(counts) > GROWING_SEEDS // 2, "the others have one node"
    assert all(count["voters alone that became the first of several"] == 1 for count in counts)


def test_an_upgrade_of_one_node_after_the_other_among_faults(seed, figures):
    """Nodes of two builds apply one log, at the level of the older one, until the last is new and the level is raised."""
    outcomes = run.many(range(seed * 1000, seed * 1000 + UPGRADE_SEEDS), UPGRADE_MINUTES, upgrades=True)
    figures += [f"simulator, upgrades: {row}" for row in run.summary(outcomes)]
    failed = [outcome for outcome in outcomes if outcome.error]
    assert not failed, run.report(failed[0], UPGRADE_MINUTES) + f"\nwith --upgrades; failed seeds: {[outcome.seed for outcome in failed]}"
    for what in (NEW, MIXED, RAISED):
        assert sum(outcome.counts.get(what, 0) for outcome in outcomes), f"none: {what}"


def test_a_rule_that_was_changed_without_a_level_is_found(monkeypatch):
    """The new build rounds times to milliseconds: it gives another answer to the same entry than the voters of the older one."""
    apply = Machine.apply

    def rounded(self, entry):
        time_ns = entry.time_ns if self.level_known < LEVEL else entry.time_ns // 1_000_000 * 1_000_000
        return apply(self, msgspec.structs.replace(entry, time_ns=time_ns))

    monkeypatch.setattr(Machine, "apply", rounded)
    errors = (run.one(seed, UPGRADE_MINUTES, upgrades=True).error for seed in range(1, 13))
    assert any("applies another entry" in error or "have applied the same entries and differ" in error for error in errors)


def test_a_power_cut_in_the_turn_in_which_a_voter_becomes_the_first_of_several():
    """The growing is in the state then although nothing came after it, so the voter is one of several from its next start on."""
    outcome = run.one(846260011, GROWING_MINUTES, grows=True)
    assert not outcome.error and outcome.counts["power cuts inside a turn"] > 0
    assert outcome.counts["voters alone that became the first of several"] == 1
