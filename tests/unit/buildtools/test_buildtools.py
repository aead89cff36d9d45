"""The build's own tools: what they own they find, what they do not own they leave alone, and the verifying client verifies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from awsomefsd.keeper import mount_syscalls
from buildtools import chaos, cluster, commands, leader, lint, load, parts, procs
from buildtools.nodes import MARKER, Node
from buildtools.say import BuildError, parse_size, size


@pytest.fixture
def sleeper():
    """Starts idle processes, with or without a node's mark; all are gone afterwards."""
    started = []

    def start(directory: Path | None, *words: str) -> subprocess.Popen[bytes]:
        env = {key: value for key, value in os.environ.items() if key != procs.MARK}
        code = "import sys; print('ready', flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env | ({procs.MARK: str(directory)} if directory else {}),
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# --- ownership ----------------------------------------------------------------------------------------------------------------
def test_only_marked_processes_are_owned_and_killed(sleeper, tmp_path):
    mine, other, neighbour, nobody = (sleeper(place, "worker") for place in (tmp_path, tmp_path / "x", Path(f"{tmp_path}x"), None))
    assert procs.owned(str(tmp_path)) == {mine.pid: "worker"}
    wanted = {process.pid: "worker" for process in (mine, other, neighbour, nobody)}
    assert procs.kill(str(tmp_path), wanted) == [mine.pid]
    assert mine.wait(60) == -signal.SIGKILL
    assert all(process.poll() is None for process in (other, neighbour, nobody))
    assert procs.owned(str(tmp_path)) == {}


def test_roles(sleeper, tmp_path):
    cases = {"supervise": "supervisor", "keeper": "keeper", "run": "daemon", "worker": "worker", "awsomefsd.worker": "worker", "mount": ""}
    found = {sleeper(tmp_path, word).pid: role for word, role in cases.items()}
    assert procs.owned(str(tmp_path)) == found


def test_the_program_that_looks_is_none_of_them(sleeper, tmp_path):
    """Though it has the mark of the shell that it is typed into, and names a role."""
    daemon = sleeper(tmp_path, "run")
    words = [sys.executable, procs.__file__, str(tmp_path), "daemon"]
    told = subprocess.run(words, env=os.environ | {procs.MARK: str(tmp_path)}, capture_output=True, text=True, check=True).stdout
    assert told.split() == [str(daemon.pid)]


def test_node_kills_by_role_and_proves_it(sleeper, tmp_path):
    node = Node(tmp_path)
    worker, daemon = sleeper(tmp_path, "worker"), sleeper(tmp_path, "run")
    assert node.kill("worker", "daemon") == {"worker": worker.pid, "daemon": daemon.pid}
    worker.wait(60)
    with pytest.raises(BuildError, match="a new worker"):
        node.replaced("worker", worker.pid, timeout_s=0.05)
    successor = sleeper(tmp_path, "worker")
    assert node.replaced("worker", worker.pid) == successor.pid
    with pytest.raises(BuildError, match="a daemon process"):
        node.pid("daemon", timeout_s=0.05)


def test_a_process_that_ends_while_its_node_is_paused_is_not_waited_for(sleeper, tmp_path, monkeypatch):
    """Its parent stands still and does not reap it."""
    made = cluster.Cluster(tmp_path, 1)
    keeper, ending = sleeper(made.nodes[0].directory, "keeper"), sleeper(made.nodes[0].directory, "mount")
    real = procs.kill

    def kill(directory: str, wanted: dict[int, str], number: int = signal.SIGKILL) -> list[int]:
        hit = real(directory, wanted, number)
        if ending.pid in wanted:
            ending.kill()
        return hit

    monkeypatch.setattr(procs, "kill", kill)
    monkeypatch.setattr(cluster, "STOPPED_S", 5.0)
    assert sorted(made.pause(made.nodes[0])) == sorted([keeper.pid, ending.pid])
    assert procs.state(keeper.pid) == "T"


