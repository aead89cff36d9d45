"""The supervisor keeps a node's processes running where no service manager does: `awsomefsd supervise`.  Standard library only.

They are keeper and daemon, and the segment server while the file POOL_DEVICES is in the state directory: the daemon makes it as long as
devices of pools are this node's.  It is looked for every NEED_LOOK_S; when it goes, the segment server ends by itself.

Each is started in a session of its own and watched by its pidfd; one that ends is started again after RESTART_S, or RESTART_SLOW_S when it
did not live for HEALTHY_S (a daemon that cannot start must not fill the log); for a segment server that pause doubles, for nothing on its
node waits for it.  Their pids are in run_dir/supervisor.json, so a supervisor
that was killed and comes back takes the running ones up instead of starting a second pair (which their locks would refuse anyway).
One supervisor runs on a run directory, and one on a state directory: a second one of the same state would start a keeper that nobody uses.

SIGTERM ends the segment server (others that write there are told so while the metadata is served), then the daemon, then the keeper, then
us.  Workers go on serving: unmount first to end everything.

Their logs are bounded: a file over LOG_BYTES_MAX is copied to NAME.1 and emptied in place.  Renaming it would not do, because the
process holds it open; a pipe through us would not do either, because all must outlive a supervisor that is killed.  Lines written between
copy and emptying are lost.  A thread holds the descriptors of the mounts, as the daemon does (mount_holder.py).  As process 1 of a
container, orphans (workers whose keeper was killed) are reaped here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from awsomefsd.base import log, program
from awsomefsd.base.errors import Refused
from awsomefsd.base.identity import POOL_DEVICES, SUPERVISOR_LOCK, lock_or_holder, make_directory
from awsomefsd.base.limits import MIB
from awsomefsd.base.sockets import readable
from awsomefsd.keeper.mount_holder import MountHolder
from awsomefsd.keeper.process import start_time_of

logger = logging.getLogger("awsomefsd.supervisor")
RESTART_S = 0.05
RESTART_SLOW_S = 0.5  # with the start itself still within a second
HEALTHY_S = 1.0
SEGMENTS_RESTART_S_MAX = 8.0  # the pause doubles up to this for a segment server that does not live for SEGMENTS_HEALTHY_S
SEGMENTS_HEALTHY_S = 3.0
NEED_LOOK_S = 2.0
STOP_S = 10.0
LOG_BYTES_MAX = 16 * MIB
LOG_LOOK_S = 10.0


class Child:
    """One process that the supervisor keeps running; `pidfd` is -1 while it does not run.

    `needed`: it is to run only while this file is there; None: always.  It ends by itself when the file goes.
    The pause before the next start doubles up to `pause_s_max` as long as it does not live for `healthy_s`.
    """

    def __init__(
        self, name: str, argv: list[str], log_path: Path, needed: Path | None = None, healthy_s: float = HEALTHY_S,
        pause_s_max: float = RESTART_SLOW_S,
    ) -> None:  # fmt: skip
        self.name = name
        self._argv = argv
        self.log_path = log_path
        self._needed = needed
        self._healthy_s = healthy_s
        self._pause_s, self._pause_s_max = RESTART_SLOW_S, pause_s_max
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.pid = 0
        self.pidfd = -1
        self.due = 0.0  # when to start it

    def is_needed(self) -> bool:
        return self._needed is None or os.path.exists(self._needed)  # False where nobody can say: a look must not end the supervisor

    def start(self) -> None:
        env = self._environment()
        with self.log_path.open("ab") as file:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, cwd="/", start_new_session=True,
                pass_fds=program.token_descriptors(env),
            )  # fmt: skip
        self._started = time.monotonic()
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        logger.info("started", extra={"child": self.name, "child_pid": self.pid})

    def _environment(self) -> dict[str, str]:
        """Returns the environment of the child.  Only the daemon gets the token; keeper and workers live long, and need none."""
        given = program.environment()
        secret = (program.TOKEN, program.TOKEN_FILE)
        return given if self.name == "daemon" else {name: value for name, value in given.items() if name not in secret}

    def adopt(self, pid: int, start_time: str) -> None:
        """Watches a process that an earlier supervisor has started, if it is still that one."""
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            if start_time_of(pid) == start_time:
                self.pid, self.pidfd, self._started = pid, pidfd, time.monotonic()
                logger.info("taken up", extra={"child": self.name, "child_pid": pid})
            else:
                os.close(pidfd)

    def ended(self) -> None:
        """Notes that the process has ended (its pidfd says so), and when to start it again."""
        code = self._process.wait() if self._process is not None else None
        os.close(self.pidfd)
        lived = time.monotonic() - self._started
        logger.warning("ended", extra={"child": self.name, "child_pid": self.pid, "code": code, "lived_s": round(lived, 1)})
        self._process, self.pid, self.pidfd = None, 0, -1
        if lived >= self._healthy_s:
            self.due, self._pause_s = time.monotonic() + RESTART_S, RESTART_SLOW_S
        else:
            self.due, self._pause_s = time.monotonic() + self._pause_s, min(2 * self._pause_s, self._pause_s_max)

    def bound_log(self) -> None:
        """Moves a log of more than LOG_BYTES_MAX to NAME.1; it is opened for appending, so its writer goes on at the new end."""
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size > LOG_BYTES_MAX:
                shutil.copyfile(self.log_path, self.log_path.with_name(self.log_path.name + ".1"))
                os.truncate(self.log_path, 0)

    def stop(self) -> None:
        """Ends the process with SIGTERM, and with SIGKILL after STOP_S.  Blocks until it has ended."""
        if self.pidfd < 0:
            return
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)
            if readable([self.pidfd], patience_s):
                self.ended()
                return


class Supervisor:
    """Keeps its children running; their pids are in run_dir/supervisor.json."""

    def __init__(self, run_dir: Path, children: list[Child]) -> None:
        self._record = run_dir / "supervisor.json"
        self._children = children

    def run(self, wake: int) -> None:
        """Runs until a signal number other than SIGCHLD arrives on `wake` (the signal handler's pipe), then stops the children; blocks."""
        self._take_up()
        while True:
            pause_s = self._start_due()
            watched = {child.pidfd: child for child in self._children if child.pidfd >= 0}
            ready = readable([wake, *watched], pause_s)
            if wake in ready and set(os.read(wake, 64)) - {signal.SIGCHLD}:
                break
            for fd in ready:
                if fd in watched:
                    watched[fd].ended()
            if os.getpid() == 1:
                self._reap_orphans()
        for child in reversed(self._children):  # the segment server, the daemon, then the keeper
            child.stop()
        self._record.unlink(missing_ok=True)

    def _start_due(self) -> float:
        """Starts what is to run and does not; returns after how many seconds to look again."""
        now, pauses = time.monotonic(), [LOG_LOOK_S]
        for child in self._children:
            child.bound_log()
            if child.pidfd >= 0:
                continue
            if not child.is_needed():
                pauses.append(NEED_LOOK_S)
            elif child.due > now:
                pauses.append(child.due - now)
            else:
                child.start()
                self._remember()
        return min(pauses)

    def _reap_orphans(self) -> None:
        """Reaps orphans only; our own children are reaped where their end is noted."""
        own = {child.pid for child in self._children}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None and ended.si_pid not in own:
                os.waitpid(ended.si_pid, 0)

    def _take_up(self) -> None:
        try:
            known = json.loads(self._record.read_text())
            for child in self._children:
                pid, start_time = known.get(child.name) or (0, "")
                if pid:
                    child.adopt(int(pid), str(start_time))
        except (OSError, ValueError, TypeError, AttributeError):
            return  # no record, or none that can be read: locks keep a second keeper or daemon out

    def _remember(self) -> None:
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps({child.name: [child.pid, start_time_of(child.pid)] for child in self._children if child.pid}))
        new.rename(self._record)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="awsomefsd supervise", description="run a node's processes, and restart them when they end")
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--config")
    parser.add_argument("--log-dir", required=True, type=Path)
    parser.add_argument("--log-level", default="info", choices=log.LEVELS)
    parser.add_argument("--log-format", default="text", choices=log.FORMATS)
    return parser.parse_args(argv)


