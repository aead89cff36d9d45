"""The doctor's checks of a host, each against real files, sockets and mounts with the fault in them, and one without."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.identity import make_directory
from awsomefsd.base.limits import MIB
from awsomefsd.base.metrics import Registry
from awsomefsd.base.sockets import listen_unix
from awsomefsd.config import ports
from awsomefsd.config.settings import Settings, load
from awsomefsd.keeper import mount_syscalls
from awsomefsd.meta.net.listener import MetadataPort
from awsomefsd.node import self_check
from awsomefsd.node.doctor import examine, host, network, running
from awsomefsd.node.health.codes import CODES, HealthFinding
from awsomefsd.node.health.exporter import Exporter
from awsomefsd.node.health.probes import LoopBeat, Probes
from tests.conftest import missing_for_mounts

MEMINFO = "MemTotal:       16777216 kB\nMemFree: 1 kB\n"


def settings_of(directory: Path, **environ: str) -> Settings:
    alone = {"AWSOMEFSD_CLUSTER_LISTEN": "", "AWSOMEFSD_METADATA_LISTEN": ""}
    return load(environ=alone | environ, state_dir=directory / "state", run_dir=directory / "run")


def one(found: object, code: str, *words: str) -> HealthFinding:
    [finding] = list(found)  # type: ignore[call-overload]
    assert finding.code == code and all(word in finding.what for word in words), finding
    assert finding.remedy() and CODES[code].doctor
    return finding


def test_a_host_without_a_fault_has_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    found = [*host.memory(settings, 1), *host.state_directory(settings), *host.permissions(settings)]
    found += [*network.listening(settings), *network.names(settings, ())]
    # A mount that another run left on this host is a fault of it, and not of this test.
    found += [finding for finding in running.orphans(None) if str(tmp_path) in finding.what]
    assert not found


@pytest.mark.parametrize(
    ("check", "code", "state"),
    [
        ("kernel", "KERNEL_OLD", self_check.BAD),
        ("FUSE", "FUSE_MISSING", self_check.BAD),
        ("store (LMDB)", "HOST_UNFIT", self_check.BAD),
        ("descriptors", "FILES_LIMIT", self_check.OFF),
        ("clock", "CLOCK_UNSYNCED", self_check.OFF),
    ],
)
def test_what_the_self_check_finds(check: str, code: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "run", lambda: [self_check.CheckResult(check, state, "why"), self_check.CheckResult("x", "ok", "")])
    one(host.fitness(before_install=True), code, "why")
    assert bool(list(host.fitness(before_install=False))) == (state == self_check.BAD)


def test_an_old_kernel_and_a_host_without_fuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The checks below: what the kernel says of itself, and a device that is missing."""
    monkeypatch.setattr(self_check.platform, "release", lambda: "4.18.0-553.el8")
    monkeypatch.setattr(self_check, "DEV_FUSE", str(tmp_path / "fuse"))
    codes = {found.code for found in host.fitness(before_install=False)}
    assert {"KERNEL_OLD", "FUSE_MISSING"} <= codes


def test_memory(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "pod" / "box").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text("0::/pod/box\n")
    settings = settings_of(tmp_path)
    assert not list(host.memory(settings, 3, proc, groups))
    (groups / "pod" / "box" / "memory.max").write_text("max\n")
    (groups / "pod" / "memory.max").write_text(f"{512 * MIB}\n")
    one(host.memory(settings, 3, proc, groups), "MEMORY_SHORT", "3 x memory.worker", "the cgroup", "pod has 512")
    (groups / "pod" / "memory.max").unlink()
    (proc / "meminfo").write_text("MemTotal: 524288 kB\n")
    one(host.memory(settings, 1, proc, groups), "MEMORY_SHORT", "this host has 512")
    small = settings_of(tmp_path, AWSOMEFSD_MEMORY_WORKER="128MiB")
    (proc / "meminfo").write_text(MEMINFO)
    one(host.memory(small, 1, proc, groups), "MEMORY_BUDGET_SMALL", "memory.worker = 128")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    if missing_for_mounts():
        pytest.skip(missing_for_mounts())
    place = tmp_path / "small"
    place.mkdir()
    mount_syscalls._call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"size=300m,nr_inodes=2000")
    yield place
    mount_syscalls.umount(str(place))


@pytest.mark.root
def test_a_full_disk(tmpfs: Path) -> None:
    settings = load(environ={}, state_dir=tmpfs / "state" / "not-made", run_dir=tmpfs / "run")
    assert not list(host.state_directory(settings))
    with open(tmpfs / "fill", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 290 * MIB)
    one(host.state_directory(settings), "STATE_DISK_FULL", str(tmpfs), "free")
    (tmpfs / "fill").unlink()
    for number in range(1_200):
        (tmpfs / f"{number}").touch()
    one(host.state_directory(settings), "STATE_DISK_FULL", "inodes free")