def test_a_service_that_says_nothing_has_no_counts(tmp_path):
    with pytest.raises(BuildError, match="nobody says"):
        leader.requests(tmp_path / "meta.sock")


def test_foreign_directories_are_refused(tmp_path):
    (tmp_path / "precious").write_text("precious")
    with pytest.raises(BuildError, match="not one of ours"):
        Node(tmp_path).prepare()
    with pytest.raises(BuildError, match="nothing was deleted"):
        Node(tmp_path).destroy()
    assert (tmp_path / "precious").read_text() == "precious"


def test_prepare_twice_then_destroy_leaves_nothing(tmp_path):
    node = Node(tmp_path / "with space", use_loop=False)
    node.prepare()
    node.prepare()
    assert node.attach() == node.disk
    assert node.disk.samefile(node.image)
    assert (node.directory / MARKER).exists()
    node.destroy()
    assert not node.directory.exists()


def test_env_is_sourced_by_a_shell_and_prints_pids(sleeper, tmp_path):
    node = Node(tmp_path / "a 'quoted' name")
    node.prepare()
    worker = sleeper(node.directory, "worker")
    path = node.write_env()
    script = '. "$1"; eval "$WORKER_PIDS"; echo "$MOUNT"; eval "$DAEMON_PIDS"'
    said = subprocess.run(["sh", "-c", script, "sh", path], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [str(worker.pid), str(node.mountpoint)]


def test_settings_of_the_callers_shell_do_not_reach_the_node(tmp_path, monkeypatch):
    monkeypatch.setenv("AWSOMEFSD_STATE_DIR", "/elsewhere")
    env = Node(tmp_path, pins="resend=off").environment()
    assert "AWSOMEFSD_STATE_DIR" not in env
    assert env["AWSOMEFSD_FUSE_PINS"] == "resend=off"


# --- the verifying client -----------------------------------------------------------------------------------------------------
@pytest.fixture
def client(tmp_path, seed):
    worker = load.Client(str(tmp_path), seed)
    yield worker
    os.close(worker.orphan)
    os.close(worker.journal)


def test_client_finds_no_error_where_there_is_none(client, tmp_path):
    for _ in range(1500):
        client.one()
    client.check_everything()
    final = client.report(final=True)
    assert final["errors"] == []
    assert {"create", "rename", "unlink", "append", "truncate", "lock_fcntl", "lock_flock", "read_back"} <= set(final["counts"])
    assert load.check_manifest(client.directory, final["manifest"]) == []
    assert chaos.check_counters(tmp_path, [final]) == []


def harm(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if kind == "flip" else data[:-1])


@pytest.mark.parametrize("kind", ["flip", "short"])
def test_client_finds_a_wrong_byte_and_a_short_file(client, kind):
    while not any(client.model[name] for name in client.model if name != "journal"):
        client.one()
    victim = next(name for name in client.model if name != "journal" and client.model[name])
    manifest = client.report(final=True)["manifest"]
    harm(Path(client.path(victim)), kind)
    client.check_everything()
    assert len(client.errors) == 1
    assert victim in client.errors[0]
    assert victim in load.check_manifest(client.directory, manifest)[0]


def test_a_lost_increment_and_a_lost_file_are_found(client, tmp_path):
    client.lock_fcntl()
    client.lock_flock()
    client.create()
    final = client.report(final=True)
    (tmp_path / "counter-flock").write_bytes((0).to_bytes(8, "little"))
    assert chaos.check_counters(tmp_path, [final]) == ["counter under flock locks says 0, 1 increments were made"]
    os.unlink(client.path(next(name for name in client.model if name != "journal")))
    assert "missing" in load.check_manifest(client.directory, final["manifest"])[0]


def test_clients_run_until_they_are_stopped(tmp_path, seed):
    clients = chaos.Clients(tmp_path / "load", 2, seed)
    try:
        clients.await_progress(200)
        finals = clients.finish()
    finally:
        clients.abandon()
    assert [error for final in finals for error in final["errors"]] == []
    assert chaos.check_counters(tmp_path / "load", finals) == []
    assert chaos.check_after_remount(finals) == []


def test_stalls_belong_to_the_kill_they_follow():
    kills = [chaos.Kill(10.0, ("worker",), 0.1), chaos.Kill(12.0, ("daemon",), 0.5), chaos.Kill(14.0, ("worker",), 0.2)]
    slow = [(5.0, 0.2, "before"), (9.9, 0.3, "first"), (11.9, 1.5, "second"), (12.2, 0.3, "queued"), (14.0, 0.4, "third")]
    slow.append((30.0, 9.0, "long after"))
    account = chaos.Account(seconds=10, operations=5000, kills=kills, slow=slow)
    assert account.longest_stall_s("worker") == 0.4
    assert account.longest_stall_s("daemon") == 1.5
    assert account.longest_stall_s() == 9.0
    assert account.count("worker") == 2
    assert account.lines()[0] == "5,000 verified operations in 10.0 s (500/s), 0 errors"


# --- small things -------------------------------------------------------------------------------------------------------------
def test_sizes():
    assert [parse_size(text) for text in ("8G", "512M", "2GiB", "4096", "1t")] == [8 << 30, 512 << 20, 2 << 30, 4096, 1 << 40]
    for text in ("", "G", "0", "-1G", "8X", "1.5G"):
        with pytest.raises(BuildError, match="not understood"):
            parse_size(text)
    assert [size(count) for count in (5, 2048, 300 << 20, 3 << 40)] == ["5 B", "2.0 KiB", "300 MiB", "3.0 TiB"]


def test_lengths_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(lint, "CHECKOUT", tmp_path)
    path = tmp_path / "long.py"
    body = "".join(f"    x{number} = {number}\n" for number in range(60))
    path.write_text(f"def short():\n    pass\n\n\ndef long():\n{body}" + "\n" * 700)
    assert [row.split(" ")[0] for row in lint.too_long(path)] == ["long.py:", "long.py:5"]
    assert lint.without_docstring(path) == ["long.py: no docstring at its top"]


def test_a_test_that_cannot_be_imported_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(lint, "CHECKOUT", tmp_path)
    path = tmp_path / "tests" / "test_something.py"
    path.parent.mkdir()
    path.write_text("def test_it():\n    assert True\n")
    assert lint.not_collected(sys.executable) == []
    path.write_text("from awsomefsd.base.limits import NOTHING_OF_THE_KIND\n")
    assert any("NOTHING_OF_THE_KIND" in row for row in lint.not_collected(sys.executable))


def test_new_syntax_in_the_entry_point_is_found(tmp_path):
    path = tmp_path / "build.py"
    path.write_text("match 1:\n    case _:\n        pass\n")
    assert "does not parse on Python 3.9" in lint.old_python(path)[0]


def test_random_choice_is_replayed_by_the_seed(tmp_path):
    def names(folder: Path) -> list[str]:
        client = load.Client(str(folder), 7)
        try:
            for _ in range(60):
                client.one()
        finally:
            os.close(client.orphan)
            os.close(client.journal)
        return sorted(client.model)

    assert names(tmp_path / "one") == names(tmp_path / "two")


def test_each_run_draws_a_seed_and_a_given_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWSOMEFSD_SEED", raising=False)
    assert len({parts.drawn_seed() for _ in range(20)}) > 1
    monkeypatch.setenv("AWSOMEFSD_SEED", "17")
    assert {parts.drawn_seed() for _ in range(3)} == {"17"}


def test_the_parts_are_all_tests_and_none_twice() -> None:
    def chosen(words: list[str], path: str) -> bool:
        left_out = [word.removeprefix("--ignore=") for word in words if word.startswith("--ignore=")]
        return any(path == word or path.startswith(f"{word}/") for word in words) and not any(
            path == word or path.startswith(f"{word}/") for word in left_out
        )

    files = [str(path.relative_to(parts.CHECKOUT)) for path in (parts.CHECKOUT / "tests").rglob("test_*.py")]
    assert len(files) > 100
    for path in files:
        assert sum(chosen(part.words, path) for part in parts.parts()) == 1, path


def _runs(monkeypatch: pytest.MonkeyPatch, root: Path, texts: dict[str, str]) -> int:
    for name, text in texts.items():
        (root / name).mkdir()
        (root / name / f"test_{name}.py").write_text(text)
    monkeypatch.setattr(parts, "parts", lambda: [parts.Part([str(root / name)]) for name in texts])
    monkeypatch.setattr(parts, "OPTIONS", ("-ra", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(root)))
    kept = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        return parts.run(sys.executable)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), kept, strict=True):
            signal.signal(number, handler)


