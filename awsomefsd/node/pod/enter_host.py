"""Leaves the pod: starts a program in the namespaces of process 1, in no control group of a pod, with no parent that a pod could end.

`awsomefsd enter-host --log FILE -- ARGV…`, run by the daemon where `kubernetes.host_keeper` is set (hostPID, privileged); it ends when the
program runs, or with the reason why it does not.  It is a process of its own, because setns(2) into a mount namespace is refused to a
process with several threads.  Order: cgroup namespace first (cgroup v2 moves no process to a group outside of the mover's namespace), mount
namespace, then the control groups as the host's mounts show them, then twice fork with setsid between.  Everything is imported before
the mount namespace changes: afterwards the host's files have our names.

Control groups: with v2 the group `awsomefs` beside the pods' (a leaf: it takes no controllers); with v1 the root of each hierarchy, which
every process may join.  Where the process is in the same group as process 1 there is nothing to leave.  A group that cannot be left is an
error: a keeper that dies with the pod would be worse than none, because it is not expected.

Rejected: nsenter (is not in a small image), systemd-run (not every host has systemd; with it a scope would do the same), a second DaemonSet
(its pod can be deleted and evicted like any other, and takes the memory limits of workers with it).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

GROUP = "awsomefs"
_KINDS = {"cgroup": 0x02000000, "pid": 0x20000000, "mnt": 0x00020000}  # in this order
_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespaces(init: Path) -> list[str]:
    """Enters the namespaces of `init` (/proc/1) that are not ours already; returns their kinds.

    Raises OSError.  For a single-threaded process.
    """
    entered = []
    opened = {kind: os.open(init / "ns" / kind, os.O_RDONLY | os.O_CLOEXEC) for kind in _KINDS}
    for kind, fd in opened.items():
        if not os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{kind}")):
            if _libc.setns(fd, _KINDS[kind]) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"setns into the {kind} namespace of the host: {os.strerror(number)}")
            entered.append(kind)
    for fd in opened.values():
        os.close(fd)
    return entered


def memberships(text: str) -> dict[str, str]:
    """Returns the control groups in the text of /proc/PID/cgroup: controllers of a hierarchy ("" is cgroup v2) → path."""
    rows = (row.split(":", 2) for row in text.splitlines() if row.count(":") >= 2)
    return {controllers: path for _number, controllers, path in rows}


def hierarchies(mountinfo: str) -> Iterator[tuple[str, bool, set[str]]]:
    """Yields (mount point, whether it is cgroup v2, its options) of the hierarchies that are mounted whole."""
    for row in mountinfo.splitlines():
        before, _, after = row.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if kind[0] in ("cgroup", "cgroup2") and fields[3] == "/":
            yield fields[4], kind[0] == "cgroup2", set(kind[2].split(","))


def groups_to_join(ours: dict[str, str], inits: dict[str, str], mountinfo: str) -> dict[str, str]:
    """Returns the control groups to join, controllers → directory: one in each hierarchy where we are not in the group of process 1.

    Raises OSError for a hierarchy that is not mounted.
    """
    places = list(hierarchies(mountinfo))
    wanted = {}
    for controllers, path in ours.items():
        if path == inits.get(controllers):
            continue
        for place, is_v2, options in places:
            if controllers == "" and is_v2:
                wanted[controllers] = f"{place}/{GROUP}"
            elif controllers and not is_v2 and set(controllers.split(",")) <= options:
                wanted[controllers] = place
        if controllers not in wanted:
            raise OSError(f"the control group hierarchy {controllers or 'v2'} is not mounted on this host, so {path} cannot be left")
    return wanted


def leave_groups(inits: str) -> list[str]:
    """Joins the host's control groups; returns their directories.  `inits`: /proc/PID/cgroup of process 1.  Raises OSError."""
    wanted = groups_to_join(
        memberships(Path("/proc/self/cgroup").read_text()),
        memberships(inits),
        Path("/proc/self/mountinfo").read_text(),
    )
    for directory in wanted.values():
        os.makedirs(directory, exist_ok=True)
        Path(directory, "cgroup.procs").write_text("0")
    return list(wanted.values())


def start_detached(argv: list[str], log: Path) -> None:
    """Starts a program as a process without a parent here; returns when exec has succeeded, and raises OSError when it has not."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _between(argv, log, writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    if said:
        raise OSError(said)


def _between(argv: list[str], log: Path, writer: int) -> None:
    """Becomes the program, as a grandchild whose parent is gone; never returns."""
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        log.parent.mkdir(parents=True, exist_ok=True)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.execve(argv[0], argv, os.environ)
    except OSError as error:
        os.write(writer, f"{argv[0]}: {error.strerror}".encode())
    finally:
        os._exit(1)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="awsomefsd enter-host", description="start a program on the host, from inside a pod")
    parser.add_argument("--log", required=True, type=Path)
    parser.add_argument("--init", default="1", help="the process that is in the host's namespaces and groups; tests name another one")
    parser.add_argument("argv", nargs="+")
    wanted = parser.parse_args(words)
    try:
        init = Path("/proc", wanted.init)
        entered = enter_namespaces(init)
        left = leave_groups(Path("/proc", wanted.init, "cgroup").read_text())
        os.chdir("/")
        os.umask(0o027)
        start_detached(wanted.argv, wanted.log)
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}\n")
        return 1
    sys.stdout.write(f"namespaces entered: {', '.join(entered) or 'none'}; control groups joined: {', '.join(left) or 'none'}\n")
    return 0
