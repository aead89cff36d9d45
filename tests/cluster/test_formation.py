"""One string on three machines makes one cluster, in whatever order they start, with multicast or without."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.living_files import contents
from tests.rigs.network_namespaces import found_by_join, found_by_token

FORM_S = 120


def identities(cluster: Cluster) -> list[dict[str, str]]:
    return [json.loads((node.state / "node.json").read_text()) for node in cluster.nodes]


def one_cluster(cluster: Cluster) -> None:
    await_true("one cluster", cluster.whole, FORM_S, 0.05)
    found = identities(cluster)
    assert len({one["cluster"] for one in found}) == 1
    assert len({one["node"] for one in found}) == len(found)


def secret_places(node: Node, token: str) -> list[str]:
    """Files of a node, but for the one it was given, that hold the token."""
    needle = token.encode()
    return [str(path) for path, held in contents(node.directory, "token", "device.img") if needle in held]


def test_from_bare_nodes_to_a_mounted_volume(make_cluster, figures: list[str]) -> None:
    cluster = make_cluster(3)
    began = time.monotonic()
    token = found_by_token(cluster)
    cluster.launch()
    one_cluster(cluster)
    formed = time.monotonic() - began
    node = cluster.nodes[1]
    node.await_daemon()  # the metadata answers before commands are taken
    node.attach()
    node.provision()
    node.mount()
    took = time.monotonic() - began
    (node.mountpoint / "file").write_text("here")
    figures.append(f"from three bare nodes to one cluster {formed:.1f} s, to a mounted volume {took:.1f} s")
    cluster.nodes[2].await_daemon()
    assert "device" not in str(cluster.nodes[2].ask("status")["reasons"]), "a device of another node is no trouble of this one"
    assert not [place for each in cluster.nodes for place in secret_places(each, token)]
    for each in cluster.nodes:
        for pid in [pid for role in ("supervisor", "keeper", "daemon", "worker") for pid in each.pids(role)]:
            assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


def test_without_multicast_by_endpoints(make_cluster) -> None:
    cluster = make_cluster(3)
    cluster.network.mute_multicast([1, 2, 3])
    found_by_token(cluster, endpoints=True)
    cluster.launch()
    one_cluster(cluster)


def test_one_comes_late(make_cluster) -> None:
    """Three are expected: two wait, and decide nothing, until the third is there."""
    cluster = make_cluster(3)
    found_by_token(cluster)
    first, second, late = cluster.nodes
    first.launch()
    second.launch()
    for node in (first, second):
        await_true("two of three are seen", lambda node=node: "2 of 3 nodes seen" in node.cli("status", accept=(1, 2, 3)), FORM_S)
    assert not [node for node in cluster.nodes if (node.state / "node.json").exists()]
    late.launch()
    one_cluster(cluster)


def test_two_join_one_and_vote_without_another_command(make_cluster) -> None:
    cluster = make_cluster(3)
    found_by_join(cluster)
    one_cluster(cluster)


@pytest.mark.soak
def test_thirty_orders_and_timings(make_cluster, seed: int) -> None:
    dice = random.Random(seed)
    for number in range(30):
        cluster = make_cluster(dice.choice([3, 3, 5]))
        found_by_token(cluster, endpoints=dice.random() < 0.3)
        order = dice.sample(cluster.nodes, len(cluster.nodes))
        longest = dice.choice([0.0, 0.2, 1.0, 5.0])
        for node in order:
            node.launch()
            time.sleep(dice.random() * longest)
        if dice.random() < 0.3:
            order[0].kill("daemon")
        one_cluster(cluster)
        print(number, [node.directory.name for node in order], longest, flush=True)
        cluster.stop()
