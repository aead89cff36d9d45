"""A daemon without an identity, as people meet it: it says what it waits for, and goes on by itself when it has one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.admin.client import AdminClient
from awsomefsd.base import identity
from awsomefsd.base.errors import Error
from awsomefsd.cli.main import run
from awsomefsd.cluster.pki import founding_token
from tests.cluster.founding_rig import one_cluster
from tests.rigs.free_ports import free_ports

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


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[list[Daemon]]:
    made: list[Daemon] = []
    yield made
    for one in made:
        one.end(signal.SIGKILL)


def test_it_waits_says_so_and_goes_on_when_it_is_made_a_node(tmp_path: Path, daemons: list[Daemon]) -> None:
    daemons.append(waits := Daemon(tmp_path / "a", free_ports(1)[0]))
    waits.start()
    waits.says("waiting: this node is in no cluster")
    assert waits.end() == 0 and not (waits.state / "node.json").exists()
    waits.start()
    waits.says("waiting: this node is in no cluster")
    status = waits.cli("status")
    assert status.returncode == 3 and status.stdout.startswith("waiting: this node")
    refused = waits.cli("volume", "create", "v")
    assert refused.returncode == 1 and "waiting: this node is in no cluster" in refused.stderr
    made = waits.cli("init")
    assert made.returncode == 0, made.stderr
    waits.says(identity.load(waits.state).cluster)
    assert waits.cli("volume", "create", "v").returncode == 0
    assert waits.end() == 0


def test_a_token_makes_a_cluster_of_one_and_is_never_used_again(tmp_path: Path, daemons: list[Daemon]) -> None:
    [port] = free_ports(1)
    text, another = generated("--expect", "1"), generated("--expect", "1")
    (tmp_path / "secret").write_text(text + "\n")
    daemons.append(first := Daemon(tmp_path / "a", port, AWSOMEFSD_TOKEN_FILE=str(tmp_path / "secret")))
    first.start()
    first.says('cluster: "')
    held = identity.load(first.state)
    assert held.founder and not (first.state / "founding").exists() and not (first.state / "pki" / "ca.key").exists()
    assert not (first.state / "pki" / "founding-token.json").exists()
    first.end()
    first._variables = {"AWSOMEFSD_TOKEN": another}
    first.start()
    first.says(held.cluster)
    assert identity.load(first.state) == held
    assert text[8:] not in first.log.read_text()
    assert another[8:].encode() not in first.shown() and b"AWSOMEFSD_TOKEN_FILE=/proc/self/fd/" in first.shown()


def test_three_daemons_started_at_once_are_one_cluster(tmp_path: Path, daemons: list[Daemon]) -> None:
    ports = free_ports(6)
    text = generated("--expect", "3", "--endpoint", f"127.0.0.1:{ports[1]}")
    for number in range(3):
        daemons.append(Daemon(tmp_path / f"n{number}", ports[number], ports[number + 3], AWSOMEFSD_TOKEN=text))
    for one in daemons:
        one.start()
    for one in daemons:
        one.says('cluster: "')
    one_cluster([one.state for one in daemons], founding_token.parse(text))
    founder = next(one for one in daemons if identity.load(one.state).founder)
    founder.says('key: "voters"\n  value: "3"')
    rows = json.loads(founder.cli("node", "ls", "-o", "json").stdout)
    assert {row["node"] for row in rows} == {identity.load(one.state).node for one in daemons}
    for one in daemons:
        assert text[8:] not in one.log.read_text()


def test_what_can_never_work_ends_it_with_the_reason(tmp_path: Path, daemons: list[Daemon]) -> None:
    [port] = free_ports(1)
    good = generated("--expect", "2", "--endpoint", "10.0.0.1:7440")
    for name, token, words in (("cut", good[:-9], "truncated"), ("off", good, "cluster.listen")):
        daemons.append(one := Daemon(tmp_path / name, port, AWSOMEFSD_TOKEN=token))
        if name == "off":
            one._environ["AWSOMEFSD_CLUSTER_LISTEN"] = ""
        one.start()
        assert one.ended() == 1
        assert words in one.log.read_text() and good[8:40] not in one.log.read_text()


def test_what_the_command_line_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for words, why in (
        (("--expect", "2", "--uses", "4"), "two clusters could form"),
        (("--expect", "2", "--endpoint", "nowhere"), "is not an endpoint"),
        (("--expect", "2", "--ttl", "soon"), "not a length of time"),
        ((), "--expect"),
    ):
        assert run(["token", "generate", *words]) != 0
        assert why in capsys.readouterr().err
    made = founding_token.parse(generated("--expect", "3", "--endpoint", "a.example:7440", "--endpoint", "10.0.0.1:7440"))
    assert (made.expect, made.nodes, made.endpoints) == (3, 5, ("a.example:7440", "10.0.0.1:7440"))
