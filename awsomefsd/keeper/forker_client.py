"""The keeper's side of its forker, a process that has loaded a worker's program and only forks workers off (worker/forker.py is that one).

Standard library only.

A worker that begins as a copy has no interpreter to start and no module to load, and shares the memory that it does not change with all
others (decision 89).  The forker holds no descriptor of a mount and no state: it may die or hang at any moment.  Whatever is wrong with it,
the keeper starts the worker as a process of its own, as it does for the first one of a program.

A forked worker has to be our child, so that we hear how it ended.  The forker forks twice, the process between ends at once, and orphans
below us become our children (PR_SET_CHILD_SUBREAPER).  The forker names it by a pidfd, made before any process can have reaped it.

The only wait is for one answer, ANSWER_S at most.  A forker that is slower is left alone until it has answered; that late worker finds its
connection closed and ends.  It has had no descriptor of a mount: those come with the start message.
Rejected: the keeper as the forker, which would have to import all that a worker needs and carry it for its long life; clone(2) with
CLONE_PARENT past the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base.errors import ProtocolError
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.loop import Loop
from awsomefsd.keeper.process import WorkerProcess, pidfd_of_child, spawn
from awsomefsd.keeper.wire import Message, say

log = logging.getLogger("awsomefsd.keeper")
ANSWER_S = 1.0
AGAIN_S = 60.0  # after one that could not load
SUBCOMMAND, WORKER = "forker", "worker"
_PR_SET_CHILD_SUBREAPER = 36
_ON_PURPOSE = ("AWSOMEFSD_FAILPOINTS", "AWSOMEFSD_FAILPOINTS_FILE", "AWSOMEFSD_FAULTS")  # read by each process when it starts


class Forker:
    """The keeper has at most one forker, of the program that was asked for last.  The loop's thread uses it."""

    def __init__(self, loop: Loop, log_dir: Path) -> None:
        self._loop = loop
        self._log_path = log_dir / "forker.log"
        self._argv: list[str] = []
        self._env: dict[str, str] = {}
        self._sock: socket.socket | None = None
        self._pidfd = -1
        self._ready = False
        self._not_before = 0.0
        self._usable = not any(name in os.environ for name in _ON_PURPOSE) and _adopt_orphans()

    def start(self, argv: list[str], env: dict[str, str], log_path: Path) -> WorkerProcess:
        """Returns a new worker that waits for its start message, forked or else started as a process of its own.

        Blocks up to ANSWER_S for the forker.  Raises OSError if no process can be started.
        """

        def spawned(fd: int) -> tuple[int, int]:
            pid = spawn(argv, env, log_path, fd)
            return pid, pidfd_of_child(pid)

        worker = _connected(lambda fd: self._worker(argv, env, log_path, fd)) or _connected(spawned)
        assert worker is not None
        return worker

    def _worker(self, argv: list[str], env: dict[str, str], log_path: Path, fd: int) -> tuple[int, int] | None:
        """Returns (pid, pidfd) of a new worker whose end of the connection is `fd`; None if it has to be started without a forker."""
        if not self._usable or argv[-1] != WORKER:
            return None
        if (argv, env) != (self._argv, self._env):
            self.close()
            self._argv, self._env, self._not_before = argv, env, 0.0
        if self._sock is None:
            self._begin()
            return None
        if not self._ready:
            return None
        try:
            return self._fork(log_path, fd)
        except (OSError, ProtocolError) as error:
            say(log, logging.WARNING, "forker given up", why=error)
            self.close()
            return None

    def warm(self, argv: list[str], env: dict[str, str]) -> bool:
        """Begins to load a forker for the workers to come; returns True if it is loaded already."""
        if self._usable and argv[-1] == WORKER and self._sock is None:
            self._argv, self._env = argv, env
            self._begin()
        return self._ready and (argv, env) == (self._argv, self._env)

    def _begin(self) -> None:
        if time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + AGAIN_S
        ours, theirs = wire.pair()
        try:
            pid = spawn([*self._argv[:-1], SUBCOMMAND], self._env, self._log_path, theirs.fileno())
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            ours.close()
            say(log, logging.WARNING, "no forker", why=error)
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        self._sock, self._ready = ours, False
        self._loop.watch(ours.fileno(), self._read)
        say(log, logging.INFO, "forker started", child=pid)

    def _fork(self, log_path: Path, fd: int) -> tuple[int, int] | None:
        assert self._sock is not None
        wire.send(self._sock, {"op": "fork", "log": str(log_path)}, [fd])
        self._ready = False
        with selectors.PollSelector() as waiting:
            waiting.register(self._sock, selectors.EVENT_READ)
            if not waiting.select(ANSWER_S):
                say(log, logging.WARNING, "forker is late", limit_s=ANSWER_S)
                return None
        received = wire.receive(self._sock)
        if received is None:
            raise ProtocolError("it ended")
        message, fds = received
        if message.get("op") != "forked" or len(fds) != 1:
            wire.close_all(fds)
            raise ProtocolError(str(message.get("why", "an answer that is none")))
        self._ready = True
        return int(message["pid"]), fds[0]

    def _read(self) -> None:
        """Reads a message of the forker: it has loaded, answers late, or has ended."""
        assert self._sock is not None
        try:
            received: tuple[Message, list[int]] | None = wire.receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            received = None
        if received is None or received[0].get("op") not in ("loaded", "forked"):
            say(log, logging.WARNING, "forker ended")
            self.close()
            return
        self._ready = True
        for pidfd in received[1]:  # of a worker that is not waited for any more, and that ends by itself
            self._loop.watch(pidfd, lambda pidfd=pidfd: self._reap(pidfd))  # type: ignore[misc]

    def _reap(self, pidfd: int) -> None:
        self._loop.unwatch(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)

    def close(self) -> None:
        """Ends the forker; its workers go on."""
        if self._sock is None:
            return
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self._sock, self._pidfd, self._ready = None, -1, False


def _connected(begin: Callable[[int], tuple[int, int] | None]) -> WorkerProcess | None:
    """Returns a process with a connection of its own: a worker that a late forker still makes never gets another one's messages."""
    ours, theirs = wire.pair()
    try:
        begun = begin(theirs.fileno())
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    if begun is None:
        ours.close()
        return None
    ours.setblocking(False)
    return WorkerProcess(*begun, ours, child=True)


def _adopt_orphans() -> bool:
    """Makes orphans of our descendants our children, also after an exec; returns False if the kernel refuses."""
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