def _children(words: argparse.Namespace) -> list[Child]:
    """Returns the children, the keeper first: the daemon needs it to bring mounts back."""
    run_dir, log_dir = ["--run-dir", str(words.run_dir)], words.log_dir
    place = ["--state-dir", str(words.state_dir), *run_dir]
    logs = ["--log-dir", str(log_dir), "--log-level", words.log_level, "--log-format", words.log_format]
    config = ["--config", words.config] if words.config else []
    return [
        Child("keeper", program.command("keeper", *run_dir, *logs), log_dir / "keeper.log"),
        Child("daemon", program.command("run", *place, *config), log_dir / "daemon.log"),
        Child(
            "segments", program.command("segments", *place, *config), log_dir / "segments.log", words.state_dir / POOL_DEVICES,
            SEGMENTS_HEALTHY_S, SEGMENTS_RESTART_S_MAX,
        ),
    ]  # fmt: skip


def main(argv: list[str]) -> int:
    words = _arguments(argv)
    log.setup("supervisor", words.log_level, words.log_format)
    return supervise(words.run_dir, words.state_dir, _children(words))


def supervise(run_dir: Path, state_dir: Path, children: list[Child]) -> int:
    """Keeps `children` running until SIGTERM or SIGINT; returns the exit code, 1 if another supervisor runs.  The main thread calls it."""
    try:
        _lock(run_dir, state_dir, children)
    except Refused as err:
        sys.stderr.write(f"{err}\n")
        return 1
    os.chdir("/")
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    holder = MountHolder(run_dir)
    holder.start()
    Supervisor(run_dir, children).run(reader)
    holder.close()
    return 0


def _lock(run_dir: Path, state_dir: Path, children: list[Child]) -> None:
    """Makes the directories and takes both locks, which are held until the process ends.  Raises Refused."""
    make_directory(run_dir, 0o711)
    make_directory(state_dir, 0o700)
    for child in children:
        make_directory(child.log_path.parent, 0o755)
    for directory, where in ((run_dir, "in"), (state_dir, "on")):
        try:
            lock = lock_or_holder(directory / SUPERVISOR_LOCK)
        except OSError as err:
            raise Refused(f"cannot open {directory / SUPERVISOR_LOCK}: {err.strerror}; run as root, or choose other directories") from err
        if isinstance(lock, str):
            raise Refused(f"another supervisor runs {where} {directory} (process {lock}); stop it first")
