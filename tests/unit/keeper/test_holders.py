"""Keeper and worker killed together: another holder brings the mount to the next keeper, and never is there a second reader."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.mount_holder import MountHolder
from awsomefsd.keeper.mount_record import RECORD, MountRecord
from tests.unit.keeper.keeper_host import WORKER, Host, end_of, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]


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


@contextlib.contextmanager
def holding(host: Host, count: int = 0) -> Iterator[MountHolder]:
    holder = MountHolder(host.run)
    holder.start()
    try:
        until(f"{count} mounts held", lambda: len(holder.held()) == count)
        yield holder
    finally:
        holder.close()


def kill_worker(host: Host, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    end_of(pid)


def test_a_holder_brings_the_mounts_of_a_keeper_and_workers_killed_together(host: Host) -> None:
    dirs = [host.mount(), host.mount()]
    with holding(host, 2):
        for count in range(2, 5):
            before = [host.about(dir) for dir in dirs]
            host.kill_keeper()
            kill_worker(host, before[0]["pid"])
            host.start()
            after = host.about(dirs[0])
            assert after["worker"] == after["starts"] == count, "the same connection and the same memory"
            assert not after["fresh"] and after["previous"] == {"signal": None, "code": None, "exited": True}
            assert host.about(dirs[1])["pid"] == before[1]["pid"], "a worker that lives serves on"
        host.await_mounts(*dirs)


def test_a_mount_that_a_worker_of_an_earlier_build_served_is_brought_too(host: Host) -> None:
    """It knows no record, as behind an upgrade of the keeper alone.  What it has in memory counts all the same."""
    dir = host.mount(argv=[*WORKER, "--earlier-build"])
    with holding(host, 1):
        pid = host.about(dir)["pid"]
        host.kill_keeper()
        kill_worker(host, pid)
        host.start()
        after = host.about(dir)
        assert after["worker"] == after["starts"] == 2 and not after["fresh"]


def test_every_holder_may_bring_a_mount_and_one_worker_serves_it(host: Host) -> None:
    dir = host.mount()
    with holding(host, 1) as first, holding(host, 1) as second:
        host.kill_keeper()
        kill_worker(host, host.workers()[0])
        host.start()
        assert host.about(dir)["worker"] == 2
        until("both to be told", lambda: len(first.held()) == len(second.held()) == 1)
    assert len(host.workers()) == 1


def test_a_holder_that_begins_late_is_told_of_all_mounts_and_of_their_ends(host: Host) -> None:
    dirs = [host.mount() for _ in range(3)]
    with holding(host, 3) as holder:
        host.client.umount(str(dirs[0]))
        until("one less", lambda: len(holder.held()) == 2)
        host.mount()
        until("one more", lambda: len(holder.held()) == 3)
        host.client.upgrade()
        assert host.about(dirs[1])["worker"] == 1
        for dir in host.dirs[1:]:
            host.client.umount(str(dir))
        until("none", lambda: not holder.held())


def test_what_is_kept_is_held_at_every_moment_and_what_is_dropped_is_closed_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks meanwhile is told of no mount less, and of none whose descriptors are still open."""
    holder, close_all = MountHolder(tmp_path), wire.close_all
    held_then: list[list[str]] = []

    def noting(fds: Sequence[int]) -> None:
        if fds:
            held_then.append(holder.held())
        close_all(fds)

    monkeypatch.setattr(wire, "close_all", noting)
    with wire.listen(tmp_path / wire.SOCKET_NAME) as listener, open("/dev/null") as file:
        listener.settimeout(60)
        holder.start()
        sock, _ = listener.accept()
        with sock:
            assert wire.receive(sock) == ({"op": "hold", "mounts": []}, [])
            for op, names in (("keep", ["fuse"]), ("keep", ["fuse"]), ("drop", [])):
                wire.send(sock, {"op": op, "mount": "1", "fds": names}, [file.fileno() for _ in names])
                assert wire.receive(sock) == ({"op": "kept", "mount": "1"}, [])
            assert not holder.held()
        holder.close()
    assert held_then == [["1"], ["1"]]


