"""What runs out or is taken away: map, open files, descriptors, the journal's directory, the disk of the state.  Everything waits or says
so, nothing is lost, and it goes on by itself.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from awsomefsd.base.limits import OPEN_FILES_MAX
from buildtools import chaos
from buildtools.nodes import await_true
from tests.faults.rig import errors_of, fsync_until_true, held

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
MIB = 1 << 20


def run_load(node, name, seed, between=15, clients=2):
    running = chaos.Clients(node.mountpoint / name, clients, seed)
    try:
        running.await_progress(between)
        finals = running.finish()
    finally:
        running.abandon()
    assert errors_of(finals) + chaos.check_counters(node.mountpoint / name, finals) == []
    return finals


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


def test_a_map_that_is_far_too_small_grows(make_node, seed):
    node = make_node(up=False, faults=True)
    node.inject("store.map=131072")
    node.up()
    running = chaos.Clients(node.mountpoint / "small-map", 2, seed)
    try:
        running.await_progress(5)
        rows_until_the_map_grew(node)
        running.await_progress(15)
        finals = running.finish()
    finally:
        running.abandon()
    assert errors_of(finals) + chaos.check_counters(node.mountpoint / "small-map", finals) == []
    assert int(node.ask("status")["figures"]["store_map_bytes"]) < 64 * MIB
    node.cli("flush", str(node.mountpoint), timeout_s=120)  # what was written and not synced may go with a machine
    node.kill_everything()
    node.detach_mount()
    node.cli("fsck", timeout_s=120)
    node.up()
    assert [text for final in finals for text in chaos.load.check_manifest(final["directory"], final["manifest"])] == []


def rows_until_the_map_grew(node):
    """Long names, each some hundred bytes of rows.  The map grows at a commit of the store, which is a second behind at most."""
    directory = node.mountpoint / "rows"
    directory.mkdir()
    made = 0

    def grown():
        nonlocal made
        for _ in range(50 if made < 2_000 else 1):  # 1 MiB at least is enough; then only time has to pass
            (directory / f"{made}-{'n' * 200}").touch()
            made += 1
        return int(node.ask("status")["figures"]["store_map_grown"]) > 0

    await_true("a map that grew", grown, 120)


HOLDER = r"""
import errno, os, resource, sys
path, wanted = sys.argv[1], int(sys.argv[2])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held, said = [], "enough"
try:
    while len(held) < wanted:
        held.append(os.open(path, os.O_RDONLY))
except OSError as err:
    said = errno.errorcode[err.errno]
print(len(held), said, flush=True)
for line in sys.stdin:
    print(os.pread(held[0], 1, 0) == os.pread(held[-1], 1, 0) == b"x", flush=True)
