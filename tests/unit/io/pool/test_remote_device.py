"""Bays of another node, over TCP with the certificates of a cluster: what is written and read, and what every failure looks like."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import BLOCK_BYTES, NS_PER_MS, SEGMENT_BODY_BYTES_MAX
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_METADATA, SEGMENT_SEALED
from awsomefsd.base.wait import begin_reading_requests
from awsomefsd.io.pool import remote_server
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.pool.remote_errors import BayLost, MediumFailed, NobodyLeads, NotServed, ServerAway
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.io.pool.server import KnownNode
from awsomefsd.io.pool.server_connection import ServerConnection
from awsomefsd.io.transport.link import BulkLink
from awsomefsd.io.transport.messages import BulkWelcome
from awsomefsd.io.transport.records import BulkRecord, Kind, pack
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.segment_servers import BAY_BYTES, BAYS, SESSION, ServedCluster, node_of, until

BLOCK = b"b" * BLOCK_BYTES
NODE = node_of(50)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ServedCluster]:
    made = ServedCluster(tmp_path)
    yield made
    made.close()


@pytest.fixture
def device(cluster: ServedCluster) -> RemoteDevice:
    return cluster.remote(cluster.nodes[0])


def by(ms: int) -> int:
    return time.monotonic_ns() + ms * NS_PER_MS


def views(content: bytes, *cuts: int) -> list[memoryview]:
    edges = [0, *cuts, len(content)]
    return [memoryview(content)[low:high] for low, high in itertools.pairwise(edges)]


def read(device: RemoteDevice, index: int, segment: int, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    got = device.bay(index, segment, 1).pread_into(buffer, offset)
    return bytes(buffer[:got])


# --- what works ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("local", [False, True])
def test_what_is_appended_in_pieces_is_read_in_others(cluster: ServedCluster, local: bool) -> None:
    node = cluster.nodes[0]
    own = node.node if local else cluster.CLIENT
    device = RemoteDevice(cluster.server(node, own, str(node.unix) if local else ""), 1, BAY_BYTES)
    cluster.leader.lease(1, 2, 70, own)
    content = os.urandom(3 * SEGMENT_BODY_BYTES_MAX // BLOCK_BYTES * BLOCK_BYTES)
    writer = device.open(2, 70, 1)
    writer.append(views(content[:BLOCK_BYTES], 0, 7, 7))
    assert writer.sync() == BLOCK_BYTES
    writer.append(views(content[BLOCK_BYTES:], 100, 2 * SEGMENT_BODY_BYTES_MAX))
    assert writer.sync() == writer.close() == len(content)
    assert node.medium(2, len(content)) == content
    for offset, length in ((0, 1), (4_095, 2), (17, 2 * SEGMENT_BODY_BYTES_MAX + 5), (len(content) - 10, 50), (len(content), 8)):
        found = read(device, 2, 70, offset, length)
        behind = bytes(length) if local else b""  # a node of role node sees what the bay holds behind the end
        assert found == (content[offset : offset + length] + behind)[: len(found)] and len(found) >= len(content[offset : offset + length])
    parts = [memoryview(bytearray(size)) for size in (10, 5_000, 3)]
    assert device.bay(2, 70, 1).preadv(parts, 9) == 5_013
    assert b"".join(parts) == content[9 : 9 + 5_013]
    assert device.server.dialled() == 2 and device.server.usual_read_ns > 0


def test_a_read_waits_for_no_flush_and_many_read_at_once(cluster: ServedCluster, device: RemoteDevice) -> None:
    node, go = cluster.nodes[0], threading.Event()
    for index in range(2):
        cluster.leader.lease(1, index, 70 + index, cluster.CLIENT)
    content = os.urandom(256 * BLOCK_BYTES)
    writer = device.open(0, 70, 1)
    writer.append(views(content))
    writer.sync()
    node.file.before_flush = lambda: bool(go.wait(60)) and None
    writer.append(views(BLOCK))
    call = writer.begin_sync()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda at: read(device, 0, 70, at * 4_000, 30_000) == content[at * 4_000 :][:30_000], range(200)))
    assert all(done) and not call.done.is_set()
    go.set()
    assert writer.end_sync(call, by(60_000)) == len(content) + BLOCK_BYTES


# --- errors of the server -----------------------------------------------------------------------------------------------------
def test_each_refusal_has_its_type(cluster: ServedCluster, device: RemoteDevice) -> None:
    leader = cluster.leader
    with pytest.raises(BayLost, match="not leased"):
        device.open(0, 70, 1)
    leader.lease(1, 0, 70, cluster.CLIENT)
    leader.away = True
    with pytest.raises(NobodyLeads):
        device.open(0, 70, 1)
    leader.away = False
    writer = device.open(0, 70, 1)
    with pytest.raises(BayLost, match="opened for this segment before"):
        device.open(0, 70, 1)
    writer.append(views(BLOCK))
    writer.sync()
    with pytest.raises(BayLost, match="another segment"):
        read(device, 0, 71, 0, 10)
    with pytest.raises(NotServed) as refused:
        read(device, BAYS, 70, 0, 10)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(NotServed) as refused:
        read(RemoteDevice(device.server, 9, BAY_BYTES), 0, 70, 0, 10)
    assert refused.value.errno == errno.ENODEV
    leader.put(1, 3, BAY_MIRROR, 73, state=SEGMENT_METADATA, durable=4096)
    with pytest.raises(NotServed) as refused:
        read(device, 3, 73, 0, 10)
    assert refused.value.errno == errno.EACCES
    cluster.nodes[0].file.fail_reads = True
    with pytest.raises(MediumFailed):
        read(device, 0, 70, 0, 10)
    cluster.nodes[0].file.fail_reads = False
    assert read(device, 0, 70, 0, BLOCK_BYTES) == BLOCK, "no refusal has ended a connection"
    assert device.server.dialled() == 2


def test_a_failed_write_is_seen_and_the_first_error_stays(cluster: ServedCluster, device: RemoteDevice) -> None:
    for index in range(2):
        cluster.leader.lease(1, index, 70 + index, cluster.CLIENT)
    writer, other = device.open(0, 70, 1), device.open(1, 71, 1)
    cluster.nodes[0].file.fail_writes = True
    writer.append(views(BLOCK))
    until(lambda: writer.error is not None)
    cluster.nodes[0].file.fail_writes = False
    for attempt in (lambda: writer.append(views(BLOCK)), writer.sync, writer.close):
        with pytest.raises(MediumFailed, match="disk says no"):
            attempt()
    other.append(views(BLOCK))
    assert other.sync() == BLOCK_BYTES, "another bay of the same connection is not concerned"
    cluster.nodes[0].file.fail_flushes = True
    other.append(views(BLOCK))
    with pytest.raises(BayLost, match="flush"):
        other.sync()
    with pytest.raises(BayLost, match="flush"):
        other.append(views(BLOCK))


def test_more_than_the_bay_has_room_for_is_not_even_sent(cluster: ServedCluster, device: RemoteDevice) -> None:
    cluster.leader.lease(1, 0, 70, cluster.CLIENT)
    writer = device.open(0, 70, 1)
    with pytest.raises(BayLost):
        writer.append([memoryview(bytes(BAY_BYTES)), memoryview(BLOCK)])
    writer.append(views(BLOCK))
    assert writer.sync() == BLOCK_BYTES


# --- connections --------------------------------------------------------------------------------------------------------------
def test_a_server_that_ends_fails_its_writers_and_is_found_again(cluster: ServedCluster, device: RemoteDevice) -> None:
    cluster.leader.lease(1, 0, 70, cluster.CLIENT)
    node, writer = cluster.nodes[0], device.open(0, 70, 1)
    writer.append(views(BLOCK))
    writer.sync()
    node.server.stop()
    until(lambda: writer.error is not None)
    with pytest.raises(ServerAway):
        writer.append(views(BLOCK))
    with pytest.raises(ServerAway):
        read(device, 0, 70, 0, 10)
    cluster.leader.bays[1, 0].durable = cluster.leader.bays[1, 0].end = BLOCK_BYTES
    node.start()
    until(lambda: not device.server.pause_ns())
    assert read(device, 0, 70, 0, 2 * BLOCK_BYTES) == BLOCK
    with pytest.raises(BayLost):
        device.open(0, 70, 1)


def test_while_a_server_comes_and_goes_reads_bring_the_right_bytes_or_an_error(cluster: ServedCluster, device: RemoteDevice) -> None:
    node, ended = cluster.nodes[0], threading.Event()
    content = os.urandom(64 * BLOCK_BYTES)
    node.put(0, content)
    cluster.leader.put(1, 0, BAY_MIRROR, 70, state=SEGMENT_SEALED, durable=len(content))

    good, away = [0] * 4, [0] * 4

    def run(seed: int) -> None:
        while not ended.is_set():
            at = (seed * 7_919 + good[seed] * 4_999) % (len(content) - 40_000)
            try:
                assert read(device, 0, 70, at, 40_000) == content[at : at + 40_000]
                good[seed] += 1
            except ServerAway:
                away[seed] += 1
                ended.wait(0.01)

    def all_have_read() -> bool:
        return not device.server.pause_ns() and node.server.figures()["segment_connections"] == 1 and all(good)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(run, seed) for seed in range(4)]
        try:
            for _ in range(5):
                until(all_have_read)
                node.server.stop()
                node.start()
            node.server.stop()
            before = list(away)
            until(lambda: all(now > one for now, one in zip(away, before, strict=True)))
            node.start()
            before = list(good)
            until(lambda: all(now > one for now, one in zip(good, before, strict=True)))
        finally:
            ended.set()
        for one in running:
            one.result(60)
    assert read(device, 0, 70, 0, 100) == content[:100]


def test_a_server_that_is_away_is_left_alone_for_longer_and_longer(cluster: ServedCluster) -> None:
    now = [0]
    node = cluster.nodes[0]
    server = RemoteServer(node.endpoint, cluster.CLIENT, cluster.tls(cluster.CLIENT), lambda: SESSION, lambda: now[0])
    device = RemoteDevice(server, 1, BAY_BYTES)
    node.server.stop()
    pauses = []
    for _ in range(9):
        with pytest.raises(ServerAway, match="refused"):
            read(device, 0, 70, 0, 10)
        dialled = server.dialled()
        for _ in range(3):
            with pytest.raises(ServerAway, match="left alone"):
                read(device, 0, 70, 0, 10)
        assert server.dialled() == dialled
        pauses.append(server.pause_ns() // NS_PER_MS)
        now[0] += server.pause_ns()
    assert pauses == [50, 100, 200, 400, 800, 1_600, 2_000, 2_000, 2_000]
    node.start()
    cluster.leader.put(1, 0, BAY_MIRROR, 70, state=SEGMENT_SEALED, durable=10)
    assert read(device, 0, 70, 0, 20) == bytes(10)
    server.close()
    with pytest.raises(ServerAway):
        read(device, 0, 70, 0, 10)


def test_without_a_thread_a_server_is_away(cluster: ServedCluster, device: RemoteDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(ServerAway, match="no thread"):
            read(device, 0, 70, 0, 10)
    cluster.leader.put(1, 0, BAY_MIRROR, 70, state=SEGMENT_SEALED, durable=10)
    assert read(device, 0, 70, 0, 20) == bytes(10)


@pytest.mark.parametrize("host", ["node..example", "a" * 64 + ".example"])
def test_a_server_whose_host_name_can_be_none_is_away(cluster: ServedCluster, host: str) -> None:
    server = RemoteServer(f"{node_of(2)}@{host}:7000", cluster.CLIENT, cluster.tls(cluster.CLIENT), lambda: SESSION)
    with pytest.raises(ServerAway, match="not the name of a host"):
        read(RemoteDevice(server, 1, BAY_BYTES), 0, 70, 0, 10)
    with pytest.raises(ServerAway, match="left alone"):
        read(RemoteDevice(server, 1, BAY_BYTES), 0, 70, 0, 10)
    server.close()


def test_another_node_at_the_address_and_a_removed_node(cluster: ServedCluster) -> None:
    node = cluster.nodes[0]
    wrong = RemoteDevice(cluster.server(node, endpoint=f"{node_of(2)}@127.0.0.1:{node.address[1]}"), 1, BAY_BYTES)
    with pytest.raises(ServerAway, match="CERTIFICATE"):
        read(wrong, 0, 70, 0, 10)
    device = cluster.remote(node, NODE)
    read(device, 0, 70, 0, 10)
    node.server.members({node.node: KnownNode("node")})
    until(lambda: node.server.figures()["segment_connections"] == 0)
    with pytest.raises(ServerAway):
        read(device, 0, 70, 0, 10)


def test_a_new_session_opens_on_a_new_connection(cluster: ServedCluster) -> None:
    session = [SESSION]
    node = cluster.nodes[0]
    server = RemoteServer(node.endpoint, cluster.CLIENT, cluster.tls(cluster.CLIENT), lambda: session[0])
    device = RemoteDevice(server, 1, BAY_BYTES)
    for index in range(2):
        cluster.leader.lease(1, index, 70 + index, cluster.CLIENT)
    before = device.open(0, 70, 1)
    session[0] = (8, 1)
    with pytest.raises(BayLost):
        device.open(1, 71, 1)
    cluster.leader.bays[1, 1].session, cluster.leader.bays[1, 1].epoch = 8, 1
    after = device.open(1, 71, 1)
    before.append(views(BLOCK))
    assert before.sync() == BLOCK_BYTES, "what was opened before goes on where it was opened"
    before.close()
    cluster.leader.lease(1, 2, 72, cluster.CLIENT)
    with pytest.raises(BayLost):
        device.open(2, 72, 1)
    until(lambda: node.server.figures()["segment_connections"] == 1)
    after.append(views(BLOCK))
    assert after.sync() == BLOCK_BYTES
    server.close()


# --- a server of our own, which answers as it likes ---------------------------------------------------------------------------
class Scripted:
    """The other end of a plain connection; `connection` is open to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.link = BulkLink(theirs, None)
        self.connection = ServerConnection("a test", lambda _end: (BulkLink(ours, None), BulkWelcome(1, b"id")))
        self.connection.start()
        self.connection.wait_open(by(60_000))

    def next(self) -> BulkRecord:
        return self.link.receive(by(60_000))

    def answer(self, request: BulkRecord, body: bytes = b"", **fields: int) -> None:
        kind = fields.pop("kind", request.kind | 0x40)
        record = BulkRecord(
            Kind(kind), fields.pop("call", request.call), fields.pop("segment", request.segment), 1, 1, 0,
            fields.pop("offset", request.offset), body_bytes=len(body), **fields,
        )  # fmt: skip
        self.link.send(record, [memoryview(body)] if body else [])


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.connection.close()
    made.link.close()


