"""What is refused before anybody is asked, and how it is said: in one line, whatever the user typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.cli import main as command_line
from awsomefsd.cli.looking import bench
from awsomefsd.cli.main import Invocation

MARKED = "x\ny\x1b[31m\x9bz"
SHOWN = "x\\x0ay\\x1b[31m\\x9bz"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Returns the exit status, and the last line of what was said."""
    code = command_line.run(list(words))
    out, err = capsys.readouterr()
    assert out == "" and not set(err) & {"\x1b", "\x9b"}
    return code, err.splitlines()[-1]


def test_control_characters_that_were_typed_are_shown_and_break_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = f"{tmp_path}/{MARKED}"
    shown = f"{tmp_path}/{SHOWN}"
    assert refused(capsys, "bench", path) == (2, f"Error: {shown} does not exist; name one to measure in")
    code, line = refused(capsys, "--config", f"{path}.toml", "config", "show")
    assert code == 1 and line.startswith(f"awsomefsd: cannot read {shown}.toml: ")

    def fail(_self: Invocation) -> None:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(Invocation, "client", fail)
    assert refused(capsys, "status") == (1, f"awsomefsd: {shown}: No such file or directory")


def test_fsck_says_in_one_line_what_cannot_be_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its exit status is its own, so it prints itself what was wrong."""
    code, line = refused(capsys, "--state-dir", f"{tmp_path}/{MARKED}", "fsck")
    assert code == 8 and line.startswith(f"awsomefsd: {tmp_path}/{SHOWN} has no node identity")
    (tmp_path / "node.json").mkdir()
    assert refused(capsys, "--state-dir", str(tmp_path), "fsck") == (8, f"awsomefsd: {tmp_path}/node.json: Is a directory")


def test_mount_helpers_say_it_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Invocation) -> None:
        raise ConfigError(f"{MARKED} is no directory")

    monkeypatch.setattr(Invocation, "client", fail)
    assert refused(capsys, "mount-helper", "demo", f"/{MARKED}")[1] == f"mount.awsomefs: {SHOWN} is no directory"
    assert refused(capsys, "umount-helper", f"/{MARKED}")[1] == f"umount.fuse.awsomefs: {SHOWN} is no directory"
    assert refused(capsys, "mount-helper", "demo", "/mnt", "-o", MARKED)[1].startswith("mount.awsomefs: unknown mount option")


def test_what_has_several_lines_keeps_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('sitee = 1\nlog.levle = "info"\n"a\\nb" = 1\n')
    assert command_line.run(["--config", str(file), "config", "check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and [line for line in lines if "unknown key a\\x0ab in " in line]

    def missing(_self: Invocation) -> None:
        raise click.MissingParameter(param=click.Argument(["kind"], type=click.Choice(["one", "two"])))

    monkeypatch.setattr(Invocation, "client", missing)
    assert command_line.run(["status"]) == 2
    assert "Choose from:\n\tone,\n\ttwo" in capsys.readouterr().err


def test_bench_refuses_a_directory_that_nothing_would_measure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[tuple[str, ...]] = []

    def measure(_invocation: object, groups: tuple[str, ...], *_others: Any) -> tuple[list[Any], list[Any]]:
        measured.append(groups)
        return [], []

    monkeypatch.setattr(bench, "_measure", measure)
    for words in (("--only", "disk"), ("--only", "disk", "--only", "network")):
        code, line = refused(capsys, "bench", *words, str(tmp_path))
        assert code == 2 and "DIRECTORY is what the group mount measures" in line and "--only mount" in line and not measured
    for words, groups in (
        (["--only", "disk", "--only", "mount", str(tmp_path)], ("disk", "mount")),
        (["--only", "disk"], ("disk",)),
        ([str(tmp_path)], bench.GROUPS),
    ):
        command_line.run(["bench", "-o", "json", *words])
        assert json.loads(capsys.readouterr().out)["rows"] == [] and measured.pop() == groups


def test_a_scrub_that_reads_nothing_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon takes 0 for "not given", which is 64 MiB a second."""
    asked: list[int] = []
    monkeypatch.setattr("awsomefsd.cli.scrub._ask", lambda _invocation, _rpc, _form, bytes_per_s: asked.append(bytes_per_s))
    for rate in ("0", "0M"):
        code, line = refused(capsys, "scrub", "start", "--rate", rate)
        assert code == 2 and "--rate" in line and "`awsomefsd scrub stop`" in line and "4.0 MiB to 64 MiB" in line and not asked
    assert command_line.run(["scrub", "start"]) == 0 and command_line.run(["scrub", "start", "--rate", "1M"]) == 0
    assert asked == [0, 1 << 20]
