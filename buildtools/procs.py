"""Which processes belong to a node directory, and nothing but those.

Every process of a node inherits one environment variable that names its directory, so ownership is read from /proc/<pid>/environ and
never from a stored number: after a reboot a pid file may name a stranger's process, an environment cannot.  Children of children (a
worker started by a keeper that a supervisor restarted) are found too.  Rejected: pid files (stale), names (they hit other nodes).

As a program: ``procs.py DIR… ROLE`` prints the pids, one a line; that is what WORKER_PIDS and DAEMON_PIDS in D/env run.
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARK = "AWSOMEFS_NODE_DIR"
ROLES = {"supervise": "supervisor", "supervisor": "supervisor", "keeper": "keeper", "run": "daemon", "daemon": "daemon"}
ROLES |= {"worker": "worker", "forker": "forker", "segments": "segments"}


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def words(pid: int) -> list[str]:
    """Its command line; [] if it is gone."""
    return [os.fsdecode(word) for word in _read(f"/proc/{pid}/cmdline").split(b"\0")]


def role_of(pid: int) -> str:
    """supervisor, keeper, daemon, worker, forker, segments, or "" for what is none of them."""
    for word in words(pid)[1:]:  # the subcommand stands before any option (awsomefsd/base/program.py)
        name = word.rpartition(".")[2]
        if name in ROLES:
            return ROLES[name]
    return ""


def state(pid: int) -> str:
    """As in /proc: R, S, T (stopped), Z…; "" if it is gone."""
    return os.fsdecode(_read(f"/proc/{pid}/stat").rpartition(b") ")[2][:1])


def alive(pid: int) -> bool:
    """Running: there, and neither a zombie nor dead."""
    return state(pid) not in ("", "Z", "X")


def owned(directory: str) -> dict[int, str]:
    """Every live process of the node in `directory`, with its role."""
    mark = b"\0" + MARK.encode() + b"=" + os.fsencode(os.path.abspath(directory)) + b"\0"
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and mark in b"\0" + _read(f"/proc/{entry}/environ"):
            pid = int(entry)
            if alive(pid):
                found[pid] = role_of(pid)
    return found


def holds(pid: int, path: str) -> bool:
    """Whether the process has this file open."""
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{number}") == path for number in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False  # ended, or closed a descriptor meanwhile: the next look tells


def pids(directory: str, role: str) -> list[int]:
    return sorted(pid for pid, of in owned(directory).items() if of == role)


def kill(directory: str, wanted: dict[int, str], number: int = signal.SIGKILL) -> list[int]:
    """Signal those of `wanted` that still belong to the node; returns the pids that were hit."""
    hit = []
    for pid in wanted:
        try:
            descriptor = os.pidfd_open(pid)  # holds the identity while ownership is checked: the number cannot be reused in between
        except OSError:
            continue
        try:
            if pid in owned(directory):
                signal.pidfd_send_signal(descriptor, number)
                hit.append(pid)
        except OSError:
            pass
        finally:
            os.close(descriptor)
    return hit


def wait_gone(directory: str, timeout_s: float) -> dict[int, str]:
    """Wait until no process of the node is left; returns those that stayed."""
    deadline = time.monotonic() + timeout_s
    left = owned(directory)
    while left and time.monotonic() < deadline:
        time.sleep(0.02)  # no event covers processes that are not our children
        left = owned(directory)
    return left


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[-1] not in ROLES.values():
        sys.exit("usage: procs.py DIR… supervisor|keeper|daemon|worker")
    # A shell whose processes are the node's has its mark, and so has this program, with the name of a role in its arguments.
    sys.stdout.writelines(f"{pid}\n" for place in sys.argv[1:-1] for pid in pids(place, sys.argv[-1]) if pid != os.getpid())
