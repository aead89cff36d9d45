"""The keeper of a daemon in a pod: it runs on the host, and keeper and workers become the program that this daemon is (decision 62).

Each `poll` takes one step, for as long as the daemon runs, so a process that is killed in between is brought back:
1. a copy of the program on the host (host_program.py);
2. a keeper: if none answers, one is started from the copy outside of the pod (enter_host.py).  The lock in run_dir keeps a second one from
   running.  Where the host's own unit (an installed package) is enabled, that one is waited for, and left as it is;
3. a keeper that runs from another of our copies becomes this one by exec;
4. workers of another program are replaced, one at a time; the old one is ended only when the new one has loaded;
5. copies from which no process runs are removed.
The pod of an earlier version is gone when this one has the state directory's lock, so two daemons never pull in different directions.
A rollback is the same thing with the versions the other way round.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awsomefsd.base import program
from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.limits import MIB
from awsomefsd.config.settings import Settings
from awsomefsd.keeper.client import KeeperClient
from awsomefsd.keeper.process import without_secrets
from awsomefsd.node.pod import host_program
from awsomefsd.node.pod.host_program import ProgramCopy

logger = logging.getLogger(__name__)
INIT = os.environ.get("AWSOMEFSD_TEST_INIT", "1")  # the process whose namespaces are the host's
UNIT = Path(f"/proc/{INIT}/root/etc/systemd/system/multi-user.target.wants/awsomefsd-keeper.service")
START_S = 30.0
ANSWERS_S = 10.0
PAUSE_S = 5.0  # after something that failed
LOG_BYTES_MAX = 16 * MIB
SERVING = "serving"
_ENVIRONMENT = ("PATH", "LANG", "TZ", "PYTHONPATH")


class HostKeeper:
    """The driver of these steps; one thread at a time calls `poll`.  `problem`: what an operator should know, "" when all is well."""

    def __init__(self, settings: Settings, keeper: KeeperClient, start: Callable[[list[str]], str] | None = None) -> None:
        self._directory = settings.state_dir / "bin"
        self._settings = settings
        self._keeper = keeper
        self._start = start or self._enter_host
        self._copy: ProgramCopy | None = None
        self._tidied = False
        self._not_before = 0.0
        self.problem = ""
        self._log_path = settings.run_dir / "log" / "keeper.log"
        self._try(self._install)

    def worker(self) -> tuple[list[str], dict[str, str]]:
        """Returns the argv and the environment with which the keeper starts workers.

        Raises Unavailable while there is no copy on the host.
        """
        if self._copy is None:
            raise Unavailable(f"{self.problem}; nothing can be mounted until that is repaired")
        return self._copy.command("worker"), self._copy.env

    def what_is_wrong(self) -> str:
        return self.problem

    def poll(self) -> None:
        """Takes the next step, if there is one and nothing failed just before.  Blocks for it; if it fails, `problem` has the reason."""
        if time.monotonic() >= self._not_before:
            self._try(self._step)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (OSError, Error) as error:
            words = str(error.strerror or error) if isinstance(error, OSError) else str(error)
            if words != self.problem:
                logger.error("keeper and workers on the host", extra={"reason": words})
            self.problem, self._not_before = words, time.monotonic() + PAUSE_S
        else:
            self.problem = ""

    def _install(self) -> None:
        began = time.monotonic()
        self._copy = host_program.install(self._directory)
        logger.info("program is on the host", extra={"dir": str(self._copy.home), "ms": round((time.monotonic() - began) * 1000)})

    def _step(self) -> None:
        if self._copy is None:
            self._install()
        assert self._copy is not None
        self._bound_log()
        try:
            keeper = self._keeper.ping()
        except Unavailable:
            self._begin(self._copy)
            return
        home = str(keeper.get("home", ""))
        if home != str(self._copy.home) and home.startswith(f"{self._directory}/"):
            self._become(self._copy)
            return
        rows = self._keeper.list()
        for row in rows:
            if row["state"] == SERVING and not self._is_ours(row, self._copy):
                self._replace(row, self._copy)
                return
        if not self._tidied and all(self._is_ours(row, self._copy) for row in rows):
            removed = host_program.remove_unused(self._directory, self._copy.home)
            self._tidied = True
            logger.info("unused copies of the program", extra={"removed": ", ".join(removed) or "none"})

    def _is_ours(self, row: dict[str, Any], copy: ProgramCopy) -> bool:
        return row.get("home") == str(copy.home) and row.get("starts") == {"argv": copy.command("worker"), "env": copy.env}

    # --- steps --------------------------------------------------------------------------------------------------------------

    def _argv(self, copy: ProgramCopy) -> list[str]:
        log = self._settings.log
        words = ["--run-dir", str(self._settings.run_dir), "--log-dir", str(self._log_path.parent)]
        return copy.command("keeper", *words, "--log-level", log.level, "--log-format", log.format)

    def _begin(self, copy: ProgramCopy) -> None:
        if os.path.lexists(UNIT):
            raise Unavailable("the host's awsomefsd-keeper.service is enabled, but does not answer; check it with systemctl on the host")
        if os.getpid() == 1:
            raise Unavailable("kubernetes.host_keeper needs the host's process ids (hostPID: true in the pod), or a keeper on the host")
        said = self._start(self._argv(copy))
        deadline = time.monotonic() + ANSWERS_S
        while True:
            try:
                pid = self._keeper.ping()["pid"]
                break
            except Unavailable:
                if time.monotonic() > deadline:
                    raise Unavailable(f"the keeper on the host does not answer; its log is {self._log_path}") from None
                time.sleep(0.02)  # there is no event for a socket that begins to listen
        logger.info("keeper started on the host", extra={"keeper": pid, "how": said})

    def _enter_host(self, argv: list[str]) -> str:
        helper = program.command("enter-host", "--log", str(self._log_path), "--init", INIT, "--", *argv)
        env = without_secrets(dict(os.environ)) | self.worker()[1]
        kept = {key: value for key, value in env.items() if key in _ENVIRONMENT or key.startswith(("LC_", "AWSOMEFS"))}
        try:
            done = subprocess.run(helper, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S, check=False)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"no keeper was started on the host within {START_S:.0f} s") from None
        if done.returncode:
            raise Unavailable(f"no keeper can be started on the host: {' '.join(done.stderr.split())[-1000:]}")
        return done.stdout.strip()

    def _become(self, copy: ProgramCopy) -> None:
        try:
            answer = self._keeper.upgrade(self._argv(copy), copy.env)
        except FsError as error:
            if error.errno == errno.EBUSY:  # it mounts or unmounts something
                return
            raise
        logger.info("keeper is of this version now", extra={"keeper": answer["pid"], "version": answer["version"]})

    def _replace(self, row: dict[str, Any], copy: ProgramCopy) -> None:
        began = time.monotonic()
        answer = self._keeper.replace(str(row["mount"]), copy.command("worker"), copy.env)
        fields = {"dir": row["dir"], "worker": answer["pid"], "before": row.get("version"), "version": answer["version"]}
        logger.info("worker replaced", extra=fields | {"ms": round((time.monotonic() - began) * 1000)})

    def _bound_log(self) -> None:
        """Cuts the keeper's log, which the keeper has open for appending, as its supervisor does."""
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > LOG_BYTES_MAX:
                shutil.copyfile(self._log_path, self._log_path.with_name(f"{self._log_path.name}.1"))
                os.truncate(self._log_path, 0)
