"""Tests of this folder once more, with what older kernels lack switched off: FUSE 7.34 (Linux 5.14), 7.38 (6.1), 7.40 (6.9).

A kernel of another version is not had here.  None of the three has INC_EPOCH, with which the kernel is told to ask for names again; before
7.39 files that are open for direct I/O, as those of shared mounts are, have no MAP_SHARED.  Each level needs nodes of its own, so the tests
run in another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared.rig import PINS

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(PINS), reason="this is the other process")]
HERE = Path(__file__).resolve().parent
LEVELS = [34, 38, 40]
SHORT = ["test_caches.py", "test_locks.py"]
SHORT_S, LONG_S = 1_800, 7_200


def run(level: int, files: list[str], seed: int, limit_s: int) -> str:
    """Returns the last line of what pytest said."""
    env = os.environ | {"AWSOMEFSD_TEST_SHARED_PINS": f"minor={level}", "AWSOMEFSD_SEED": str(seed)}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak", *(str(HERE / name) for name in files)]
    done = subprocess.run(words, cwd=HERE.parent.parent, env=env, capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, f"FUSE 7.{level}:\n{done.stdout[-20_000:]}\n{done.stderr[-2_000:]}"
    last = done.stdout.strip().splitlines()[-1]
    assert " passed" in last, last
    return last


@pytest.mark.timeout(SHORT_S + 60)
def test_what_is_kept_and_locked(seed: int, figures: list[str]) -> None:
    """With one of the levels; each run draws another."""
    level = LEVELS[seed % len(LEVELS)]
    figures.append(f"shared mounts with FUSE 7.{level}, {', '.join(SHORT)}: {run(level, SHORT, seed, SHORT_S)}")


@pytest.mark.soak
@pytest.mark.timeout(LONG_S + 60)
@pytest.mark.parametrize("level", LEVELS)
def test_all_of_this_folder(level: int, seed: int, figures: list[str]) -> None:
    files = sorted(path.name for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)
    figures.append(f"shared mounts with FUSE 7.{level}, all: {run(level, files, seed, LONG_S)}")
