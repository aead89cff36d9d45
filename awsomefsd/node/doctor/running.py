"""Checks of what runs, by the daemon's answers as plain dictionaries (admin.proto), and of the mounts of this host."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from awsomefsd.base.errors import Error
from awsomefsd.base.sockets import connect_unix, peer_of
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.client import KeeperClient
from awsomefsd.node import silent_paths
from awsomefsd.node.doctor.network import PeerNode
from awsomefsd.node.health.codes import HealthFinding
from awsomefsd.node.health.stopped_workers import is_stopped

RESTARTS_MANY = 3
LOOK_S = 3.0
D_LOOKS, D_LOOK_S = 5, 0.05  # of a thread that may wait in the kernel; a busy one is there now and then
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)

Answer = Mapping[str, Any]


def known(status: Answer) -> Iterator[HealthFinding]:
    """Yields the daemon's own findings again: `awsomefsd status` has the same."""
    for one in status["health"]:
        yield HealthFinding(one["code"], one["what"], one["fix"])


def peers(status: Answer, nodes: Iterable[Answer]) -> list[PeerNode]:
    """Returns the other nodes of the cluster that are to be there and report; of one that does not, NODE_GONE is the finding."""
    return [
        PeerNode(one["name"], one["control"], one["metadata"] if one["carries"] else "")
        for one in nodes
        if one["node"] != status["node"] and one["state"] != "removed" and one["role"] == "node" and one["readiness"] == "ready"
    ]  # fmt: skip


def versions(status: Answer, nodes: Iterable[Answer]) -> Iterator[HealthFinding]:
    """Yields one finding if nodes, or keeper and workers of this one, run other versions than this daemon."""
    own = str(status["version"])
    others = [f"node {one['name']} runs {one['version']}" for one in nodes if one["state"] != "removed" and one["version"] not in ("", own)]
    if status["keeper_version"] not in ("", own):
        others.append(f"the keeper runs {status['keeper_version']}")
    for mount in status["mounts"]:
        if mount["worker_version"] not in ("", own):
            others.append(f"the worker of {mount['directory']} runs {mount['worker_version']}")
    if others:
        yield HealthFinding("VERSION_SKEW", f"this daemon runs {own}; {', '.join(others)}")


def listener_of(admin_socket: Path) -> list[int]:
    """Returns the pid of the daemon that has this socket, also of one that is stopped; [] if none does.  Does not block."""
    try:
        with connect_unix(admin_socket, LOOK_S) as sock:
            return [peer_of(sock).pid]
    except OSError:
        return []


def restarts(status: Answer) -> Iterator[HealthFinding]:
    """Yields mounts whose worker ends again and again."""
    for mount in status["mounts"]:
        if (times := int(mount["workers"]) - 1) >= RESTARTS_MANY:
            last = f"; the last reason: {mount['last_error']}" if mount["last_error"] else ""
            yield HealthFinding("WORKER_RESTARTS", f"the worker of {mount['directory']} was started again {times} times{last}")


def pinned(run_dir: Path) -> Iterator[HealthFinding]:
    """Yields mounts that were unmounted here and live on in another mount namespace, by what the keeper serves."""
    try:
        rows = KeeperClient(run_dir).list(LOOK_S)
    except Error:
        return  # KEEPER_GONE or DAEMON_GONE says so
    for row in rows:
        holders = list(namespaces_with(str(row["device"]))) if row["state"] == "detached" else []
        if holders:
            who = ", ".join(f"{command} (pid {pid}, at {place})" for pid, command, place in holders)
            what = f"volume {row['source']}, unmounted from {row['dir']}, is still mounted for {who}"
            yield HealthFinding("MOUNT_PINNED", what, f"end it with `kill {holders[0][0]}`, or stop its container")