"""


class Holders:
    """Processes that hold a file open many times: one may have fewer descriptors than a mount."""

    def __init__(self, path) -> None:
        self.path = path
        self.processes: list[subprocess.Popen[str]] = []

    def hold(self, wanted: int) -> tuple[int, str]:
        argv = [sys.executable, "-c", HOLDER, str(self.path), str(wanted)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        count, said = process.stdout.readline().split()
        return int(count), said

    def can_read(self) -> bool:
        for process in self.processes:
            process.stdin.write("read\n")
            process.stdin.flush()
        return all(process.stdout.readline() == "True\n" for process in self.processes)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(60)
            process.stdin.close()
            process.stdout.close()


def test_more_open_files_than_a_mount_has_room_for(node):
    """ENFILE, also for a file that would have to be made; it is not made then."""
    each = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 64
    path = node.mountpoint / "many"
    path.write_bytes(b"x")
    holders = Holders(path)
    try:
        total, said = 0, "enough"
        while said == "enough":
            count, said = holders.hold(min(each, OPEN_FILES_MAX))
            total += count
        assert said == "ENFILE" and OPEN_FILES_MAX - 64 < total <= OPEN_FILES_MAX
        with pytest.raises(OSError) as caught:
            os.open(node.mountpoint / "never", os.O_CREAT | os.O_WRONLY)
        assert caught.value.errno == errno.ENFILE and not (node.mountpoint / "never").exists()
        old = node.pid("worker")
        node.kill("worker")
        node.replaced("worker", old)
        assert holders.can_read(), "a full table is taken over"
    finally:
        holders.end()
    await_true("room again", lambda: can_make(node.mountpoint / "again"), 60)


def can_make(path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    except OSError:
        return False
    return True


def test_no_descriptors_left(node, seed):
    """In worker, daemon and keeper at once: what is open goes on, what needs a descriptor waits, and nobody ends."""
    roles = {role: node.pid(role) for role in ("worker", "daemon", "keeper")}
    (node.mountpoint / "opened").write_bytes(bytes(MIB))
    fsync_until_true(node.mountpoint / "opened", ())  # the worker has its device open
    with ExitStack() as undo:
        for pid in roles.values():
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, limits[1]))
            undo.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, limits)
        run_load(node, "no-descriptors", seed)
        done = subprocess.run([*node.command, "status"], capture_output=True, env=node.environment(), timeout=60, check=False)
        assert done.returncode != 0, "void: the daemon had descriptors left"
        assert roles == {role: node.pid(role) for role in roles}
    node.await_daemon()
    run_load(node, "descriptors-again", seed + 1)
    assert roles == {role: node.pid(role) for role in roles}


def test_a_keeper_without_descriptors_starts_the_successor_when_it_has_some(node):
    path = node.mountpoint / "successor"
    path.write_bytes(b"before")
    keeper, worker = node.pid("keeper"), node.pid("worker")
    limits = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
    resource.prlimit(keeper, resource.RLIMIT_NOFILE, (4, limits[1]))
    answered = threading.Event()
    reader = threading.Thread(target=lambda: (path.with_name("other").write_bytes(b"x"), answered.set()), daemon=True)
    try:
        node.kill("worker")
        reader.start()
        log = node.log / "keeper.log"
        await_true("a start that failed", lambda: log.read_text().count("worker not started") > 2, 60)
        assert not answered.is_set() and node.pid("keeper") == keeper
    finally:
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, limits)
    node.replaced("worker", worker)
    assert answered.wait(60)
    assert path.read_bytes() == b"before" and node.pid("keeper") == keeper


def test_the_journal_directory_gone_read_only(node, seed):
    """What is open can be written, what is to be made cannot; a daemon that starts so ends and comes back when it may write again."""
    place = str(node.state)
    worker = node.pid("worker")
    subprocess.run(["mount", "--bind", place, place], check=True)
    running = None
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        run_load(node, "ro", seed)
        running = chaos.Clients(node.mountpoint / "ro-killed", 2, seed)
        running.await_progress(5)
        node.kill("daemon")
        log = node.log / "supervisor.log"
        ended = log.read_text().count("child=daemon")
        await_true("starts that fail", lambda: log.read_text().count("child=daemon") > ended + 3, 60)
    finally:
        # a daemon that starts has files open there
        await_true("an unmount", lambda: subprocess.run(["umount", place], capture_output=True, check=False).returncode == 0, 60)
        if running is not None:
            try:
                node.await_daemon()
                running.await_progress(5)
                finals = running.finish()
            finally:
                running.abandon()
    assert errors_of(finals) == []
    assert node.pid("worker") == worker


def test_a_small_memory_budget_is_kept(make_node, figures, seed):
    """memory.worker: much is written, and more files are looked at than the caches may hold then."""
    node = make_node(up=False)
    environment = node.environment
    node.environment = lambda: environment() | {"AWSOMEFSD_MEMORY_WORKER": "128M"}
    node.up()
    data = random.Random(seed).randbytes(MIB)
    worst = 0
    for number in range(4):
        with open(node.mountpoint / f"large{number}", "wb", buffering=0) as file:
            for _ in range(100):
                file.write(data)
            worst = max(worst, memory_kib(node))
            os.fsync(file.fileno())
    for number in range(4):
        assert (node.mountpoint / f"large{number}").read_bytes() == data * 100
    worst = max(worst, memory_kib(node))
    figures.append(f"memory.worker=128M: at most {worst / 1024:.0f} MiB while 400 MiB were written and read")
    assert worst < 128 * 1024


def memory_kib(node) -> int:
    now = held(node.pid("worker"))
    return now["anon_kib"] + now["memfd_kib"]


def test_a_full_state_disk(make_node, seed):
    """Changes wait while there is no room for the next journal file; with room they go on, and everything is there after a death."""
    node = make_node(up=False)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "state", str(node.state)], check=True)
    try:
        node.up()
        ballast = node.state / "ballast"
        running = chaos.Clients(node.mountpoint / "full", 2, seed)
        try:
            running.await_progress(5)
            fill(ballast)
            stuck = await_stall(node)
            assert stuck, "void: the state disk was never too full"
            ballast.unlink()
            node.await_daemon()
            running.await_progress(10)
            finals = running.finish()
        finally:
            running.abandon()
        assert errors_of(finals) == []
        for final in finals:
            for name in final["manifest"]:
                fsync_until_true(node.mountpoint / "full" / final["directory"].rpartition("/")[2] / name)
        node.kill_everything()
        node.detach_mount()
        node.cli("fsck", timeout_s=120)
        node.up()
        assert chaos.check_after_remount(finals) == []
        node.umount()
        node.stop()
    finally:
        node.detach_mount()
        node.kill_everything()
        subprocess.run(["umount", "-i", "-l", str(node.state)], check=True)


def fill(path) -> None:
    done = subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=64k"], capture_output=True, text=True, check=False)
    assert "No space left" in done.stderr


def await_stall(node) -> bool:
    """Large inline writes fill journal and store until one of them has no room: the daemon ends, or answers nothing new."""
    daemon = node.pid("daemon")
    done = threading.Event()

    def churn() -> None:
        for number in range(40_000):
            if done.is_set():
                return
            (node.mountpoint / f"churn{number % 500}").write_bytes(number.to_bytes(8, "little") * 500)
            fd = os.open(node.mountpoint / f"churn{number % 500}", os.O_RDWR)
            os.fsync(fd)
            os.close(fd)

    thread = threading.Thread(target=churn, daemon=True)
    thread.start()
    log = node.log / "daemon.log"
    try:
        await_true("no room", lambda: "No space left" in log.read_text() or node.pids("daemon") != [daemon], 240, 0.1)
        return True
    finally:
        done.set()