def test_a_part_that_fails_fails_the_whole_and_reports_stand_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    texts = {f"good{number}": "import pytest\n@pytest.mark.skip(reason='no such tool')\ndef test_a(): pass\n" for number in range(4)}
    assert _runs(monkeypatch, tmp_path, {**texts, "bad": "def test_b(): assert 0\n", "none": ""}) == 1
    said = capfd.readouterr().out
    assert said.index("What was skipped") < said.rindex("no such tool") < said.rindex("What failed") < said.rindex("test_bad.py::test_b")
    assert "FAILED" in said[: said.index("What was skipped")], "a run that is ended from outside has told nothing"


def test_a_signal_ends_all_parts_and_what_was_not_run_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    waits = "import os, pathlib, signal, time\ndef test_a():\n    {}\n    time.sleep(60)\n"
    texts = {f"waits{number}": waits.format("pass") for number in range(3)}
    texts["waits0"] = waits.format(f"os.kill({os.getpid()}, signal.SIGTERM)")
    assert _runs(monkeypatch, tmp_path, texts | {"later": "def test_b(): pass\n"}) != 0
    assert "later: was not run" in capfd.readouterr().err


@pytest.mark.root
def test_no_part_sees_or_holds_the_mounts_of_another() -> None:
    told = subprocess.run([*parts.apart(), "readlink", "/proc/self/ns/mnt"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() != os.readlink("/proc/self/ns/mnt")


@pytest.mark.root
def test_no_part_sees_a_mount_that_a_killed_run_has_left(tmp_path: Path) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount_syscalls.mount_fuse(fd, str(tmp_path), "lost", [], "")
    os.close(fd)
    try:
        told = subprocess.run([*parts.apart(), "cat", "/proc/self/mountinfo"], capture_output=True, text=True, check=True)
        assert " / / " in told.stdout and str(tmp_path) not in told.stdout
        assert str(tmp_path) in Path("/proc/self/mountinfo").read_text(), "it was taken from this host too"
    finally:
        mount_syscalls.umount(str(tmp_path), mount_syscalls.MNT_DETACH)


# --- seeds ---------------------------------------------------------------------------------------------------------------------
def test_each_run_draws_a_seed_and_a_seed_that_is_given_is_kept(monkeypatch):
    monkeypatch.setenv("AWSOMEFSD_SEED", "")
    assert len({parts.drawn_seed() for _ in range(8)}) > 1
    assert commands.take_seed(["tests/unit", "--seed", "4711", "-x"]) == ["tests/unit", "-x"]
    assert parts.drawn_seed() == "4711"
    assert commands.take_seed(["--seed=12"]) == [] and parts.drawn_seed() == "12"


@pytest.mark.parametrize("words", [["--seed"], ["--seed", "x"], ["--seed=-1"]])
def test_a_seed_that_is_no_number_is_refused(words, monkeypatch):
    monkeypatch.setenv("AWSOMEFSD_SEED", "1")
    with pytest.raises(BuildError, match="as in --seed 4711"):
        commands.take_seed(words)


def test_each_run_draws_a_seed_of_its_own_and_keeps_one_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWSOMEFSD_SEED", raising=False)
    assert len({parts.drawn_seed() for _ in range(8)}) > 1
    monkeypatch.setenv("AWSOMEFSD_SEED", "7")
    assert parts.drawn_seed() == "7"
