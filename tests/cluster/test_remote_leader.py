"""A mount on a node that does not lead: its worker and its daemon ask the leader over TLS, and follow when the lead changes hands."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.network_namespaces import found_static

WAIT_S = 90


class Load(threading.Thread):
    """Creates, writes, fsyncs and reads back, one file after the other; every error counts."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.ending = threading.Event()
        self.done = 0
        self.longest_s = 0.0
        self.errors: list[BaseException] = []

    def run(self) -> None:
        while not self.ending.is_set() and not self.errors:
            began = time.monotonic()
            try:
                self.one(self.done)
            except BaseException as err:
                self.errors.append(err)
                return
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.done += 1

    def one(self, number: int) -> None:
        path = self.directory / f"f{number}"
        data = b"%d " % number * 3_000
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        try:
            os.write(fd, data)
            os.fsync(fd)
            assert os.pread(fd, len(data) + 1, 0) == data
        finally:
            os.close(fd)
        if number % 3 == 0:
            os.rename(path, self.directory / f"g{number}")
        elif number % 5 == 1:
            os.unlink(path)

    def more(self, count: int) -> None:
        before = self.done
        await_true(f"{count} more files", lambda: self.errors or self.done >= before + count, WAIT_S)
        assert not self.errors, self.errors

    def finish(self) -> None:
        self.ending.set()
        self.join(WAIT_S)
        assert not self.is_alive() and not self.errors, self.errors


@pytest.fixture(scope="module")
def cluster(make_cluster) -> Cluster:
    made = make_cluster(3)
    found_static(made)
    made.launch()
    made.await_leader()
    return made


@pytest.fixture(scope="module")
def follower(cluster: Cluster) -> Iterator[Node]:
    """Does not lead; has the device and the mount, which it got by asking the leader."""
    leader = cluster.await_leader()
    node = next(node for node in cluster.nodes if node is not leader)
    node.await_daemon(WAIT_S)
    node.provision()
    node.mount()
    yield node
    node.umount()


def test_a_load_on_a_follower_sees_no_error_when_leaders_die(cluster: Cluster, follower: Node, figures) -> None:
    load = Load(follower.mountpoint)
    load.start()
    load.more(20)
    for _ in range(3):
        leader = cluster.await_leader()
        if leader is follower:  # its own daemon leads now: the next one does not
            follower.kill("daemon")
            load.more(20)
            continue
        leader.kill("daemon")
        load.more(20)
    load.finish()
    figures.append(f"mount on a follower: {load.done} files while leaders were killed, the slowest took {load.longest_s:.2f} s")
    left = {path.name for path in follower.mountpoint.iterdir()}
    for number in range(load.done):
        gone = number % 3 != 0 and number % 5 == 1
        assert (f"{'g' if number % 3 == 0 else 'f'}{number}" in left) is not gone


def test_commands_are_taken_on_every_node(cluster: Cluster, follower: Node) -> None:
    for number, node in enumerate(cluster.nodes):
        node.await_daemon(WAIT_S)
        node.cli("volume", "create", f"by{number}")
    for node in cluster.nodes:
        names = {volume["name"] for volume in node.ask("volume", "ls")}
        assert {"by0", "by1", "by2"} <= names


def test_without_a_leader_the_daemon_says_so_and_starts(cluster: Cluster, follower: Node) -> None:
    others = [node for node in cluster.nodes if node is not follower]
    for node in others:
        node.stop()
    try:
        await_true("nobody leads", lambda: cluster.leader() is None, WAIT_S)
        follower.kill("daemon")
        follower.await_daemon(WAIT_S)
        assert "lead" in follower.cli_error("volume", "create", "never")
        shown = follower.cli("status", accept=(0, 1, 2, 3))
        assert "this node knows no leader" in shown
    finally:
        for node in others:
            node.launch()
    cluster.await_leader(timeout_s=WAIT_S)
    load = Load(follower.mountpoint / "after")
    load.directory.mkdir()
    load.start()
    load.more(5)
    load.finish()
