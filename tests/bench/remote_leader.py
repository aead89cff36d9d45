"""python -m tests.bench.remote_leader: what a mount's creates cost when the leader is on another node, over TLS, beside its own.

Three voters in network namespaces on this machine, one mount.  Rounds in turn: its own daemon leads; another does.  The lead changes hands
by killing daemons, and a round begins when the mount has gone on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.network_namespaces import found_static

WAIT_S = 60


def lead(cluster: Cluster, node: Node, itself: bool) -> None:
    """Until `node` leads, or until another does."""
    while ((leader := cluster.await_leader()) is node) is not itself:
        others = [other for other in cluster.nodes if other is not leader]
        old = leader.pid("daemon")
        leader.kill("daemon")
        leader.replaced("daemon", old)
        await_true("another leader", lambda others=others: cluster.leader(others), WAIT_S)
        await_true("the cluster is whole", cluster.whole, WAIT_S)


def creates(directory: Path, count: int) -> tuple[float, float]:
    """(a second, p50 in ms)."""
    directory.mkdir()
    times = []
    began = time.monotonic()
    for number in range(count):
        start = time.perf_counter()
        os.close(os.open(directory / f"f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        times.append(time.perf_counter() - start)
    return count / (time.monotonic() - began), statistics.median(times) * 1_000


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--count", type=int, default=1_000)
    chosen = words.parse_args()
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="awsomefsd-follow-")), 3, size_bytes=1 << 30)
    found: dict[str, list[tuple[float, float]]] = {"its own daemon": [], "another node": []}
    try:
        cluster.prepare()
        found_static(cluster)
        cluster.launch()
        cluster.await_leader()
        node = cluster.nodes[0]
        node.await_daemon()
        node.provision()
        node.mount()
        for number in range(chosen.rounds):
            for who, rows in found.items():
                lead(cluster, node, who == "its own daemon")
                creates(node.mountpoint / f"warm-{who}-{number}", 20)
                rows.append(creates(node.mountpoint / f"{who}-{number}", chosen.count))
        node.umount()
    finally:
        cluster.destroy()
    for who, rows in found.items():
        rates = ", ".join(f"{rate:,.0f}" for rate, _ in rows)
        print(f"leader: {who}: {rates} creates/s; p50 {statistics.median(p50 for _, p50 in rows):.2f} ms")


if __name__ == "__main__":
    main()
