"""The token leaves the environment of long-lived processes; the daemon that `supervise` starts finds it all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from awsomefsd.base import program

CHILD = """
import os, subprocess, sys
from awsomefsd.base import program
program.hide_token()
shown = open("/proc/self/environ").read()
assert "very-secret" not in shown and "AWSOMEFSD_TOKEN" not in os.environ, shown
env = program.environment()
read = "import os; print(open(os.environ['AWSOMEFSD_TOKEN_FILE']).read())"
for _ in range(2):
    subprocess.run([sys.executable, "-c", read], env=env, check=True, pass_fds=program.token_descriptors(env))
"""


def run(tmp_path: Path, **environ: str) -> str:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | environ
    env["PYTHONPATH"] = str(program.ROOT)
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_token_is_hidden_and_can_be_read_again_and_again(tmp_path: Path) -> None:
    assert run(tmp_path, AWSOMEFSD_TOKEN="afs1-very-secret") == "afs1-very-secret\nafs1-very-secret\n"


def test_a_file_stays_what_was_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("afs1-in-a-file")
    assert run(tmp_path, AWSOMEFSD_TOKEN_FILE=str(tmp_path / "token")) == "afs1-in-a-file\nafs1-in-a-file\n"


def test_files_are_found_from_another_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`AWSOMEFSD_TOKEN_FILE=token awsomefsd supervise` started a daemon in / that found no token, again and again."""
    monkeypatch.chdir(tmp_path)
    given = {"AWSOMEFSD_TOKEN_FILE": "token", "AWSOMEFSD_CONFIG": "../a.toml", "AWSOMEFSD_FAILPOINTS_FILE": "", "OTHER_FILE": "token"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    named = program.environment()
    assert named["AWSOMEFSD_TOKEN_FILE"] == str(tmp_path / "token") and named["AWSOMEFSD_CONFIG"] == str(tmp_path.parent / "a.toml")
    assert named["AWSOMEFSD_FAILPOINTS_FILE"] == "" and named["OTHER_FILE"] == "token"
    monkeypatch.setenv("AWSOMEFSD_TOKEN_FILE", "/proc/self/fd/7")  # as hide_token names a descriptor
    assert program.environment()["AWSOMEFSD_TOKEN_FILE"] == "/proc/self/fd/7"


def test_only_descriptors_are_handed_on() -> None:
    assert program.token_descriptors({"AWSOMEFSD_TOKEN_FILE": "/proc/self/fd/7"}) == [7]
    assert program.token_descriptors({"AWSOMEFSD_TOKEN_FILE": "/etc/token"}) == []
    assert program.token_descriptors({}) == []
