"""The supervisor with real processes: restart, its own death, its end, and bounded logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from awsomefsd.keeper import supervisor
from awsomefsd.keeper.process import start_time_of
from awsomefsd.keeper.supervisor import Child, Supervisor
from tests.unit.keeper.keeper_host import ROOT, end_of, until

SLEEP = "exec sleep 600"
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts supervisors in tmp_path; at the end they and what they started are gone."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*children: str, log_bytes_max: int = 1 << 20, run_dir: Path = tmp_path) -> subprocess.Popen[bytes]:
        words = [str(run_dir), str(tmp_path / "state"), str(log_bytes_max), *children]
        argv = [sys.executable, "-m", "tests.unit.keeper.supervisor_program", *words]
        with (tmp_path / "supervisor.log").open("ab") as log:
            started.append(subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
    for pid in pids(tmp_path).values():
        if os.path.exists(f"/proc/{pid}/fd") and str(tmp_path) in os.path.realpath(f"/proc/{pid}/fd/2"):
            os.kill(pid, signal.SIGKILL)


def pids(directory: Path) -> dict[str, int]:
    try:
        return {name: int(pid) for name, (pid, _) in json.loads((directory / "supervisor.json").read_text()).items()}
    except FileNotFoundError:
        return {}


def all_of(directory: Path, *names: str) -> dict[str, int]:
    return dict(until(f"{names} to run", lambda: (found := pids(directory)) and set(found) == set(names) and found))


def test_restarts_what_was_killed_and_nothing_else(start: Start, tmp_path: Path) -> None:
    start(f"keeper={SLEEP}", f"daemon={SLEEP}")
    for name in ("daemon", "keeper"):
        before = all_of(tmp_path, "keeper", "daemon")
        os.kill(before[name], signal.SIGKILL)
        after = until("its successor", lambda old=before, name=name: (new := pids(tmp_path)).get(name, old[name]) != old[name] and new)
        assert {key: pid for key, pid in after.items() if key != name} == {key: pid for key, pid in before.items() if key != name}


def test_a_supervisor_that_was_killed_takes_its_children_up(start: Start, tmp_path: Path) -> None:
    first = start(f"daemon={SLEEP}")
    before = all_of(tmp_path, "daemon")
    first.kill()
    first.wait()
    second = start(f"daemon={SLEEP}")
    until("to take it up", lambda: b"taken up" in (tmp_path / "supervisor.log").read_bytes())
    assert pids(tmp_path) == before
    second.terminate()
    assert second.wait(60) == 0
    end_of(before["daemon"])


def test_sigterm_ends_segment_server_daemon_then_keeper_and_nobody_else(start: Start, tmp_path: Path) -> None:
    order = tmp_path / "order"
    worker = tmp_path / "worker.pid"
    note = f"trap 'echo $0 >> {order}; exit 0' TERM; echo > {tmp_path}/$0.trapped; while :; do sleep 0.02; done"
    keeper = f"setsid sleep 600 & echo $! > {worker}.new; mv {worker}.new {worker}; {note.replace('$0', 'keeper')}"
    process = start(f"keeper={keeper}", *(f"{name}={note.replace('$0', name)}" for name in ("daemon", "segments")))
    all_of(tmp_path, "keeper", "daemon", "segments")
    worker_pid = int(until("the worker", lambda: worker.exists() and worker.read_text()))
    until("the shells' traps", lambda: all((tmp_path / f"{name}.trapped").exists() for name in ("keeper", "daemon", "segments")))
    process.terminate()
    assert process.wait(60) == 0
    try:
        assert order.read_text().split() == ["segments", "daemon", "keeper"]
        os.kill(worker_pid, 0)
    finally:
        os.kill(worker_pid, signal.SIGKILL)


def test_a_child_that_cannot_start_does_not_spin(start: Start, tmp_path: Path) -> None:
    count = tmp_path / "count"
    start(f"daemon=echo x >> {count}; exit 1")
    until("three starts", lambda: count.exists() and len(count.read_text().split()) >= 3)
    began = time.monotonic()
    before = len(count.read_text().split())
    until("two more", lambda: len(count.read_text().split()) >= before + 2)
    assert time.monotonic() - began > 0.5


def test_a_second_supervisor_is_refused(start: Start, tmp_path: Path) -> None:
    first = start(f"daemon={SLEEP}")
    all_of(tmp_path, "daemon")
    assert start(f"daemon={SLEEP}").wait(60) == 1
    assert f"another supervisor runs in {tmp_path} (process {first.pid}); stop it first" in (tmp_path / "supervisor.log").read_text()


def test_a_supervisor_of_another_run_directory_on_the_same_state_starts_nothing(start: Start, tmp_path: Path) -> None:
    """The daemon of a second one would end again and again, and its keeper would stay."""
    first = start(f"daemon={SLEEP}")
    all_of(tmp_path, "daemon")
    other = tmp_path / "other"
    assert start(f"keeper=touch {tmp_path}/started; {SLEEP}", run_dir=other).wait(60) == 1
    said = (tmp_path / "supervisor.log").read_text()
    assert f"another supervisor runs on {tmp_path}/state (process {first.pid}); stop it first" in said
    assert not (tmp_path / "started").exists() and pids(other) == {}



def test_a_child_runs_only_while_it_is_needed(start: Start, tmp_path: Path) -> None:
    """It is started when its file comes, started again while the file is there, and left alone when it has ended without it."""
    needed = tmp_path / "needed"
    start(f"daemon={SLEEP}", f"segments@needed={SLEEP}")
    all_of(tmp_path, "daemon")
    assert "segments" not in pids(tmp_path)
    needed.touch()
    first = all_of(tmp_path, "daemon", "segments")
    os.kill(first["segments"], signal.SIGKILL)
    second = until("its successor", lambda: (new := pids(tmp_path)).get("segments") not in (None, first["segments"]) and new)
    needed.unlink()
    os.kill(second["segments"], signal.SIGTERM)
    end_of(second["segments"])
    os.kill(second["daemon"], signal.SIGKILL)
    third = until("another daemon", lambda: (new := pids(tmp_path)).get("daemon") != second["daemon"] and new)
    assert set(third) == {"daemon"}, "the one that nobody needs was not started in the meantime"


def test_a_file_of_which_nobody_can_say_whether_it_is_there_ends_no_supervisor(tmp_path: Path) -> None:
    """As on a disk that answers EIO; here the name is too long to be asked for."""
    assert not Child("segments", ["true"], tmp_path / "log", tmp_path / ("x" * 300)).is_needed()


def test_the_pause_of_a_child_that_does_not_live_doubles_up_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now))
    child = Child("segments", ["true"], tmp_path / "log", healthy_s=10, pause_s_max=1.6)

    def pause_after(lived_s: float) -> float:
        nonlocal now
        child.start()
        now += lived_s
        child.ended()
        return round(child.due - now, 3)

    assert [pause_after(lived_s) for lived_s in (0, 0, 9.9, 0, 10, 0)] == [0.5, 1.0, 1.6, 1.6, 0.05, 0.5]


def test_logs_are_bounded(start: Start, tmp_path: Path) -> None:
    start("daemon=while :; do echo a line that fills the log; sleep 0.002; done", log_bytes_max=2_000)
    old = tmp_path / "daemon.log.1"
    until("rotation", old.exists)
    first = old.stat().st_mtime_ns
    until("a second rotation", lambda: old.stat().st_mtime_ns != first)
    until("a short log", lambda: (tmp_path / "daemon.log").stat().st_size < 50_000)


def test_supervisor_restarts_takes_up_and_ends(tmp_path: Path) -> None:
    """A child that is killed is started again; a second supervisor takes up the running one instead of starting another."""

    def watched() -> tuple[Child, Supervisor, int, threading.Thread]:
        child = Child("keeper", ["sleep", "600"], tmp_path / "log")
        supervisor = Supervisor(tmp_path, [child])
        reader, writer = os.pipe()
        thread = threading.Thread(target=supervisor.run, args=(reader,))
        thread.start()
        return child, supervisor, writer, thread

    def another_than(child: Child, pid: int) -> int:
        for _ in range(6_000):
            if child.pid not in (0, pid):
                return child.pid
            threading.Event().wait(0.01)
        raise AssertionError("nothing was started")

    child, _supervisor, writer, thread = watched()
    try:
        first = another_than(child, 0)
        os.kill(first, signal.SIGKILL)
        second = another_than(child, first)
        again = Child("keeper", ["false"], tmp_path / "log")
        for _ in range(6_000):  # a child is noted in the record right after its start
            Supervisor(tmp_path, [again])._take_up()
            if again.pid:
                break
            threading.Event().wait(0.01)
        assert again.pid == second and start_time_of(second)
        os.close(again.pidfd)
    finally:
        os.write(writer, b"x")
        thread.join(60)
        os.close(writer)
    assert child.pid == 0 and not (tmp_path / "supervisor.json").exists()
