"""The process of a worker: the keeper starts it, knows it by its pidfd, and learns how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awsomefsd.base import program
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import BACKOFF_MS_MAX, WORKER_DEATHS_BEFORE_BACKOFF
from awsomefsd.keeper.loop import Promise
from awsomefsd.keeper.wire import Message

BACKOFF_MS_MIN = 100
HEALTHY_MS = BACKOFF_MS_MAX  # a ready worker that lived this long was healthy, even without a request
_WORKER_FD = 3
_ENVIRONMENT = ("PATH", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV")
_SECRETS = ("TOKEN", "SECRET", "PASSWORD")


@dataclass(slots=True)
class WorkerProcess:
    """A worker as the keeper knows it."""

    pid: int
    pidfd: int
    sock: socket.socket | None
    child: bool  # of ours, so its exit status can be had
    started_s: float = field(default_factory=time.monotonic)
    ready: bool = False
    answered: bool = False
    bye: bool | None = None  # whether it was clean
    version: str = ""  # from its own messages
    home: str = ""  # the directory of its program
    memory_format: int = 1  # of the areas of a mount, the highest that its program knows; an earlier build does not say it
    loaded: Promise = field(default_factory=Promise)  # it waits for its start message

    def healthy(self) -> bool:
        """Returns True if it has answered a request, or was ready and has lived for HEALTHY_MS."""
        return self.answered or (self.ready and (time.monotonic() - self.started_s) * 1000 >= HEALTHY_MS)

    def tell_from(self, message: Message) -> None:
        """Notes the version and the directory of its program, from a message of the worker."""
        self.version, self.home = str(message.get("version", "")), str(message.get("home", ""))

    def kill(self) -> None:
        """Sends SIGKILL, unless the process was let go.  Timers call this long after its end, when its number may name another file."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def let_go(self) -> None:
        """Closes the pidfd: the keeper has nothing to do with the process any more."""
        os.close(self.pidfd)
        self.pidfd = -1


def spawn(argv: list[str], env: dict[str, str], log_path: Path, fd: int) -> int:
    """Starts a worker whose end of the connection to us is `fd`, and returns its pid.  Raises OSError."""
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log_path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, fd, _WORKER_FD),
    ]
    default = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD]
    # A session of its own: neither ^C of a terminal nor a signal to our process group reaches it.
    hit("keeper.spawn.before")
    argv = [*argv, "--keeper-fd", str(_WORKER_FD)]
    pid = os.posix_spawnp(argv[0], argv, _environment(env), file_actions=actions, setsid=True, setsigdef=default)
    hit("keeper.spawn.after")
    return pid


def _environment(asked: dict[str, str]) -> dict[str, str]:
    """Returns the environment that a worker may need: nothing that a shell left behind, and no secret."""
    kept = without_secrets({key: value for key, value in os.environ.items() if key in _ENVIRONMENT or key.startswith(("LC_", "AWSOMEFS"))})
    path = program.environment().get("PYTHONPATH")
    return kept | ({"PYTHONPATH": path} if path else {}) | asked


def without_secrets(environment: dict[str, str]) -> dict[str, str]:
    """Returns the environment without variables whose names speak of tokens, secrets or passwords."""
    return {key: value for key, value in environment.items() if not any(word in key for word in _SECRETS)}


def start_time_of(pid: int) -> str:
    """Returns when a process started, in ticks since boot as text, "" if it has ended; with its pid that is unique until the next boot."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def still_alive(pid: int, started: str) -> WorkerProcess | None:
    """Returns the worker of an earlier keeper with this pid and start time, None if it has ended.  Raises OSError."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if started and start_time_of(pid) == started:
        return WorkerProcess(pid, pidfd, None, is_child(pidfd))
    os.close(pidfd)
    return None


def is_child(pidfd: int) -> bool:
    """Returns True for a child of this process."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def backoff_ms(deaths: int) -> int:
    """Returns the pause (ms) before a start after so many deaths without one answered request; 0: none."""
    if deaths < WORKER_DEATHS_BEFORE_BACKOFF:
        return 0
    return int(min(BACKOFF_MS_MAX, BACKOFF_MS_MIN << min(16, deaths - WORKER_DEATHS_BEFORE_BACKOFF)))


def pidfd_of_child(pid: int) -> int:
    """Returns a pidfd of a child that was just started; one that cannot be watched is killed.  Raises OSError."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def exit_status(worker: WorkerProcess) -> Message:
    """Returns how a worker ended: {"signal", "code", "exited"}.  Both are None for one of an earlier keeper, its parent.  Reaps a child."""
    status: Message = {"signal": None, "code": None, "exited": True}
    if worker.child:
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED)
            if ended is not None:
                status["code" if ended.si_code == os.CLD_EXITED else "signal"] = ended.si_status
    return status
