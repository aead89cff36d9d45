"""Real nodes in network namespaces for tests: made by the fixture `make_cluster` (conftest.py), which also ends them.

`found_static` makes them voters of one cluster by configuration, with certificates of a throwaway authority.
"""

from __future__ import annotations

import uuid

from awsomefsd import durable
from buildtools.cluster import Cluster
from tests.voter_tls import Authority

PORT = 7441


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
