"""The daemon as a whole: what ends it, what it tells workers, and how it looks at itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.status import conflicts, memory_bytes, node_view, samples_of, tell
from awsomefsd.base import identity
from awsomefsd.base.errors import ConfigError, Refused
from awsomefsd.config.mount_options import parse
from awsomefsd.config.settings import Settings, load
from awsomefsd.daemon import daemon, worker_config
from awsomefsd.daemon.metadata_core import MetadataCore, begin
from awsomefsd.keeper.supervisor import Child, Supervisor, start_time_of
from awsomefsd.node.health.rules import of_node
from awsomefsd.node.mounts import DesiredMount


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = load(environ={}, state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    identity.init(made.state_dir)
    return made


@pytest.mark.trio
async def test_ends_when_the_metadata_service_does(settings: Settings) -> None:
    whole = daemon.Daemon(MetadataCore(settings))

    def fail() -> None:
        whole.metadata.service.error = OSError(5, "fdatasync failed")
        whole.metadata.service.failed.set()

    try:
        with trio.fail_after(10), pytest.raises(daemon.MetadataEnded, match="fdatasync failed"):
            await daemon.serve(whole, fail)
    finally:
        whole.close()
    assert not settings.admin_socket.exists()
    identity.StateLock(settings.state_dir).release()


def test_parts_that_cannot_be_built_leave_nothing_running(settings: Settings) -> None:
    settings.run_dir.mkdir()
    (settings.run_dir / "admin").touch()
    with pytest.raises(Refused):
        daemon.Daemon(MetadataCore(settings))
    identity.StateLock(settings.state_dir).release()


def test_the_metadata_serves_before_the_rest_is_imported(settings: Settings) -> None:
    """A mount waits for what is imported before; in a process of its own, for this one has imported everything."""
    words = (
        "import sys; from pathlib import Path\n"
        "from awsomefsd.config import settings; from awsomefsd.daemon import metadata_core\n"
        "first = metadata_core.begin(settings.load(environ={}, state_dir=Path(sys.argv[1]), run_dir=Path(sys.argv[2])))\n"
        "assert first.metadata.alone\n"
        "print(*sorted({'trio', 'grpc', 'cryptography', 'yaml', 'rich', 'awsomefsd.daemon.daemon'} & set(sys.modules)))\n"
        "first.close()"
    )
    argv = [sys.executable, "-c", words, str(settings.state_dir), str(settings.run_dir)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
    identity.StateLock(settings.state_dir).release()


def test_a_node_without_an_identity_begins_with_nothing(tmp_path: Path) -> None:
    assert begin(load(environ={}, state_dir=tmp_path / "state", run_dir=tmp_path / "run")) is None


def test_workers_are_told_everything(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker_config.OVERRIDES_VARIABLE, "minor=34,resend=off,without=0x40")
    made = worker_config.worker_config(settings, identity.load(settings.state_dir))
    told = made(DesiredMount(9, 3, "demo", "/mnt", ("ro",)), parse(["ro"]))
    assert (told.volume, told.mount, told.read_only, told.meta_sock) == (3, 9, True, str(settings.meta_socket))
    assert told.overrides == {"minor": 34, "resend": False, "without": 0x40} and told.boot_id == identity.boot_id()
    for bad in ("minor", "minor=x", "resend=maybe", "what=1"):
        with pytest.raises(ConfigError, match=bad):
            worker_config.overrides_of(bad)
    assert worker_config.overrides_of("") == {}


def test_reasons_name_what_is_wrong() -> None:
    well = pb.Status(keeper=True, memory_bytes=1, memory_bytes_max=2)
    well.devices.add(path="/dev/a", state="ok", segments=100, segments_free=50)
    well.mounts.add(directory="/m", volume="v", state="serving")
    assert list(of_node(node_view(well))) == []
    ill = pb.Status(keeper=False, memory_bytes=3, memory_bytes_max=2, state_dir="/s")
    ill.devices.add(path="/dev/a", state="ok", segments=100, segments_free=5)
    ill.devices.add(uuid="u", state="not found on this node")
    ill.mounts.add(directory="/m", volume="v", state="dead", last_error="no device")
    ill.mounts.add(directory="/n", volume="w", state="unwatched")
    ill.conflicts.add(path="/s/conflicts/x", bytes=1)
    tell(ill, of_node(node_view(ill)))
    text = "\n".join(ill.reasons)
    for words in (
        "keeper",
        "/dev/a has 5 of 100",
        "device u: not found",
        "/m of volume v is dead: no device",
        "/s/conflicts",
        "memory.daemon",
    ):
        assert words in text, words
    assert len(text.splitlines()) == 6
    assert [one.code for one in ill.health] == [
        "KEEPER_GONE", "MOUNT_DEAD", "DEVICE_FULL", "DEVICE_MISSING", "CONFLICT_FILES", "DAEMON_MEMORY",
    ]  # fmt: skip
    names = {sample.name for sample in samples_of(ill)}
    assert {"awsomefsd_keeper_up", "awsomefsd_mount_up", "awsomefsd_device_segments_free"} <= names


def test_conflicts_are_listed(tmp_path: Path) -> None:
    assert list(conflicts(tmp_path / "none")) == []
    (tmp_path / "c" / "d").mkdir(parents=True)
    (tmp_path / "c" / "d" / "f").write_bytes(b"12345")
    assert [(found.path, found.bytes) for found in conflicts(tmp_path / "c")] == [(str(tmp_path / "c" / "d" / "f"), 5)]
    assert memory_bytes() > 1 << 20


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
        for _ in range(1_000):
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
        for _ in range(1_000):  # a child is noted in the record right after its start
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
