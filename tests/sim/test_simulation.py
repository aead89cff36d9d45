"""The simulator over many seeds; AWSOMEFSD_SEED moves them, `python3 build.py soak` runs them for hours."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.sim import run

SEEDS = 200
MINUTES = 3.0


def test_two_runs_of_a_seed_are_the_same_run():
    """Also under another hash order: nothing in it depends on more than the seed."""
    digests = set()
    for hash_seed in ("1", "2"):
        words = [sys.executable, "-m", "tests.sim.run", "--seed", "5", "--minutes", "1"]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": hash_seed}, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        digests.add(next(row for row in done.stdout.splitlines() if row.startswith("digest")))
    assert len(digests) == 1, digests


def test_seeds(seed, figures):
    outcomes = run.many(range(seed * 1000, seed * 1000 + SEEDS), MINUTES)
    figures += [f"simulator: {row}" for row in run.summary(outcomes)]
    failed = [outcome for outcome in outcomes if outcome.error]
    assert not failed, run.report(failed[0], MINUTES) + f"\nfailed seeds: {[outcome.seed for outcome in failed]}"
