"""A segment server that is killed, at each step of an attach too, and one that is told to end: its successor takes over."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from awsomefsd.base.failpoints import POINTS
from awsomefsd.base.identity import POOL_DEVICES
from awsomefsd.base.limits import BLOCK_BYTES, MIB
from awsomefsd.io.device.device import Device
from awsomefsd.io.pool.remote_errors import ServerAway
from awsomefsd.meta.api import commands as c
from tests.rigs.pool_cluster import WAIT_S, PoolCluster, PoolNode, block
from tests.rigs.segment_servers import until

STEPS = [name for name in POINTS if POINTS[name] == "attach"]
IDLE_BYTES_MAX = 60 * MIB


def end(process: subprocess.Popen[bytes], number: int) -> int:
    process.send_signal(number)
    return process.wait(WAIT_S)


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1_024
    raise AssertionError("it has ended")


def test_a_server_that_is_killed_is_replaced_and_what_was_synced_is_read(cluster: PoolCluster, node: PoolNode) -> None:
    process = node.launch()
    until(lambda: node.is_served() and node.row().segments != "")
    assert resident_bytes(process.pid) < IDLE_BYTES_MAX
    client = cluster.client()
    first, second = client.lease(2)
    device = client.device(node)
    writer = device.open(first.bays[0].index, first.segment, first.incarnation)
    writer.append(block("a"))
    assert writer.sync() == BLOCK_BYTES
    assert end(process, signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(ServerAway):
        writer.sync()
    process = node.launch()
    until(node.is_served)
    assert node.generation() == node.superblock().generation == 3
    other = None
    while other is None:
        try:
            other = device.open(second.bays[0].index, second.segment, second.incarnation)
        except ServerAway:
            pass  # the pause after a connection that ended
    other.append(block("b"))
    assert other.sync() == BLOCK_BYTES
    assert node.medium(first.bays[0].index, 2 * BLOCK_BYTES) == b"a" * BLOCK_BYTES + bytes(BLOCK_BYTES)
    assert end(process, signal.SIGTERM) == 0
    assert node.state() is None
    with pytest.raises(ServerAway):
        other.sync()
    with Device.open(node.path) as free:
        free.lock()


def test_a_kill_at_each_step_of_an_attach_leaves_a_device_that_the_next_one_attaches(cluster: PoolCluster, node: PoolNode) -> None:
    assert len(STEPS) == 7, "before and after each of six"
    for name in STEPS:
        killed = node.launch(AWSOMEFSD_FAILPOINTS=f"{name}=kill")
        assert killed.wait(WAIT_S) == -signal.SIGKILL, name
        on_disk, in_log = node.superblock().generation, node.generation()
        assert on_disk - in_log == (name == "device.attach.raised"), name
    node.launch()
    until(node.is_served)
    assert node.superblock().generation == node.generation() == 1 + 3, "two that were raised, and this one"


def test_a_step_that_fails_is_said_and_tried_again(node: PoolNode) -> None:
    node.launch(AWSOMEFSD_FAILPOINTS="device.attach.looked=error:EIO@1")
    until(node.is_served)
    assert "failpoint device.attach.looked" in (node.run_dir.parent / "log").read_text()


def test_a_device_that_hangs_does_not_keep_a_server_from_ending(node: PoolNode) -> None:
    process = node.launch(AWSOMEFSD_FAILPOINTS="device.attach.looked=delay:600000")
    until(lambda: (state := node.state()) is not None and [one.state for one in state.devices] == ["it is being attached"])
    assert end(process, signal.SIGTERM) == 0
    node.launch()
    until(node.is_served)


def test_it_ends_by_itself_when_its_node_has_no_device_of_a_pool(cluster: PoolCluster, node: PoolNode) -> None:
    needed = node.state_dir / POOL_DEVICES
    needed.touch()
    process = node.launch()
    until(node.is_served)
    cluster.propose(c.DrainDevice(node.number, True))
    cluster.propose(c.RemoveDevice(node.number, 1_000))
    until(lambda: (state := node.state()) is not None and not state.devices)
    assert process.poll() is None, "the daemon's file says that it is wanted, and may know better"
    needed.unlink()
    assert process.wait(WAIT_S) == 0
    assert "nobody needs this process" in (node.run_dir.parent / "log").read_text()


def test_a_second_process_of_the_node_is_refused_and_says_so(node: PoolNode) -> None:
    first = node.launch()
    until(node.is_served)
    assert node.launch().wait(WAIT_S) == 1
    assert f"process {first.pid}" in (node.run_dir.parent / "log").read_text()
    assert node.is_served()
