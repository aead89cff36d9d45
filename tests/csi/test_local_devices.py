"""Volumes on devices that one node has: the first node that uses a volume decides where its data is, and others are told to whom to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.csi.rig import GIB, Mode, Player, capability, cleared
from tests.rigs.network_namespaces import found_static

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
ALONE, TOGETHER = capability(Mode.SINGLE_NODE_WRITER), capability(Mode.MULTI_NODE_MULTI_WRITER)


@pytest.fixture(scope="module")
def players(make_cluster: Callable[..., Cluster]) -> Iterator[list[Player]]:
    """Three voters, each with a device of its own: each has twice as much as the one before."""
    cluster = make_cluster(3)
    found_static(cluster)
    made = [Player(node) for node in cluster.nodes]
    with ExitStack() as stack:
        for player in made:
            stack.enter_context(cleared(player))
        cluster.launch()
        cluster.await_leader()
        for number, node in enumerate(cluster.nodes):
            node.await_daemon()
            node.size_bytes = GIB << number
            node.cli("device", "add", str(node.attach()))
        yield made


def stage(player: Player, volume: str, cap: pb.VolumeCapability) -> pb.NodeStageVolumeRequest:
    return pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=player.staging(volume), volume_capability=cap)


@pytest.mark.parametrize("cap", [ALONE, TOGETHER])
def test_a_volume_stays_with_the_devices_of_its_node(players: list[Player], cap: pb.VolumeCapability) -> None:
    first, second, _ = players
    volume = second.create("pvc-local", 1 << 26, cap)
    first.stage(volume, cap)
    (first.publish(volume, "pod", cap) / "file").write_text("x")
    first.unpublish(volume, "pod")
    first.unstage(volume)
    status, words = second.refused("NodeStageVolume", stage(second, volume, cap))
    assert status == "FAILED_PRECONDITION" and first.node.uuid() in words and "shared" in words, words
    second.call("NodeUnstageVolume", pb.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=second.staging(volume)))
    first.stage(volume, cap)
    first.unstage(volume)
    second.delete(volume)
    for player in players:
        await_true("nothing left over", lambda player=player: not player.left_here(), 60)


def test_capacity_is_that_of_one_node(players: list[Player]) -> None:
    """The one that has most: a volume has the devices of one node, whichever that will be."""
    rows = players[0].node.ask("device", "ls")
    free = [row["segments_free"] * row["segment_bytes"] for row in rows]
    found = players[0].call("GetCapacity", pb.GetCapacityRequest()).available_capacity
    assert len(free) == 3 and found <= max(row["segments"] * row["segment_bytes"] for row in rows) < sum(free)
