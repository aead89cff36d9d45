"""awsomefsd doctor as a command: its outputs and exit statuses, without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awsomefsd.cli import main as command_line
from awsomefsd.node.doctor import examine
from awsomefsd.node.health.codes import HealthFinding


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks have tests of their own."""
    monkeypatch.setattr(examine, "preflight", lambda settings: [])


def run(*words: str) -> int:
    return command_line.run([*words])


def test_a_sound_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--preflight") == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert run("doctor", "--preflight", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"sound": True, "findings": []}


def test_findings_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [HealthFinding("PORT_IN_USE", "cluster.listen " * 20), HealthFinding("LEVEL_BEHIND", "n\x1b[31m1", "do `this`")]
    monkeypatch.setattr(examine, "preflight", lambda settings: found)
    assert run("doctor", "--preflight") == 3
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "\x1b" not in shown
    assert "PORT_IN_USE  error\n  what     an address" in shown and "  fix      do `this`\n" in shown and shown.endswith("2 findings\n")
    monkeypatch.setattr(examine, "preflight", lambda settings: found[1:])
    assert run("doctor", "--preflight", "-o", "json") == 0, "what is no more than information needs nobody"
    [row] = json.loads(capsys.readouterr().out)["findings"]
    assert set(row) == {"code", "severity", "what", "evidence", "fix"} and row["fix"] == "do `this`"


def test_a_configuration_that_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "awsomefsd.toml"
    file.write_text('log.levle = "info"\n')
    assert run("--config", str(file), "doctor", "--preflight", "-o", "json") == 3
    [row] = json.loads(capsys.readouterr().out)["findings"]
    assert row["code"] == "CONFIG_UNREADABLE" and "log.levle" in row["evidence"] and "config check" in row["fix"]
    assert run("--config", str(tmp_path / "none.toml"), "doctor", "--preflight") == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "none.toml: No such file" in shown


def test_each_line_of_a_configuration_error_is_a_finding_and_no_name_of_a_file_makes_two(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "a\nb.toml"
    assert run("--config", str(file), "doctor", "--preflight", "-o", "json") == 3
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 1
    file.write_text("sitee = 1\nlgo = 2\n")
    assert run("--config", str(file), "doctor", "--preflight", "-o", "json") == 3
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 2


def test_without_a_daemon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--state-dir", str(tmp_path), "--run-dir", str(tmp_path), "doctor", "-o", "json", "--bundle", str(tmp_path / "b.tar.gz")]
    assert run(*words) == 3
    assert "DAEMON_GONE" in {row["code"] for row in json.loads(capsys.readouterr().out)["findings"]}
    assert (tmp_path / "b.tar.gz").exists()
    assert run(*words[:-1], str(tmp_path / "b\nc")) == 3 and "/b\\x0ac; names of files" in capsys.readouterr().err
    assert run(*words) == 2 and "exists" in capsys.readouterr().err
    assert run("doctor", "--preflight", "--bundle", str(tmp_path / "c")) == 2
