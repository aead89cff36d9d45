"""The process of a segment server, beside a real leader: what it attaches, whom it serves, and what it tells."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import ConfigError, Refused, Unavailable
from awsomefsd.base.limits import BLOCK_BYTES, MIB
from awsomefsd.base.sockets import own_address
from awsomefsd.base.types import Extent, SegmentInBays, SegmentProgress
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import write_superblock
from awsomefsd.io.pool.attach import attach
from awsomefsd.io.pool.remote_device import BayWriter, RemoteDevice
from awsomefsd.io.pool.remote_errors import BayLost, NobodyLeads, NotServed, ServerAway
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.io.pool.server_state import ask_state
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands.pools import DEVICE_LOST
from awsomefsd.meta.api.messages import GetDevices
from awsomefsd.segments import pool_device
from awsomefsd.segments.config import hand_over, take_over
from awsomefsd.segments.process import SegmentsProcess
from tests.rigs.bay_content import content
from tests.rigs.pool_cluster import CLIENT, LEADER, SEGMENT_BYTES, PoolClient, PoolCluster, PoolNode, block
from tests.rigs.segment_servers import until


def in_a_minute() -> int:
    return time.monotonic_ns() + 60 * 10**9


def store(writer: BayWriter, letter: str) -> int:
    """Appends a block and returns up to where the bay is durable."""
    writer.append(block(letter))
    return writer.sync()


def test_a_segment_is_leased_opened_appended_synced_and_read_on_another_nodes_device(cluster: PoolCluster, node: PoolNode) -> None:
    with node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        assert node.row().segments == f"127.0.0.1:{node.port}"
        client = cluster.client()
        (segment,) = client.lease()
        (bay,) = segment.bays
        device = client.device(node)
        writer = device.open(bay.index, segment.segment, segment.incarnation)
        writer.append(block("a"))
        assert store(writer, "b") == 2 * BLOCK_BYTES
        assert node.medium(bay.index, 2 * BLOCK_BYTES) == b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES
        into = memoryview(bytearray(10))
        assert device.bay(bay.index, segment.segment, segment.incarnation).pread_into(into, BLOCK_BYTES - 5) == 10
        assert bytes(into) == b"aaaaabbbbb"
        with pytest.raises(BayLost):
            device.open(bay.index + 1, segment.segment, segment.incarnation)
        assert writer.close() == 2 * BLOCK_BYTES


# --- members ------------------------------------------------------------------------------------------------------------------
def test_a_removed_node_is_cut_off_and_one_that_was_removed_itself_serves_nobody(cluster: PoolCluster, node: PoolNode) -> None:
    with node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        client = cluster.client()
        (segment,) = client.lease()
        writer = client.device(node).open(segment.bays[0].index, segment.segment, segment.incarnation)
        cluster.propose(c.SetNodeState(CLIENT, "removed"))
        process.look()
        with pytest.raises(ServerAway):
            store(writer, "a")
        assert process.state().trouble == ""
        cluster.propose(c.SetNodeState(node.node, "removed"))
        until(lambda: (process.look(), "was removed" in process.state().trouble)[1])
        local = RemoteServer(str(node.run_dir / "bays.sock"), node.node, cluster.tls(node.node))
        with pytest.raises(ServerAway):
            local.reads(in_a_minute())
        local.close()


def test_without_a_leader_what_is_open_goes_on_and_nothing_is_opened(cluster: PoolCluster, node: PoolNode) -> None:
    with node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        client = cluster.client()
        first, second = client.lease(2)
        device = client.device(node)
        writer = device.open(first.bays[0].index, first.segment, first.incarnation)
        cluster.abdicate()
        assert store(writer, "a") == BLOCK_BYTES
        with pytest.raises(NobodyLeads):
            device.open(second.bays[0].index, second.segment, second.incarnation)
        process.look()
        assert "the leader cannot be asked" in process.state().trouble
        cluster.lead()
        until(lambda: (process.look(), process.state().trouble == "")[1])
        other = device.open(second.bays[0].index, second.segment, second.incarnation)
        assert store(other, "b") == BLOCK_BYTES
        assert store(writer, "c") == 2 * BLOCK_BYTES


def locked(device: Device) -> bool:
    """The next attempt to attach it has the lock for a moment."""
    try:
        device.lock()
    except Refused:
        return False
    return True


def is_refused(writer: BayWriter) -> bool:
    """A device says that it is not served a moment before its bays are closed."""
    try:
        store(writer, "a")
    except (NotServed, BayLost):
        return True
    return False


# --- devices ------------------------------------------------------------------------------------------------------------------
def why(process: SegmentsProcess) -> str:
    (state,) = process.state().devices
    return state.state


def test_a_device_that_is_found_later_is_attached_then(cluster: PoolCluster, node: PoolNode) -> None:
    node.place(None)
    with node.serve() as process:
        process.look()
        until(lambda: "not found on this node" in why(process))
        process.look()
        assert node.generation() == 1, "nothing was attached"
        node.place(node.path)
        process.look()
        until(node.is_served)
    assert node.generation() == node.superblock().generation == 2


@pytest.mark.parametrize("change", [{"generation": 0}, {"cluster_uuid": CLIENT}, {"device_uuid": CLIENT}])
def test_a_device_that_is_not_the_one_says_so_and_nothing_is_written(cluster: PoolCluster, node: PoolNode, change: dict[str, Any]) -> None:
    found = node.superblock()
    with Device.open(node.path) as device:
        write_superblock(device, replace(found, **change))
    before = node.path.read_bytes()
    with node.serve() as process:
        process.look()
        until(lambda: why(process) not in ("it is being attached", "ok"))
        words = why(process)
        assert words.startswith(("rolled back", "wrong device")) and str(node.path) in words
        assert node.path.read_bytes() == before
        with Device.open(node.path) as device:
            until(lambda: locked(device))
            write_superblock(device, found)
        node.place(node.path.parent / "." / "disk")  # another path: it is tried again at once
        process.look()
        until(node.is_served)


def test_a_device_that_another_node_has_adopted_is_given_up(cluster: PoolCluster, node: PoolNode) -> None:
    with node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        client = cluster.client()
        (segment,) = client.lease()
        device = client.device(node)
        writer = device.open(segment.bays[0].index, segment.segment, segment.incarnation)
        cluster.propose(c.SetDeviceState(1, 1))
        cluster.propose(c.AttachDevice(1, 9, LEADER, adopt=True))
        process.look()
        until(lambda: (process.look(), not process._leaving and not process.state().devices)[1])
        with pytest.raises(NotServed, match="not attached here"):
            store(writer, "a")
        with Device.open(node.path) as again:
            again.lock()
        process.look()
        assert node.row().segments == "", "it has no device of a pool any more"


def test_a_disk_that_was_pulled_is_left_and_attached_again_when_it_is_back(cluster: PoolCluster, node: PoolNode) -> None:
    """The descriptor goes on reading another disk: here the file is overwritten, as a path can lead elsewhere by a hot swap."""
    with node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        client = cluster.client()
        first, second = client.lease(2)
        writer = client.device(node).open(first.bays[0].index, first.segment, first.incarnation)
        (served,) = process._devices.values()
        bays = served._bays
        assert bays is not None
        found, device = node.superblock(), bays.device
        with Device.open(node.path) as other:
            write_superblock(other, replace(found, device_uuid=CLIENT))
        device.failed = True  # type: ignore[attr-defined]  # an I/O has failed
        process.look()
        until(lambda: why(process).startswith("wrong device"))
        until(lambda: is_refused(writer))
        with Device.open(node.path) as other:
            write_superblock(other, found)
        node.place(node.path.parent / "." / "disk")
        process.look()
        until(node.is_served)
        assert node.generation() == found.generation + 1
        again = client.device(node).open(second.bays[0].index, second.segment, second.incarnation)
        assert store(again, "b") == BLOCK_BYTES


def test_a_device_that_was_called_lost_while_this_server_went_on_is_attached_again(cluster: PoolCluster, node: PoolNode) -> None:
    """The node was cut off for so long that the leader gave its device up; nothing else would have its bays count again."""
    with node.serve() as process:
        process.look()
        until(node.is_served)
        before = node.generation()
        cluster.propose(c.SetDeviceState(1, DEVICE_LOST))
        cluster.propose(c.SetAbsent(1, False))  # its daemon reports again
        until(lambda: (process.look(), not cluster.ask(GetDevices()).devices[0].lost)[1])
        until(node.is_served)
        process.look()
        process.look()
        until(node.is_served)
        attached = node.generation()
        assert attached > before
        for _ in range(5):
            process.look()
        until(node.is_served)
        assert node.generation() == attached, "and not again and again"


def test_an_io_that_failed_once_on_a_disk_that_is_there_changes_nothing(cluster: PoolCluster, node: PoolNode) -> None:
    with node.serve() as process:
        process.look()
        until(node.is_served)
        (served,) = process._devices.values()
        assert served._bays is not None
        device: Any = served._bays.device
        device.failed = True
        process.look()
        until(lambda: not device.failed)
        assert node.is_served() and node.generation() == 2


def test_a_device_that_hangs_or_fails_is_its_own_trouble(cluster: PoolCluster, node: PoolNode, monkeypatch: pytest.MonkeyPatch) -> None:
    number, path = node.add_second()
    hanging, go = threading.Event(), threading.Event()

    def attaching(*words: Any) -> Any:
        if words[0] == str(node.path):
            hanging.set()
            assert go.wait(60)
            raise OSError(errno.EIO, "the disk says no")
        return attach(*words)

    monkeypatch.setattr(pool_device, "attach", attaching)
    with node.serve() as process:
        process.look()
        assert hanging.wait(60)
        until(lambda: {one.device: one.state for one in process.state().devices} == {1: "it is being attached", number: "ok"})
        process.look()
        client = cluster.client()
        (segment,) = client.lease()
        assert [bay.device for bay in segment.bays] == [number]
        remote = RemoteDevice(client.device(node).server, number, SEGMENT_BYTES)
        assert store(remote.open(segment.bays[0].index, segment.segment, segment.incarnation), "a") == BLOCK_BYTES
        go.set()
        until(lambda: any("the disk says no" in one.state for one in process.state().devices))
        assert Path(path).stat().st_size == node.path.stat().st_size


# --- sockets ------------------------------------------------------------------------------------------------------------------
def test_the_port_is_opened_when_it_is_free_and_told_then(cluster: PoolCluster, node: PoolNode) -> None:
    with socket.create_server(("127.0.0.1", node.port)), node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        assert "cannot listen on segments.listen" in process.state().trouble and node.row().segments == ""
        local = RemoteServer(str(node.run_dir / "bays.sock"), node.node, cluster.tls(node.node))
        assert [one.device for one in local.reads(in_a_minute()).welcome.devices] == [1], "this node is served all the same"
        local.close()
        assert not process.state().address
    with node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        assert process.state().trouble == "" and node.row().segments == process.state().address == f"127.0.0.1:{node.port}"


@pytest.mark.parametrize(
    ("listen", "advertise", "told"),
    [("127.0.0.1", "", "127.0.0.1"), ("0.0.0.0", "node1.example.net", "node1.example.net"), ("0.0.0.0", "", None), ("::1", "", "[::1]")],
)
def test_the_address_that_others_are_told(cluster: PoolCluster, node: PoolNode, listen: str, advertise: str, told: str | None) -> None:
    own = own_address()
    if told is None and not own:
        pytest.skip("this machine has no route")
    with node.serve(listen=(listen, node.port), advertise=advertise) as process:
        process.look()
        until(node.is_served)
        process.look()
        assert node.row().segments == f"{told or own}:{node.port}"


def test_without_a_certificate_or_a_port_only_this_node_is_served(cluster: PoolCluster, node: PoolNode) -> None:
    for changes in ({"listen": None}, {"tls": ("/none", "/none", "/none"), "meta_sock": str(cluster.folder / "leader" / "meta.sock")}):
        with node.serve(**changes) as process:
            process.look()
            until(node.is_served)
            process.look()
            assert (node.row().segments, process.state().trouble) == ("", "")


def test_the_sockets_are_roots_and_a_second_server_is_refused(cluster: PoolCluster, node: PoolNode) -> None:
    with node.serve():
        for name in ("bays.sock", "segments.sock"):
            found = (node.run_dir / name).stat()
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
        with pytest.raises(Refused, match=f"process {os.getpid()}"):
            SegmentsProcess(node.config())
    with node.serve():
        pass
    with pytest.raises(Unavailable, match="does not answer"):
        ask_state(node.run_dir)


def test_the_configuration_crosses_an_exec_whole(node: PoolNode) -> None:
    config = node.config(advertise="näme", listen=None)
    assert take_over(hand_over(config)) == config
    reader, writer = os.pipe()
    os.write(writer, b'{"node": 5}')
    os.close(writer)
    with pytest.raises(ConfigError, match="no configuration"):
        take_over(reader)


def test_questions_to_the_leader_end_when_the_process_does(cluster: PoolCluster, node: PoolNode) -> None:
    """Where nobody leads they would hold up its end for seconds."""
    with node.serve() as process:
        cluster.abdicate()
        process.ask_no_more()
        process.look()
        assert "the segment server ends" in process.state().trouble


# --- a recovery of the cluster ---------------------------------------------------------------------------------------------------
def stored(client: PoolClient, cluster: PoolCluster, node: PoolNode, name: bytes) -> SegmentInBays:
    """A sealed segment with a living file, written and committed as a mount does it."""
    (segment,) = client.lease()
    made = content(segment.segment, segment.segment, SEGMENT_BYTES, incarnation=segment.incarnation)
    index = segment.bays[0].index
    writer = client.device(node).open(index, segment.segment, segment.incarnation)
    writer.append([memoryview(made.raw)])
    end = writer.sync()
    ino = client.propose(c.Create(cluster.volume, 1, name, 0o100644, 0, 0)).attr.ino
    offset, header, length = made.frames[0]
    extent = Extent(0, length, segment.segment, segment.incarnation, 1, offset, header, 0)
    footer = made.extent.footer
    step = SegmentProgress(segment.segment, segment.incarnation, footer, True, footer, end - footer, [(1, index, end)])
    client.propose(c.Commit(cluster.volume, [c.InodeCommit(ino, 1, 1, length, 1, [extent])], 0, [step]))
    return segment


def test_a_server_that_lives_through_a_recovery_attaches_its_device_again_and_looks_at_its_bays(
    cluster: PoolCluster, node: PoolNode, caplog: pytest.LogCaptureFixture
) -> None:
    """The leader's state is put back to what it was before a bay was given to another segment."""
    with node.serve() as process:
        process.look()
        until(node.is_served)
        process.look()
        client = cluster.client()
        segments = [stored(client, cluster, node, b"file-%d" % number) for number in range(3)]
        gone = segments[1].bays[0].index
        kept = cluster.copy_state()
        cluster.propose(c.Unlink(cluster.volume, 1, b"file-1"))
        (bay,) = cluster.ask(m.GetBays(1, gone, 1)).bays
        cluster.propose(c.BaysTrimmed(node.node, 1, [(gone, bay.segment, bay.entry)]))
        with open(node.path, "r+b") as file:  # as the next segment of that bay is written
            file.seek(MIB + gone * SEGMENT_BYTES)
            file.write(content(900, 9, SEGMENT_BYTES, incarnation=900).raw)
        client.close()
        cluster.put_state_back(kept)
        before = node.generation()
        cluster.propose(c.Recover(1 << 40, "nobody"))
        assert cluster.ask(m.GetBays(1, 0, 1)).doubted == 3
        until(lambda: (process.look(), not cluster.ask(m.GetBays(1, 0, 1)).doubted)[1])
        attached = node.generation()
        assert attached > before
        for _ in range(5):
            process.look()
        assert node.is_served() and node.generation() == attached, "and not again and again"
        assert [record.bays for record in caplog.records if hasattr(record, "count_no_more")] == [[gone]]
