"""Mounts that decide names of one volume under leases, over many seeds; AWSOMEFSD_SEED moves them (tests/sim/names)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.names import run
from tests.sim.names.broken import FOUND

SEEDS = 24  # ten seconds of CPU
SOAK_SEEDS = 2_000
COUNTED = (
    "names decided", "records applied", "names changed by the leader", "questions of names", "fsyncs", "sessions lost",
    "records lost with their session", "records put aside", "workers killed behind a record", "leaderships",
)  # fmt: skip


def _all_hold(seeds: range, figures: list[str]) -> None:
    outcomes = run.many(seeds)
    figures += [f"names decided by several mounts: {row}" for row in run.summary(outcomes)]
    failed = [outcome for outcome in outcomes if outcome.error]
    assert not failed, run.report(failed[0]) + f"\nfailed seeds: {[outcome.seed for outcome in failed]}"
    for what in COUNTED:
        assert sum(outcome.counts.get(what, 0) for outcome in outcomes), f"none: {what}"


def test_two_runs_of_a_seed_are_the_same_run() -> None:
    """Also under another hash order, and whatever the threads of the machine do."""
    digests = set()
    for hash_seed in ("1", "2"):
        words = [sys.executable, "-m", "tests.sim.names.run", "--seed", "5"]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": hash_seed}, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        digests.add(next(row for row in done.stdout.splitlines() if row.startswith("digest")))
    assert len(digests) == 1, digests


@pytest.mark.timeout(1_200)
def test_seeds(seed: int, figures: list[str]) -> None:
    _all_hold(range(seed * 1000, seed * 1000 + SEEDS), figures)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_many_seeds(seed: int, figures: list[str]) -> None:
    _all_hold(range(seed * 10_000, seed * 10_000 + SOAK_SEEDS), figures)


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("variant", sorted(FOUND))
def test_a_broken_variant_is_found(variant: str) -> None:
    """With the seed that is known to find it; when the simulator changed so that it does not, a few others are tried."""
    found, what = run.first_found(variant, [FOUND[variant], *range(1, 40)])
    assert found, f"{variant} was not found"
    assert what
