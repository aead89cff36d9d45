"""A shared device that one node has just added is used by the mounts of all nodes at once, though these look for it every few seconds."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from buildtools.cluster import Cluster
from tests.rigs.network_namespaces import found_by_join

MIB = 1 << 20
VOLUME = "shared"


def test_a_running_mount_reads_what_another_node_writes_on_a_device_that_it_has_just_added(
    make_cluster: Callable[..., Cluster], seed: int
) -> None:
    cluster = make_cluster(2, size_bytes=256 * MIB)
    found_by_join(cluster)
    adds, reads = cluster.nodes
    adds.cli("device", "add", "--shared", os.path.realpath(adds.attach()))
    adds.cli("volume", "create", VOLUME)
    for node in cluster.nodes:  # the second node has not looked for the device yet
        node.cli("mount", VOLUME, str(node.mountpoint), "-O", "shared")
    later = os.path.realpath(reads.attach())
    adds.cli("device", "add", "--shared", later)
    adds.cli("device", "drain", "1")  # what is written next goes to the new device
    content = random.Random(seed).randbytes(64 * MIB)
    with (adds.mountpoint / "file").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    assert (reads.mountpoint / "file").read_bytes() == content
    places = adds.cli("info", str(adds.mountpoint / "file"))
    assert later in places, places
