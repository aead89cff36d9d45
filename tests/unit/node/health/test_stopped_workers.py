"""A worker that was stopped is told from one that runs or is gone, and from others that were stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from awsomefsd.node.health.stopped_workers import is_stopped


def test_a_stopped_worker_is_found() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "worker"]) as worker:
        try:
            assert not is_stopped(worker.pid)
            worker.send_signal(signal.SIGSTOP)
            assert os.WIFSTOPPED(os.waitpid(worker.pid, os.WUNTRACED)[1])  # returns when it has stopped
            assert is_stopped(worker.pid)
            worker.send_signal(signal.SIGCONT)
            assert os.WIFCONTINUED(os.waitpid(worker.pid, os.WCONTINUED)[1])
            assert not is_stopped(worker.pid)
        finally:
            worker.kill()
    assert not is_stopped(worker.pid)


def _process(proc: Path, state: str, *words: str) -> None:
    place = proc / "7"
    place.mkdir(exist_ok=True)
    (place / "stat").write_text(f"7 (a) b) {state} 1 7 7")
    (place / "cmdline").write_text("\0".join([*words, ""]))


def test_others_are_not(tmp_path: Path) -> None:
    _process(tmp_path, "T", "python", "-m", "awsomefsd", "worker", "--keeper-fd", "3")
    assert is_stopped(7, tmp_path)
    for state in "tDSRZ":
        _process(tmp_path, state, "python", "-m", "awsomefsd", "worker")
        assert not is_stopped(7, tmp_path), state
    _process(tmp_path, "T", "vi", "worker.py")  # its number was taken by somebody else
    assert not is_stopped(7, tmp_path) and not is_stopped(8, tmp_path)
    (tmp_path / "7" / "stat").write_text("")
    assert not is_stopped(7, tmp_path)
