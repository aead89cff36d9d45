"""Voters as real daemons on this machine, with certificates of a throwaway authority: for tests/cluster and tests/bench."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awsomefsd.base import durable
from awsomefsd.meta.api.messages import GetStatus, Status
from buildtools import nodes
from tests.bench.voter_load import Client
from tests.rigs.free_ports import free_ports
from tests.rigs.voter_certificates import Authority

WAIT_S = 60


def listens(path: Path) -> bool:
    """Whether somebody accepts connections at this unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True


def await_commands(process: subprocess.Popen[bytes] | None, admin_socket: Path) -> None:
    """A daemon that was just started takes commands later than its metadata service answers.  One that has ended is not awaited."""
    if process is not None:
        awaited("a daemon that takes commands", lambda: process.poll() is not None or listens(admin_socket))


def awaited(what: str, look: Callable[[], Any], pause_s: float = 0.05) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {WAIT_S} s"
        time.sleep(pause_s)
    return found


class Daemon:
    """`source`: the checkout whose code runs.  With no `voters` it is a node alone."""

    def __init__(self, directory: Path, node: str, cluster: str, voters: str, authority: Authority, source: Path | None = None) -> None:
        self.directory, self.node = directory, node
        self.state, self.run = directory / "state", directory / "run"
        self.state.mkdir(parents=True)
        durable.write_json(self.state / "node.json", {"cluster": cluster, "node": node, "site": 1, "format": 1})
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | {
            "AWSOMEFSD_STATE_DIR": str(self.state),
            "AWSOMEFSD_RUN_DIR": str(self.run),
            "PYTHONPATH": str(source or Path(__file__).parents[2]),
        }
        if voters:
            ca, certificate, key = authority.write(node, directory)
            self.env |= {
                "AWSOMEFSD_METADATA_VOTERS": voters,
                "AWSOMEFSD_METADATA_CA": str(ca),
                "AWSOMEFSD_METADATA_CERTIFICATE": str(certificate),
                "AWSOMEFSD_METADATA_KEY": str(key),
            }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.run / "meta.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            argv = [*nodes.program(), "run"]
            self.process = subprocess.Popen(argv, env=self.env, cwd=self.directory, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(WAIT_S)
            self.process = None

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        await_commands(self.process, self.run / "admin.sock")
        argv = [*nodes.program(), *words]
        return subprocess.run(argv, env=self.env, cwd=self.directory, capture_output=True, text=True, timeout=WAIT_S, check=False)

    def asked(self) -> dict[str, Any]:
        """The metadata service's figures, from its socket: cheaper than the command line; {} if it does not answer."""
        try:
            client = Client(str(self.socket), 0)
        except OSError:
            return {}
        with client.sock:
            try:
                reply = client.ask(GetStatus())
            except OSError:
                return {}
        return reply.figures if isinstance(reply, Status) else {}

    def figures(self) -> dict[str, str]:
        done = self.cli("status", "-o", "json")
        found: dict[str, str] = json.loads(done.stdout)["figures"] if done.stdout.startswith("{") else {}
        return found


class Cluster:
    """`close` ends all that run and removes what they stored."""

    def __init__(self, count: int = 3, source: Path | None = None, parent: Path | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="awsomefsd-voters-", dir=parent))
        authority = Authority()
        cluster, nodes = str(uuid.uuid4()), [str(uuid.uuid4()) for _ in range(count)]
        addresses = [f"{node}=127.0.0.1:{port}" for node, port in zip(nodes, free_ports(count), strict=True)]
        voters = ", ".join(addresses) if count > 1 else ""
        self.all = [Daemon(self.directory / str(number), node, cluster, voters, authority, source) for number, node in enumerate(nodes)]

    def start(self) -> None:
        for daemon in self.all:
            daemon.start()

    def running(self) -> list[Daemon]:
        return [daemon for daemon in self.all if daemon.process is not None]

    def pids(self) -> list[int]:
        return [daemon.pid for daemon in self.running()]

    def leader(self) -> Daemon:
        def look() -> Daemon | None:
            return next((daemon for daemon in self.running() if daemon.asked().get("leading") == 1), None)

        found: Daemon = awaited("a leader", look)
        return found

    def create(self, name: str) -> None:
        """A volume, by whoever leads; an election may come in between."""
        awaited(f"volume {name}", lambda: self._created(name))

    def _created(self, name: str) -> bool:
        """A command that was told to try again may have been carried out all the same."""
        leader = self.leader()
        return leader.cli("volume", "create", name).returncode == 0 or name in self.volumes(leader)

    def volumes(self, daemon: Daemon) -> set[str]:
        told = json.loads(daemon.cli("status", "-o", "json").stdout or "{}")
        return {volume["name"] for volume in told.get("volumes", ())}

    def await_volumes(self, *names: str) -> None:
        """Whoever leads has these and no others; its daemon may have no answer for a moment, as after an election."""
        awaited(f"volumes {names}", lambda: self.volumes(self.leader()) == {*names})

    def level(self) -> None:
        """All that run have applied the same."""
        awaited(
            "the same everywhere",
            lambda: len({daemon.asked().get("applied", -number) for number, daemon in enumerate(self.running())}) == 1,
        )

    def close(self) -> None:
        for daemon in self.all:
            daemon.end()
        shutil.rmtree(self.directory)
