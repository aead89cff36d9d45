"""The command line: against click's runner, and against one real daemon in a directory of the test."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.admin.client import AdminClient
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base import program
from awsomefsd.base.errors import WouldLoseData
from awsomefsd.base.sockets import readable
from awsomefsd.cli import main as command_line
from awsomefsd.cli.main import COMMANDS, Invocation
from awsomefsd.cli.output import print_table
from awsomefsd.cli.processes import mount_helper
from awsomefsd.cluster.pki import founding_token

MIB = 1 << 20
HELP_MODULES_MAX = 200  # what it takes is imports; 121 were needed


class Node:
    """A daemon process with a state and a run directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.options = ["--state-dir", str(directory / "state"), "--run-dir", str(directory / "run")]
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, after: Callable[[Any], None] | None = None, **environment: str) -> float:
        """Returns how long it took to be ready, in seconds.  `after` gets the manager's socket when it is."""
        began = time.monotonic()
        log = (self.directory / "daemon.log").open("ab")
        environ = {key: value for key, value in program.environment().items() if not key.startswith("AWSOMEFSD_")} | environment
        with log, self._manager() as manager:
            environ["NOTIFY_SOCKET"] = str(self.directory / "notify")
            self.process = subprocess.Popen(program.command("run", *self.options), stdout=log, stderr=log, env=environ)
            if not readable([manager.fileno()], 60):
                raise AssertionError((self.directory / "daemon.log").read_text())
            manager.settimeout(60)
            while not (word := manager.recv(512)).startswith(b"READY=1"):
                assert word == b"WATCHDOG=1"  # the metadata serves before the daemon does
            seconds = time.monotonic() - began
            if after is not None:
                after(manager)
        return seconds

    def _manager(self) -> Any:
        import socket

        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        (self.directory / "notify").unlink(missing_ok=True)
        manager.bind(str(self.directory / "notify"))
        return manager

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(60)

    def cli(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        code = command_line.run([*self.options, *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for name in list(os.environ):
        if name.startswith("AWSOMEFSD_"):
            monkeypatch.delenv(name)
    made = Node(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = command_line.run(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_life_of_a_node(node: Node, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """init → run → device → volume → status → log → kill → again, and fsck at the end."""
    code, out, _ = node.cli(capsys, "init", "-o", "json")
    assert code == 0 and set(json.loads(out)) == {"cluster", "node", "site", "state_dir"}
    assert node.cli(capsys, "init")[0] == 1
    node.start()
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    code, out, _ = node.cli(capsys, "device", "add", str(disk), "-o", "json")
    assert code == 0 and json.loads(out)["state"] == "ok" and json.loads(out)["bytes"] == 64 * MIB
    assert node.cli(capsys, "device", "add", str(disk))[0] == 1
    assert node.cli(capsys, "volume", "create", "demo", "--quota", "1G")[0] == 0
    code, out, _ = node.cli(capsys, "volume", "ls", "-o", "json")
    (row,) = json.loads(out)
    assert code == 0 and row["name"] == "demo" and row["quota_bytes"] == 1 << 30 and row["mounted"] == ""
    code, out, _ = node.cli(capsys, "status", "-o", "json")
    status = json.loads(out)
    assert code == 3 and status["degraded"] and "keeper" in status["reasons"][0] and len(status["devices"]) == 1
    code, out, _ = node.cli(capsys, "log", "follow", "--no-wait", "-o", "json")
    changes = [json.loads(line) for line in out.splitlines()]
    asked = [change for change in changes if change["command"] in ("Init", "AddDevice", "CreateVolume")]  # a daemon adds some of its own
    assert [change["command"] for change in asked] == ["Init", "AddDevice", "CreateVolume"] and asked[2]["fields"]["name"] == "demo"
    assert node.stop(signal.SIGKILL) == -signal.SIGKILL
    node.start()
    code, out, _ = node.cli(capsys, "volume", "ls", "-o", "json")
    assert json.loads(out) == [row]
    assert node.cli(capsys, "fsck")[0] == 8, "a running daemon holds the state"
    assert node.stop() == 0
    code, out, _ = node.cli(capsys, "fsck", "-o", "json")
    sound = {"clean": True, "faults": [], "remaining": [], "actions": [], "volumes": 1, "files": 1, "devices": 1}
    assert code == 0 and json.loads(out) == sound
    with disk.open("r+b") as file:
        file.write(bytes(4096))
        file.seek(-MIB, os.SEEK_END)
        file.write(bytes(4096))
    code, out, _ = node.cli(capsys, "fsck", "-o", "json")
    assert code == 4 and json.loads(out)["faults"][0]["where"] == f"device {disk}"


def test_what_would_lose_data_is_refused(node: Node, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    node.cli(capsys, "init")
    node.start()
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(65_536 + 64)
        file.write(b"_BHRfS_M")
        file.seek(1080)
        file.write(b"\x53\xef")
        file.seek(0)
        file.write(b"precious")
    code, _, err = node.cli(capsys, "device", "add", str(disk))
    if code == 0:
        pytest.skip("blkid does not see a signature in these bytes")
    assert code == 4 and "--force" in err and disk.read_bytes()[:8] == b"precious"
    code, _, err = node.cli(capsys, "device", "add", str(disk), "--force", "--yes-destroy", "/dev/other")
    assert code == 4 and "nothing was done" in err and disk.read_bytes()[:8] == b"precious"
    assert node.cli(capsys, "device", "add", str(disk), "--force", "--yes-destroy", str(disk))[0] == 0
    assert disk.read_bytes()[:8] == b"awsomefs"


def test_volumes(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.cli(capsys, "init")
    node.start()
    assert node.cli(capsys, "volume", "create", "one", "--quota-files", "10", "--mode", "1777")[0] == 0
    for words, text in (
        (("create", "one"), "choose another name"),
        (("create", "a/b"), "is no volume name"),
        (("create", "-o", "json", "--", "-x"), "is no volume name"),
        (("show", "two"), "volumes: one"),
        (("set", "two", "--quota", "1G"), "volume create two"),
        (("delete", "two"), "there is no volume"),
    ):
        code, _, err = node.cli(capsys, "volume", *words)
        assert code == 1 and text in err and "Traceback" not in err, words
    code, out, _ = node.cli(capsys, "volume", "set", "one", "--name", "two", "--quota", "512MiB", "-o", "json")
    assert code == 0 and json.loads(out)["name"] == "two" and json.loads(out)["quota_bytes"] == 512 * MIB
    assert json.loads(out)["quota_inodes"] == 10, "what is not given stays"
    assert node.cli(capsys, "volume", "set", "two")[0] == 2 and node.cli(capsys, "volume", "set", "two", "--quota", "lots")[0] == 2
    assert node.cli(capsys, "volume", "delete", "two", "--force", "--yes-destroy", "one")[0] == 4
    assert node.cli(capsys, "volume", "release", "two", "--node", "gone", "--yes-release", "other")[0] == 4
    code, _, err = node.cli(capsys, "volume", "release", "two", "--node", "gone", "--yes-release", "gone")
    assert code == 1 and "has no claim on volume two (nodes with claims: none)" in err
    assert node.cli(capsys, "volume", "delete", "two")[0] == 0
    assert json.loads(node.cli(capsys, "volume", "ls", "-o", "json")[1]) == []


def test_follow_with_a_reader_goes_on_where_it_stood(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.cli(capsys, "init")
    node.start()
    node.cli(capsys, "volume", "create", "one")

    def commands(*words: str) -> list[str]:
        code, out, err = node.cli(capsys, "log", "follow", "--no-wait", "-o", "json", *words)
        assert code == 0, err
        return [json.loads(line)["command"] for line in out.splitlines()]

    first = commands("--reader", "audit")
    assert first[0] == "Init" and first.count("Init") == first.count("CreateVolume") == 1
    node.cli(capsys, "volume", "create", "two")
    then = commands("--reader", "audit")
    assert then.count("CreateVolume") == 1 and "Init" not in then
    assert node.cli(capsys, "log", "remove-reader", "audit")[0] == 0 and node.cli(capsys, "log", "remove-reader", "audit")[0] == 1


def test_metrics_are_served(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    from awsomefsd.base import sockets

    node.cli(capsys, "init")
    node.start(AWSOMEFSD_METRICS_LISTEN="unix")
    with sockets.connect_unix(node.directory / "run" / "metrics.sock") as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = sock.makefile("rb").read().decode()
    applied = re.search(r"^awsomefsd_meta_applied (\S+)$", text, re.MULTILINE)
    assert applied and float(applied[1]) >= 1 and "awsomefsd_keeper_up 0.0" in text


def test_scrub_beside_a_daemon(node: Node, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    node.cli(capsys, "init")
    node.start()
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    assert node.cli(capsys, "device", "add", str(disk))[0] == 0
    assert node.cli(capsys, "volume", "create", "demo")[0] == 0
    code, out, _ = node.cli(capsys, "scrub", "status")
    assert code == 0 and "scrub never" in out
    with disk.open("r+b") as file:
        file.seek(60)
        file.write(b"\xff")
    assert node.cli(capsys, "scrub", "start", "--rate", "1G")[0] == 0
    deadline = time.monotonic() + 60
    while True:
        code, out, _ = node.cli(capsys, "scrub", "status", "-o", "json")
        found = json.loads(out)
        if found["state"] not in ("rows", "journal", "devices", "segments"):
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert code == 0 and found["state"] == "done", found
    assert [finding["kind"] for finding in found["findings"]] == ["superblock"] and int(found["repaired"]) == 1
    code, out, _ = node.cli(capsys, "scrub", "stop")
    assert code == 0 and "[repaired]" in out


def test_second_daemon(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.cli(capsys, "init")
    node.start()
    done = subprocess.run(program.command("run", *node.options), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "is in use by process" in done.stderr


def test_nobody_answers(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("status",), ("volume", "ls"), ("device", "ls"), ("mount", "a", "/mnt"), ("umount", "a"), ("log", "follow")):
        code, out, err = node.cli(capsys, *words)
        assert code == 1 and out == "" and "start it with `awsomefsd run`" in err and "Traceback" not in err, words


def test_an_index_of_the_log_that_no_log_has_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "log", "follow", "--from", str(2**64))
    assert code == 2 and "--from" in err and "a bug" not in err


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("volme",), ("volume", "nothing"), ("status", "--what"), ("mount", "one"), ("device", "add")):
        code, _, err = run(capsys, *words)
        assert code == 2 and err, words
    assert "did you mean volume" in run(capsys, "volme")[2]


def test_a_question_that_nobody_answers_names_the_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for words, option in (
        (("volume", "delete", "v", "--force"), "the name of the volume with --yes-destroy"),
        (("volume", "release", "v", "--node", "n"), "the node with --yes-release"),
        (("device", "add", "/dev/x", "--force"), "the path of the device with --yes-destroy"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 130 and f"nothing was done; a script gives {option}" in err


@pytest.mark.parametrize("option", ["--state-dir", "--run-dir", "--config"])
def test_an_empty_path_is_no_directory(capsys: pytest.CaptureFixture[str], option: str) -> None:
    for words in ((option, "", "config", "show"), ("config", "show", option, "")):
        code, out, err = run(capsys, *words)
        assert (code, out) == (2, "") and "the path is empty" in err


def test_a_mount_without_a_directory_or_a_volume_is_wrong_usage(
    asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("mount", "demo", ""), ("mount", "-r"), ("mount", "-O", "shared"), ("mount", "demo")):
        code, _, err = run(capsys, *words)
        assert code == 2 and ("the path is empty" in err or "missing" in err), (words, err)
    code, _, err = run(capsys, "mount-helper", "demo", "")
    assert code == mount_helper.BAD_USAGE and "the path is empty" in err
    assert not asked, "the daemon was asked to mount on the directory that somebody happened to be in"


def test_an_empty_reader_and_no_intervals_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A script whose variable is not set would get an audit log that forgets where it stood, or a command that never ends."""
    for words in (("events", "--reader", ""), ("log", "follow", "--reader", ""), ("stats", "--count", "0"), ("top", "--count", "0")):
        assert run(capsys, *words, "--run-dir", "/nonexistent")[0] == 2, words


@pytest.mark.parametrize("number", ["-1", str(2**63), "1" * 20, "nan"])
def test_a_quota_of_files_that_cannot_be_stored_is_wrong_usage(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "volume", "create", "v", f"--quota-files={number}")
    assert code == 2 and "--quota-files" in err


def test_columns_of_numbers_are_aligned_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "LONG SIZE"], [["a", "1"], ["b", "222"]], right=("LONG SIZE",))
    head, _, first, second = capsys.readouterr().out.splitlines()
    assert (head, first, second) == ("NAME   LONG SIZE", "a              1", "b            222")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        code, out, _ = run(capsys, name, "--help")
        assert code == 0 and "Usage: awsomefsd" in out, name


def test_the_help_of_a_group_cuts_no_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        out = run(capsys, name, "--help")[1]
        assert "..." not in out.partition("\nCommands:\n")[2], name
    assert "so that other nodes may use it." in " ".join(run(capsys, "volume", "--help")[1].split())


def test_help_imports_little() -> None:
    code = "import sys; sys.argv = ['awsomefsd', '--help']\nfrom awsomefsd.__main__ import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "heavy = {'grpc', 'pydantic', 'trio', 'rich', 'msgspec'} & set(sys.modules)\nassert not heavy, heavy"
    code += f"\nassert len(sys.modules) < {HELP_MODULES_MAX}, len(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=program.environment(), check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["awsomefsd.worker.process", "awsomefsd.keeper.server"])
def test_hot_processes_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}\nheavy = {{'grpc', 'pydantic', 'trio', 'rich', 'click', 'prometheus_client', 'lmdb'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + "\nassert not heavy, heavy"], check=True, env=program.environment())


def test_config_show_and_check(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.toml"
    file.write_text("site = 3\n")
    monkeypatch.setenv("AWSOMEFSD_LOG_LEVEL", "debug")
    code, out, _ = run(capsys, "--config", str(file), "--state-dir", "/x", "config", "show", "-o", "json")
    rows = {row["key"]: (row["value"], row["origin"]) for row in json.loads(out)}
    assert code == 0 and rows["site"] == (3, str(file)) and rows["state_dir"] == ("/x", "the command line")
    assert rows["log.level"] == ("debug", "AWSOMEFSD_LOG_LEVEL") and rows["run_dir"] == ("/run/awsomefsd", "default")
    assert run(capsys, "--config", str(file), "config", "check")[0] == 0
    file.write_text("sitee = 3\n")
    code, _, err = run(capsys, "config", "check", "--config", str(file))
    assert code == 1 and "did you mean site?" in err


def test_config_check_names_a_malformed_token(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon would say it where nobody looks, and wait.  What the token is may not be shown: it may be half of a right one."""
    made = founding_token.print_token(founding_token.make(3, (), 1 << 50))
    file = tmp_path / "a.toml"
    for text, words in (("zz", "is one word that begins with afs1-"), (made[:-9], "truncated"), (made[:-1], ""), ("afs2-abc", "newer")):
        file.write_text(f'token = "{text}"\n')
        code, _, err = run(capsys, "config", "check", "--config", str(file))
        assert code == 1 and f"token in {file}: " in err and words in err and text not in err
        assert run(capsys, "config", "show", "--config", str(file))[0] == 0, "a node that is in a cluster runs with the rest of a token"
    file.write_text(f'token = "{made}"\n')
    assert run(capsys, "config", "check", "--config", str(file))[0] == 0
    file.write_text("")
    monkeypatch.setenv("AWSOMEFSD_TOKEN", "zz")
    code, _, err = run(capsys, "config", "check", "--config", str(file))
    assert code == 1 and "token in the environment (AWSOMEFSD_TOKEN): " in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "version", "-o", "json")[1])["version"] == run(capsys, "--version")[1].split()[1]


def test_bugs_are_named_without_a_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_self: Invocation) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(Invocation, "client", bug)
    code, _, err = run(capsys, "status")
    assert code == 1 and "AWSOMEFSD_DEBUG=1" in err and "Traceback" not in err


class FakeClient:
    """Remembers what the mount helpers ask."""

    asked: list[tuple[str, dict[str, Any]]] = []

    def __init__(self, path: Path, waiting: object = None) -> None:
        self.path = path

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_exc: object) -> None: ...

    def call(self, rpc: str, timeout_s: float = 0, **fields: Any) -> Any:
        FakeClient.asked.append((rpc, {**fields, "socket": str(self.path)}))
        if fields.get("volume") == "lost":
            raise WouldLoseData("no")
        if rpc in ("SetVolume", "CreateVolume"):
            return pb.Volume(name=fields["name"], names="" if fields["name"] == "of-older-daemon" else fields["names"] or "durable")
        return (
            pb.MountPoint(volume=fields.get("volume", ""), directory=fields.get("directory", ""), power_cut="a power cut may take this")
            if rpc == "Mount"
            else pb.ListMountsReply(mounts=[pb.MountPoint(directory="/mnt", power_cut="a power cut may take that")])
            if rpc == "ListMounts"
            else pb.UmountReply(flushed=True)
        )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    monkeypatch.setattr("awsomefsd.admin.client.AdminClient", FakeClient)
    FakeClient.asked = []
    return FakeClient.asked


def test_mount_helper_as_mount_8_calls_it(asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "mount-helper", "demo", "/mnt", "-v", "-o", "rw,_netdev,noatime,run_dir=/elsewhere,x-a")
    assert code == 0 and "demo mounted on /mnt" in out and "a power cut may take this" in out
    rpc, fields = asked[0]
    assert rpc == "Mount" and fields["socket"] == "/elsewhere/admin.sock" and fields["options"] == ["rw", "_netdev", "noatime", "x-a"]
    code, _, err = run(capsys, "mount-helper", "demo", "/mnt", "-o", "nosiud")
    assert code == mount_helper.BAD_USAGE and "nosiud" in err and len(asked) == 1
    assert run(capsys, "mount-helper", "demo", "/mnt", "-s", "-n", "-o", "nosiud,ro")[0] == 0 and asked[1][1]["options"] == ["ro"]
    assert run(capsys, "mount-helper", "demo", "/mnt", "-f")[0] == 0 and len(asked) == 2
    words = "nosiud,shared,consistency=bounded=5"
    assert run(capsys, "mount-helper", "demo", "/mnt", "-s", "-o", words)[0] == 0, "what is known beside shared is not left out"
    assert asked[2][1]["options"] == words.split(",")[1:]
    assert run(capsys, "mount-helper", "demo", "/mnt", "-o", "rw,multinode")[0] == 0 and asked[3][1]["options"] == ["rw", "shared"]
    assert run(capsys, "mount-helper", "lost", "/mnt")[0] == mount_helper.FAILED


def test_mount_says_what_a_power_cut_may_take(asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    assert "a power cut may take this" in run(capsys, "mount", "demo", "/mnt")[1].splitlines()
    assert "/mnt: a power cut may take that" in run(capsys, "mount")[1].splitlines() and asked[-1][1]["power_cut"]
    assert json.loads(run(capsys, "mount", "-o", "json")[1])[0]["power_cut"] == "a power cut may take that"
    assert json.loads(run(capsys, "mount", "demo", "/mnt", "-o", "json")[1])["power_cut"] == "a power cut may take this"
    for names, words in (("durable", "no change of a name"), ("delegated", "newest changes of names")):
        assert words in run(capsys, "volume", "create", "v", "--names", names)[1]


@pytest.mark.parametrize(
    ("words", "why"),
    [("mount-helper demo", "'DIRECTORY'"), ("mount-helper demo /mnt -V", "No such option '-V'"), ("umount-helper", "'DIRECTORY'")],
)
def test_helpers_exit_as_mount_8_says_after_wrong_usage(words: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *words.split())
    assert code == mount_helper.BAD_USAGE and "Usage:" in err and why in err


def test_umount_helper_as_umount_8_calls_it(asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "umount-helper", "/mnt", "-f", "-v", "-t", "fuse.awsomefs")[0] == 0
    assert asked[0][0] == "Umount" and asked[0][1]["target"] == "/mnt" and asked[0][1]["force"]


def test_when_names_are_durable_is_changed_by_a_word_that_the_daemon_knows(
    asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, why in (
        ("set v --names eventually", "'durable'"),
        ("set v --names", "requires an argument"),
        ("set v --name delegated", "--names delegated"),  # one letter less would give the volume that name
        ("set v", "--names"),
    ):
        code, _, err = run(capsys, "volume", *words.split())
        assert code == 2 and why in err and not asked, words
    code, out, _ = run(capsys, "volume", "set", "v", "--names", "delegated")
    assert code == 0 and "names=delegated" in out and "mount it again" in out
    assert "mount it again" not in run(capsys, "volume", "set", "v", "--quota", "1G")[1]
    code, out, err = run(capsys, "volume", "set", "of-older-daemon", "--names", "delegated")
    assert code == 1 and "restart the daemon" in err and not out


def test_a_volume_is_made_with_its_names_or_not_at_all(asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "volume", "create", "v", "--names", "eventually")
    assert code == 2 and "'durable'" in err and not asked
    assert run(capsys, "volume", "create", "v")[0] == 0 and asked.pop()[1]["names"] == "", "the daemon knows the level of the cluster"
    assert run(capsys, "volume", "create", "v", "--names", "durable")[0] == 0 and asked.pop()[1]["names"] == "durable"
    assert run(capsys, "volume", "create", "v", "--quota", "1G", "--names", "delegated")[0] == 0
    _, fields = asked.pop()
    assert (fields["names"], fields["quota_bytes"], fields["mode"]) == ("delegated", 1 << 30, 0o755)
    code, out, err = run(capsys, "volume", "create", "of-older-daemon", "--names", "delegated")
    assert code == 1 and "restart the daemon" in err and not out
    assert [rpc for rpc, _ in asked] == ["CreateVolume", "DeleteVolume"], "it was made without, and is gone again"
    assert run(capsys, "volume", "create", "of-older-daemon")[0] == 0, "such a daemon makes volumes as ever"


@pytest.mark.parametrize("words", [("create", ""), ("show", ""), ("delete", ""), ("set", "", "--quota", "1G"), ("set", "v", "--name", "")])
def test_an_empty_name_of_a_volume_is_wrong_usage(
    asked: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, _, err = run(capsys, "volume", *words)
    assert code == 2 and "volume ls" in err and not asked


def test_client_of_tests_looks_like_the_real_one() -> None:
    import inspect

    assert list(inspect.signature(AdminClient.call).parameters)[:3] == list(inspect.signature(FakeClient.call).parameters)[:3]


def test_umount_all_goes_on_after_a_failure(
    asked: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deeper ones first; what cannot be unmounted is named, and the rest is unmounted all the same."""

    def call(self: FakeClient, rpc: str, timeout_s: float = 0, **fields: Any) -> Any:
        if rpc == "ListMounts":
            return pb.ListMountsReply(mounts=[pb.MountPoint(directory=name) for name in ("/a", "/a/b", "/c")])
        FakeClient.asked.append((rpc, fields))
        if fields["target"] == "/a/b":
            raise WouldLoseData("somebody is in it")
        return pb.UmountReply(directory=fields["target"], flushed=True)

    monkeypatch.setattr(FakeClient, "call", call)
    code, out, err = run(capsys, "umount", "--all")
    assert code == 1 and "/a/b: somebody is in it" in err and "unmounted /c" in out
    assert [fields["target"] for _, fields in asked] == ["/c", "/a/b", "/a"]
    assert run(capsys, "umount")[0] == run(capsys, "umount", "--all", "x")[0] == 2


@pytest.mark.parametrize("words", [("stats", "--interval", "nan"), ("top", "--interval", "nan"), ("bench", "--seconds", "nan")])
def test_nan_is_no_number_of_seconds(words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["--run-dir", str(tmp_path), *words]) == command_line.USAGE
    assert "nan is no number" in capsys.readouterr().err
