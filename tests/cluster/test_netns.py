"""The fixture itself: nodes in namespaces see each other, and every fault that it can make really happens and ends."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools import netns, procs
from buildtools.cluster import Cluster
from buildtools.leader import figures
from buildtools.nodes import Node, await_true
from tests.conftest import making_clusters
from tests.rigs.network_namespaces import found_static

WAIT_S = 90
BROADCAST = f"{netns.NET}.255"
RECEIVE = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 9))
sock.settimeout(60)
print("bound", flush=True)
count = 0
while not sock.recvfrom(2000)[1][0].startswith("127."):
    count += 1
print(count)
"""
DAY_S = 86_400


@pytest.fixture(scope="module")
def running(make_cluster) -> Cluster:
    cluster = make_cluster(3, faults=True)
    found_static(cluster)
    cluster.launch()
    cluster.await_leader()
    return cluster


def followers(cluster: Cluster) -> list[Node]:
    leader = cluster.await_leader()
    return [node for node in cluster.nodes if node is not leader]


def pings(cluster: Cluster, source: int, target: int, count: int = 1, to: str = "") -> int:
    """How many of `count` datagrams from one machine arrive at another; `to` a broadcast or multicast address."""
    network = cluster.network
    python = cluster.nodes[0].python
    with subprocess.Popen([*network.entering(target), python, "-c", RECEIVE], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "bound\n"
        send = "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.setsockopt(1, socket.SO_BROADCAST, 1)\n"
        for machine, address, times in ((source, to or network.address(target), count), (target, "127.0.0.1", 1)):
            words = send + f"for _ in range({times}): s.sendto(b'x'*500, ({address!r}, 9))"
            subprocess.run([*network.entering(machine), python, "-c", words], check=True, timeout=60)
        return int(listener.stdout.readline())


@pytest.fixture
def healed(running: Cluster) -> Iterator[Cluster]:
    yield running
    running.network.heal()


def test_faults_on_paths_happen_and_end(healed: Cluster) -> None:
    network = healed.network
    assert pings(healed, 1, 2) == 1
    network.cut([1], [2], one_way=True)
    assert pings(healed, 1, 2) == 0
    assert pings(healed, 2, 1) == 1
    assert pings(healed, 3, 2) == 1
    assert network.dropped(2) >= 1
    network.heal()
    network.isolate(3, hears=True)
    assert pings(healed, 1, 3) == 1
    assert pings(healed, 3, 1) == 0
    network.heal()
    network.lose(2, 0.5)
    assert 100 < pings(healed, 1, 2, 400) < 300
    network.heal()
    network.slow(2, 20_000)
    assert pings(healed, 1, 2, 200) < 150
    network.heal()
    assert pings(healed, 1, 2, 50, to=BROADCAST) == 50
    network.mute_multicast([2])
    assert pings(healed, 1, 2, to=BROADCAST) == 0
    assert pings(healed, 1, 3, to=BROADCAST) == pings(healed, 1, 2) == 1


def test_a_leader_that_is_cut_off_is_replaced(healed: Cluster) -> None:
    old = healed.await_leader()
    others = followers(healed)
    healed.network.isolate(healed.machine(old))
    new = healed.await_leader(others)
    assert healed.network.dropped(healed.machine(old)) > 0
    await_true("the old leader to give up", lambda: figures(old.run / "meta.sock").get("leading") == 0, WAIT_S)
    healed.network.heal()
    await_true("it to follow", lambda: figures(old.run / "meta.sock").get("term") == figures(new.run / "meta.sock").get("term"), WAIT_S)


def test_a_leader_that_is_paused_is_replaced(healed: Cluster) -> None:
    old = healed.await_leader()
    others = followers(healed)
    hit = healed.pause(old)
    try:
        assert len(hit) >= 3
        assert healed.await_leader(others) is not old
    finally:
        healed.resume(old)
    await_true("it to follow", lambda: figures(old.run / "meta.sock").get("leading") == 0, WAIT_S)


def test_a_voter_that_is_wiped_comes_back(healed: Cluster) -> None:
    victim = followers(healed)[0]
    healed.wipe(victim)
    await_true("a voter again", lambda: figures(victim.run / "meta.sock").get("leader"), WAIT_S)
    leader = healed.await_leader()
    await_true("three voters", lambda: figures(leader.run / "meta.sock").get("voters") == 3, WAIT_S)


def test_the_clock_of_one_node_is_skewed(healed: Cluster) -> None:
    """The leader's: what it stamps lies ten days ahead, and time goes on from there when the fault has ended."""
    leader = healed.await_leader()
    before = int(await_true("what is applied", lambda: figures(leader.run / "meta.sock").get("applied"), WAIT_S))
    leader.inject(f"clock=+{10 * DAY_S}")
    try:
        leader.cli("volume", "create", "skewed")
    finally:
        leader.inject("")
    rows = [json.loads(row) for row in leader.cli("log", "follow", "--no-wait", "--from", str(before), "-o", "json").splitlines()]
    (created,) = (row for row in rows if row["command"] == "CreateVolume")
    assert created["time_ns"] > (time.time() + 9 * DAY_S) * 1e9


def test_mounts_are_seen_by_the_caller_and_nothing_is_left(make_cluster) -> None:
    cluster = make_cluster(1)
    (node,) = cluster.nodes
    node.up()
    (node.mountpoint / "file").write_text("seen")
    assert (node.mountpoint / "file").read_text() == "seen"
    directory, names = cluster.directory, cluster.network.present()
    assert len(names) == 2
    for namespace in names:
        assert (netns.NAMES / namespace).exists()
    Cluster(directory, 1).destroy()  # with no memory of the first one
    assert not directory.exists()
    assert not cluster.network.present()
    assert not procs.owned(str(node.directory))


def test_a_cluster_goes_also_when_what_uses_it_fails() -> None:
    making = contextlib.contextmanager(making_clusters)()
    cluster = making.__enter__()(1)
    cluster.nodes[0].start()
    assert not making.__exit__(LookupError, LookupError("of the test"), None), "it goes on"
    assert not cluster.directory.exists() and not cluster.network.present()
    assert not procs.owned(str(cluster.nodes[0].directory))


def test_addresses_of_two_networks_do_not_meet(make_cluster) -> None:
    first, second = make_cluster(1), make_cluster(1)
    assert first.network.address(1) == second.network.address(1)
    assert set(first.network.present()).isdisjoint(second.network.present())
    with contextlib.closing(socket.socket()) as probe, pytest.raises(OSError):  # nor the host
        probe.bind((first.network.address(1), 0))


def said(env: Path, command: str) -> list[str]:
    script = f'. "$1"; {command}'
    return subprocess.run(["sh", "-c", script, "sh", env], capture_output=True, text=True, check=True, timeout=60).stdout.split()


def test_env_names_the_leader_and_nobody_while_there_is_none(healed: Cluster) -> None:
    env = healed.write_env()

    def named() -> bool:
        """One question each second is all that is asked of a node, and another one may lead in between."""
        leader = healed.await_leader()
        return said(env, "$LEADER_PID") == [str(leader.pid("daemon"))]

    await_true("the leader's process", named, WAIT_S)
    assert said(env, "$DAEMON_PIDS") == [str(node.pid("daemon")) for node in healed.nodes]
    assert said(env, 'echo "$NETNS1" "$NETNS2" "$NETNS3"') == [healed.namespace(node) for node in healed.nodes]
    assert said(env, "$AWSOMEFSD3 version") == said(env, "$AWSOMEFSD version")
    for node in followers(healed):
        healed.pause(node)
    try:
        await_true("nobody to lead", lambda: not said(env, "$LEADER_PID"), WAIT_S)
    finally:
        for node in healed.nodes:
            healed.resume(node)
    assert healed.await_leader()