READ = BulkRecord(Kind.READ, 0, 70, 1, 1, 0, 0, 8)


def test_memory_is_not_written_to_once_nobody_waits(scripted: Scripted) -> None:
    buffer, second = memoryview(bytearray(8)), memoryview(bytearray(8))
    late = scripted.connection.begin(READ, buffer)
    scripted.next()
    scripted.connection.abandon(late)
    call = scripted.connection.begin(READ, second)
    again = scripted.next()
    scripted.answer(late.request, b"late....")
    scripted.answer(again, b"in time.")
    assert scripted.connection.wait(call, by(60_000)).body_bytes == 8
    assert bytes(second) == b"in time." and bytes(buffer) == bytes(8)


def test_a_slow_answer_is_given_up_and_a_silent_server_is_ended(scripted: Scripted) -> None:
    connection = scripted.connection
    slow, other = connection.begin(READ, memoryview(bytearray(8))), connection.begin(READ, memoryview(bytearray(8)))
    first, second = scripted.next(), scripted.next()
    scripted.answer(first, b"12345678")
    connection.wait(slow, by(60_000))
    with pytest.raises(ServerAway) as late:
        connection.wait(other, by(1))
    assert late.value.errno == errno.ETIMEDOUT and connection.error is None, "it has answered since: it is only slow"
    scripted.answer(second, b"12345678")
    until(lambda: not connection.busy)
    silent = connection.begin(READ, memoryview(bytearray(8)))
    scripted.next()
    with pytest.raises(ServerAway):
        connection.wait(silent, by(1))
    until(lambda: connection.error is not None)
    with pytest.raises(ServerAway):
        connection.begin(READ, memoryview(bytearray(8)))


