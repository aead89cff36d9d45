"""What `status` and `node ls` say of a real cluster, on a voter, on a node without metadata, and when nobody leads."""

from __future__ import annotations

from typing import Any

import pytest

from awsomefsd.admin.client import AdminClient
from awsomefsd.cli.output import message_dict
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.metrics_page import MISSING, PROMTOOL, complaints, figures
from tests.rigs.metrics_page import answer as metrics
from tests.rigs.network_namespaces import found_by_join

WAIT_S = 120


def told(node: Node) -> dict[str, Any]:
    """Asked without the command line, whose start costs more than the question."""
    with AdminClient(node.run / "admin.sock") as client:
        return message_dict(client.call("GetStatus"))


def codes(node: Node) -> set[str]:
    return {one["code"] for one in told(node)["health"]}


@pytest.fixture(scope="module")
def cluster(make_cluster: Any) -> Cluster:
    """Four nodes: three vote, and one carries nothing, as soon as the policy has had its way."""
    made: Cluster = make_cluster(4)
    for node in made.nodes:
        node.settings |= {"AWSOMEFSD_METRICS_LISTEN": "unix", "AWSOMEFSD_CLUSTER_LABELS": f"zone=z{made.machine(node)}"}
    found_by_join(made)
    await_true("three voters, all heard", lambda: told(made.nodes[0])["metadata"]["voters_heard"] == 3, WAIT_S)
    return made


@pytest.mark.skipif(PROMTOOL is None, reason=MISSING)
def test_metrics_of_every_node_keep_the_conventions(cluster: Cluster) -> None:
    pages = [figures(node) for node in cluster.nodes]
    assert any("awsomefsd_meta_member_lag_entries{member=" in page for page in pages), "of the leader"
    assert [complaints(page) for page in pages] == [""] * len(pages)


def test_of_a_cluster_and_its_failures(cluster: Cluster) -> None:
    await_true("nothing to say anywhere", lambda: not any(codes(node) for node in cluster.nodes), WAIT_S)

    def ready() -> dict[str, dict[str, Any]] | None:
        """A heartbeat may be late on a busy machine."""
        rows = {row["name"]: row for row in cluster.nodes[0].ask("node", "ls")}
        return rows if {row["readiness"] for row in rows.values()} == {"ready"} and any(row["leader"] for row in rows.values()) else None

    rows = await_true("four nodes that are ready, and a leader", ready, WAIT_S)
    [leader] = [name for name, row in rows.items() if row["leader"]]
    [outside] = [name for name, row in rows.items() if not row["member"]]
    listed = cluster.nodes[0].cli("node", "ls")
    assert all(word in listed for word in ("STATUS", "AGE", "LEVEL", "ready", "leader", "voter", "z1", "z4"))
    assert "ready" in cluster.nodes[0].cli("node", "show", leader) and "zone=" in cluster.nodes[0].cli("node", "show", leader)
    by_name = {node.directory.name: node for node in cluster.nodes}

    def whole(node: Node) -> bool:
        """As above."""
        seen = told(node)["metadata"]
        return (seen["leader_name"], seen["voters"], seen["voters_heard"], seen["failures_survived"]) == (leader, 3, 3, 1)

    for node in cluster.nodes:
        await_true(f"all voters, led by {leader}", lambda node=node: whole(node), WAIT_S)
        assert told(node)["metadata"]["carries"] == (node is not by_name[outside])

    def fine(node: Node) -> str:
        text = node.cli("status", accept=(0, 1, 2, 3))
        return text if text.startswith("ok") else ""

    for name in (leader, outside):
        text = await_true("nothing to say", lambda name=name: fine(by_name[name]), WAIT_S)
        assert f"led by node {leader}" in text and "1 more voter can fail" in text
        assert text.count("entries behind") == 2
    for name in (leader, outside):
        assert all(metrics(by_name[name], page).endswith("\r\n\r\nok\n") for page in ("/healthz", "/readyz"))
    rows_shown = ("awsomefsd_voters_heard 3.0", 'awsomefsd_health{code="NO_LEADER",severity="error"} 0.0')
    await_true("both in the metrics", lambda: all(row in metrics(by_name[outside]) for row in rows_shown), WAIT_S)

    cluster.nodes[0].cli("node", "cordon", outside)

    def cordoned() -> bool:
        seen = told(by_name[leader])
        return {one["code"] for one in seen["health"]} == {"NODE_CORDONED"} and not seen["reasons"]

    await_true("one cordoned node, which is no reason", cordoned, WAIT_S)
    assert "ready,cordoned" in cluster.nodes[0].cli("node", "ls")

    victim = next(node for name, node in by_name.items() if name not in (leader, outside))
    victim.kill_everything()
    await_true("a voter that is gone", lambda: {"VOTER_GONE", "ONE_FAILURE_FROM_LOSS", "NODE_GONE"} <= codes(by_name[outside]), WAIT_S)
    await_true("reasons", lambda: told(by_name[outside])["reasons"] and "not-ready" in by_name[leader].cli("node", "ls"), WAIT_S)

    by_name[leader].kill_everything()
    last = next(node for name, node in by_name.items() if name not in (leader, outside) and node is not victim)
    await_true("no leader, and too few", lambda: {"NO_LEADER", "NO_QUORUM"} <= codes(last), WAIT_S)
    for node in (last, by_name[outside]):
        await_true("no leader", lambda node=node: not told(node)["metadata"]["leader"], WAIT_S)
        seen = told(node)["metadata"]
        assert seen["last_leader_name"] == leader and seen["without_leader_s"] > 0 and seen["failures_survived"] == -1
        assert " 200 " in metrics(node, "/healthz").splitlines()[0], "a daemon without a leader lives"
        assert " 503 " in metrics(node, "/readyz").splitlines()[0] and "knows no leader" in metrics(node, "/readyz")
    assert f"the last known: {leader}" in by_name[outside].cli("status", accept=(3,))
    assert 'awsomefsd_health{code="NO_LEADER",severity="error"} 1.0' in metrics(last)
