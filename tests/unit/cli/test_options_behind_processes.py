"""The commands that run keeper and supervisor take the options that their help shows, and hand them on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from awsomefsd.base.identity import SUPERVISOR_LOCK, lock_or_holder


def run(*words: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "awsomefsd", *words], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["keeper", "supervise"])
def test_their_help_is_that_of_the_command(command: str, tmp_path: Path) -> None:
    code, said = run(command, "--run-dir", str(tmp_path), "--help")
    assert code == 0 and f"Usage: awsomefsd {command} [OPTIONS]" in said and "--config PATH" in said
    code, said = run(command, "--run-dir", str(tmp_path), "--nonsense")
    assert code == 2 and "No such option '--nonsense'" in said


def test_directories_behind_the_command_are_those_of_the_supervisor(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    lock = lock_or_holder(tmp_path / "state" / SUPERVISOR_LOCK)
    assert isinstance(lock, int), "nobody has it"
    code, said = run("supervise", "--run-dir", str(tmp_path / "run"), "--state-dir", str(tmp_path / "state"))
    assert code == 1 and f"another supervisor runs on {tmp_path}/state" in said