def test_bytes_that_stop_half_way_do_not_hold_whoever_waits(scripted: Scripted) -> None:
    call = scripted.connection.begin(READ, memoryview(bytearray(8)))
    request = scripted.next()
    header = pack(BulkRecord(Kind.BYTES, request.call, 70, 1, 1, 0, body_bytes=8))
    scripted.link._sock.send(header + b"half")
    until(lambda: call.filling)
    with pytest.raises(ServerAway):
        scripted.connection.wait(call, by(1))
    assert call.done.is_set()


@pytest.mark.parametrize(
    "change",
    [
        {"call": 99}, {"segment": 71}, {"offset": 4096}, {"body": b"123456789"},
        {"kind": Kind.SYNCED, "body": b""}, {"kind": Kind.SYNC, "body": b""},
    ],
)  # fmt: skip
def test_an_answer_to_nothing_that_was_asked_ends_the_connection(scripted: Scripted, change: dict[str, object]) -> None:
    buffer = memoryview(bytearray(8))
    call = scripted.connection.begin(READ, buffer)
    request = scripted.next()
    scripted.answer(request, **{"body": b"12345678", **change})  # type: ignore[arg-type]
    with pytest.raises(ServerAway, match="answers nothing"):
        scripted.connection.wait(call, by(60_000))
    assert bytes(buffer) == bytes(8)


