"""Metadata services of several nodes in one process, over loopback, whose membership is in the log: for tests of how it changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.identity import Node
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.net.peers import Voters
from awsomefsd.meta.replica.checkpoint_progress import CheckpointProgress
from awsomefsd.meta.replica.replica import ReplicaOptions
from awsomefsd.meta.server.service import MetadataService, Rules
from tests.rigs.free_ports import free_ports

CLUSTER = "cccccccc-0000-0000-0000-000000000000"
NODES = [f"{number}0000000-0000-0000-0000-000000000000" for number in range(1, 6)]
WAIT_S = 60


def await_(what: str, look: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {WAIT_S} s"
        time.sleep(0.01)
    return found


class Grower:
    """One node.  The first one founds."""

    def __init__(self, rig: GrowingRig, node: str) -> None:
        self.rig, self.node = rig, node
        self.directory = rig.directory / node[:2]
        self.directory.mkdir(exist_ok=True)
        self.service: MetadataService | None = None
        self.progress: CheckpointProgress | None = None  # None: nobody makes checkpoints there

    def start(self) -> None:
        at = self.rig.known[self.node]
        founds = lambda: self.node == self.rig.founder  # noqa: E731
        voters = Voters(lambda: self.rig.known, at, None, frozenset(self.rig.known), founds, f"127.0.0.1:{at[1]}")
        self.service = MetadataService(
            Node(CLUSTER, self.node, 1), self.directory, self.directory / "meta.sock",
            Rules(Machine, answer), voters=voters,  # type: ignore[arg-type]
            options=ReplicaOptions(journal_file_bytes=256 << 10, map_bytes_min=1 << 22, checkpoint_progress=self.progress),
        )  # fmt: skip
        self.service.start()

    def start_unsure(self) -> MetadataService:
        """One that may end by itself."""
        self.start()
        assert self.service is not None
        return self.service

    def stop(self) -> None:
        if self.service is not None:
            self.service.stop()
            self.service = None

    def ask(self, body: Any) -> Any:
        """None if it does not answer now."""
        if self.service is None:
            return None
        try:
            reply = self.service.query(body)
        except Unavailable:
            return None
        return None if isinstance(reply, m.NotLeader) else reply

    def leads(self) -> bool:
        reply = self.ask(m.GetStatus())
        return reply is not None and reply.figures["leading"] == 1


class GrowingRig:
    def __init__(self, directory: Path, count: int = 3) -> None:
        self.directory = directory
        self.known = {node: ("127.0.0.1", port) for node, port in zip(NODES, free_ports(count), strict=False)}
        self.founder = NODES[0]
        self.all = {node: Grower(self, node) for node in self.known}

    def close(self) -> None:
        for one in self.all.values():
            one.stop()

    def leader(self) -> Grower:
        found: Grower = await_("a leader", lambda: next((one for one in self.all.values() if one.leads()), None))
        return found

    def ask(self, body: Any) -> Any:
        """Of whoever leads, again until it is not told to try again."""

        def once() -> Any:
            reply = self.leader().ask(body)
            return None if isinstance(reply, m.Failed) and reply.retry else reply

        return await_(str(body), once)

    def propose(self, command: Any) -> Any:
        return self.ask(m.Propose(0, 0, 0, [], command))

    def members(self) -> m.Members:
        found: m.Members = self.ask(m.GetMembers())
        return found

    def voters(self) -> set[str]:
        told = self.members()
        return set() if told.joint else {member.node for member in told.members if member.voter}

    def found(self) -> None:
        first = self.all[self.founder]
        first.start()
        self.propose(c.Init(CLUSTER, 1))

    def grow(self) -> None:
        """The first node, from one alone to the first of several."""
        first = self.all[self.founder].service
        assert first is not None
        first.grow()
        await_("one of several", lambda: not first.alone and self.leader())

    def step(self, **fields: Any) -> None:
        """Of the membership, until it is taken."""

        def once() -> bool:
            told = self.leader().ask(m.GetMembers())
            return isinstance(told, m.Members) and isinstance(self.leader().ask(m.ChangeMembers(told.index, **fields)), m.Done)

        await_(f"{fields}", once)

    def add(self, node: str) -> None:
        """As a learner, and then a voter."""
        self.step(add=node)
        await_(f"{node} is near", lambda: any(member.node == node and member.near for member in self.members().members))
        self.step(promote=[node])
        await_(f"{node} votes", lambda: node in self.voters())

    def level(self) -> None:
        """All that run have applied the same."""

        def level() -> bool:
            told = [one.ask(m.GetStatus()) for one in self.all.values() if one.service is not None]
            return None not in told and len({one.figures["applied"] for one in told}) == 1

        await_("the same everywhere", level)
