"""containerd and runc of Debian, with directories of their own: where the image is started for real, as a kubelet would have it done.

Nothing of a containerd that already runs here is touched.  Containers of control groups of version 1 and 2 are the same to it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import time
from pathlib import Path

TOOLS = {"containerd": "containerd", "ctr": "containerd", "runc": "runc"}
_CONFIG = """version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{home}/c.sock"
"""
START_S = 60.0


def missing() -> str:
    """Why no container can be started here; "" if one can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    return f"not installed: {' '.join(lacking)}" if lacking else ""


class Engine:
    """Serves when constructed; `close` ends every container and leaves nothing."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._ids = itertools.count()
        self._containers: list[str] = []
        (home / "config.toml").write_text(_CONFIG.format(home=home))
        self._log = (home / "log").open("wb")
        self._process = subprocess.Popen(
            ["containerd", "-c", str(home / "config.toml")],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while self._ctr("version", check=False)[0]:
            assert self._process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()[-3_000:]
            time.sleep(0.1)

    def _ctr(self, *words: str, check: bool = True, timeout_s: float = 300) -> tuple[int, str]:
        argv = ["ctr", "-a", str(self.home / "c.sock"), "-n", "test", *words]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}: {done.stdout[-4_000:]}"
        return done.returncode, done.stdout

    def load(self, archive: Path) -> str:
        """The name of the image in it."""
        self._ctr("images", "import", str(archive))
        [name] = self._ctr("images", "ls", "-q")[1].split()
        return name

    def run(self, image: str, *words: str, options: tuple[str, ...] = (), check: bool = True) -> tuple[int, str]:
        """A container from its start to its end; what it said.  Words take the place of the image's own, entry point included."""
        return self._ctr("run", "--rm", *options, image, f"once-{next(self._ids)}", *words, check=check)

    def start(self, image: str, name: str, *words: str, options: tuple[str, ...] = ()) -> None:
        self._containers.append(name)
        self._ctr("run", "-d", *options, image, name, *words)

    def inside(self, name: str, *words: str, check: bool = True) -> tuple[int, str]:
        """Another process in a container that runs."""
        return self._ctr("task", "exec", "--exec-id", f"e{next(self._ids)}", name, *words, check=check)

    def pids(self, name: str) -> list[int]:
        rows = self._ctr("task", "ps", name)[1].splitlines()[1:]
        return [int(row.split()[0]) for row in rows]

    def stop(self, name: str, number: str = "SIGTERM") -> str:
        """Its end by a signal; what containerd says of it then."""
        self._ctr("task", "kill", "-s", number, name)
        deadline = time.monotonic() + START_S
        while "RUNNING" in (said := self._ctr("task", "ls")[1]):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        self._ctr("task", "delete", name)
        self._ctr("containers", "delete", name)
        self._containers.remove(name)
        return said

    def close(self) -> None:
        for name in self._containers:
            for words in (("task", "kill", "-s", "SIGKILL", "-a", name), ("task", "delete", "-f", name), ("containers", "delete", name)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._ctr(*words, check=False, timeout_s=60)
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self.home, ignore_errors=True)
