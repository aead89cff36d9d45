"""A cluster of one node with a device in a pool, for the tests of its segment server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.pool_cluster import PoolCluster, PoolNode, pool_cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[PoolCluster]:
    with pool_cluster(tmp_path) as made:
        yield made


@pytest.fixture
def node(cluster: PoolCluster) -> PoolNode:
    return cluster.nodes[0]
