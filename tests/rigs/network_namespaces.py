"""Real nodes in network namespaces for tests: made by the fixture `make_cluster` (conftest.py), which also ends them.

`found_static` makes them voters of one cluster by configuration, with certificates of a throwaway authority; `found_on_one_disk` starts
them as well, and gives them a device that all of them see.
"""

from __future__ import annotations

import os
import uuid

from awsomefsd.base import durable
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.voter_certificates import Authority

PORT, CONTROL_PORT = 7441, 7440
WAIT_S = 120.0
ANY_STATUS = tuple(range(9))


def found_static(cluster: Cluster) -> None:
    """Every node a voter; to be called once, before `launch`."""
    authority = Authority()
    name, nodes = str(uuid.uuid4()), [str(uuid.uuid4()) for _ in cluster.nodes]
    voters = ", ".join(f"{node}={cluster.address(place)}:{PORT}" for node, place in zip(nodes, cluster.nodes, strict=True))
    for node, place in zip(nodes, cluster.nodes, strict=True):
        durable.write_json(place.state / "node.json", {"cluster": name, "node": node, "site": 1, "format": 1})
        ca, certificate, key = authority.write(node, place.directory)
        place.settings |= {
            "AWSOMEFSD_METADATA_VOTERS": voters,
            "AWSOMEFSD_METADATA_CA": str(ca),
            "AWSOMEFSD_METADATA_CERTIFICATE": str(certificate),
            "AWSOMEFSD_METADATA_KEY": str(key),
        }


def found_on_one_disk(cluster: Cluster) -> None:
    """Every node a voter, running, with a leader and one shared device."""
    found_static(cluster)
    start_on_one_disk(cluster)


def start_on_one_disk(cluster: Cluster) -> None:
    """The second half of `found_on_one_disk`, for what has to be done between the two."""
    cluster.launch()
    cluster.await_leader()
    first, *others = cluster.nodes
    for node in cluster.nodes:
        node.await_daemon()
    disk = os.path.realpath(first.attach())
    first.cli("device", "add", "--shared", disk)
    for node in others:  # it is in the cluster, and this node may have found it by itself
        node.cli("device", "add", "--shared", disk, accept=ANY_STATUS)
        await_true("the device", lambda node=node: [row["path"] for row in node.ask("device", "ls")] == [disk], WAIT_S, 0.3)


def found_by_token(cluster: Cluster, *, expect: int = 0, endpoints: bool = False) -> str:
    """One founding token for every node, made offline; they found when enough of them run.  To be called before `launch`."""
    words = ["token", "generate", "--expect", str(expect or len(cluster.nodes))]
    if endpoints:
        words += [word for node in cluster.nodes for word in ("--endpoint", f"{cluster.address(node)}:{CONTROL_PORT}")]
    token = cluster.nodes[0].cli(*words).strip()
    for node in cluster.nodes:
        give_token(node, token)
    return token


def found_by_join(cluster: Cluster) -> None:
    """The first makes a cluster of one, the others join it by a token; who votes is nobody's business here.  All run when this returns."""
    first, *others = cluster.nodes
    for node in cluster.nodes:
        node.settings["AWSOMEFSD_CLUSTER_NAME"] = node.directory.name
    first.start()
    token = first.cli("token", "create", "--role", "node", "--uses", str(len(others))).strip()
    for node in others:
        node.cli("join", "-", stdin=token)
        node.launch()
    for node in others:
        node.await_daemon()


def give_token(node: Node, token: str) -> None:
    """A join or founding token in a file, as a secret of an orchestrator is mounted."""
    place = node.directory / "token"
    place.touch(0o600)
    place.write_text(token)
    node.founds = False
    node.settings |= {"AWSOMEFSD_TOKEN_FILE": str(place), "AWSOMEFSD_CLUSTER_NAME": node.directory.name}
