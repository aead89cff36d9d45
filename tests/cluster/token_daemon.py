"""A daemon that begins without an identity, as a process on loopback, and the command that makes a founding token."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from awsomefsd.admin.client import AdminClient
from awsomefsd.base.errors import Error
from awsomefsd.cli.main import run

WAIT_S = 120


class Daemon:
    """Its control port is `port`; its metadata port, for other nodes, `metadata` (0: off)."""

    def __init__(self, directory: Path, port: int, metadata: int = 0, **variables: str) -> None:
        self.state, self.run = directory / "state", directory / "run"
        directory.mkdir()
        self.log = directory / "log"
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | {
            "AWSOMEFSD_STATE_DIR": str(self.state),
            "AWSOMEFSD_RUN_DIR": str(self.run),
            "AWSOMEFSD_CLUSTER_LISTEN": f"127.0.0.1:{port}",
            "AWSOMEFSD_METADATA_LISTEN": f"127.0.0.1:{metadata}" if metadata else "",
            "AWSOMEFSD_CLUSTER_DISCOVERY": "false",
            "AWSOMEFSD_CLUSTER_NAME": directory.name,
        }
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "awsomefsd", "run"], env=self._environ | self._variables, stdout=log, stderr=log
            )

    def shown(self) -> bytes:
        """What anybody who may look sees of the process: arguments and environment."""
        assert self._process is not None
        return b"".join(Path(f"/proc/{self._process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "awsomefsd", *words]
        return subprocess.run(command, env=self._environ, capture_output=True, text=True, timeout=WAIT_S, check=False)

    def says(self, words: str) -> None:
        """Asks for its status until the answer has these words."""
        end = time.monotonic() + WAIT_S
        said = ""
        while words not in said:
            assert time.monotonic() < end, f"{said} {self.log.read_text()[-2_000:]}"
            assert self._process is None or self._process.poll() is None, self.log.read_text()[-2_000:]
            time.sleep(0.05)
            with contextlib.suppress(Error), AdminClient(self.run / "admin.sock") as client:
                said = str(client.call("GetStatus", timeout_s=WAIT_S))

    def ended(self) -> int:
        assert self._process is not None
        return self._process.wait(WAIT_S)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return self.ended()


def generated(*words: str) -> str:
    """What the command prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(["token", "generate", *words]) == 0
    return said.getvalue().strip()
