"""A cluster of mixed builds: the first node is pinned to an older level, the others are another, newer build, then it is exchanged too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd import __version__
from awsomefsd.base.errors import Error
from awsomefsd.base.levels import LEVEL
from awsomefsd.meta.api.commands.csi import EndClaims
from awsomefsd.meta.api.messages import Failed, Propose
from tests.bench.voter_load import Client
from tests.cluster.test_membership import Machine, Machines
from tests.rigs.other_build import NEWER, VERSION, make_other_build
from tests.rigs.voter_daemons import awaited


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, 3)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def other_build(tmp_path: Path) -> Path:
    return make_other_build(tmp_path / "other")


def protocol(machine: Machine) -> int:
    return int(json.loads(machine.cli("version", "-o", "json"))["protocol_version"])


def versions(machine: Machine) -> dict[str, str]:
    return {row["name"]: row["version"] for row in json.loads(machine.cli("upgrade", "status", "-o", "json"))["nodes"]}


def newer_command(machines: Machines) -> str:
    """What a command of level 2 is answered."""
    client = Client(str(machines.leader().run / "meta.sock"), 0)
    with client.sock:
        reply = client.ask(Propose(0, 0, 0, [], EndClaims("nobody", 0, "", "a test")))
    return reply.detail if isinstance(reply, Failed) else ""


def known(machines: Machines) -> int:
    return int(json.loads(machines.leader().cli("upgrade", "status", "-o", "json"))["known"])


@pytest.mark.timeout(1_200)
def test_the_cluster_acts_as_its_oldest_node_until_all_are_new(machines: Machines, other_build: Path) -> None:
    old, new, late = machines.all
    old.env["AWSOMEFSD_LEVEL"] = "1"
    for machine in (new, late):
        machine.env["PYTHONPATH"] = str(other_build)
    machines.found()
    machines.join(1)
    assert protocol(new) == NEWER == protocol(old) + 1
    assert json.loads(old.cli("upgrade", "status", "-o", "json"))["level"] == 1
    assert "needs level 2" in newer_command(machines)
    old.cli("upgrade", "finalize", accept=(1,))
    new.cli("volume", "create", "made-by-the-new-one")
    assert "made-by-the-new-one" in old.cli("volume", "ls")

    assert versions(new) == {"n0": __version__, "n1": VERSION}
    old.end()
    old.env["PYTHONPATH"] = str(other_build)
    del old.env["AWSOMEFSD_LEVEL"]
    old.start()
    awaited("the node says what it knows now", lambda: _known(machines) == LEVEL)
    assert versions(new) == {"n0": VERSION, "n1": VERSION}
    assert "needs level 2" in newer_command(machines), "nothing is raised without a word"
    assert json.loads(machines.leader().cli("upgrade", "finalize", "-o", "json"))["level"] == LEVEL
    assert "needs level" not in newer_command(machines)

    late.env["AWSOMEFSD_LEVEL"] = "1"
    machines.token = machines.leader().cli("token", "create", "--role", "node", "--uses", "0").split()[-1]
    assert "upgrade awsomefsd on it" in late.failed("join", machines.token)
    del late.env["AWSOMEFSD_LEVEL"]
    machines.join(2)
    awaited("it is in", lambda: "made-by-the-new-one" in late.cli("volume", "ls", accept=(0, 1)))


def _known(machines: Machines) -> int:
    try:
        return known(machines)
    except (AssertionError, Error):
        return 0
