"""Scrub of a pool on real nodes: a bit that flips in one mirror is found, named, and the mirror is copied from a good one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.base.types import BAY_MIRROR, bays_of
from awsomefsd.meta.api.messages.collection import GetSparse
from awsomefsd.meta.api.messages.pools import GetNeeds
from awsomefsd.node.maintenance.scrub import DONE
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.cluster.test_scrub_of_nodes import flip_byte, scrubbed
from tests.rigs.pool_nodes import VOLUME, PoolNodes, pool_on

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    cluster = make_cluster(3, size_bytes=256 * MIB)
    with pool_on(cluster, "replicas=2") as made:
        yield made


def scrub_all(pool: PoolNodes) -> list[list[dict[str, Any]]]:
    """The findings of a round on each node."""
    for node in pool.nodes:
        node.cli("scrub", "start", "--rate", "512M")
    found = [await_true("the end of the scrub", partial(scrubbed, node), WAIT_S, 0.2) for node in pool.nodes]
    assert all(one["state"] == DONE for one in found), found
    return [one["findings"] for one in found]


def mirrors(pool: PoolNodes) -> set[tuple[int, int, int]]:
    segments = pool.ask(GetSparse(0, 1_000)).segments
    return {(one.segment, bay.device, bay.index) for one in segments for bay in bays_of(one) if bay.role == BAY_MIRROR and bay.durable}


def test_a_flipped_bit_is_found_named_and_repaired(pool: PoolNodes) -> None:
    first = pool.nodes[0]
    data = random.randbytes(MIB)
    pool.mount(first)
    (first.mountpoint / "file").write_bytes(data)
    first.umount()
    await_true("every segment has two mirrors", lambda: not pool.ask(GetNeeds(0, 0, 256)).needs, WAIT_S, 0.2)
    before = mirrors(pool)
    flip_byte(first.image, data[512_000:512_512])
    findings = scrub_all(pool)
    assert list(map(len, findings)) == [1, 0, 0], findings
    (finding,) = findings[0]
    volume = next(row["volume"] for row in first.ask("volume", "ls") if row["name"] == VOLUME)
    assert (finding["kind"], finding["path"], str(finding["volume"]), finding["repaired"]) == ("bay", "/file", str(volume), True), finding
    assert finding["where"] in {f"segment {segment} device {device} bay {index}" for segment, device, index in before}
    await_true("every segment has two mirrors", lambda: not pool.ask(GetNeeds(0, 0, 256)).needs, WAIT_S, 0.2)
    after = mirrors(pool)
    assert len(after) == len(before) and after != before, "the bad bay was replaced by another one"
    assert scrub_all(pool) == [[], [], []]
    for node in pool.nodes:
        pool.mount(node)
        assert (node.mountpoint / "file").read_bytes() == data
        node.umount()