@pytest.mark.root
def test_a_state_directory_on_a_network_filesystem_is_not_touched(tmp_path: Path) -> None:
    """A FUSE filesystem whose server is gone stands for the file server: whoever asks it for anything gets an error, or hangs."""
    if missing_for_mounts():
        pytest.skip(missing_for_mounts())
    place = tmp_path / "remote"
    place.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    mount_syscalls._call("mount", b"server:/export", os.fsencode(place), b"fuse.sshfs", 0, options)
    os.close(fd)
    try:
        settings = load(environ={}, state_dir=place / "state", run_dir=tmp_path)
        one(host.state_directory(settings), "STATE_ON_NETWORK", "server:/export", "fuse.sshfs", str(place))
    finally:
        mount_syscalls.umount(str(place), mount_syscalls.MNT_DETACH)


@pytest.mark.parametrize(
    ("kind", "is_one"), [("nfs4", True), ("cifs", True), ("fuse.glusterfs", True), ("ext4", False), ("fuseblk", False)]
)
def test_kinds_of_filesystems(kind: str, is_one: bool, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / {tmp_path} rw - {kind} there:/x rw\n")
    settings = load(environ={}, state_dir=tmp_path / "s", run_dir=tmp_path)
    assert bool([1 for found in host.state_directory(settings, str(table)) if found.code == "STATE_ON_NETWORK"]) == is_one


def test_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_timed", lambda fd, number: 0.2 + number)
    one(host.state_directory(settings_of(tmp_path)), "SLOW_FSYNC", "200 ms")
    monkeypatch.setattr(host, "_timed", lambda fd, number: 0.2 * number)  # one was quick: others use the disk
    assert not list(host.state_directory(settings_of(tmp_path)))


def test_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    pki = settings.state_dir / "pki"
    pki.mkdir(parents=True)
    key, token = pki / "node.key", tmp_path / "token"
    key.write_text("secret")
    key.chmod(0o644)
    assert one(host.permissions(settings), "PERMISSIONS", str(key), "0644").fix == f"chmod 600 {key}"
    key.chmod(0o600)
    assert not list(host.permissions(settings))
    token.touch(0o604)
    monkeypatch.setenv("AWSOMEFSD_TOKEN_FILE", str(token))
    one(host.permissions(settings), "PERMISSIONS", str(token), "0604")
    token.chmod(0o600)
    settings.state_dir.chmod(0o777)
    assert one(host.permissions(settings), "PERMISSIONS", "state_dir", "0777").fix == f"chmod go-w {settings.state_dir}"
    settings.state_dir.chmod(0o700)
    settings.run_dir.write_text("")
    one(host.permissions(settings), "PERMISSIONS", "run_dir", "is no directory")


# --- network -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_a_port_that_somebody_has(tmp_path: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    settings = settings_of(tmp_path, AWSOMEFSD_CLUSTER_LISTEN=f"127.0.0.1:{port}")
    found = one(network.listening(settings), "PORT_IN_USE", "cluster.listen", f"(pid {os.getpid()})")
    assert "cluster.listen" in found.fix
    assert not list(network.listening(settings, [os.getpid()])), "of this node's own daemon"
    assert [pid for pid, _ in ports.users(port)] == [os.getpid()]
    listener.close()
    assert not list(network.listening(settings)) and ports.users(port) == []


def test_the_port_of_a_daemon_that_is_stopped_is_where_it_belongs(tmp_path: Path, listener: socket.socket) -> None:
    """Whoever has the admin socket is this node's daemon, whether it answers or not."""
    settings = settings_of(tmp_path, AWSOMEFSD_CLUSTER_LISTEN=f"127.0.0.1:{listener.getsockname()[1]}")
    silent = examine.Answers(trouble="it does not answer")
    assert "PORT_IN_USE" in {finding.code for finding in examine.node(settings, silent)}
    make_directory(settings.run_dir, 0o700)
    with listen_unix(settings.admin_socket, 0o600):
        assert "PORT_IN_USE" not in {finding.code for finding in examine.node(settings, silent)}


def test_a_worker_with_a_thread_that_stays_in_the_kernel_waits_there(tmp_path: Path) -> None:
    """Its first thread waits for something else; kill -9 would not end it."""
    process = tmp_path / "7"
    for thread, state in (("7", "S"), ("8", "D")):
        (process / "task" / thread).mkdir(parents=True)
        (process / "task" / thread / "stat").write_text(f"{thread} (a ) b) {state} 1 2")
    (process / "stat").write_text("7 (a ) b) S 1 2")
    assert running._process_state(tmp_path, 7) == "D"
    (process / "task" / "8" / "stat").write_text("8 (a ) b) S 1 2")
    assert running._process_state(tmp_path, 7) == "S"
    (process / "stat").write_text("7 (a ) b) Z 1 2")
    assert "kill" not in running._silent("/m", 7, running._process_state(tmp_path, 7)).fix
    assert running._process_state(tmp_path, 6) == ""


def test_an_address_of_another_host(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, AWSOMEFSD_METADATA_LISTEN="192.0.2.1:7441")
    one(network.listening(settings), "ADDRESS_FOREIGN", "metadata.listen = '192.0.2.1:7441'", "Cannot assign")


def test_names_without_an_address(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, AWSOMEFSD_CLUSTER_ADVERTISE="node1.invalid")
    one(network.names(settings, ()), "NAME_UNRESOLVED", "cluster.advertise", "node1.invalid")
    peers = [
        network.PeerNode("n2", "n2.invalid:7440", ""),
        network.PeerNode("n3", "127.0.0.1:7440", ""),
        network.PeerNode("n4", "[::1]:7440", ""),
    ]
    one(network.names(settings_of(tmp_path), peers), "NAME_UNRESOLVED", "node n2", "n2.invalid")


def test_a_peer_that_is_not_there(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    peer = network.PeerNode("n2", f"127.0.0.1:{port}", f"127.0.0.1:{port}")
    assert not list(network.reachable([peer]))
    listener.close()
    found = list(network.reachable([peer]))
    assert {finding.code for finding in found} == {"PEER_UNREACHABLE"} and len(found) == 2
    assert "Connection refused" in found[0].what and "n2" in found[0].what


# --- what the daemon answers -------------------------------------------------------------------------------------------------
def status(**fields: object) -> dict[str, object]:
    return {"node": "a", "version": "1", "keeper_version": "1", "mounts": [], "health": [], "pid": 1, "keeper_pid": 2} | fields


def mount(**fields: object) -> dict[str, object]:
    made = {"directory": "/m", "volume": "v", "workers": 1, "state": "serving", "worker_version": "1", "last_error": ""}
    return made | fields


def node(name: str, **fields: object) -> dict[str, object]:
    made = {"node": name, "name": name, "state": "active", "role": "node", "version": "1", "readiness": "ready", "carries": True}
    return made | {"control": f"{name}:1", "metadata": f"{name}:2"} | fields


def test_versions() -> None:
    assert not list(running.versions(status(mounts=[mount()]), [node("b"), node("c", state="removed", version="0")]))
    older = status(keeper_version="0.9", mounts=[mount(worker_version="0.8")])
    one(running.versions(older, [node("b", version="2")]), "VERSION_SKEW", "b runs 2", "keeper runs 0.9", "worker of /m runs 0.8")


def test_workers_that_end_again_and_again() -> None:
    assert not list(running.restarts(status(mounts=[mount(workers=running.RESTARTS_MANY)])))
    found = running.restarts(status(mounts=[mount(workers=5, last_error="killed by signal 11")]))
    one(found, "WORKER_RESTARTS", "/m", "4 times", "signal 11")


def test_peers_are_those_that_are_to_answer() -> None:
    nodes = [node("a"), node("b"), node("c", readiness="not-ready"), node("d", role="client"), node("e", carries=False)]
    assert running.peers(status(), nodes) == [network.PeerNode("b", "b:1", "b:2"), network.PeerNode("e", "e:1", "")]


def test_a_check_with_a_defect_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory", lambda *_: 1 / 0)
    settings = settings_of(tmp_path, AWSOMEFSD_CLUSTER_ADVERTISE="node1.invalid")
    found = {finding.code: finding for finding in examine.preflight(settings)}
    assert "ZeroDivisionError" in found["HOST_UNFIT"].what and "NAME_UNRESOLVED" in found


def test_who_has_an_address_is_said_where_it_is_missed(listener: socket.socket, tmp_path: Path) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match=rf"metadata.listen = '127.0.0.1:{port}'.*\(pid {os.getpid()}\)") as err:
        MetadataPort.listen(("127.0.0.1", port), None)
    assert err.value.errno == errno.EADDRINUSE
    with pytest.raises(ConfigError, match=rf"metrics.listen = .*Address already in use; port {port} is used by .*{os.getpid()}"):
        Exporter(Registry(), f"127.0.0.1:{port}", tmp_path, Probes(LoopBeat(), str))


@pytest.mark.parametrize("name", ["/mnt/a b", "/mnt/$(reboot)", "/mnt/'; reboot; '"])
def test_a_command_to_copy_has_names_quoted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = mount_syscalls.MountEntry("0:1", "/", name, mount_syscalls.FSTYPE, "v", "rw", "rw")
    monkeypatch.setattr(mount_syscalls, "mounts", lambda *_: [entry])
    monkeypatch.setattr(running.silent_paths, "errnos", lambda call, paths, seconds: dict.fromkeys(paths, errno.ENOTCONN))
    fix = one(running.orphans(None), "ORPHAN_MOUNT").fix
    assert shlex.split(fix.removeprefix("run `").removesuffix("`")) == ["umount", "-l", name]


def test_who_has_a_port_is_said_without_arguments(listener: socket.socket) -> None:
    words = ["python3", "-c", "import sys; print(flush=True); sys.stdin.read()", "--password=" + "x" * 20]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()]) as process:
        assert process.stdout is not None and process.stdout.readline()
        said = ports.holder(listener.getsockname()[1])
        process.communicate()
    assert f"python3 (pid {process.pid})" in said and "xxx" not in said
