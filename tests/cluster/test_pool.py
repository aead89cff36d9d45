"""A volume in a pool, mounted on real nodes: what was written there is there, on as many devices as the volume wants, whoever is away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.base.types import BAY_MIRROR
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.devices import GetBays
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.rigs.pool_nodes import VOLUME, PoolNodes, pool_on

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def pool(make_cluster: Callable[..., Cluster]) -> Iterator[PoolNodes]:
    cluster = make_cluster(3, size_bytes=2 << 30)
    with pool_on(cluster, "replicas=3") as made:
        yield made


def digest(path: Path) -> str:
    """Of the bytes on the devices: nothing of the file is in the kernel's cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        found = hashlib.sha256()
        while piece := os.read(fd, MIB):
            found.update(piece)
        return found.hexdigest()
    finally:
        os.close(fd)


def write(path: Path, length: int) -> str:
    data = os.urandom(length)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return hashlib.sha256(data).hexdigest()


def on_all(pool: PoolNodes) -> set[int]:
    """The devices that have every committed segment whole.  A mirror that a busy machine held up for 2 s was left out of the next one."""
    told = [bay for device in (1, 2, 3) for bay in pool.ask(GetBays(device, 0, 1_000)).bays]
    numbers = {bay.segment for bay in told if bay.role == BAY_MIRROR}
    found = {1, 2, 3}
    for info in pool.ask(m.GetSegments(sorted(numbers))).segments:
        if info.committed_bytes:
            whole = {bay.device for bay in info.bays if bay.durable >= info.committed_bytes}
            assert len(whole) >= 2, info
            found &= whole
    return found


def test_what_is_written_is_on_all_devices_and_read_with_any_one(pool: PoolNodes) -> None:
    first, _, third = pool.nodes
    pool.mount(first)
    place = first.mountpoint
    sums = {name: write(place / name, length) for name, length in (("small", 10), ("middle", 70_001), ("large", 40 * MIB))}
    whole = await_true("a device with all of it", lambda: on_all(pool), WAIT_S, 0.2)  # mirrors that were left out are made good
    for device in whole:
        away = [node for number, node in enumerate(pool.nodes, 1) if number != device]
        for node in away:
            pool.kill(node)
        assert {name: digest(place / name) for name in sums} == sums
        for node in away:
            pool.serve(node)
    first.umount()
    pool.mount(third)
    assert {name: digest(third.mountpoint / name) for name in sums} == sums
    third.umount()


def test_what_no_pool_can_do_is_refused_with_what_is_possible(pool: PoolNodes, tmp_path: Path) -> None:
    first = pool.nodes[0]
    assert "replicas=1 to" in first.cli_error("volume", "create", "v", "--redundancy", "ec=4+2")
    assert "replicas=1 to" in first.cli_error("volume", "create", "v", "--redundancy", "replicas=0")
    assert "n1, n2, n3" in first.cli_error("volume", "create", "v", "--redundancy", "replicas=5")
    assert "one node's" in first.cli_error("device", "add", str(tmp_path / "disk"), "--pool", "--shared")
    assert "power of two" in first.cli_error("device", "add", str(tmp_path / "disk"), "--pool", "--segment-size", "3M")
    assert "leave --segment-size out" in first.cli_error("device", "add", str(tmp_path / "disk"), "--pool", "--segment-size", "1M")
    assert "add --pool" in first.cli_error("device", "add", str(tmp_path / "disk"), "--class", "ssd")
    assert [row["name"] for row in first.ask("volume", "ls")] == [VOLUME], "nothing is left of what was refused"


def test_a_segment_server_that_dies_costs_no_error(pool: PoolNodes) -> None:
    first, second, _ = pool.nodes
    pool.mount(first)
    sums = {}
    for turn in range(3):
        sums[f"before-{turn}"] = write(first.mountpoint / f"before-{turn}", 300_000)
        pool.kill(second)
        sums[f"after-{turn}"] = write(first.mountpoint / f"after-{turn}", 300_000)
        pool.serve(second)
    assert {name: digest(first.mountpoint / name) for name in sums} == sums
    first.umount()


def test_a_node_that_dies_costs_no_error_and_its_device_comes_back(pool: PoolNodes) -> None:
    first, _, third = pool.nodes
    pool.mount(first)
    sums = {"before": write(first.mountpoint / "before", 3 * MIB)}
    third.kill_everything()
    sums["without"] = write(first.mountpoint / "without", 3 * MIB)
    third.start()
    pool.serve(third)
    sums["after"] = write(first.mountpoint / "after", 3 * MIB)
    assert {name: digest(first.mountpoint / name) for name in sums} == sums
    first.umount()


def test_without_enough_mirrors_a_program_waits_and_is_told_nothing_wrong(pool: PoolNodes) -> None:
    first, second, third = pool.nodes
    pool.mount(first)
    for node in (second, third):
        pool.kill(node)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(write, first.mountpoint / "waits", 100_000)
        assert not wait([waiting], 3).done, "one mirror of three is not enough"
        pool.serve(second)
        expected = waiting.result(120)
    assert digest(first.mountpoint / "waits") == expected
    pool.serve(third)
    first.umount()


def test_all_nodes_share_it(pool: PoolNodes) -> None:
    for node in pool.nodes:
        pool.mount(node, "shared")
    sums = {}
    for turn in range(6):
        writer, reader = pool.nodes[turn % 3], pool.nodes[(turn + 1) % 3]
        sums[f"s{turn}"] = write(writer.mountpoint / f"s{turn}", 100_000 * (turn + 1))
        with (writer.mountpoint / "log").open("a") as file:
            file.write(f"{turn}\n")
        assert (reader.mountpoint / "log").read_text() == "".join(f"{one}\n" for one in range(turn + 1))
        if turn == 3:
            pool.kill(reader)
    for node in pool.nodes:
        assert {name: digest(node.mountpoint / name) for name in sums} == sums
        node.umount()
