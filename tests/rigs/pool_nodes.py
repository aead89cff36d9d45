"""Real nodes with a device each in a pool, and their segment servers: for tests of what is not complete, at the unfinished level."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from awsomefsd.base.identity import lock_or_holder
from awsomefsd.base.levels import UNFINISHED_VARIABLE
from awsomefsd.base.wait import block_on
from awsomefsd.io.pool.server_state import ask_state
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.segments.process import LOCK
from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError
from tests.cluster.metadata_clients import new_client
from tests.rigs.network_namespaces import found_by_token

WAIT_S = 60.0
VOLUME = "pooled"


class PoolNodes:
    """`cluster` is made of nodes that do not run yet; the last `clients` of them get no device, and the role of a client."""

    def __init__(self, cluster: Cluster, want: str, *, clients: int = 0, segment_size: str = "") -> None:
        self.cluster, self._segment_size = cluster, segment_size
        for node in cluster.nodes:
            node.settings[UNFINISHED_VARIABLE] = "1"
        count = len(cluster.nodes) - clients
        cluster.nodes, self.clients = cluster.nodes[:count], cluster.nodes[count:]
        self.nodes = cluster.nodes
        found_by_token(cluster)
        cluster.launch()
        cluster.await_leader()
        for node in self.nodes:  # one that waits for the cluster answers too, and ends before the node's own daemon does
            await_true("a daemon of the cluster", partial(is_in_cluster, node), WAIT_S, 0.05)
        self.client: MetaClient = new_client(cluster)
        self._away: dict[Node, int] = {}  # the locks of segment servers that are to stay away
        for node in self.nodes:
            self.add_device(node)
        for node in self.nodes:
            self.serve(node)
        self.nodes[0].cli("volume", "create", VOLUME, "--redundancy", want)
        cluster.nodes = [*self.nodes, *self.clients]
        for node in self.clients:
            node.cli("join", "-", stdin=self.nodes[0].cli("token", "create").strip())  # without options: for one client
            node.launch()
            node.await_daemon()

    def ask(self, body: Any) -> Any:
        return block_on(self.client.ask(body), WAIT_S)

    def add_device(self, node: Node) -> None:
        size = ("--segment-size", self._segment_size) if self._segment_size else ()
        node.cli("device", "add", os.path.realpath(node.attach()), "--pool", "--class", "ssd", *size)

    def serve(self, node: Node) -> None:
        """Returns when the segment server of a node, which its supervisor starts, serves its device."""
        self.release(node)
        await_true(f"a segment server of {node.directory.name}", lambda: self.is_served(node), WAIT_S, 0.05)

    def release(self, node: Node) -> None:
        """Lets the segment server of a node come back."""
        lock = self._away.pop(node, None)
        if lock is not None:
            os.close(lock)

    @staticmethod
    def is_served(node: Node) -> bool:
        try:
            state = ask_state(node.run)
        except Exception:
            return False
        return [one.state for one in state.devices] == ["ok"] and bool(state.address)

    def kill(self, node: Node) -> None:
        """Ends the segment server of a node.  Its successors are refused until `serve`, because the test has their lock."""

        def killed() -> bool:
            procs.kill(str(node.directory), dict.fromkeys(node.pids("segments"), "segments"))
            lock = lock_or_holder(node.run / LOCK)
            if isinstance(lock, int):
                self._away[node] = lock
            return isinstance(lock, int)

        await_true("the end of a segment server", killed, WAIT_S)

    def mount(self, node: Node, options: str = "") -> None:
        node.volume = VOLUME
        node.mount(options)

    def close(self) -> None:
        self.client.close()
        for lock in self._away.values():
            os.close(lock)


def is_in_cluster(node: Node) -> bool:
    try:
        node.ask("device", "ls")
    except BuildError:
        return False
    return True


@contextmanager
def pool_on(cluster: Cluster, want: str, **options: Any) -> Iterator[PoolNodes]:
    """Makes a pool on the nodes of a cluster, and ends both."""
    made = PoolNodes(cluster, want, **options)
    yield made
    for node in made.nodes:
        node.umount()
    made.close()
    cluster.stop()
