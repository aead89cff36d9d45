"""Three daemons on this machine form one metadata cluster by configuration: they elect, replicate, and survive deaths and lost journals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd import durable
from tests.voter_tls import Authority

WAIT_S = 60


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def awaited(what: str, look: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {WAIT_S} s"
        time.sleep(0.05)
    return found


class Daemon:
    def __init__(self, directory: Path, node: str, cluster: str, voters: str, authority: Authority) -> None:
        self.directory, self.node = directory, node
        self.state, self.run = directory / "state", directory / "run"
        self.state.mkdir(parents=True)
        durable.write_json(self.state / "node.json", {"cluster": cluster, "node": node, "site": 1, "format": 1})
        ca, certificate, key = authority.write(node, directory)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | {
            "AWSOMEFSD_STATE_DIR": str(self.state),
            "AWSOMEFSD_RUN_DIR": str(self.run),
            "AWSOMEFSD_METADATA_VOTERS": voters,
            "AWSOMEFSD_METADATA_CA": str(ca),
            "AWSOMEFSD_METADATA_CERTIFICATE": str(certificate),
            "AWSOMEFSD_METADATA_KEY": str(key),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen([sys.executable, "-m", "awsomefsd", "run"], env=self.env, stdout=log, stderr=log)
        log.close()

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(WAIT_S)
            self.process = None

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "awsomefsd", *words]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=WAIT_S, check=False)

    def figures(self) -> dict[str, str]:
        done = self.cli("status", "-o", "json")
        found: dict[str, str] = json.loads(done.stdout)["figures"] if done.stdout.startswith("{") else {}
        return found


class Cluster:
    def __init__(self, directory: Path) -> None:
        authority = Authority()
        cluster, nodes = str(uuid.uuid4()), [str(uuid.uuid4()) for _ in range(3)]
        voters = ", ".join(f"{node}=127.0.0.1:{port}" for node, port in zip(nodes, free_ports(3), strict=True))
        self.all = [Daemon(directory / str(number), node, cluster, voters, authority) for number, node in enumerate(nodes)]

    def running(self) -> list[Daemon]:
        return [daemon for daemon in self.all if daemon.process is not None]

    def leader(self) -> Daemon:
        def look() -> Daemon | None:
            return next((daemon for daemon in self.running() if daemon.figures().get("leading") == "1"), None)

        found: Daemon = awaited("a leader", look)
        return found

    def create(self, name: str) -> None:
        """Whoever leads; an election may come in between."""
        awaited(f"volume {name}", lambda: self.leader().cli("volume", "create", name).returncode == 0)

    def volumes(self, daemon: Daemon) -> set[str]:
        return {volume["name"] for volume in json.loads(daemon.cli("status", "-o", "json").stdout)["volumes"]}

    def level(self) -> None:
        """All that run have applied the same."""
        awaited(
            "the same everywhere",
            lambda: len({daemon.figures().get("applied", str(number)) for number, daemon in enumerate(self.running())}) == 1,
        )


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="awsomefsd-voters-"))
    made = Cluster(directory)
    try:
        yield made
    finally:
        for daemon in made.all:
            daemon.end()
        shutil.rmtree(directory)


def test_three_daemons_elect_replicate_and_outlive_deaths(cluster: Cluster) -> None:
    for daemon in cluster.all:
        daemon.start()
    cluster.create("one")
    cluster.level()
    first = cluster.leader()
    shown = first.cli("status").stdout
    assert "role leader" in shown and shown.count("entries behind") == 2
    first.end()
    cluster.create("two")
    second = cluster.leader()
    assert second is not first and cluster.volumes(second) == {"one", "two"}
    assert second.figures()["term"] > first.figures().get("term", "0")
    first.start()
    cluster.level()

    victim = next(daemon for daemon in cluster.all if daemon not in (cluster.leader(),))
    victim.end()
    shutil.rmtree(victim.state / "meta" / "journal")
    cluster.create("three")
    victim.start()
    awaited("three voters again", lambda: cluster.leader().figures()["voters"] == "3" and victim.figures().get("leader"))
    cluster.level()
    assert list((victim.state / "meta").glob("store.aside.*"))

    for daemon in cluster.all:
        daemon.end(signal.SIGTERM)
    for daemon in cluster.all:
        daemon.start()
    assert cluster.volumes(cluster.leader()) == {"one", "two", "three"}
