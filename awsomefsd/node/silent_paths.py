"""Children ask for paths that may never answer: whoever waits for a FUSE server that has taken his request cannot be ended.

Not even SIGKILL ends him, and no process ends before its threads.  A child that still waits is left alone; it holds no descriptor, so
nobody waits for it.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable

_TURN_S = 0.01


def errnos(call: Callable[[str], object], paths: Iterable[str], seconds: float) -> dict[str, int]:
    """Makes a system call for each path; returns its errno, or 0, of those for which it came back within `seconds`."""
    asked = {_ask_by_child(call, path): path for path in paths}
    deadline = time.monotonic() + seconds
    found: dict[str, int] = {}
    while asked:
        for child, path in list(asked.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del asked[child]
                found[path] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            break
        time.sleep(_TURN_S if asked else 0)
    for child in asked:
        os.kill(child, signal.SIGKILL)
    return found


def _ask_by_child(call: Callable[[str], object], path: str) -> int:
    """Returns the pid of a child that makes a system call, and exits with its errno, or 0."""
    with warnings.catch_warnings():  # of forks beside threads: the child makes system calls only
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return child
    answer = 0
    try:
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        call(path)
    except OSError as err:
        answer = err.errno or 0
    finally:
        os._exit(min(answer, 255))
