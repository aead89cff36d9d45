"""A cluster of mixed builds: the first node is pinned to an older level, the others are new, then it is exchanged too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import Error
from awsomefsd.base.levels import LEVEL
from awsomefsd.meta.api.commands.csi import EndClaims
from awsomefsd.meta.api.messages import Failed, Propose
from tests.bench.voter_load import Client
from tests.cluster.test_membership import Machines
from tests.rigs.voter_daemons import awaited


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, 3)
    try:
        yield made
    finally:
        made.close()


def newer_command(machines: Machines) -> str:
    """What a command of level 2 is answered."""
    client = Client(str(machines.leader().run / "meta.sock"), 0)
    with client.sock:
        reply = client.ask(Propose(0, 0, 0, [], EndClaims("nobody", 0, "", "a test")))
    return reply.detail if isinstance(reply, Failed) else ""


def known(machines: Machines) -> int:
    return int(json.loads(machines.leader().cli("upgrade", "status", "-o", "json"))["known"])


@pytest.mark.timeout(240)
def test_the_cluster_acts_as_its_oldest_node_until_all_are_new(machines: Machines) -> None:
    old, new, late = machines.all
    old.env["AWSOMEFSD_LEVEL"] = "1"
    machines.found()
    machines.join(1)
    assert json.loads(old.cli("upgrade", "status", "-o", "json"))["level"] == 1
    assert "needs level 2" in newer_command(machines)
    old.cli("upgrade", "finalize", accept=(1,))
    new.cli("volume", "create", "made-by-the-new-one")
    assert "made-by-the-new-one" in old.cli("volume", "ls")

    old.end()
    del old.env["AWSOMEFSD_LEVEL"]  # the new program
    old.start()
    awaited("the node says what it knows now", lambda: _known(machines) == LEVEL)
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
