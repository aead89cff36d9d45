"""The segment servers of real nodes: they come with the first device and come back by themselves, and what users are told of them."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.cluster.test_pool import digest, write
from tests.rigs.metrics_page import PROMTOOL, complaints, figures
from tests.rigs.pool_nodes import WAIT_S, PoolNodes, pool_on

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
ROLES = ("segments", "daemon", "keeper", "worker")
Order = tuple[tuple[int, str], tuple[int, str]]  # node by number, and role
MOUNTED = [(0, role) for role in ROLES]  # the mount is on the first node
OTHERS = [(number, role) for number in (1, 2) for role in ROLES[:2]]
ORDERS = [*permutations(MOUNTED, 2), *product(MOUNTED, OTHERS), *product(OTHERS, MOUNTED), *permutations(OTHERS, 2)]
GONE = "SEGMENT_SERVER_GONE"
ACKS_AFTER = 3  # that a program has to get after two kills
HOLDS_PORT = "import socket, time; held = socket.create_server(('', 7442)); print(flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    cluster = make_cluster(3, size_bytes=2 << 30)
    for node in cluster.nodes:
        node.settings["AWSOMEFSD_METRICS_LISTEN"] = "unix"
    with pool_on(cluster, "replicas=2") as made:
        yield made


class Writer(threading.Thread):
    """Writes one file after the other and waits until each is durable.  `error`: the first that it was told."""

    def __init__(self, directory: Path, prefix: str) -> None:
        super().__init__()
        self._directory, self._prefix = directory, prefix
        self.acknowledged: dict[str, str] = {}  # name → digest
        self.error: OSError | None = None
        self.ending = False

    def run(self) -> None:
        while not self.ending and self.error is None:
            name, data = f"{self._prefix}{len(self.acknowledged)}", os.urandom(random.randrange(1, 200_000))
            try:
                with open(self._directory / name, "wb", buffering=0) as file:
                    file.write(data)
                    os.fsync(file.fileno())
            except OSError as err:
                self.error = err
            else:
                self.acknowledged[name] = hashlib.sha256(data).hexdigest()


def strike(pool: PoolNodes, writer: Writer, order: Order) -> None:
    """Kills two processes, one after the other, and returns when all is as before and the program goes on."""
    hit = [(pool.nodes[number], role, pool.nodes[number].kill(role)[role]) for number, role in order]
    for node, role, pid in hit:
        node.replaced(role, pid)
    for node in pool.nodes:
        await_true(f"a device that is served after {order}", lambda node=node: pool.is_served(node), WAIT_S, 0.05)
    wanted = len(writer.acknowledged) + ACKS_AFTER
    await_true(f"a program that goes on after {order}", lambda: writer.error or len(writer.acknowledged) >= wanted, WAIT_S, 0.05)
    assert writer.error is None, (order, writer.error)


def endure(pool: PoolNodes, orders: list[Order], prefix: str) -> None:
    """A program writes on the first node while processes die in these orders; then all of it is read on another node."""
    first, second, _ = pool.nodes
    pool.mount(first)
    writer = Writer(first.mountpoint, prefix)
    writer.start()
    try:
        await_true("a program that writes", lambda: writer.error or len(writer.acknowledged) >= ACKS_AFTER, WAIT_S)
        for order in orders:
            strike(pool, writer, order)
    finally:
        writer.ending = True
        writer.join()
    assert writer.error is None
    assert {name: digest(first.mountpoint / name) for name in writer.acknowledged} == writer.acknowledged
    first.umount()
    pool.mount(second)
    assert {name: digest(second.mountpoint / name) for name in writer.acknowledged} == writer.acknowledged
    second.umount()


def test_kills_of_two_processes_cost_nothing_that_was_acknowledged(pool: PoolNodes, seed: int) -> None:
    """The segment server and each other process of the mount's node, and of two nodes, one order of each; test_every_order has all."""
    dice = random.Random(seed)
    pairs = [*(((0, "segments"), (0, role)) for role in ROLES[1:]), ((0, "segments"), (1, "segments")), ((1, "segments"), (2, "daemon"))]
    dice.shuffle(pairs)
    endure(pool, [(a, b) if dice.random() < 0.5 else (b, a) for a, b in pairs], "few")


@pytest.mark.soak
def test_every_order(pool: PoolNodes, seed: int) -> None:
    orders = list(ORDERS)
    random.Random(seed).shuffle(orders)
    endure(pool, orders, "all")


def found(node: Node, code: str) -> str:
    """What `status` says of a health code; "" if it does not find it."""
    rows = node.ask("status", accept=(0, 3))["health"]
    return next((str(row["what"]) for row in rows if row["code"] == code), "")


def test_status_device_show_and_metrics_say_how_the_server_is(pool: PoolNodes) -> None:
    first = pool.nodes[0]
    pool.mount(first)
    write(first.mountpoint / "told", 100_000)
    shown = await_true("writes that are told", lambda: "writes" in (text := first.cli("device", "show", "1")) and text, WAIT_S, 0.5)
    assert "flushes" in shown and "bays" in shown and "0 errors" in shown, shown
    said = first.cli("status", accept=(0, 3))
    assert f"segment server pid {first.pid('segments')} at " in said, said
    status = first.ask("status", accept=(0, 3))
    assert [row["path"] for row in status["devices"] if row["served"]] == [os.path.realpath(first.disk)], "of its own device alone"
    assert found(first, GONE) == ""
    page = figures(first)
    for row in ('kind="write"', 'kind="flush"', 'state="open"', "awsomefsd_segment_server_up 1", "awsomefsd_segment_connections "):
        assert row in page, row
    if PROMTOOL is not None:
        assert complaints(page) == ""
    first.umount()


def test_a_port_that_somebody_else_has_is_said_and_taken_when_it_is_free(pool: PoolNodes) -> None:
    node = pool.nodes[2]
    pool.kill(node)
    other = subprocess.Popen([*node.entering, node.python, "-c", HOLDS_PORT], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n", "it has the port"
        pool.release(node)
        await_true("the port to be told of", lambda: all(one in found(node, GONE) for one in ("segments.listen", "in use")), WAIT_S, 0.5)
        assert "cannot listen" in (node.log / "segments.log").read_text()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        if other.stdout is not None:
            other.stdout.close()
    pool.serve(node)
    await_true("the end of the finding", lambda: not found(node, GONE), WAIT_S, 0.5)
