"""The bundle has what helps, and no secret of this node or of another one."""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from awsomefsd.cluster.pki import ca
from awsomefsd.config.settings import load
from awsomefsd.node.doctor import bundle
from awsomefsd.node.doctor.examine import Answers
from awsomefsd.node.health.codes import HealthFinding

OTHERS_TOKEN = "afs1-" + "abcdefgh" * 8
OWN_TOKEN = "afs1-" + "qrstuvwx" * 9


def packed(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ca.make_key()
    other = ca.make_key()
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "node.key").write_text(key)
    (tmp_path / "log").mkdir()
    rows = [line for line in key.splitlines() if not line.startswith("---")]
    log = tmp_path / "log" / "daemon.log"
    log.write_text(f"began\njoin {OTHERS_TOKEN}\n{other}a line of ours {rows[0]}\nAFS1-{'A' * 40}\n{''.join(rows)}\nended\n")
    (tmp_path / "log" / "link.log").symlink_to("/etc/shadow")
    (tmp_path / "node.json").write_text('{"node": "me"}')
    settings = load(environ={"AWSOMEFSD_TOKEN": OWN_TOKEN}, state_dir=tmp_path, run_dir=tmp_path)
    answers = Answers({"node": "me", "pid": os.getpid(), "keeper_pid": 0, "figures": {"x": OWN_TOKEN}})
    target = tmp_path / "out.tar.gz"
    count = bundle.write(target, settings, [HealthFinding("DAEMON_GONE", "why")], answers)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    found = packed(target)
    assert len(found) == count
    everything = b"\n".join(found.values())
    for secret in (OTHERS_TOKEN, OWN_TOKEN, OWN_TOKEN[5:], "A" * 40, *rows, *other.splitlines()[1:-1]):
        assert secret.encode() not in everything, secret
    [text] = [raw for name, raw in found.items() if name.endswith("daemon.log")]
    assert text.startswith(b"began\njoin [hidden]\n[hidden]\na line of ours [hidden]\n[hidden]\n") and text.endswith(b"\nended\n")
    assert not any("link.log" in name for name in found)
    names = {name.partition("/")[2] for name in found}
    assert {"findings.json", "status.json", "nodes.json", "configuration.txt", "host.txt", "state_dir.txt", "state/node.json"} <= names
    assert b"token = ****" in found["awsomefsd-doctor/configuration.txt"] and b"pki/node.key" in found["awsomefsd-doctor/state_dir.txt"]
    with pytest.raises(FileExistsError):
        bundle.write(target, settings, [], answers)


def test_a_long_log_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "LOG_BYTES_MAX", 20)
    path = tmp_path / "x.log"
    path.write_text("first line\nsecond line\nthird line\n")
    assert bundle._end_of(path) == b"third line\n"


def test_a_compressed_log_is_cleaned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").mkdir()
    said = gzip.compress(f"began\njoin {OTHERS_TOKEN}\nended\n".encode())
    (tmp_path / "log" / "daemon.log.1.gz").write_bytes(said)
    (tmp_path / "log" / "daemon.log.2.gz").write_bytes(said[:-20])
    settings = load(environ={}, state_dir=tmp_path, run_dir=tmp_path)
    bundle.write(tmp_path / "out.tar.gz", settings, [], Answers())
    logs = {name.partition("-daemon")[2]: raw for name, raw in packed(tmp_path / "out.tar.gz").items() if "logs/" in name}
    assert logs[".log.1"] == b"began\njoin [hidden]\nended\n" and ".log.2" not in logs
    monkeypatch.setattr(bundle, "LOG_BYTES_MAX", 20)
    assert bundle._end_of(tmp_path / "log" / "daemon.log.1.gz") == b"ended\n"


def test_a_secret_in_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "token", 0o600)
    settings = load(environ={"AWSOMEFSD_TOKEN": OWN_TOKEN}, state_dir=tmp_path, run_dir=tmp_path)
    monkeypatch.setenv("AWSOMEFSD_TOKEN_FILE", str(tmp_path / "token"))
    assert [one for one in bundle.secrets_of(settings) if one] == [OWN_TOKEN.encode()]


def test_of_a_directory_with_the_logs_of_everybody_only_ours_are_taken(tmp_path: Path) -> None:
    names = ["auth.log", "our.log", "worker-1f.log", "daemon.log.1", "mysql.log"]
    for name in names:
        (tmp_path / name).write_text("words\n")
    settings = load(environ={}, state_dir=tmp_path / "s", run_dir=tmp_path / "r")
    with (tmp_path / "our.log").open("a") as file:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, stderr=file)
    try:
        found = [path.name for path in bundle.log_files(settings, [process.pid]) if path.parent == tmp_path]
    finally:
        process.communicate()
    assert sorted(found) == ["daemon.log.1", "our.log", "worker-1f.log"]


@pytest.mark.parametrize("role", ["keeper", "supervise"])
def test_the_directory_for_logs_of_a_keeper_or_supervisor_is_found_without_a_daemon(role: str, tmp_path: Path) -> None:
    settings = load(environ={}, state_dir=tmp_path / "s", run_dir=tmp_path / "r")
    settings.run_dir.mkdir()
    for directory in ("ours", "others"):
        (tmp_path / directory).mkdir()
        for name in ("daemon.log", "worker-1f.log", "segments.log", "mysql.log"):
            (tmp_path / directory / name).write_text("words\n")
    waiting = [sys.executable, "-c", "input()"]
    commands = [
        [*waiting, role, "--run-dir", str(settings.run_dir), "--log-dir", str(tmp_path / "ours")],
        [*waiting, role, "--run-dir", str(tmp_path / "r2"), "--log-dir", str(tmp_path / "others")],
        [*waiting, "somebody", "--run-dir", str(settings.run_dir), "--log-dir", str(tmp_path / "others")],
    ]
    processes = [subprocess.Popen(words, stdin=subprocess.PIPE) for words in commands]
    try:
        found = bundle.log_files(settings, [])
    finally:
        for process in processes:
            process.communicate(b"\n")
    names = sorted(str(path.relative_to(tmp_path)) for path in found if path.is_relative_to(tmp_path))
    assert names == ["ours/daemon.log", "ours/segments.log", "ours/worker-1f.log"]


def test_a_log_that_became_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "link.log").symlink_to("secret")
    os.mkfifo(tmp_path / "pipe.log")
    for name in ("link.log", "pipe.log"):
        with pytest.raises(OSError, match=name):
            bundle._end_of(tmp_path / name)
