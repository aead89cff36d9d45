"""Shells complete commands and options by the script that `awsomefsd completion` prints."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from awsomefsd.cli import main
from awsomefsd.cli.completion import SHELLS


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_of_that_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == main.OK
    script = capsys.readouterr().out
    assert main.COMPLETE_VARIABLE in script and f"{shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("awsomefsd vol", "volume"), ("awsomefsd volume cre", "create"), ("awsomefsd volume create --quota-f", "--quota-files")],
)
def test_what_may_come_next(words: str, wanted: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(main.COMPLETE_VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert main.run([]) == main.OK
    assert [line.split(",")[-1] for line in capsys.readouterr().out.splitlines()] == [wanted]
