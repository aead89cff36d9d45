"""The lock of a worker's process: free only when the process has exited."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from awsomefsd.base import worker_locks
from awsomefsd.base.errors import Refused

HOLD = """
import sys
from awsomefsd.base import worker_locks
held = worker_locks.hold(sys.argv[1], 0xabc, int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def running(state_dir: Path, worker: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", HOLD, str(state_dir), str(worker)]
    made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None and made.stdout.readline() == "held\n"
    return made


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_lock_is_free_only_when_its_process_has_exited(tmp_path: Path) -> None:
    assert not worker_locks.exited(tmp_path, 0xABC, 1), "what never ran here proves nothing"
    first = running(tmp_path, 1)
    try:
        with pytest.raises(Refused):
            worker_locks.hold(tmp_path, 0xABC, 1)
        second = running(tmp_path, 2)
        try:
            worker_locks.tidy(tmp_path, ())  # both live: their files stay
            assert not worker_locks.exited(tmp_path, 0xABC, 1) and not worker_locks.exited(tmp_path, 0xABC, 2)
        finally:
            end(second)
        assert not worker_locks.exited(tmp_path, 0xABC, 2), "an earlier worker runs still"
    finally:
        end(first)
    assert worker_locks.exited(tmp_path, 0xABC, 1) and worker_locks.exited(tmp_path, 0xABC, 2)
    worker_locks.tidy(tmp_path, {0xABC})
    assert worker_locks.exited(tmp_path, 0xABC, 2), "the proof stays as long as a session needs it"
    worker_locks.tidy(tmp_path, ())
    assert not list((tmp_path / "workers").iterdir())
