"""A keeper in a directory of its own for tests, and everything that it leaves behind cleaned up, by pidfd and by directory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.sockets import readable
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.client import KeeperClient

ROOT = Path(__file__).resolve().parents[3]
WORKER = [sys.executable, str(Path(__file__).with_name("keeper_worker.py"))]

WATCHDOG_S = 240.0  # below pytest's own limit


def until(what: str, true: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Ask again until it is true; for what has no event."""
    deadline = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)
    return found


def end_of(pid: int, timeout_s: float = 60.0) -> None:
    """Wait until a process is gone, ours or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert readable([pidfd], timeout_s), f"pid {pid} did not end"
    finally:
        os.close(pidfd)


class Host:
    """One run directory, its keeper, its mounts and their workers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = directory / "run"
        self.run.mkdir()
        self.client = KeeperClient(self.run)
        self.keeper: subprocess.Popen[bytes] | None = None
        self.dirs: list[Path] = []
        self._serial = 0
        # A caller that hangs in the kernel hears no timeout of pytest: ending the last holders of the descriptor frees it.
        self._watchdog = threading.Timer(WATCHDOG_S, self._release)
        self._watchdog.daemon = True
        self._watchdog.start()

    def _release(self) -> None:
        self.kill_keeper()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self, env: dict[str, str] | None = None, before: Callable[[], None] | None = None) -> int:
        """With `env` besides our own; `before` is called in the new process before it becomes the keeper."""
        argv = [sys.executable, "-m", "awsomefsd.keeper.server", "--run-dir", str(self.run), "--log-level", "debug"]
        with (self.directory / "keeper.log").open("ab") as log:
            self.keeper = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (env or {}), preexec_fn=before,
                close_fds=before is None,
            )  # fmt: skip
        until("a keeper that answers", self.answers)
        return self.keeper.pid

    def answers(self) -> bool:
        assert self.keeper is not None and self.keeper.poll() is None, self.log()
        with contextlib.suppress(Unavailable):
            return self.client.ping()["pid"] == self.keeper.pid
        return False

    def kill_keeper(self, number: int = signal.SIGKILL) -> None:
        assert self.keeper is not None
        self.keeper.send_signal(number)
        self.keeper.wait(60)

    def log(self) -> str:
        return (self.directory / "keeper.log").read_text(errors="replace")

    def dir(self) -> Path:
        self._serial += 1
        path = self.directory / f"mnt {self._serial}"  # a space: the mount table escapes it
        path.mkdir()
        self.dirs.append(path)
        return path

    def mount(self, dir: Path | None = None, id: str = "", timeout_s: float = 60.0, *, argv: Sequence[str] = WORKER, **config: Any) -> Path:
        dir = dir or self.dir()
        id = id or f"{self._serial:x}"
        memfds = {"control": 65536, "slot": 1 << 17}
        self.client.mount(id, str(dir), "vol", memfds=memfds, argv=list(argv), config=config, timeout_s=timeout_s, readahead_kib=512)
        return dir

    def about(self, dir: Path) -> dict[str, Any]:
        return dict(json.loads((dir / "about").read_bytes()))

    def row(self, dir: Path) -> dict[str, Any]:
        """Of a mount that is there: behind the start of a keeper its worker may need longer to come than the keeper keeps us waiting."""
        rows = until(f"the mount at {dir}", lambda: [row for row in self.client.list() if row["dir"] == str(dir)])
        assert len(rows) == 1, rows
        return dict(rows[0])

    def await_mounts(self, *dirs: Path) -> None:
        """The keeper has these mounts and no others."""
        wanted = sorted(map(str, dirs))
        until(f"the mounts {wanted}", lambda: sorted(row["dir"] for row in self.client.list()) == wanted)

    def mounted(self, dir: Path) -> bool:
        return mount_syscalls.topmost(str(dir)) is not None

    def close(self) -> None:
        """Whatever the test left: mounts by directory, the keeper, workers through their keeper or their log's name."""
        self._watchdog.cancel()
        if self.keeper is None or self.keeper.poll() is not None:
            self.start()
        for row in self.client.list():
            with contextlib.suppress(FsError):
                self.client.umount(row["mount"], force=True)
        self.kill_keeper()
        for dir in self.dirs:
            for _ in range(3):
                if self.mounted(dir):
                    mount_syscalls.umount(str(dir), mount_syscalls.MNT_DETACH)
            assert not self.mounted(dir)
        until("the end of all workers", lambda: not self.workers())  # a shell that was killed may leave its last sleep for a moment

    def workers(self) -> list[int]:
        """Living workers of this host: those whose stderr is in its log directory."""
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and os.readlink(f"/proc/{name}/fd/2").startswith(str(self.run / "log")):
                    found.append(int(name))
        return found