def test_an_append_that_is_answered_without_an_error_breaks_the_protocol(scripted: Scripted) -> None:
    scripted.answer(BulkRecord(Kind.APPEND, 0, 70, 1, 1, 0))
    until(lambda: scripted.connection.error is not None)


def test_a_connection_that_gets_old_is_replaced_and_ends_when_it_is_not_used(
    cluster: ServedCluster, device: RemoteDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2):
        cluster.leader.lease(1, index, 70 + index, cluster.CLIENT)
    writer = device.open(0, 70, 1)
    first = writer._connection
    monkeypatch.setattr(ServerConnection, "worn", property(lambda self: self is first))
    second = device.open(1, 71, 1)
    assert second._connection is not first
    writer.append(views(BLOCK))
    assert writer.sync() == BLOCK_BYTES
    writer.close()
    with pytest.raises(BayLost):
        device.open(2, 72, 1)
    until(lambda: first.error is not None)
    second.append(views(BLOCK))
    assert second.sync() == BLOCK_BYTES


def test_a_dialled_peer_that_never_greets_has_a_deadline(cluster: ServedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.io.pool.server_connection.SEGMENT_DIAL_MS_MAX", 30)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"{node_of(1)}@127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerAway):
            read(RemoteDevice(cluster.server(cluster.nodes[0], endpoint=endpoint), 1, BAY_BYTES), 0, 70, 0, 10)
    with pytest.raises(ProtocolError):
        remote_server.loads(b"\x90", BulkWelcome)


def test_a_thread_that_reads_the_kernels_requests_never_waits_here(device: RemoteDevice) -> None:
    met: list[BaseException] = []

    def run() -> None:
        begin_reading_requests()
        for attempt in (lambda: read(device, 0, 70, 0, 10), lambda: device.open(0, 70, 1)):
            try:
                attempt()
            except AssertionError as err:
                met.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(met) == 2 and device.server.dialled() == 0
