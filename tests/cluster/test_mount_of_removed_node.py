"""A node is removed while programs use a mount of it: they are told EIO, uncommitted data becomes a conflict, umount works plainly."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.cluster.test_health import codes, told
from tests.faults.rig import refused
from tests.rigs.network_namespaces import found_by_join

VOLUME, WAIT_S = "shared", 120.0
WAITING = "import fcntl, sys\nfile = open(sys.argv[1], 'r+b')\nprint('open', flush=True)\nfcntl.lockf(file, fcntl.LOCK_EX)\n"


@pytest.fixture
def nodes(make_cluster: Callable[..., Cluster]) -> list[Node]:
    cluster = make_cluster(2)
    found_by_join(cluster)
    stays, goes = cluster.nodes
    disk = os.path.realpath(stays.attach())
    stays.cli("device", "add", "--shared", disk)
    goes.cli("device", "add", "--shared", disk, accept=tuple(range(9)))
    stays.cli("volume", "create", VOLUME)
    for node in cluster.nodes:
        await_true("the device", lambda node=node: [row["path"] for row in node.ask("device", "ls")] == [disk], WAIT_S, 0.2)
        node.cli("mount", VOLUME, str(node.mountpoint), "-O", "shared")
    return cluster.nodes


def put_aside(node: Node) -> list[bytes]:
    return [path.read_bytes() for path in (node.state / "conflicts").glob("*/*")]


def ends_with_eio(path: Path) -> bool:
    return refused(path.stat) == errno.EIO


def test_programs_on_the_mount_of_a_removed_node_are_told(nodes: list[Node]) -> None:
    stays, goes = nodes
    (stays.mountpoint / "locked").write_bytes(b"x")
    fd = os.open(stays.mountpoint / "locked", os.O_RDWR)
    os.lockf(fd, os.F_LOCK, 0)
    held = os.open(goes.mountpoint / "held", os.O_CREAT | os.O_RDWR)
    argv = [sys.executable, "-c", WAITING, str(goes.mountpoint / "locked")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        try:
            assert waiting.stdout is not None and waiting.stdout.readline() == "open\n"
            os.write(held, b"not committed")
            stays.cli("node", "remove", goes.directory.name, "--force")
            _, said = waiting.communicate(timeout=WAIT_S)
            assert waiting.returncode == 1 and f"Errno {errno.EIO}" in said, said
        finally:
            waiting.kill()
    await_true("EIO for whoever comes", lambda: ends_with_eio(goes.mountpoint / "new"), WAIT_S, 0.1)
    for call in (lambda: os.fsync(held), lambda: os.write(held, b"more"), lambda: os.listdir(goes.mountpoint)):
        assert refused(call) == errno.EIO
    refused(lambda: os.close(held))
    there = stays.mountpoint / "held"  # a removal of more than 5 s leaves time to commit it
    await_true("the bytes", lambda: put_aside(goes) == [b"not committed"] or there.read_bytes() == b"not committed", WAIT_S, 0.1)
    await_true("what status says", lambda: {"NODE_REMOVED", "MOUNT_REFUSED"} <= codes(goes), WAIT_S, 0.2)
    [mount] = told(goes)["mounts"]
    assert mount["state"] == "refused" and "was removed from" in mount["last_error"], mount
    goes.cli("umount", str(goes.mountpoint), timeout_s=WAIT_S)
    assert not os.path.ismount(goes.mountpoint) and not told(goes).get("mounts")
    os.lockf(fd, os.F_ULOCK, 0)
    os.close(fd)
    assert (stays.mountpoint / "locked").read_bytes() == b"x" and "held" in os.listdir(stays.mountpoint)
