"""What keeps an upgrade from its end, and what its refusal advises."""

from __future__ import annotations

from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.levels import LEVEL
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.node.health.upgrade import Upgrade
from tests.rigs.machine_driver import Drive


class Cluster:
    """A catalog over a machine at the level before the last; `nodes` has the level that each node knows."""

    def __init__(self, **nodes: tuple[str, int]) -> None:
        self.drive = Drive(level=LEVEL - 1)
        for number, (name, (role, level)) in enumerate(nodes.items(), 1):
            self.drive.ok(c.AddNode(f"node-{number}", name, role, bytes(31) + bytes((number,)), "", "", level=level))

    def level(self) -> int:
        return self.drive.machine.level

    def ask(self, body: Any) -> Any:
        self.drive.machine.flush()
        return self.drive.ask(body)

    def propose(self, command: Any) -> Any:
        reply = self.drive.apply(command)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply


def test_a_client_of_an_older_build_is_named_with_what_to_do() -> None:
    """It reads the devices itself, and would meet there what it does not know: so it is waited for like any other node."""
    cluster = Cluster(n1=("node", LEVEL), n2=("node", LEVEL), laptop=("client", LEVEL - 1))
    upgrade = Upgrade(cluster)  # type: ignore[arg-type]
    advice = rf"know no level above {LEVEL - 1}: laptop \(client\); upgrade awsomefsd there.*awsomefsd node remove node-3$"
    with pytest.raises(Refused, match=advice):
        upgrade.finalize()
    assert upgrade.status().known == LEVEL - 1 and cluster.drive.machine.level == LEVEL - 1
    cluster.drive.ok(c.SetNodeState("node-3", "removed"))
    assert upgrade.finalize().level == LEVEL


def test_a_client_that_was_upgraded_lets_it_end() -> None:
    cluster = Cluster(n1=("node", LEVEL), laptop=("client", LEVEL - 1))
    cluster.drive.ok(c.DescribeNode("node-2", "laptop", "", "", {}, "new", LEVEL))
    assert Upgrade(cluster).finalize().level == LEVEL  # type: ignore[arg-type]
