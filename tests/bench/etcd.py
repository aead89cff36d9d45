"""Members of etcd on this machine, with TLS between them, and a load of puts on their leader by etcd's own `benchmark` tool.

Debian's etcd-server is the server; the tool is built by `go install` from the same release branch (3.4).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from buildtools.say import BuildError
from tests.rigs.free_ports import free_ports
from tests.rigs.voter_certificates import Authority
from tests.rigs.voter_daemons import awaited

TOOL = "go.etcd.io/etcd/tools/benchmark@v0.5.0-alpha.5.0.20210226220824-aa7126864d82"
KEYS, KEY_BYTES, VALUE_BYTES = 1_000, 16, 256


def build_tool(directory: Path) -> Path:
    """etcd's load generator, built there if it is not; BuildError without go or network."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "benchmark"
    if not program.exists():
        if shutil.which("go") is None:
            raise BuildError("go is not installed: etcd's benchmark tool cannot be built")
        done = subprocess.run(
            ["go", "install", TOOL], env=os.environ | {"GOBIN": str(directory)}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"go install {TOOL}: {done.stderr[-500:]}")
    return program


class Etcd:
    """`count` members; started when it is made."""

    def __init__(self, count: int, tool: Path, parent: Path | None = None) -> None:
        if shutil.which("etcd") is None:
            raise BuildError("etcd is not installed (apt install etcd-server)")
        self._tool = tool
        self.directory = Path(tempfile.mkdtemp(prefix="awsomefsd-etcd-", dir=parent))
        self._ports = free_ports(2 * count)
        self._processes: list[subprocess.Popen[bytes]] = []
        authority = Authority()
        try:
            for number in range(count):
                self._start(number, count, authority)
            awaited("etcd answers", lambda: self._put(1, 500) is not None, 0.3)
        except BaseException:
            self.close()
            raise

    def _start(self, number: int, count: int, authority: Authority) -> None:
        directory = self.directory / str(number)
        directory.mkdir()
        ca, certificate, key = authority.write("127.0.0.1", directory) if number == 0 else self._files
        self._files = (ca, certificate, key)
        client, peer = (f"http://127.0.0.1:{self._ports[number]}", f"https://127.0.0.1:{self._ports[count + number]}")
        members = ",".join(f"m{one}=https://127.0.0.1:{self._ports[count + one]}" for one in range(count))
        argv = [
            "etcd", "--name", f"m{number}", "--data-dir", str(directory / "data"), "--logger", "zap",
            "--log-outputs", str(directory / "log"), "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", members, "--peer-client-cert-auth",
            "--peer-trusted-ca-file", str(ca), "--peer-cert-file", str(certificate), "--peer-key-file", str(key),
        ]  # fmt: skip
        with (directory / "stdout").open("wb") as out:
            self._processes.append(subprocess.Popen(argv, stdout=out, stderr=out, cwd=directory))

    def _put(self, clients: int, count: int) -> dict[str, float] | None:
        endpoints = ",".join(f"127.0.0.1:{port}" for port in self._ports[: len(self._processes)])
        argv = [
            str(self._tool), "put", "--endpoints", endpoints, "--target-leader", "--conns", str(clients), "--clients", str(clients),
            "--total", str(count), "--key-size", str(KEY_BYTES), "--val-size", str(VALUE_BYTES), "--key-space-size", str(KEYS), "--precise",
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        found = {name: re.search(pattern, done.stdout) for name, pattern in _PATTERNS.items()}
        if done.returncode or not all(found.values()):
            return None
        rate, p50, p99 = (float(match[1]) for match in found.values() if match)
        return {"rate": rate, "p50_ms": p50 * 1000, "p99_ms": p99 * 1000}

    def put(self, clients: int, count: int) -> dict[str, float]:
        figures = self._put(clients, count)
        if figures is None:
            raise BuildError("etcd's benchmark tool failed")
        return figures

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.directory)


_PATTERNS = {"rate": r"Requests/sec:\s*([\d.e+-]+)", "p50_ms": r"50% in ([\d.e+-]+) secs", "p99_ms": r"99% in ([\d.e+-]+) secs"}