def namespaces_with(device: str) -> Iterator[tuple[int, str, str]]:
    """Yields (pid, command, directory) of one process of each other mount namespace that has a filesystem (major:minor) mounted."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            if (namespace := os.readlink(f"/proc/{pid}/ns/mnt")) in seen:
                continue
            seen.add(namespace)
            place = next((entry.dir for entry in mount_syscalls.mounts(f"/proc/{pid}/mountinfo") if entry.device == device), "")
            if place:
                yield pid, Path(f"/proc/{pid}/comm").read_text(errors="replace").strip(), place


def orphans(status: Answer | None) -> Iterator[HealthFinding]:
    """Yields mounts of ours on this host that no process serves, and that this node's daemon does not look after."""
    watched = {mount["directory"] for mount in status["mounts"]} if status is not None else set()
    unknown = [entry for entry in mount_syscalls.mounts() if entry.fstype == mount_syscalls.FSTYPE and entry.dir not in watched]
    answers = silent_paths.errnos(os.statvfs, {entry.dir for entry in unknown}, LOOK_S)  # one that hangs is served by somebody, or watched
    for entry in unknown:
        if answers.get(entry.dir) in _DEAD:
            what = f"{entry.dir} has volume {entry.source} mounted, and every access answers ENOTCONN"
            yield HealthFinding("ORPHAN_MOUNT", what, _unmounting(entry.dir))


def hung(status: Answer | None, proc: Path = Path("/proc")) -> Iterator[HealthFinding]:
    """Yields mounts of this node that are served, and do not answer within LOOK_S.

    Without a leader they may wait for one, and that is the finding.  Those that this mount namespace does not have are not asked, nor those
    whose workers are stopped: the daemon says that.
    """
    if status is None or not status["metadata"]["leader"]:
        return
    here = {entry.dir for entry in mount_syscalls.mounts() if entry.fstype == mount_syscalls.FSTYPE}
    served = {mount["directory"]: int(mount["worker_pid"]) for mount in status["mounts"] if mount["state"] == "serving"}
    asked = {place for place in served.keys() & here if not is_stopped(served[place], proc)}
    answers = silent_paths.errnos(os.statvfs, asked, LOOK_S)
    for directory in sorted(asked - answers.keys()):
        yield _silent(directory, served[directory], _process_state(proc, served[directory]))


def _silent(directory: str, pid: int, state: str) -> HealthFinding:
    """Returns the finding for a mount without an answer; `state`: that of its worker, as in proc(5)."""
    does, fix = {
        "T": ("is stopped by a signal", f"run `kill -CONT {pid}`"),
        "t": ("is stopped by a debugger", f"detach the debugger from process {pid}"),
        "D": ("waits in the kernel", "read `dmesg`: a device of it does not answer, and no signal ends the process before"),
        "": ("is gone", "wait: the keeper starts another one"),
        "Z": ("is gone", "wait: the keeper starts another one"),
    }.get(state, ("runs", f"run `kill -9 {pid}`: another worker takes the mount over, and no open file ends"))
    return HealthFinding("MOUNT_HUNG", f"statfs of {directory} had no answer within {LOOK_S:.0f} s; its worker (pid {pid}) {does}", fix)


def _process_state(proc: Path, pid: int) -> str:
    """Returns the state of a process, "" of one that is not there; "D" where one of its threads stays in the kernel for D_LOOKS looks.

    A thread that waits for a device is there for as long as the device is silent, and holds its process even after kill -9; the first
    thread, whose state is that of the process, waits for something else meanwhile.
    """
    waiting = _waiting_threads(proc, pid)
    for _ in range(D_LOOKS - 1 if waiting else 0):
        time.sleep(D_LOOK_S)
        waiting &= _waiting_threads(proc, pid)
    return "D" if waiting else _state(proc / str(pid))


def _waiting_threads(proc: Path, pid: int) -> set[str]:
    with suppress(OSError):
        return {name for name in os.listdir(proc / str(pid) / "task") if _state(proc / str(pid) / "task" / name) == "D"}
    return set()


def _state(directory: Path) -> str:
    try:
        return (directory / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _unmounting(directory: str) -> str:
    """Returns the fix in words.  Whoever mounts there chooses the name, and people copy commands."""
    if not directory.isprintable():
        return "unmount it with `umount -l`; its name has characters that are not printed"
    return f"run `umount -l {quote(directory)}`"
