"""Checkpoints with several voters: real services over loopback, a file as the shared device, and the loss of all local disks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import MIB
from awsomefsd.base.rule_levels import CHECKPOINTS_OF_NODES
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import Superblock, write_superblock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.members import TransferLead
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.checkpoint_progress import UNKNOWN, CheckpointProgress
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.node.maintenance.checkpoints import STANDS_BY, Checkpointer
from awsomefsd.recovery import device_recover
from tests.rigs.growing_cluster import CLUSTER, NODES, Grower, GrowingRig, await_
from tests.unit.node.maintenance.test_checkpoints import recovered_machine

SHARED = "eeeeeeee-eeee-eeee-eeee-eeeeeeeeeeee"
SEGMENTS = 128


class Cluster:
    """Three nodes that see one device, each with the daemon's thread that makes checkpoints."""

    def __init__(self, directory: Path) -> None:
        self.rig = GrowingRig(directory)
        self.path = directory / "device"
        self.made: dict[str, Checkpointer] = {}
        self.seen: dict[str, dict[str, str]] = {node: {SHARED: str(self.path)} for node in NODES[:3]}
        with self.path.open("wb") as file:
            file.truncate((SEGMENTS + 2) * MIB)
        with Device.open(self.path) as device:
            write_superblock(device, Superblock(CLUSTER, SHARED, device.bytes, MIB, SEGMENTS, 1))
        for one in self.rig.all.values():
            one.progress = CheckpointProgress(UNKNOWN)

    def found(self, level: int = CHECKPOINTS_OF_NODES) -> None:
        self.rig.found()
        self.rig.propose(c.RaiseLevel(level))
        self.rig.propose(c.AddDevice(SHARED, (SEGMENTS + 2) * MIB, MIB, SEGMENTS, MIB, True))

    def grow(self) -> None:
        if NODES[0] in self.made:
            self.made[NODES[0]].growing()
        self.rig.grow()
        for node in NODES[1:3]:
            self.rig.all[node].start()
            self.rig.add(node)

    def call(self, body: Any) -> Any:
        reply = self.rig.leader().ask(body)
        if reply is None or (isinstance(reply, m.Failed) and reply.retry):
            raise Unavailable("nobody answers now")
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def checkpointer(self, node: str) -> Checkpointer:
        one = self.rig.all[node]
        assert one.service is not None and one.progress is not None
        service = one.service
        self.made[node] = Checkpointer(
            one.directory, Node(CLUSTER, node, 1), self.call, service.copy_store, one.progress, lambda: self.seen[node],
            leads=lambda: service.leads, alone=lambda: service.alone,
        )  # fmt: skip
        self.made[node].start()
        return self.made[node]

    def await_durable(self) -> Grower:
        """Returns the leader, when the device has everything that is applied there now."""

        def durable() -> Grower | None:
            leader = self.rig.leader()
            reply = leader.ask(m.GetStatus())
            assert leader.progress is not None
            leader.progress.wanted.set()
            return leader if reply is not None and leader.progress.durable >= reply.figures["applied"] else None

        found: Grower = await_("the device has it", durable)
        return found

    def lead(self, node: str) -> None:
        """Gives the leadership to a node."""

        def leads() -> bool:
            leader = self.rig.leader()
            if leader.node != node:
                leader.ask(TransferLead(node))
            return self.rig.all[node].leads()

        await_(f"{node} leads", leads)

    def newest(self) -> m.NodeCheckpoint:
        found: m.NodeCheckpoint = max(self.rig.ask(m.GetCheckpoints()).nodes, key=lambda one: (one.term, one.index, one.number))
        return found

    def lose_everything(self) -> None:
        """All daemons die at once, with their local disks."""
        for one in self.made.values():
            one.stop()
        self.rig.close()
        for one in self.rig.all.values():
            shutil.rmtree(one.directory)

    def close(self) -> None:
        for one in self.made.values():
            one.stop()
        self.rig.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


def volumes_of(machine: Machine) -> set[str]:
    return {row.name for number in range(1, machine.state.cluster.next_volume) if (row := machine.state.volume(number))}


