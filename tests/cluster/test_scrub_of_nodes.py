"""Scrub on three real nodes, each with a device of its own: who finds which wrong byte, what `status` says of it, and how it goes away."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.node.maintenance.scrub import DONE, FAILED
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.rigs.network_namespaces import found_static

MIB = 1 << 20
WAIT_S = 120
DIRECT = os.O_RDWR | os.O_DIRECT  # what is read comes from the device, and not from the kernel's pages


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    """Each node has its own device, and a volume on it that is mounted there."""
    made = make_cluster(3)
    found_static(made)
    made.launch()
    made.await_leader()
    try:
        for number, node in enumerate(made.nodes):
            node.await_daemon()
            with disk_of(node).open("wb") as file:
                file.truncate(512 * MIB)
            node.cli("device", "add", str(disk_of(node)), timeout_s=WAIT_S)
            node.cli("volume", "create", f"local{number}")
            node.mountpoint.mkdir(exist_ok=True)
            node.cli("mount", f"local{number}", str(node.mountpoint), timeout_s=WAIT_S)
        yield made
    finally:
        for node in made.nodes:
            node.kill_everything()
            node.detach_mount()


def disk_of(node: Node) -> Path:
    return node.directory / "local.img"


def write(node: Node, data: bytes) -> None:
    fd = os.open(node.mountpoint / "file", DIRECT | os.O_CREAT)
    try:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            assert os.pwrite(fd, buffer, 0) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def read(node: Node) -> bytes:
    fd = os.open(node.mountpoint / "file", DIRECT)
    try:
        with mmap.mmap(-1, MIB) as buffer:
            assert os.preadv(fd, [buffer], 0) == MIB
            return buffer[:]
    finally:
        os.close(fd)


def flip_byte(path: Path, within: bytes) -> None:
    """One byte in the middle of these bytes, wherever they are in the image."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as raw:
        at = raw.find(within)
        assert at > 0 and raw.find(within, at + 1) < 0
        raw[at + len(within) // 2] ^= 1
        raw.flush()


def scrubbed(node: Node) -> dict[str, Any] | None:
    """What a round has found on this node; None while it goes on."""
    found: dict[str, Any] = node.ask("scrub", "status", accept=(0, 3))
    return found if found["state"] in (DONE, FAILED) else None


def damaged(node: Node) -> list[str]:
    return [one["what"] for one in node.ask("status", accept=(0, 3))["health"] if one["code"] == "DAMAGED_FILE"]


@pytest.mark.soak  # the parts are in tests/unit/node/maintenance/test_scrub.py and test_damage.py
def test_each_fault_is_found_once_by_the_node_of_its_device(cluster: Cluster, seed: int) -> None:
    contents = [random.Random(f"{seed} {number}").randbytes(MIB) for number, _ in enumerate(cluster.nodes)]
    volumes = {row["name"]: int(row["volume"]) for row in cluster.nodes[0].ask("volume", "ls")}
    for node, data in zip(cluster.nodes, contents, strict=True):
        write(node, data)
        flip_byte(disk_of(node), data[512_000:512_512])
    for node in cluster.nodes:
        node.cli("scrub", "start", "--rate", "512M")
    for number, node in enumerate(cluster.nodes):
        found = await_true("the end of the scrub", partial(scrubbed, node), WAIT_S, 0.2)
        assert (found["state"], found["found"], found["repaired"]) == (DONE, 1, 0), found
        (finding,) = found["findings"]
        assert (int(finding["volume"]), finding["path"]) == (volumes[f"local{number}"], "/file"), finding
    for number, node in enumerate(cluster.nodes):
        (what,) = await_true("the health code", partial(damaged, node), WAIT_S, 0.2)
        assert what.startswith(f"wrong bytes in file /file of volume local{number} at offset"), what
        with pytest.raises(OSError) as failed:
            read(node)
        assert failed.value.errno == errno.EIO
    for node, data in zip(cluster.nodes, contents, strict=True):
        write(node, data)
    for node, data in zip(cluster.nodes, contents, strict=True):
        await_true("the end of the health code", lambda node=node: not damaged(node), WAIT_S, 0.2)
        assert read(node) == data
        node.cli("umount", str(node.mountpoint), timeout_s=WAIT_S)
