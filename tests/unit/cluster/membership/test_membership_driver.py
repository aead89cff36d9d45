"""Managers, agents and hosts of several nodes over real services: voters come, go and are replaced without anybody asking for it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import durable
from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.identity import Node
from awsomefsd.cluster import endpoints
from awsomefsd.cluster.membership.membership_driver import MembershipDriver
from awsomefsd.cluster.membership.metadata_host import MetadataHost, begins, has_state, others_carry
from awsomefsd.cluster.membership.node_reporter import NodeReporter
from awsomefsd.config import settings
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.net.peers import Voters
from awsomefsd.meta.replica.replica import ReplicaOptions
from awsomefsd.meta.server.service import MetadataService, Rules
from tests.rigs.growing_cluster import CLUSTER, NODES, await_
from tests.rigs.voter_daemons import free_ports

REPLACE_MS = 4_000


class Member:
    """One node: host, agent, manager, and a thread that runs them."""

    def __init__(self, town: Town, node: str, port: int) -> None:
        self.town = town
        self.identity = Node(CLUSTER, node, 1, founder=node == NODES[0])
        self.state = town.directory / node[:2]
        (self.state / "meta").mkdir(parents=True)
        environ = {
            "AWSOMEFSD_STATE_DIR": str(self.state), "AWSOMEFSD_RUN_DIR": str(self.state / "run"), "AWSOMEFSD_CLUSTER_NAME": node[:2],
            "AWSOMEFSD_METADATA_LISTEN": f"127.0.0.1:{port}", "AWSOMEFSD_CLUSTER_LISTEN": f"127.0.0.1:{port}",
            "AWSOMEFSD_CLUSTER_LABELS": f"zone={node[:2]}",
        }  # fmt: skip
        self.settings = settings.load(None, environ=environ)
        self.port = port
        self.host = MetadataHost(self.state / "meta", self._make)
        self.reporter = NodeReporter(self.settings, self.identity, town.ask, self.host)
        self.driver = MembershipDriver(self.host, REPLACE_MS)
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def _make(self) -> MetadataService:
        state, node, at = self.state, self.identity.node, ("127.0.0.1", self.port)

        def known() -> dict[str, tuple[str, int]]:
            held = endpoints.read(state).values()
            found = {one.node: (one.metadata.split(":")[0], int(one.metadata.split(":")[1])) for one in held if one.carries}
            return found | {node: at}

        voters = Voters(known, at, None, frozenset(NODES), lambda: not others_carry(state, node), f"127.0.0.1:{self.port}")
        return MetadataService(
            self.identity, state / "meta", state / "meta.sock",
            Rules(Machine, answer), voters=voters,  # type: ignore[arg-type]
            options=ReplicaOptions(journal_file_bytes=256 << 10, map_bytes_min=1 << 22),
        )  # fmt: skip

    def start(self) -> None:
        self.stopped.clear()
        if begins(self.state, self.identity):
            self.host.start()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopped.wait(0.05):
            for poll, due in ((self.reporter.poll, lambda: True), (self.driver.poll, self.driver.due)):
                try:
                    if due():
                        poll()
                except Error:
                    pass

    def stop(self) -> None:
        self.stopped.set()
        if self.thread is not None:
            self.thread.join()
        self.host.stop()


class Town:
    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.all = {node: Member(self, node, port) for node, port in zip(NODES, free_ports(count), strict=False)}

    def ask(self, body: Any) -> Any:
        """Asks the leader, as MetadataAccess.ask does."""
        for one in self.all.values():
            try:
                reply = one.host.query(body, 5)
            except Unavailable:
                continue
            if isinstance(reply, m.Failed):
                raise Unavailable(reply.detail) if reply.retry else FsError(reply.errno, reply.detail)
            if not isinstance(reply, m.NotLeader):
                return reply
        raise Unavailable("nobody leads")

    def propose(self, command: Any) -> Any:
        def once() -> Any:
            try:
                return self.ask(m.Propose(0, 0, 0, [], command))
            except Unavailable:
                return None

        return await_(str(command), once)

    def add(self, number: int) -> Member:
        one = self.all[NODES[number]]
        self.propose(c.AddNode(one.identity.node, f"n{number}", "node", bytes([number]) * 32, "", "127.0.0.1:1", f"127.0.0.1:{one.port}"))
        if number:
            endpoints.write(one.state, CLUSTER, [endpoints.Endpoint(NODES[0], "n0", "", f"127.0.0.1:{self.all[NODES[0]].port}", True)])
            one.start()
        return one

    def found(self) -> None:
        self.all[NODES[0]].start()
        self.propose(c.Init(CLUSTER, 1))
        self.add(0)

    def voters(self) -> set[str]:
        try:
            told = self.ask(m.GetMembers())
        except (Unavailable, FsError):
            return set()
        return set() if told.joint else {member.node for member in told.members if member.voter}

    def await_voters(self, *numbers: int) -> None:
        wanted = {NODES[number] for number in numbers}
        await_(f"voters {numbers}", lambda: self.voters() == wanted)

    def asked(self, body: Any) -> Any:
        """As `ask`, as soon as somebody leads."""

        def once() -> Any:
            try:
                return self.ask(body)
            except Unavailable:
                return None

        return await_(str(body), once)

    def rows(self) -> dict[str, Any]:
        return {row.node: row for row in self.asked(m.ListNodes(True)).nodes}

    def leader(self) -> int:
        return int(await_("a leader", lambda: [n for n, node in enumerate(self.all) if self._leads(node)])[0])

    def _leads(self, node: str) -> bool:
        try:
            return self.all[node].host.query(m.GetStatus(), 5).figures["leading"] == 1  # type: ignore[union-attr]
        except Unavailable:
            return False

    def close(self) -> None:
        for one in self.all.values():
            one.stop()


@pytest.fixture
def make_town(tmp_path: Path) -> Iterator[Callable[[int], Town]]:
    made: list[Town] = []

    def make(count: int) -> Town:
        made.append(Town(tmp_path, count))
        return made[-1]

    yield make
    for town in made:
        town.close()


def test_from_one_to_three_and_a_wiped_and_a_dead_one(make_town: Callable[[int], Town]) -> None:
    town = make_town(4)
    town.found()
    town.add(1)
    await_("the second has reported", lambda: town.rows()[NODES[1]].heard_ms_ago >= 0)
    assert town.all[NODES[0]].host.alone and not town.all[NODES[1]].host.carries, "two nodes have one voter"
    town.add(2)
    town.await_voters(0, 1, 2)
    await_("rows", lambda: all(town.rows()[NODES[n]].carries for n in range(3)))

    def told() -> bool:
        row = town.rows()[NODES[1]]
        return (row.member, row.labels, row.name) == ("voter", {"zone": "20"}, "20")

    await_("what a node says of itself in its row", told)
    assert sum(row.leader for row in town.rows().values()) == 1

    victim = town.all[NODES[next(n for n in (1, 2) if n != town.leader())]]
    victim.stop()
    shutil.rmtree(victim.state / "meta")
    (victim.state / "meta").mkdir()
    town.propose(c.CreateVolume("meanwhile", "uuid"))
    victim.start()
    await_("back under a new journal", lambda: NODES.index(victim.identity.node) in {NODES.index(node) for node in town.voters()})
    town.await_voters(0, 1, 2)
    assert [volume.name for volume in town.asked(m.GetVolumes()).volumes] == ["meanwhile"]

    dead = next(n for n in (1, 2) if n != town.leader())
    town.all[NODES[dead]].stop()
    town.add(3)
    town.await_voters(*({0, 1, 2, 3} - {dead}))
    town.all[NODES[dead]].start()
    await_("it is told to stop", lambda: not has_state(town.all[NODES[dead]].state / "meta"))
    assert not town.all[NODES[dead]].host.carries
    assert list((town.all[NODES[dead]].state / "meta").glob("journal.aside.*"))


def test_a_cluster_of_one_node_is_looked_at_when_something_was_applied(make_town: Callable[[int], Town]) -> None:
    town = make_town(2)
    town.found()
    driver = town.all[NODES[0]].driver
    await_("nothing to do", lambda: not driver.due())
    assert not town.all[NODES[1]].driver.due(), "it does not lead"
    town.propose(c.CreateVolume("v", "uuid"))
    await_("it has looked again", lambda: driver._settled_index >= town.all[NODES[0]].host.applied > 0)
    town.add(1)
    await_("two nodes", lambda: not driver._settled_index)
    assert driver.due(), "the other may fall silent"


def test_a_leader_that_is_drained_or_removed_goes_without_a_gap(make_town: Callable[[int], Town]) -> None:
    town = make_town(4)
    town.found()
    for number in (1, 2):
        town.add(number)
    town.await_voters(0, 1, 2)
    town.add(3)
    leader = town.leader()
    town.propose(c.SetNodeState(NODES[leader], "draining"))
    town.await_voters(*({0, 1, 2, 3} - {leader}))
    await_("the drained one stops", lambda: not town.all[NODES[leader]].host.carries)
    town.propose(c.SetNodeState(NODES[leader], "removed"))
    second = town.leader()
    town.propose(c.SetNodeState(NODES[second], "removed"))
    await_("a removed voter is out", lambda: town.voters() and not {NODES[leader], NODES[second]} & town.voters())
    await_("and knows it", lambda: not town.all[NODES[second]].host.carries)


def test_where_a_node_begins(tmp_path: Path) -> None:
    founder, joined = Node(CLUSTER, NODES[0], 1, founder=True), Node(CLUSTER, NODES[1], 1, founder=False)
    (tmp_path / "meta").mkdir()
    assert begins(tmp_path, founder) and not begins(tmp_path, joined) and not others_carry(tmp_path, NODES[0])
    listed = [endpoints.Endpoint(NODES[0], "", "", "h:1", False), endpoints.Endpoint(NODES[1], "", "", "h:2", True)]
    endpoints.write(tmp_path, CLUSTER, listed)
    assert not begins(tmp_path, founder) and begins(tmp_path, joined) and others_carry(tmp_path, NODES[0])
    (tmp_path / "meta" / "journal").mkdir()
    durable.write_file(tmp_path / "meta" / "journal" / "000000000001.journal", b"")
    assert begins(tmp_path, founder), "who has a journal is asked before he stops"
    (tmp_path / endpoints.FILE).write_text("{")
    assert not others_carry(tmp_path, NODES[0]), "a list that cannot be read says nothing"


def test_a_journal_that_is_set_aside_during_a_look_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda self: True)  # as it was a moment before
    assert not has_state(tmp_path)
    monkeypatch.undo()
    (tmp_path / "journal").mkdir()
    assert not has_state(tmp_path)
    (tmp_path / "journal" / "1.journal").touch()
    assert has_state(tmp_path)
