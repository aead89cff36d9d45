"""Workers that were stopped by a signal: they live, hold their mounts, and answer nothing.

Only that is told here, because only that can be told at once and without asking the mount, which would wait as its programs do.  A
worker that hangs in another way is found by `awsomefsd doctor`, whose child asks the mount (decision 437).
"""

from __future__ import annotations

from pathlib import Path


def is_stopped(pid: int, proc: Path = Path("/proc")) -> bool:
    """Returns whether the process is a worker that was stopped by a signal (state T of proc(5)).  Does not block.

    Not one that a debugger holds (t): strace holds whom it watches for a moment at each call.  The words of a process are read behind its
    memory lock, which a running one may hold for long; a stopped one does not.
    """
    place = proc / str(pid)
    try:
        stopped = (place / "stat").read_text().rpartition(")")[2].split()[0] == "T"
        return stopped and b"worker" in (place / "cmdline").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False
