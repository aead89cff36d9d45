"""A node that dies for good while a pod uses its volume is removed without force, as the keeper of nodes does in Kubernetes.

Its mount is in the way until its session has expired; its claim on a volume for one node goes with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from awsomefsd.base.limits import SESSION_RENEW_MS, SESSION_TTL_MS
from awsomefsd.csi.pb import csi_pb2 as pb
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.csi.rig import GIB, Mode, Player, capability, cleared
from tests.rigs.network_namespaces import found_by_join

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
ALONE = capability(Mode.SINGLE_NODE_WRITER)
WAIT_S = 120.0


@pytest.fixture
def players(make_cluster: Callable[..., Cluster]) -> Iterator[list[Player]]:
    cluster = make_cluster(3)
    made = [Player(node) for node in cluster.nodes]
    with ExitStack() as stack:
        for player in made:
            stack.enter_context(cleared(player))
        found_by_join(cluster)
        disk = os.path.realpath(cluster.nodes[0].attach())
        cluster.nodes[0].cli("device", "add", "--shared", disk)
        for node in cluster.nodes:
            node.cli("device", "scan")
            await_true("the device", lambda node=node: [row["state"] for row in node.ask("device", "ls")] == ["ok"], WAIT_S, 0.2)
        yield made
        cluster.stop()


def test_one_that_died_with_a_volume_is_removed_and_its_claim_goes(players: list[Player]) -> None:
    heir, _, dead = players
    volume = heir.create("pvc-orphan", GIB, ALONE)
    dead.stage(volume, ALONE)
    with (dead.publish(volume, "pod", ALONE) / "file").open("w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    stage = pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=heir.staging(volume), volume_capability=ALONE)
    assert heir.refused("NodeStageVolume", stage)[0] == "FAILED_PRECONDITION"
    name = dead.node.directory.name
    assert f"node {name} is not empty" in heir.node.cli_error("node", "remove", name)
    died = time.monotonic()
    dead.node.kill_everything()
    refusals, asked_s = 0, 0.0

    def removed() -> bool:
        nonlocal refusals, asked_s
        heir.node.cli("node", "remove", name, accept=(0, 1, 4))
        gone = name not in {row["name"] for row in heir.node.ask("node", "ls")}
        refusals += not gone
        asked_s = asked_s or time.monotonic() - died
        return gone

    await_true("the node to be removed", removed, WAIT_S, 0.5)
    lives_s = (SESSION_TTL_MS - SESSION_RENEW_MS) / 1_000  # at least; a busy machine may ask later than that
    assert refusals or asked_s > lives_s, "it was mounted there a moment ago"
    claimed = heir.node.cli_error("volume", "release", f"csi-{volume}", "--node", name, "--yes-release", name)
    assert "nodes with claims: none" in claimed, claimed
    heir.call("NodeStageVolume", stage)
    assert (heir.publish(volume, "pod", ALONE) / "file").read_text() == "kept"
    heir.unpublish(volume, "pod")
    heir.unstage(volume)
    heir.delete(volume)
    await_true("nothing left over", lambda: not heir.left_here(), WAIT_S)
    assert not heir.call("ListVolumes", pb.ListVolumesRequest()).entries
