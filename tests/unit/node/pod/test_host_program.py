"""Copies of the program on the host, and the way out of a pod's control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd import __version__
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base import program
from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.node.health.probes import not_ready
from awsomefsd.node.pod import enter_host, host_keeper, host_program


def test_a_copy_is_whole_runs_and_is_made_once(tmp_path: Path) -> None:
    (tmp_path / ".new-left").mkdir()
    copy = host_program.install(tmp_path)
    assert copy.home.parent == tmp_path and copy.home.name.startswith(f"{__version__}-")
    said = subprocess.run(
        copy.command("version"), env={"PATH": os.environ["PATH"], **copy.env}, cwd="/", capture_output=True, text=True, check=True
    )
    assert __version__ in said.stdout
    made = copy.home.stat()
    assert host_program.install(tmp_path) == copy and copy.home.stat().st_ino == made.st_ino, "pycache does not count"
    assert [path.name for path in tmp_path.iterdir()] == [copy.home.name]


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    copy = host_program.install(tmp_path)
    hurt = copy.home / "awsomefsd/base/limits.py"
    before = hurt.read_bytes()
    hurt.write_bytes(b"")  # as a power cut leaves it
    assert host_program.install(tmp_path) == copy and hurt.read_bytes() == before


def test_a_copy_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_words: Any, **_fields: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_program.shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        host_program.install(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_what_nobody_runs_from_is_removed(tmp_path: Path) -> None:
    kept, used, unused = (tmp_path / name for name in ("3-c", "2-b", "1-a"))
    for home in (kept, used, unused):
        home.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], env={"PYTHONPATH": str(used)}, stdin=subprocess.PIPE) as process:
        assert host_program.remove_unused(tmp_path, kept) == ["1-a"]
        process.communicate(b"\n")
    assert host_program.remove_unused(tmp_path, kept) == ["2-b"] and kept.exists()


V2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n37 31 0:34 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"


def test_control_groups_of_the_pod_are_left() -> None:
    of = enter_host.memberships
    assert enter_host.groups_to_join(of("0::/kubepods/pod1\n"), of("0::/init.scope\n"), V2) == {"": "/sys/fs/cgroup/awsomefs"}
    ours, inits = of("4:memory:/kubepods/p\n2:cpu,cpuacct:/\n"), of("4:memory:/\n2:cpu,cpuacct:/\n")
    assert enter_host.groups_to_join(ours, inits, V1) == {"memory": "/sys/fs/cgroup/memory"}, "one where nothing is to be left stays"
    assert enter_host.groups_to_join(of("0::/\n"), of("0::/\n"), "") == {}
    with pytest.raises(OSError, match="memory"):
        enter_host.groups_to_join(ours, inits, V2)


def test_a_program_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    words = program.command("enter-host", "--init", "self", "--log", str(tmp_path / "log" / "x"), "--")
    done = subprocess.run([*words, "/nowhere/program"], capture_output=True, text=True, env=program.environment(), check=False)
    assert done.returncode == 1 and "/nowhere/program: No such file" in done.stderr
    done = subprocess.run([*words, "/bin/echo", "hello"], capture_output=True, text=True, env=program.environment(), check=False)
    assert done.returncode == 0 and "entered: none" in done.stdout


class FakeKeeper:
    """The keeper as host_keeper asks it."""

    def __init__(self) -> None:
        self.home = ""  # none runs
        self.rows: list[dict[str, Any]] = []
        self.asked: list[str] = []

    def ping(self) -> dict[str, Any]:
        if not self.home:
            raise Unavailable("no keeper")
        return {"pid": 7, "home": self.home}

    def list(self) -> list[dict[str, Any]]:
        return self.rows

    def upgrade(self, argv: list[str], env: dict[str, str]) -> dict[str, Any]:
        self.asked.append("upgrade")
        self.home = env["PYTHONPATH"]
        return {"pid": 7, "version": "x"}

    def replace(self, mount: str, argv: list[str], env: dict[str, str]) -> dict[str, Any]:
        self.asked.append(f"replace {mount}")
        if mount == "bad":
            raise FsError(5, "it did not come up")
        row = next(row for row in self.rows if row["mount"] == mount)
        row |= {"home": env["PYTHONPATH"], "starts": {"argv": argv, "env": env}}
        return {"pid": 8, "version": "x"}


def host(tmp_path: Path, keeper: FakeKeeper) -> host_keeper.HostKeeper:
    log = SimpleNamespace(level="info", format="text")
    settings: Any = SimpleNamespace(state_dir=tmp_path, run_dir=tmp_path / "run", log=log)

    def start(argv: list[str]) -> str:
        keeper.asked.append("start")
        keeper.home = str(next((tmp_path / "bin").iterdir()))
        return "here"

    return host_keeper.HostKeeper(settings, keeper, start)  # type: ignore[arg-type]


def row(mount: str, home: str = "/old", state: str = "serving") -> dict[str, Any]:
    return {"mount": mount, "dir": f"/{mount}", "state": state, "home": home, "starts": {}}


@pytest.mark.skipif(os.path.lexists(host_keeper.UNIT), reason="this machine has a keeper of its own enabled")
def test_a_keeper_is_started_where_none_answers(tmp_path: Path) -> None:
    keeper = FakeKeeper()
    made = host(tmp_path, keeper)
    made.poll()
    assert keeper.asked == ["start"] and made.problem == ""
    made.poll()
    assert keeper.asked == ["start"]


def test_keeper_and_workers_become_this_version_one_by_one(tmp_path: Path) -> None:
    keeper = FakeKeeper()
    made = host(tmp_path, keeper)
    old = tmp_path / "bin" / "0.0.1-aa"
    old.mkdir()
    keeper.home, keeper.rows = str(old), [row("a"), row("b"), row("c", state="unmounting")]
    for expected in (["upgrade"], ["upgrade", "replace a"], ["upgrade", "replace a", "replace b"]):
        made.poll()
        assert keeper.asked == expected
    made.poll()
    assert len(keeper.asked) == 3 and old.exists(), "a mount that is of the old version keeps its files"
    keeper.rows.pop()
    made.poll()
    assert not old.exists() and made.problem == ""


def test_a_keeper_of_a_package_stays_and_failures_are_told(tmp_path: Path) -> None:
    keeper = FakeKeeper()
    made = host(tmp_path, keeper)
    keeper.home, keeper.rows = "/usr/lib/awsomefsd", [row("bad")]
    made.poll()
    made.poll()
    assert keeper.asked == ["replace bad"], "and it is not tried again at once"
    assert made.problem == "it did not come up"


def test_without_a_copy_nothing_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_keeper.host_program, "install", full)
    made = host(tmp_path, FakeKeeper())
    with pytest.raises(Unavailable, match="No space left"):
        made.worker()


def status(leader: str = "a", keeper: bool = True, **own: Any) -> pb.Status:
    members = [pb.Member(node="a", leader=True, heard=True), pb.Member(node="b", **own)] if own else []
    return pb.Status(node="b", keeper=keeper, metadata=pb.Metadata(leader=leader, members=members))


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (status(), ""),
        (status(heard=True), ""),
        (status(leader=""), "lead"),
        (status(heard=False), "not heard"),
        (status(keeper=False), "keeper"),
        (pb.Status(reasons=["waits for 2 more"]), "2 more"),
    ],
)
def test_who_is_ready(seen: pb.Status, word: str) -> None:
    found = not_ready(seen)
    assert word in found and bool(found) == bool(word)


def test_the_probe_of_a_pod_asks_the_daemon(tmp_path: Path) -> None:
    words = program.command("probe")
    env = {**program.environment(), "AWSOMEFSD_RUN_DIR": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "admin.sock" in done.stderr
    assert subprocess.run([*words, "/"], env=env, check=False).returncode == 0
