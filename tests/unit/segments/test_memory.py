"""The memory of a segment server: what it holds when idle, and under the load of 64 connections of four nodes at once.

`-s` prints the figures of docs/PERFORMANCE.md.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from awsomefsd.base.limits import MIB, SEGMENT_BUFFERS_MAX, SEGMENT_BUFFERS_PER_NODE
from awsomefsd.base.rule_levels import POOLS
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.pool.remote_device import BayWriter, RemoteDevice
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.client.endpoints import endpoint_of
from tests.rigs.pool_cluster import BAYS, SEGMENT_BYTES, WAIT_S, PoolCluster, PoolNode
from tests.rigs.segment_servers import node_of, until

IDLE_BYTES_MAX, LOADED_BYTES_MAX = 60 * MIB, 256 * MIB
CONNECTIONS, ROUNDS = 64, 6
READERS = [node_of(number) for number in range(901, 1 + 900 + SEGMENT_BUFFERS_MAX // SEGMENT_BUFFERS_PER_NODE)]


def memory(pid: int, what: str) -> int:
    """VmRSS, as it is, or VmHWM, its largest value ever, in bytes."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(rows[what].split()[0]) * 1_024


def connected(cluster: PoolCluster, node: PoolNode, reader: str) -> RemoteDevice:
    tls = cluster.tls(reader)
    return RemoteDevice(RemoteServer(endpoint_of(node.node, node.row().segments), reader, tls, lambda: (0, 0)), node.number, SEGMENT_BYTES)


def write(writer: BayWriter) -> None:
    for _ in range(SEGMENT_BYTES // MIB):
        writer.append([memoryview(bytes(MIB))])
    writer.sync()


def read(bay: BlockDevice) -> None:
    into = memoryview(bytearray(MIB))
    for turn in range(ROUNDS):
        assert bay.pread_into(into, turn % (SEGMENT_BYTES // MIB) * MIB) == MIB


def test_idle_and_under_64_connections_it_keeps_its_bounds(cluster: PoolCluster, node: PoolNode) -> None:
    for reader in READERS:
        cluster.roles[reader] = "node"
        cluster.propose(c.AddNode(reader, f"r{reader[-3:]}", "node", bytes.fromhex(reader[-2:]) * 32, level=POOLS))
    process = node.launch()
    until(lambda: node.is_served() and node.row().segments != "")
    idle = memory(process.pid, "VmRSS")
    client = cluster.client()
    first, *others = client.lease(BAYS)  # as many as may be had
    index = first.bays[0].index
    write(client.device(node).open(index, first.segment, first.incarnation))
    writers = [client.device(node).open(one.bays[0].index, one.segment, one.incarnation) for one in others]
    devices = [connected(cluster, node, READERS[number % len(READERS)]) for number in range(CONNECTIONS - len(writers))]
    try:
        bays = [device.bay(index, first.segment, first.incarnation) for device in devices]
        for bay in bays:  # they connect one after another: handshakes have a deadline, and all at once would be a measure of this machine
            bay.pread_into(memoryview(bytearray(1)), 0)
        state = node.state()
        assert state is not None and state.figures["segment_connections"] >= CONNECTIONS, state
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            work = [*(threads.submit(write, writer) for writer in writers), *(threads.submit(read, bay) for bay in bays)]
            for one in work:
                one.result(WAIT_S)
        loaded = memory(process.pid, "VmHWM")
    finally:
        for device in devices:
            device.server.close()
    print(f"\nsegment server: {idle / MIB:.0f} MiB idle, {loaded / MIB:.0f} MiB at most under {CONNECTIONS} connections")
    assert idle < IDLE_BYTES_MAX and loaded < LOADED_BYTES_MAX, (idle, loaded)
