"""A daemon without an identity, as people meet it: it says what it waits for, and goes on by itself when it has one."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base import identity
from awsomefsd.cli.main import run
from awsomefsd.cluster.pki import founding_token
from tests.cluster.founding_rig import one_cluster
from tests.cluster.token_daemon import Daemon, generated
from tests.rigs.free_ports import free_ports


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
