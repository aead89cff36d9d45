"""The keeper with real mounts, real processes and real signals: who dies, who goes on, and what the kernel's callers see of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd import __version__
from awsomefsd.base import program
from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.limits import WORKER_DEATHS_BEFORE_BACKOFF
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.mount_record import MEMORY_FORMAT
from awsomefsd.keeper.process import WorkerProcess
from tests.unit.keeper.keeper_host import ROOT, WORKER, Host, end_of, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

OPENAT = ("257", "56")  # its numbers on x86 and on ARM


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    host.start()
    try:
        yield host
    except BaseException:
        print(host.log())
        raise
    finally:
        host.close()


def test_mount_serves_and_umount_ends_everything(host: Host) -> None:
    dir = host.mount()
    about = host.about(dir)
    assert about["worker"] == 1 and about["fresh"] and about["previous"] is None
    assert about["sid"] == about["pid"], "a worker has a session of its own"
    assert {"PATH", "PYTHONPATH"} <= set(about["env"]) and "HOME" not in about["env"]
    row = host.row(dir)
    assert row["state"] == "serving" and row["pid"] == about["pid"] and row["source"] == "vol"
    assert Path(f"/sys/class/bdi/{row['device']}/read_ahead_kb").read_text().strip() == "512"
    assert stat.S_IMODE((host.run / "keeper.sock").stat().st_mode) == 0o600
    assert host.client.umount(str(dir))["flushed"]
    end_of(about["pid"])
    assert not host.mounted(dir) and host.client.list() == []


def test_the_same_mount_asked_twice_is_one(host: Host) -> None:
    dir = host.mount(id="a1")
    host.mount(dir, id="a1")
    assert host.row(dir)["workers"] == 1
    with pytest.raises(FsError) as caught:
        host.mount(dir, id="b2")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(FsError) as caught:
        host.mount(id="a1")
    assert caught.value.errno == errno.EEXIST


def test_worker_killed_twenty_times(host: Host) -> None:
    dir = host.mount()
    for count in range(1, 21):
        about = host.about(dir)
        assert about["worker"] == about["starts"] == count, "shared memory outlives the worker"
        assert about["fresh"] == (count == 1)
        if count > 1:
            assert about["previous"] == {"signal": signal.SIGKILL, "code": None, "exited": True}
        os.kill(about["pid"], signal.SIGKILL)
        assert os.listdir(dir) == ["about"], "a request without a worker waits for the successor"
    assert host.row(dir)["deaths"] <= 1


def test_keeper_killed_workers_go_on(host: Host) -> None:
    dirs = [host.mount(), host.mount()]
    before = [host.about(dir) for dir in dirs]
    for _ in range(5):
        host.kill_keeper()
        assert [host.about(dir)["pid"] for dir in dirs] == [about["pid"] for about in before]
        host.start()
        host.await_mounts(*dirs)
    os.kill(before[0]["pid"], signal.SIGKILL)
    after = host.about(dirs[0])
    assert after["worker"] == 2 and not after["fresh"]
    assert after["previous"] == {"signal": None, "code": None, "exited": True}, "only its own parent could know"
    os.kill(after["pid"], signal.SIGKILL)
    assert host.about(dirs[0])["previous"]["signal"] == signal.SIGKILL
    host.await_mounts(*dirs)
    for dir in dirs:
        host.client.umount(str(dir))


def test_sigterm_leaves_workers_to_the_next_keeper(host: Host) -> None:
    dir = host.mount()
    pid = host.about(dir)["pid"]
    host.kill_keeper(signal.SIGTERM)
    assert host.keeper is not None and host.keeper.returncode == 0
    assert host.about(dir)["pid"] == pid
    host.start()
    assert host.row(dir)["pid"] == pid


def test_upgrade_keeps_descriptors_and_children(host: Host) -> None:
    dir = host.mount()
    about = host.about(dir)
    for _ in range(3):
        assert host.keeper is not None
        assert host.client.upgrade()["pid"] == host.keeper.pid
    assert host.row(dir)["pid"] == about["pid"]
    assert "adopt" not in Path(host.run / "log" / "worker-1.log").read_text(), "the worker noticed nothing"
    os.kill(about["pid"], signal.SIGKILL)
    after = host.about(dir)
    assert after["worker"] == 2 and after["previous"]["signal"] == signal.SIGKILL, "it is a child still"
    host.client.umount(str(dir))
    assert not host.mounted(dir)


def test_umount_of_a_busy_mount_names_who_uses_it(host: Host) -> None:
    dir = host.mount()
    with subprocess.Popen(["sleep", "60"], cwd=dir) as sleeper:
        try:
            with pytest.raises(FsError) as caught:
                host.client.umount(str(dir))
        finally:
            sleeper.kill()
    assert caught.value.errno == errno.EBUSY
    assert f"sleep (pid {sleeper.pid}, working directory)" in str(caught.value)
    assert host.row(dir)["state"] == "serving" and host.about(dir)["worker"] == 1
    with (dir / "about").open("rb"), pytest.raises(FsError, match=f"pid {os.getpid()}, has .*about open"):
        host.client.umount(str(dir))
    host.client.umount(str(dir))


def test_umount_whose_flush_fails_unmounts_nothing(host: Host) -> None:
    dir = host.mount(flush="fail")
    with pytest.raises(FsError, match="the device is gone"):
        host.client.flush(str(dir))
    with pytest.raises(FsError, match="the device is gone"):
        host.client.umount(str(dir))
    assert host.about(dir)["worker"] == 1
    assert host.client.umount(str(dir), force=True)["flushed"] is False
    assert "step=" not in host.log(), "abort and detach worked, with or without fusectl"
    assert not host.mounted(dir) and host.client.list() == []


def in_the_kernel(thread: threading.Thread) -> bool:
    """It sleeps in open(2), which only a request to a worker makes it do here."""
    return Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0] in OPENAT


def test_force_frees_callers_of_a_worker_that_hangs(host: Host) -> None:
    dir = host.mount()
    pid = host.about(dir)["pid"]
    errors: list[int | None] = []

    def look() -> None:
        try:
            os.listdir(dir)
        except OSError as error:
            errors.append(error.errno)

    os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=look)
    thread.start()
    until("a caller in the kernel", lambda: in_the_kernel(thread))
    done = host.client.umount(str(dir), force=True, force_flush_ms=100)
    thread.join(60)
    assert not thread.is_alive() and errors and errors[0] in (errno.ECONNABORTED, errno.ENOTCONN)
    end_of(pid)
    assert done["flushed"] is False and not host.mounted(dir) and host.client.list() == []
    assert "step=abort" not in host.log(), "the abort itself worked, with or without fusectl"


def test_flush_reaches_the_successor_of_a_worker_that_died(host: Host) -> None:
    dir = host.mount(flush="hang")
    pid = host.about(dir)["pid"]
    errors: list[str] = []

    def flush() -> None:
        try:
            host.client.flush(str(dir))
        except (FsError, Unavailable) as error:
            errors.append(str(error))

    thread = threading.Thread(target=flush)
    thread.start()
    os.kill(pid, signal.SIGKILL)
    until("the successor", lambda: host.row(dir)["workers"] == 2)
    subprocess.run(["umount", "-l", str(dir)], check=True)  # ends it: its flush is answered as unmounted
    thread.join(60)
    assert not thread.is_alive() and errors and "unmounted" in errors[0]


def test_plain_umount_is_noticed(host: Host) -> None:
    dir = host.mount()
    pid = host.about(dir)["pid"]
    subprocess.run(["umount", str(dir)], check=True)
    end_of(pid)
    until("the mount to be dropped", lambda: host.client.list() == [])
    host.mount(dir, id="f")
    assert host.about(dir)["worker"] == 1


def test_bind_mounts_elsewhere_keep_the_worker(host: Host) -> None:
    dir, other = host.mount(), host.dir()
    pid = host.about(dir)["pid"]
    subprocess.run(["mount", "--bind", str(dir), str(other)], check=True)
    assert host.client.umount(str(dir))["detached"]
    assert host.about(other)["pid"] == pid and host.row(dir)["state"] == "detached"
    subprocess.run(["umount", str(other)], check=True)
    end_of(pid)
    until("the mount to be dropped", lambda: host.client.list() == [])


def test_a_further_directory_with_flags_of_its_own(host: Host) -> None:
    first = host.mount()
    row, second = host.row(first), host.dir()
    host.client.attach(row["mount"], str(second), options=["ro", "nosuid"])
    found = mount_syscalls.topmost(str(second))
    assert found is not None and found.device == row["device"] and {"ro", "nosuid"} <= set(found.options.split(","))
    assert host.about(second)["pid"] == row["pid"] and mount_syscalls.topmost(str(first)).writable  # type: ignore[union-attr]
    assert host.client.umount(row["mount"], dir=str(first))["detached"] and not host.mounted(first)
    assert host.client.list()[0]["state"] == "detached" and host.about(second)["pid"] == row["pid"]
    host.client.attach(row["mount"], str(first))
    assert host.row(first)["state"] == "serving"
    host.client.umount(row["mount"], dir=str(first))
    assert not host.client.umount(row["mount"], dir=str(second))["detached"] and host.client.list() == []


def test_what_began_read_only_can_be_mounted_writable_elsewhere(host: Host) -> None:
    first, second = host.dir(), host.dir()
    host.client.mount("a1", str(first), "vol", options=["ro"], memfds={"control": 65536, "slot": 1 << 17}, argv=WORKER)
    assert not mount_syscalls.topmost(str(first)).writable  # type: ignore[union-attr]
    host.client.attach("a1", str(second))
    assert mount_syscalls.topmost(str(second)).writable  # type: ignore[union-attr]
    assert not mount_syscalls.topmost(str(first)).writable  # type: ignore[union-attr]
    for dir in (first, second):
        host.client.umount("a1", dir=str(dir))


def test_a_remount_changes_one_directory_and_outlives_keeper_and_worker(host: Host) -> None:
    first, second = host.mount(), host.dir()
    row = host.row(first)
    host.client.attach(row["mount"], str(second), options=["noatime"])

    def options(dir: Path) -> set[str]:
        found = mount_syscalls.topmost(str(dir))
        assert found is not None
        return set(found.options.split(",")) | {f"all-{word}" for word in found.super_options.split(",")}

    with (first / "about").open("r+"), pytest.raises(FsError) as refused:
        host.client.remount(row["mount"], str(first), options=["ro", "sync"], config=row["config"])
    assert refused.value.errno == errno.EBUSY and {"rw", "all-rw"} <= options(first) and "all-sync" not in options(first)
    config = {**row["config"], "read_only": True}
    host.client.remount(row["mount"], str(first), options=["ro", "nosuid", "sync"], config=config, readahead_kib=64)
    assert {"ro", "nosuid", "relatime", "all-rw", "all-sync"} <= options(first) and {"rw", "noatime"} <= options(second)
    assert Path(f"/sys/class/bdi/{row['device']}/read_ahead_kb").read_text() == "64\n"
    host.client.remount(row["mount"], str(second), options=["noexec"], config={"not": "kept"})
    assert {"rw", "noexec", "relatime"} <= options(second) and "all-sync" not in options(first)
    for next_keeper in (host.client.upgrade, host.kill_keeper, host.start):
        next_keeper()
    assert host.row(first)["options"] == ["ro", "nosuid", "sync"] and host.row(first)["config"] == config
    host.client.remount(row["mount"], str(first), options=[], config=row["config"])
    assert {"rw", "relatime"} <= options(first) and "nosuid" not in options(first)
    with pytest.raises(FsError) as refused:
        host.client.remount(row["mount"], str(host.dir()), options=[], config={})
    assert refused.value.errno == errno.ENOENT
    for dir in (first, second):
        host.client.umount(row["mount"], dir=str(dir))


def test_what_another_namespace_holds_is_mounted_again(host: Host) -> None:
    dir = host.mount()
    row = host.row(dir)
    copy = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read x"]
    container = subprocess.Popen(copy, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert container.stdout is not None and container.stdout.readline()
        assert host.client.umount(str(dir))["detached"] and not host.mounted(dir)
        host.kill_keeper()
        host.start()
        until("the worker to come back", lambda: [found["state"] for found in host.client.list()] == ["detached"])
        host.client.attach(row["mount"], str(dir))
        host.kill_keeper()
        host.start()
        assert host.about(dir)["pid"] == row["pid"] and host.row(dir)["state"] == "serving"
        assert host.client.umount(str(dir))["detached"]
    finally:
        container.communicate()
    end_of(row["pid"])
    with pytest.raises(FsError) as refused:
        host.client.attach(row["mount"], str(dir))
    assert refused.value.errno in (errno.ENOENT, errno.ENOTCONN)


def test_stale_mount_is_replaced(host: Host) -> None:
    dir = host.mount()
    pid = host.about(dir)["pid"]
    host.kill_keeper()
    os.kill(pid, signal.SIGKILL)
    end_of(pid)
    with pytest.raises(OSError) as caught:
        os.statvfs(dir)
    assert caught.value.errno == errno.ENOTCONN
    host.start()
    host.mount(dir, id="c")
    assert host.about(dir)["worker"] == 1
    host.client.umount(str(dir))
    assert not host.mounted(dir), "the dead mount below is gone too"


def test_stale_mount_of_another_kind_is_left_alone(host: Host) -> None:
    dir = host.dir()
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc_type, mount_syscalls.FSTYPE = mount_syscalls.FSTYPE, "fuse.stranger"
    try:
        mount_syscalls.mount_fuse(fd, str(dir), "s", [], "")
    finally:
        mount_syscalls.FSTYPE = libc_type
        os.close(fd)
    with pytest.raises(FsError):
        host.mount(dir)
    assert [entry.fstype for entry in mount_syscalls.mounts() if entry.dir == str(dir)] == ["fuse.stranger"]


def test_first_worker_that_dies_fails_the_mount(host: Host) -> None:
    dir = host.dir()
    with pytest.raises(FsError, match="exited with code 3 before it was ready: cannot start: the test says so"):
        host.mount(dir, mode="die")
    assert not host.mounted(dir) and host.client.list() == []
    with pytest.raises(FsError, match="no-such-program"):
        host.client.mount("e", str(dir), "vol", argv=["/no-such-program"])
    assert not host.mounted(dir) and host.client.list() == []


def test_first_worker_that_never_is_ready_fails_the_mount(host: Host) -> None:
    dir = host.dir()
    with pytest.raises(FsError) as caught:
        host.mount(dir, mode="mute", timeout_s=0.5)
    assert caught.value.errno == errno.ETIMEDOUT
    assert not host.mounted(dir)
    until("the end of the worker", lambda: not host.workers())


def test_back_off_of_a_worker_that_keeps_dying(host: Host, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    alive.touch()
    dir = host.mount(mode="die", live_if=str(alive))
    pid = host.about(dir)["pid"]
    alive.unlink()
    os.kill(pid, signal.SIGKILL)
    row = until("back-off", lambda: (row := host.row(dir))["deaths"] >= WORKER_DEATHS_BEFORE_BACKOFF + 1 and row)
    assert "cannot start" in row["last_error"]
    workers = host.row(dir)["workers"]
    alive.touch()
    about = host.about(dir)  # waits in the kernel until one lives
    assert about["worker"] <= workers + 3
    until("answered resets the count", lambda: host.row(dir)["deaths"] == 0)


def test_bad_mounts_are_refused(host: Host) -> None:
    file = host.directory / "file"
    file.touch()
    with pytest.raises(FsError) as caught:
        host.mount(host.directory / "absent")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(FsError) as caught:
        host.mount(file)
    assert caught.value.errno == errno.ENOTDIR
    with pytest.raises(FsError, match="unknown mount option 'fast'"):
        host.client.mount("9", str(host.dir()), "vol", options=["fast"])
    with pytest.raises(FsError, match="hexadecimal"):
        host.client.mount("../x", str(host.dir()), "vol")
    with pytest.raises(FsError, match="unknown op"):
        host.client.ask("dance")
    with pytest.raises(FsError) as caught:
        host.client.umount(str(host.directory))
    assert caught.value.errno == errno.ENOENT


def test_a_second_keeper_does_not_start(host: Host) -> None:
    argv = [sys.executable, "-m", "awsomefsd.keeper.server", "--run-dir", str(host.run)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and f"another keeper runs in {host.run} (process {host.client.ping()['pid']})" in done.stderr
    assert host.client.ping()["ok"]


def test_a_second_worker_of_a_mount_is_refused(host: Host) -> None:
    dir = host.mount()
    with open("/dev/null") as other:
        for pid in (os.getpid(), os.getpid() + 1):
            claim = {"op": "adopt", "mount": "1", "dir": str(dir), "pid": pid, "worker": 1, "fds": ["fuse"], "spec": {}, "config": {}}
            with wire.connect(host.run / wire.SOCKET_NAME, 10) as sock:
                wire.send(sock, claim, [other.fileno()])
                answer = wire.receive(sock)
            assert answer is not None and answer[0]["op"] == "refused"
    assert host.about(dir)["worker"] == 1 and host.row(dir)["state"] == "serving"


def test_a_late_kill_hits_nobody_else() -> None:
    """The timer that follows a worker's goodbye fires when it is gone; its descriptor's number may be that of another by then."""
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as two:
        worker = WorkerProcess(one.pid, os.pidfd_open(one.pid), None, child=True)
        number = worker.pidfd
        one.kill()
        worker.let_go()
        other = os.pidfd_open(two.pid)
        try:
            if other != number:  # a lower one was free
                os.dup2(other, number, inheritable=False)
            worker.kill()
            with pytest.raises(subprocess.TimeoutExpired):
                two.wait(0.3)
        finally:
            for fd in {other, number}:
                os.close(fd)
            two.kill()


def test_stop_unmounts_all_or_refuses(host: Host) -> None:
    dirs = [host.mount(), host.mount()]
    with (dirs[0] / "about").open("rb"), pytest.raises(FsError, match="busy"):
        host.client.stop(umount=True)
    assert [row["dir"] for row in host.client.list() if row["state"] == "serving"] == [str(dirs[0])]  # or "detached": copied
    host.client.stop(umount=True)
    assert host.keeper is not None and host.keeper.wait(60) == 0
    assert not any(host.mounted(dir) for dir in dirs)


def test_long_run_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 60)
    deep.mkdir(parents=True)
    host = Host(deep)
    host.start()
    try:
        dir = host.mount()
        pid = host.about(dir)["pid"]
        host.kill_keeper()
        host.start()
        assert host.row(dir)["pid"] == pid
    finally:
        host.close()


def test_the_command_that_systemd_reloads_with(host: Host) -> None:
    dir = host.mount()
    assert host.keeper is not None
    argv = program.command("keeper", "--upgrade", "--run-dir", str(host.run))
    done = subprocess.run(argv, env=program.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and f"keeper pid {host.keeper.pid} is of version" in done.stdout, done
    assert "keeper upgraded" in host.log()
    host.client.umount(str(dir))


def test_a_worker_of_another_program_takes_over_when_it_has_loaded(host: Host) -> None:
    dir = host.mount()
    before = host.about(dir)
    with (dir / "about").open("rb") as held:
        answer = host.client.replace("1", WORKER, {"PYTHONPATH": str(ROOT), "AWSOMEFS_OTHER": "x"})
        after = host.about(dir)
        assert after["pid"] == answer["pid"] != before["pid"] and after["worker"] == after["starts"] == 2
        assert "AWSOMEFS_OTHER" in after["env"] and "AWSOMEFS_OTHER" not in before["env"]
        assert json.loads(os.pread(held.fileno(), 4096, 0))["pid"] == answer["pid"], "what was open is open"
    end_of(before["pid"])
    row = host.row(dir)
    assert row["starts"]["env"]["AWSOMEFS_OTHER"] == "x" and row["home"] == program.HOME
    assert row["version"] == answer["version"] == __version__
    assert row["deaths"] == 0
    host.client.upgrade()
    assert host.row(dir)["version"] == __version__
    os.kill(after["pid"], signal.SIGKILL)
    assert "AWSOMEFS_OTHER" in host.about(dir)["env"], "successors are of the new program"


@pytest.mark.parametrize("argv", [["/nowhere/awsomefsd"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_a_program_that_does_not_come_up_replaces_nobody(host: Host, argv: list[str]) -> None:
    dir = host.mount()
    before = host.about(dir)
    with pytest.raises(FsError):
        host.client.replace("1", argv, {})
    assert host.about(dir)["pid"] == before["pid"] and host.row(dir)["starts"]["argv"] == WORKER
    host.client.replace("1", WORKER, {})
    assert host.about(dir)["worker"] == 2


def test_a_program_that_does_not_know_the_memory_of_a_mount_does_not_get_it(host: Host) -> None:
    """Until what it would not see is gone."""
    dir = host.mount()
    unknown = str(MEMORY_FORMAT + 1)
    newer = [*WORKER, "--memory-format", unknown, "--needs"]
    host.client.replace("1", [*newer, unknown], {})
    before = host.about(dir)
    with pytest.raises(FsError, match=rf"has format {unknown}, and .* knows {MEMORY_FORMAT}.* `awsomefsd flush"):
        host.client.replace("1", WORKER, {})
    assert host.about(dir)["pid"] == before["pid"] and host.row(dir)["starts"]["argv"] == [*newer, unknown]
    os.kill(before["pid"], signal.SIGKILL)
    assert host.about(dir)["worker"] == 3, "its own program goes on"
    host.client.replace("1", [*newer, "1"], {})
    host.client.replace("1", WORKER, {})
    assert host.about(dir)["worker"] == 5 and host.row(dir)["starts"]["argv"] == WORKER


def test_the_keeper_becomes_the_program_that_it_is_told(host: Host) -> None:
    dir = host.mount()
    with pytest.raises(FsError):
        host.client.upgrade(["/nowhere/awsomefsd", "keeper"])
    assert host.about(dir)["worker"] == 1
    argv = [sys.executable, "-m", "awsomefsd.keeper.server", "--run-dir", str(host.run), "--log-level", "warning"]
    assert host.keeper is not None and host.client.upgrade(argv, {"PYTHONPATH": str(ROOT)})["pid"] == host.keeper.pid
    assert b"warning" in Path(f"/proc/{host.keeper.pid}/cmdline").read_bytes() and host.about(dir)["worker"] == 1


def slow_standby(host: Host) -> tuple[list[str], Path, Path]:
    """argv of a worker that does not load before the second file is there; the first says that it was started."""
    begun, go = host.directory / "begun", host.directory / "go"
    wait = 'touch "$0"; while [ ! -e "$1" ]; do sleep 0.01; done; shift; exec "$@"'
    return ["/bin/sh", "-c", wait, str(begun), str(go), *WORKER], begun, go


def replace_in_the_background(host: Host, argv: list[str]) -> tuple[threading.Thread, list[Exception]]:
    errors: list[Exception] = []

    def ask() -> None:
        try:
            host.client.replace("1", argv, {})
        except (FsError, Unavailable) as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, errors


def test_a_worker_that_dies_before_its_standby_has_loaded_gets_a_successor(host: Host) -> None:
    dir = host.mount()
    argv, begun, _go = slow_standby(host)
    thread, errors = replace_in_the_background(host, argv)
    until("a standby", begun.exists)
    with pytest.raises(FsError) as caught:
        host.client.replace("1", WORKER, {})
    assert caught.value.errno == errno.EBUSY, "one at a time"
    os.kill(host.about(dir)["pid"], signal.SIGKILL)
    assert host.about(dir)["worker"] == 2 and host.row(dir)["starts"]["argv"] == WORKER
    thread.join(60)
    assert len(errors) == 1
    until("the standby to be gone", lambda: len(host.workers()) == 1)  # its shell's last sleep lives on for a moment


def test_an_umount_ends_the_standby_too(host: Host) -> None:
    dir = host.mount()
    argv, begun, go = slow_standby(host)
    thread, errors = replace_in_the_background(host, argv)
    until("a standby", begun.exists)
    host.client.umount(str(dir))
    go.touch()
    thread.join(60)
    assert len(errors) == 1 and host.client.list() == []
    until("no worker", lambda: not host.workers())


def test_a_keeper_that_dies_during_a_hand_over_leaves_the_worker(host: Host) -> None:
    dir = host.mount()
    before = host.about(dir)["pid"]
    argv, begun, go = slow_standby(host)
    thread, errors = replace_in_the_background(host, argv)
    until("a standby", begun.exists)
    host.kill_keeper()
    go.touch()
    thread.join(60)
    assert isinstance(errors[0], Unavailable)
    host.start()
    assert host.about(dir)["pid"] == before and host.row(dir)["version"] == __version__
    until("no standby", lambda: host.workers() == [before])


def test_a_keeper_that_comes_back_knows_what_was_taken_out_of_the_tree_and_what_was_mounted_again(host: Host) -> None:
    dir, other, bound = host.mount(), host.dir(), host.dir()
    row = host.row(dir)
    subprocess.run(["mount", "--bind", str(dir), str(bound)], check=True)
    assert host.client.umount(str(dir))["detached"]
    host.kill_keeper()
    host.start()
    until("the worker to come back", lambda: [found["state"] for found in host.client.list()] == ["detached"])
    host.client.attach(row["mount"], str(other))
    host.kill_keeper()
    host.start()
    assert host.row(other)["state"] == "serving" and host.about(other)["pid"] == row["pid"]
    subprocess.run(["umount", str(bound)], check=True)
    assert not host.client.umount(str(other))["detached"]