def rows_of(store: Any) -> dict[bytes, bytes]:
    return dict(store.scan(b"", b"\xff" * 8))


def recovered(cluster: Cluster, directory: Path) -> tuple[Replica, Machine]:
    report = device_recover.recover(directory, [str(cluster.path)], "test", dry_run=False)
    assert (report.faults, report.checkpointed, report.done) == ([], True, True)
    return recovered_machine(directory)


def test_three_voters_lose_all_local_disks_and_come_back_from_the_device(cluster: Cluster, tmp_path: Path) -> None:
    cluster.found()
    cluster.grow()
    for node in NODES[:3]:
        cluster.checkpointer(node)
    for number in range(20):
        cluster.rig.propose(c.CreateVolume(f"v{number}", f"uuid-{number}"))
    leader = cluster.await_durable()
    for number in range(20, 40):
        cluster.rig.propose(c.CreateVolume(f"v{number}", f"uuid-{number}"))
    assert cluster.await_durable() is leader
    others = {node: one.state for node, one in cluster.made.items() if node != leader.node}
    assert set(others.values()) == {STANDS_BY} and cluster.made[leader.node].state == "ok"
    last = int(leader.ask(m.GetStatus()).figures["applied"])
    cluster.lose_everything()
    replica, machine = recovered(cluster, tmp_path / "new")
    try:
        assert volumes_of(machine) >= {f"v{number}" for number in range(40)}
        assert machine.applied_index > last and machine.membership() is None and not check(replica.store)
    finally:
        replica.close()


def test_a_new_leader_writes_its_own_and_the_old_one_keeps_room_only(cluster: Cluster, tmp_path: Path) -> None:
    cluster.found()
    cluster.grow()
    for node in NODES[:3]:
        cluster.checkpointer(node)
    first = cluster.await_durable().node
    kept = {one.node: one for one in cluster.rig.ask(m.GetCheckpoints()).nodes}
    assert kept[first].area and not any(one.area for node, one in kept.items() if node != first)
    second = next(node for node in NODES[:3] if node != first)
    cluster.lead(second)
    if (before := cluster.newest()).node == first:
        assert before.area == kept[first].area, "it counts until there is a newer one"
    await_("the second leader's checkpoint", lambda: cluster.made[second].state == "ok")
    newest = await_("the second one's counts", lambda: cluster.newest() if cluster.newest().node == second else None)
    room = {one.node: len(one.segments) for one in cluster.rig.ask(m.GetCheckpoints()).nodes}
    assert all(room[node] <= 2 * max(len(newest.area), len(kept[first].area)) for node in room if node != second)
    cluster.rig.propose(c.CreateVolume("later", "uuid-later"))
    assert cluster.await_durable().node == second
    cluster.lose_everything()
    replica, machine = recovered(cluster, tmp_path / "new")
    assert "later" in volumes_of(machine)
    replica.close()


def test_one_voter_becomes_three_and_checkpoints_go_on(cluster: Cluster, tmp_path: Path) -> None:
    """From level 2, where one voter alone wrote areas of version 1, to three voters at level 3."""
    cluster.found(level=2)
    cluster.checkpointer(NODES[0])
    cluster.await_durable()
    cluster.grow()
    for node in NODES[1:3]:
        cluster.checkpointer(node)
    await_("nobody writes below level 3", lambda: cluster.made[cluster.rig.leader().node].state.startswith("off: the cluster is below"))
    cluster.rig.propose(c.RaiseLevel(CHECKPOINTS_OF_NODES))
    cluster.rig.propose(c.CreateVolume("later", "uuid-later"))
    leader = cluster.await_durable()
    owned = {number for one in cluster.rig.ask(m.GetCheckpoints()).nodes for number in one.segments}
    assert owned == {info.segment for info in leader.ask(m.GetOwnSegments()).segments}, "what was kept before has an owner"
    cluster.lose_everything()
    replica, machine = recovered(cluster, tmp_path / "new")
    assert "later" in volumes_of(machine)
    replica.close()