def open_files(pid: int) -> list[str]:
    """The FUSE descriptors and memfds of a process."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return sorted(name for name in names if name == "/dev/fuse" or name.startswith("/memfd:awsomefs"))


def test_nothing_is_left_open_after_an_unmount(host: Host) -> None:
    assert host.keeper is not None
    with holding(host) as holder:
        for force in (False, True):
            dir = host.mount()
            until("a held mount", lambda: len(holder.held()) == 1)
            assert len(open_files(os.getpid())) == len(open_files(host.keeper.pid)) == 4
            host.kill_keeper()
            kill_worker(host, host.workers()[0])
            host.start()
            assert host.about(dir)["worker"] == 2
            host.client.umount(str(dir), force=force)
            until("nothing held", lambda: not holder.held())
            assert open_files(os.getpid()) == [], "what is not held any more is closed"
            until("nothing open in the keeper", lambda: not open_files(host.keeper.pid))
            assert not host.mounted(dir) and not host.workers()


def test_a_mount_that_ended_without_a_keeper_is_not_taken_up(host: Host) -> None:
    dir = host.mount()
    pid = host.about(dir)["pid"]
    with holding(host, 1) as holder:
        host.kill_keeper()
        mount_syscalls.umount(str(dir))
        end_of(pid)
        assert not host.mounted(dir), "a descriptor that is held does not keep a mount"
        host.start()
        until("nothing held", lambda: not holder.held())
        assert host.client.list() == [] and not host.workers()


def test_a_mount_that_ended_before_its_last_flush_gets_a_successor_for_that(host: Host) -> None:
    dir = host.mount()
    pid = host.about(dir)["pid"]
    with holding(host, 1) as holder:
        host.kill_keeper()
        kill_worker(host, pid)
        mount_syscalls.umount(str(dir))
        host.start()
        until("nothing held", lambda: not holder.held())
        assert "count=2" in host.log() and "clean=True" in host.log()
        assert host.client.list() == [] and not host.workers()


def test_a_living_worker_that_the_record_does_not_name_keeps_a_successor_out(host: Host) -> None:
    """As where a keeper of an earlier build, which writes no record, has replaced a worker."""
    dir = host.mount()
    with holding(host, 1) as holder:
        host.kill_keeper()
        kill_worker(host, host.workers()[0])
        reader, writer = os.pipe()
        stranger = os.fork()
        if not stranger:
            os.write(writer, b"1" if MountRecord(next(iter(holder._held.values()))[RECORD]).lock() else b"0")
            signal.pause()
        assert os.read(reader, 1) == b"1"
        os.close(reader)
        os.close(writer)
        try:
            host.start()
            until("the mount", host.client.list)
            assert host.row(dir)["state"] == "waiting" and not host.workers(), "one reader"
        finally:
            os.kill(stranger, signal.SIGKILL)
            os.waitpid(stranger, 0)
        assert host.about(dir)["worker"] == 2


def test_a_keeper_that_dies_before_it_sends_the_start_message_leaves_no_second_worker(host: Host) -> None:
    dir = host.mount()
    with holding(host, 1):
        host.kill_keeper()
        kill_worker(host, host.workers()[0])
        assert host.keeper is not None
        with contextlib.suppress(AssertionError):  # it dies while it is waited for
            host.start({"AWSOMEFSD_FAILPOINTS": "keeper.start.before=kill"})
        assert host.keeper.wait(60) == -signal.SIGKILL
        host.start()
        assert host.about(dir)["worker"] == 3
    assert len(host.workers()) == 1


def test_a_worker_that_cannot_be_sent_its_start_message_is_replaced(host: Host) -> None:
    dir = host.mount()
    with holding(host, 1):
        host.kill_keeper()
        kill_worker(host, host.workers()[0])
        host.start({"AWSOMEFSD_FAILPOINTS": "keeper.start.before=error:ENOBUFS@1"})
        assert host.about(dir)["worker"] == 3
    assert "worker not started" in host.log() and len(host.workers()) == 1


def test_a_keeper_of_an_earlier_build_makes_the_holder_drop_everything(host: Host) -> None:
    host.mount()
    with holding(host, 1) as holder:
        host.kill_keeper()
        with wire.listen(host.run / wire.SOCKET_NAME) as listener:
            listener.setblocking(True)
            refused = False
            while not refused:
                sock, _ = listener.accept()
                with sock:
                    received = wire.receive(sock)
                    assert received is not None
                    wire.close_all(received[1])
                    if received[0]["op"] == "held":  # not the worker, which comes too
                        wire.send(sock, {"ok": False, "error": "unknown op 'held'"})
                        until("nothing held", lambda: not holder.held())
                        refused = True


class ServiceManager:
    """The descriptor store of a service manager: sd_notify(3) in, sd_listen_fds(3) out."""

    def __init__(self, directory: Path) -> None:
        self.place = directory / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.place))
        self._sock.setblocking(False)
        self.stored: list[tuple[str, int]] = []

    def receive(self) -> None:
        """Does what was asked for until now."""
        while True:
            try:
                message, ancillary, _, _ = self._sock.recvmsg(4096, 1024)
            except BlockingIOError:
                return
            words = dict(row.split("=", 1) for row in message.decode().splitlines())
            fds = array.array("i")
            for _level, _kind, content in ancillary:
                fds.frombytes(content)
            if words.get("FDSTORE"):
                self.stored += [(words["FDNAME"], fd) for fd in fds]
            elif words.get("FDSTOREREMOVE"):
                wire.close_all([fd for name, fd in self.stored if name == words["FDNAME"]])
                self.stored = [(name, fd) for name, fd in self.stored if name != words["FDNAME"]]

    def start(self, host: Host) -> None:
        self.receive()
        stored = list(self.stored)

        def pass_on() -> None:
            high = [os.dup2(fd, 500 + index) for index, (_, fd) in enumerate(stored)]
            for index, fd in enumerate(high):
                os.dup2(fd, 3 + index)
            os.closerange(3 + len(high), 1000)
            env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(stored)), "LISTEN_FDNAMES": ":".join(name for name, _ in stored)}
            env |= {"NOTIFY_SOCKET": str(self.place)}
            os.execve(sys.executable, [sys.executable, "-m", "awsomefsd.keeper.server", "--run-dir", str(host.run)], os.environ | env)

        host.start(before=pass_on)

    def close(self) -> None:
        self.receive()
        wire.close_all([fd for _, fd in self.stored])
        self._sock.close()


def test_the_service_manager_brings_the_mounts_when_all_other_holders_are_dead(host: Host) -> None:
    manager = ServiceManager(host.directory)
    host.kill_keeper()
    manager.start(host)

    def names() -> set[str]:
        manager.receive()
        return {name for name, _ in manager.stored}

    try:
        dir, other = host.mount(), host.mount()
        pids = [host.about(dir)["pid"], host.about(other)["pid"]]
        until("two mounts in the store", lambda: len(names()) == 8)
        host.kill_keeper()
        for pid in pids:  # nobody else holds them
            kill_worker(host, pid)
        manager.start(host)
        assert host.about(dir)["worker"] == host.about(other)["worker"] == 2
        host.client.upgrade()
        host.client.umount(str(other))
        until("one mount in the store", lambda: len(names()) == 4)
        host.kill_keeper()
        mount_syscalls.umount(str(dir))
        until("the last worker's end", lambda: not host.workers())
        manager.start(host)
        until("a mount that ended meanwhile to leave the store", lambda: not names())
        assert host.client.list() == []
    finally:
        manager.close()


def test_a_worker_of_an_earlier_build_has_one_record_under_all_keepers_of_a_service_manager(host: Host) -> None:
    """It brings the mount without a record.  The next keeper has that of the store by then: it must not make another one."""
    manager = ServiceManager(host.directory)
    host.kill_keeper()
    manager.start(host)

    def records() -> set[int]:
        manager.receive()
        return {os.fstat(fd).st_ino for name, fd in manager.stored if name.endswith(f".{RECORD}")}

    try:
        dir = host.mount(argv=[*WORKER, "--earlier-build"])
        pid = host.about(dir)["pid"]
        until("the record in the store", lambda: len(records()) == 1)
        for _ in range(2):
            host.kill_keeper()
            manager.start(host)
            until("the worker to have come back", lambda: host.row(dir)["state"] == "serving" and host.client.flush(str(dir)))
            assert host.about(dir)["pid"] == pid and len(records()) == 1
        host.kill_keeper()
        kill_worker(host, pid)
        manager.start(host)
        assert host.about(dir)["worker"] == 2 and len(records()) == 1
    finally:
        manager.close()
