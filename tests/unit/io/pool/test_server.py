"""A segment server on real sockets and a real file: the rules of each request, and all who get nothing."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import ProtocolError, Unavailable
from awsomefsd.base.limits import BLOCK_BYTES, MIB, SEGMENT_BODY_BYTES_MAX, SEGMENT_BUFFERS_MAX, SEGMENT_BUFFERS_PER_NODE
from awsomefsd.base.sockets import connect_unix, listen_unix
from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, BAY_STALE, SEGMENT_LEASED, SEGMENT_METADATA, SEGMENT_SEALED
from awsomefsd.io.device.device import Device
from awsomefsd.io.pool import server as pool_server
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.pool.gate import Gate
from awsomefsd.io.pool.server import KnownNode, SegmentServer
from awsomefsd.io.transport import handshake
from awsomefsd.io.transport.handshake import deadline_after
from awsomefsd.io.transport.link import BulkLink
from awsomefsd.io.transport.messages import BulkHello, BulkWelcome, dumps, loads
from awsomefsd.io.transport.records import BulkRecord, Kind, pack
from awsomefsd.meta.api.messages.devices import BayInfo
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.voter_certificates import Authority

SERVER, CLIENT, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
BAY_BYTES, BAYS, FIRST = 4 * MIB, 4, MIB
BLOCK = b"b" * BLOCK_BYTES


class Leader:
    """What the log says of the bays of device 5; a test may make it slow, or away."""

    def __init__(self) -> None:
        self.bays: dict[int, BayInfo] = {}
        self.away = False
        self.asked = 0
        self.before: Callable[[], None] = lambda: None

    def bay(self, device: int, index: int) -> BayInfo | None:
        assert device == 5
        self.asked += 1
        self.before()
        if self.away:
            raise Unavailable("no quorum")
        return self.bays.get(index)

    def lease(self, index: int, segment: int, node: str = CLIENT, session: int = 7) -> None:
        self.bays[index] = BayInfo(index, BAY_MIRROR, 100, segment, 1, SEGMENT_LEASED, session, 3, node)


class FailingFile(Device):
    """A file whose writes and flushes fail when they are told to."""

    fail_writes = fail_flushes = False
    flushes = 0

    def pwritev(self, buffers: object, offset: int) -> None:
        if self.fail_writes:
            raise OSError(errno.EIO, "the disk says no")
        super().pwritev(buffers, offset)  # type: ignore[arg-type]

    def flush(self) -> None:
        self.flushes += 1
        if self.fail_flushes:
            raise OSError(errno.EIO, "the disk says no")
        super().flush()


class Client:
    """One connection, spoken to record by record."""

    def __init__(self, link: BulkLink, welcome: BulkWelcome) -> None:
        self.link, self.welcome, self.call = link, welcome, 0

    def send(self, kind: Kind, index: int, segment: int, body: bytes = b"", **fields: int) -> None:
        self.call += 1
        record = BulkRecord(kind, self.call, segment, 1, 5, index, body_bytes=len(body), **fields)
        self.link.send(record, [memoryview(body)] if body else [])

    def answer(self) -> tuple[BulkRecord, bytes]:
        record = self.link.receive(deadline_after(60_000))
        return record, self.link.receive_small(record)

    def ask(self, kind: Kind, index: int, segment: int, **fields: int) -> tuple[BulkRecord, bytes]:
        self.send(kind, index, segment, **fields)
        record, body = self.answer()
        assert record.call == self.call and record.kind == kind | 0x40
        return record, body

    def ok(self, kind: Kind, index: int, segment: int, **fields: int) -> BulkRecord:
        record, body = self.ask(kind, index, segment, **fields)
        assert not record.errno, body
        return record

    def fails(self, number: int, kind: Kind, index: int, segment: int, **fields: int) -> str:
        record, body = self.ask(kind, index, segment, **fields)
        assert record.errno == number, (errno.errorcode.get(record.errno), body)
        return body.decode()

    def read(self, index: int, segment: int, offset: int, length: int) -> bytes:
        record, body = self.ask(Kind.READ, index, segment, offset=offset, value=length)
        assert not record.errno, body
        return body

    def append(self, index: int, segment: int, offset: int, body: bytes = BLOCK) -> None:
        self.send(Kind.APPEND, index, segment, body, offset=offset)

    def ended(self) -> None:
        with pytest.raises((OSError, ProtocolError)) as why:
            self.answer()
        assert not isinstance(why.value, TimeoutError)
        self.link.close()


class Rig:
    def __init__(self, authority: Authority, folder: Path) -> None:
        self.authority, self.leader = authority, Leader()
        path = folder / "disk"
        with open(path, "wb") as file:
            file.truncate(FIRST + BAYS * BAY_BYTES)
        self.file = FailingFile.open(path)
        self.gate, self.changed = Gate(), threading.Condition()
        self.device = DeviceBays(5, self.file, FIRST, BAY_BYTES, BAYS, self.gate, self.changed)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = folder / "segments.sock"
        listeners = [self.tcp, listen_unix(self.unix, 0o600)]
        self.server = SegmentServer(
            SERVER, "node", [self.device], self.gate, self.changed, self.leader, authority.tls(SERVER), listeners
        )  # fmt: skip
        self.address = self.tcp.getsockname()
        self.clients: list[Client] = []
        self.everybody()
        self.server.start()

    def everybody(self) -> None:
        self.server.members({SERVER: KnownNode("node"), CLIENT: KnownNode("client"), OTHER: KnownNode("node")})

    def connect(self, node: str = CLIENT, role: str = "client", session: int = 7, says: str = "") -> Client:
        sock = socket.create_connection(self.address)
        keys = handshake.dial(sock, self.authority.tls(node, role)().segment_client, SERVER, node, deadline_after(60_000))
        return self.greet(BulkLink(sock, keys), says or node, session)

    def local(self) -> Client:
        return self.greet(BulkLink(connect_unix(self.unix), None), SERVER, 7)

    def greet(self, link: BulkLink, node: str, session: int) -> Client:
        body = dumps(BulkHello(1, node, session, 3))
        link.send(BulkRecord(Kind.HELLO, body_bytes=len(body)), [memoryview(body)])
        record = link.receive(deadline_after(60_000))
        made = Client(link, loads(link.receive_small(record), BulkWelcome))
        self.clients.append(made)
        return made

    def until(self, so: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not so():
            assert time.monotonic() < end, "it never became so"
            threading.Event().wait(0.005)

    def medium(self, index: int, length: int, offset: int = 0) -> bytes:
        with open(self.file.path, "rb") as file:
            file.seek(FIRST + index * BAY_BYTES + offset)
            return file.read(length)

    def close(self) -> None:
        self.server.stop()
        for client in self.clients:
            client.link.close()
        self.file.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def rig(authority: Authority, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(authority, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("local", [False, True])
def test_a_segment_is_written_synced_closed_and_read(rig: Rig, local: bool) -> None:
    client = rig.local() if local else rig.connect()
    rig.leader.lease(2, 70, SERVER if local else CLIENT)
    assert [(one.device, one.bays, one.segment_bytes) for one in client.welcome.devices] == [(5, BAYS, BAY_BYTES)]
    client.ok(Kind.OPEN, 2, 70)
    content = os.urandom(SEGMENT_BODY_BYTES_MAX) + os.urandom(2 * BLOCK_BYTES)
    client.append(2, 70, 0, content[:SEGMENT_BODY_BYTES_MAX])
    client.append(2, 70, SEGMENT_BODY_BYTES_MAX, content[SEGMENT_BODY_BYTES_MAX:])
    assert client.ok(Kind.SYNC, 2, 70, offset=len(content)).offset == len(content)
    assert rig.medium(2, len(content)) == content and rig.file.flushes == 1
    client.ok(Kind.SYNC, 2, 70, offset=BLOCK_BYTES)
    assert rig.file.flushes == 1, "that is durable already"
    for offset, length in ((0, 100), (5, SEGMENT_BODY_BYTES_MAX), (BLOCK_BYTES - 1, 2), (len(content) - 7, 7)):
        assert client.read(2, 70, offset, length) == content[offset : offset + length]
    assert client.ok(Kind.CLOSE, 2, 70).offset == client.ok(Kind.CLOSE, 2, 70).offset == len(content)
    assert client.fails(errno.ESTALE, Kind.OPEN, 2, 70)


@pytest.mark.parametrize(
    "change",
    [
        {"role": BAY_STALE}, {"role": BAY_COPYING}, {"segment": 71}, {"incarnation": 2}, {"state": SEGMENT_SEALED},
        {"state": SEGMENT_METADATA}, {"session": 8}, {"epoch": 4}, {"node": OTHER}, {"end": 4096}, {"durable": 4096}, None,
    ],
)  # fmt: skip
def test_a_bay_is_opened_for_its_lessee_only(rig: Rig, change: dict[str, int] | None) -> None:
    client = rig.connect()
    rig.leader.lease(0, 70)
    if change is None:
        del rig.leader.bays[0]
    else:
        rig.leader.bays[0] = replace(rig.leader.bays[0], **change)
    client.fails(errno.ESTALE, Kind.OPEN, 0, 70)
    client.append(0, 70, 0)
    assert client.answer()[0].errno == errno.ESTALE
    assert rig.medium(0, BLOCK_BYTES) == bytes(BLOCK_BYTES)


def test_without_the_leader_nothing_is_opened_or_trimmed(rig: Rig) -> None:
    client = rig.connect(OTHER, "node")
    rig.leader.lease(0, 70, OTHER)
    rig.leader.away = True
    assert "no quorum" in client.fails(errno.EAGAIN, Kind.OPEN, 0, 70)
    assert "no quorum" in client.fails(errno.EAGAIN, Kind.TRIM, 0, 70, value=9)
    rig.leader.away = False
    client.ok(Kind.OPEN, 0, 70)


def test_a_refused_open_takes_nothing_from_whoever_holds_the_bay(rig: Rig) -> None:
    client, other = rig.connect(), rig.connect(OTHER, "node")
    rig.leader.lease(0, 70)
    client.ok(Kind.OPEN, 0, 70)
    other.fails(errno.ESTALE, Kind.OPEN, 0, 70)
    other.fails(errno.ESTALE, Kind.OPEN, 0, 71)
    other.append(0, 70, 0)
    assert other.answer()[0].errno == errno.ESTALE
    other.fails(errno.ESTALE, Kind.SYNC, 0, 70, offset=0)
    other.fails(errno.ESTALE, Kind.CLOSE, 0, 70)
    client.append(0, 70, 0)
    client.ok(Kind.SYNC, 0, 70, offset=BLOCK_BYTES)
    rig.leader.lease(0, 72, OTHER)
    other.ok(Kind.OPEN, 0, 72)
    client.append(0, 70, BLOCK_BYTES, b"z" * BLOCK_BYTES)
    assert client.answer()[0].errno == errno.ESTALE
    assert rig.medium(0, BLOCK_BYTES, BLOCK_BYTES) == bytes(BLOCK_BYTES)


def test_out_of_order_beyond_the_room_or_no_such_bay(rig: Rig) -> None:
    client = rig.connect()
    for index in range(3):
        rig.leader.lease(index, 70 + index)
        client.ok(Kind.OPEN, index, 70 + index)
    client.append(0, 70, BLOCK_BYTES)
    assert client.answer()[0].errno == errno.ESTALE
    client.append(0, 70, 0)
    assert client.answer()[0].errno == errno.ESTALE, "closed for ever"
    client.append(1, 71, BAY_BYTES)
    assert client.answer()[0].errno == errno.ESTALE
    client.append(BAYS, 71, 0)
    assert client.answer()[0].errno == errno.EINVAL
    client.fails(errno.ESTALE, Kind.SYNC, 2, 72, offset=BLOCK_BYTES)
    client.fails(errno.EINVAL, Kind.READ, BAYS, 72, offset=0, value=10)
    client.fails(errno.EINVAL, Kind.READ, 0, 72, offset=1 << 60, value=10)
    assert rig.medium(0, 2 * BAY_BYTES) == bytes(2 * BAY_BYTES)


def test_a_lost_connection_closes_its_bays_for_ever(rig: Rig) -> None:
    client = rig.connect()
    rig.leader.lease(0, 70)
    client.ok(Kind.OPEN, 0, 70)
    client.append(0, 70, 0)
    client.ok(Kind.SYNC, 0, 70, offset=BLOCK_BYTES)
    client.link.close()
    rig.until(lambda: rig.server.figures()["segment_connections"] == 0)
    again = rig.connect()
    again.fails(errno.ESTALE, Kind.OPEN, 0, 70)
    assert again.read(0, 70, 0, 2 * BLOCK_BYTES) == BLOCK


def test_a_failed_write_closes_the_bay_and_a_failed_flush_all_it_may_have_lost(rig: Rig) -> None:
    client = rig.connect()
    for index in range(3):
        rig.leader.lease(index, 70 + index)
        client.ok(Kind.OPEN, index, 70 + index)
    rig.file.fail_writes = True
    client.append(0, 70, 0)
    record, why = client.answer()
    assert record.errno == errno.EIO and b"the disk says no" in why
    rig.file.fail_writes, rig.file.fail_flushes = False, True
    client.append(0, 70, 0)
    assert client.answer()[0].errno == errno.ESTALE
    client.append(1, 71, 0)
    assert "flush of the device failed" in client.fails(errno.ESTALE, Kind.SYNC, 1, 71, offset=BLOCK_BYTES)
    rig.file.fail_flushes = False
    client.append(1, 71, BLOCK_BYTES)
    assert client.answer()[0].errno == errno.ESTALE
    client.fails(errno.ESTALE, Kind.SYNC, 1, 71, offset=BLOCK_BYTES)
    client.append(2, 72, 0)
    client.ok(Kind.SYNC, 2, 72, offset=BLOCK_BYTES)
    assert (rig.device.writes.errors, rig.device.flushes.errors) == (1, 1)


# --- reading and trimming -----------------------------------------------------------------------------------------------------
def test_a_client_node_reads_no_bay_of_the_metadata_and_nothing_behind_an_end(rig: Rig) -> None:
    client, node = rig.connect(), rig.connect(OTHER, "node")
    with open(rig.file.path, "r+b") as file:
        file.seek(FIRST)
        file.write(b"secret" * BAY_BYTES)
        file.flush()
        os.fsync(file.fileno())
    for state in (SEGMENT_METADATA, 0):
        rig.leader.bays[0] = BayInfo(0, BAY_MIRROR, 100, 70, 1, state, durable=BAY_BYTES)
        client.fails(errno.EACCES, Kind.READ, 0, 70, offset=0, value=10)
    for info in (None, BayInfo(0, BAY_STALE, 9, 70), BayInfo(0, BAY_COPYING, 9, 70, 1, SEGMENT_SEALED)):
        rig.leader.bays = {0: info} if info else {}
        client.fails(errno.ESTALE, Kind.READ, 0, 70, offset=0, value=10)
    asked = rig.leader.asked
    assert node.read(0, 70, 0, 6) == b"secret" and rig.leader.asked == asked
    rig.leader.lease(1, 71)
    client.ok(Kind.OPEN, 1, 71)
    assert client.read(1, 71, 0, 10) == b"", "what the bay held before is not this segment's"
    client.append(1, 71, 0)
    assert client.read(1, 71, 0, 2 * BLOCK_BYTES) == BLOCK


def test_after_a_restart_a_client_node_reads_what_the_log_says_and_the_leader_is_asked_once(rig: Rig) -> None:
    client = rig.connect()
    rig.leader.bays[0] = BayInfo(0, BAY_MIRROR, 100, 70, 1, SEGMENT_SEALED, durable=BLOCK_BYTES, end=2 * BLOCK_BYTES)
    assert client.read(0, 70, 0, 100) == client.read(0, 70, 100, 100) == bytes(100)
    assert rig.leader.asked == 1
    assert len(client.read(0, 70, 0, 2 * BLOCK_BYTES)) == BLOCK_BYTES
    rig.leader.bays[0].durable = 2 * BLOCK_BYTES
    assert len(client.read(0, 70, 0, 2 * BLOCK_BYTES)) == 2 * BLOCK_BYTES
    client.fails(errno.ESTALE, Kind.READ, 0, 71, offset=0, value=10)


@pytest.mark.parametrize("role", ["client", "node"])
def test_a_bay_that_is_given_away_while_it_is_read_is_not_sent(rig: Rig, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, other = rig.connect(CLIENT if role == "client" else OTHER, role), rig.local()
    rig.leader.lease(0, 70, CLIENT if role == "client" else OTHER)
    client.ok(Kind.OPEN, 0, 70)
    client.append(0, 70, 0)
    client.ok(Kind.SYNC, 0, 70, offset=BLOCK_BYTES)
    real = rig.file.pread_into

    def read(buffer: memoryview, offset: int) -> int:
        rig.leader.lease(0, 71, SERVER)
        other.ok(Kind.OPEN, 0, 71)
        return real(buffer, offset)

    monkeypatch.setattr(rig.file, "pread_into", read)
    assert not rig.device.reads.errors
    assert "meanwhile" in client.fails(errno.ESTALE, Kind.READ, 0, 70, offset=0, value=10)


def test_trim_asks_whether_the_bay_is_stale_now(rig: Rig) -> None:
    client, node = rig.connect(), rig.connect(OTHER, "node")
    rig.leader.lease(0, 70)
    client.ok(Kind.OPEN, 0, 70)
    node.fails(errno.ESTALE, Kind.TRIM, 0, 70, value=100)
    client.append(0, 70, 0)
    client.ok(Kind.SYNC, 0, 70, offset=BLOCK_BYTES)
    rig.leader.bays[0] = BayInfo(0, BAY_STALE, 120, 70)
    client.fails(errno.EACCES, Kind.TRIM, 0, 70, value=120)
    node.fails(errno.ESTALE, Kind.TRIM, 0, 71, value=120)
    node.fails(errno.ESTALE, Kind.TRIM, 0, 70, value=119)
    assert node.ok(Kind.TRIM, 0, 70, value=120).value == 120
    node.ok(Kind.TRIM, 0, 70, value=120)
    client.append(0, 70, BLOCK_BYTES)
    assert client.answer()[0].errno == errno.ESTALE
    client.fails(errno.ESTALE, Kind.READ, 0, 70, offset=0, value=10)


# --- who gets in ----------------------------------------------------------------------------------------------------------------
def test_strangers_and_nonsense_are_counted_and_get_nothing(rig: Rig, authority: Authority) -> None:
    for raw in (b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.create_connection(rig.address) as sock:
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(60)
            while sock.recv(1 << 16):
                pass
    rig.until(lambda: rig.server.figures()["segment_strangers"] == 2)
    for node, role, says in ((CLIENT, "node", ""), (str(uuid.UUID(int=9)), "node", ""), (CLIENT, "client", OTHER)):
        with pytest.raises((OSError, ProtocolError)):
            rig.connect(node, role, says=says)
    link = BulkLink(connect_unix(rig.unix), None)
    link.send(BulkRecord(Kind.READ, 1, 70, 1, 5, 0, value=1))
    with pytest.raises(OSError):
        link.receive(deadline_after(60_000))
    link.close()
    rig.until(lambda: rig.server.figures()["segment_nonsense"] == 4)
    client = rig.connect()
    client.link.send(BulkRecord(Kind.BYTES, 1))
    client.ended()
    rig.until(lambda: rig.server.figures()["segment_nonsense"] == 5)
    rig.until(lambda: rig.server.figures()["segment_connections"] == 0)


def test_an_altered_record_writes_nothing_and_closes_the_bays(rig: Rig) -> None:
    client = rig.connect()
    rig.leader.lease(0, 70)
    client.ok(Kind.OPEN, 0, 70)
    forged = pack(BulkRecord(Kind.APPEND, 2, 70, 1, 5, 0, body_bytes=BLOCK_BYTES)) + BLOCK + bytes(16)
    client.link._sock.sendall(forged)
    client.ended()
    rig.until(lambda: rig.server.figures()["segment_nonsense"] == 1)
    again = rig.connect()
    again.fails(errno.ESTALE, Kind.OPEN, 0, 70)
    assert rig.medium(0, BLOCK_BYTES) == bytes(BLOCK_BYTES)


def test_a_removed_node_is_cut_off(rig: Rig) -> None:
    client, node = rig.connect(), rig.connect(OTHER, "node")
    rig.server.members({SERVER: KnownNode("node"), OTHER: KnownNode("node")})
    client.ended()
    assert node.read(0, 1, 0, 1) == bytes(1)
    with pytest.raises((OSError, ProtocolError)):
        rig.connect()
    rig.everybody()
    rig.connect()


def test_a_node_whose_role_changed_is_cut_off(rig: Rig) -> None:
    node, client = rig.connect(OTHER, "node"), rig.connect()
    rig.server.members({SERVER: KnownNode("node"), CLIENT: KnownNode("client"), OTHER: KnownNode("client")})
    node.ended()
    rig.leader.lease(0, 70)
    client.ok(Kind.OPEN, 0, 70)


def test_without_a_thread_for_one_connection_the_others_are_served(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = threading.Thread.start, [2]

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("segments-") and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(2):
        with socket.create_connection(rig.address) as sock:
            sock.settimeout(60)
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""
    rig.connect()
    figures = rig.server.figures()
    assert (figures["segment_crowded_out"], figures["segment_handshakes"]) == (2, 0)


def test_a_device_that_is_given_up_is_waited_for_and_serves_again_without_its_bays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client, node = rig.connect(), rig.connect(OTHER, "node")
    for index in (0, 1):
        rig.leader.lease(index, 70 + index)
        client.ok(Kind.OPEN, index, 70 + index)
    client.append(0, 70, 0)
    client.ok(Kind.SYNC, 0, 70, offset=BLOCK_BYTES)
    begun, go, real = threading.Event(), threading.Event(), rig.file.pread_into

    def read(buffer: memoryview, offset: int) -> int:
        begun.set()
        assert go.wait(60)
        return real(buffer, offset)

    monkeypatch.setattr(rig.file, "pread_into", read)
    node.send(Kind.READ, 1, 71, value=10)
    assert begun.wait(60)
    giving_up = threading.Thread(target=lambda: rig.server.give_up(5))
    giving_up.start()
    rig.until(lambda: rig.device.stopped)
    client.fails(errno.ENODEV, Kind.OPEN, 1, 71)
    assert giving_up.is_alive(), "somebody reads the device"
    go.set()
    giving_up.join(60)
    assert not giving_up.is_alive() and node.answer()[0].body_bytes == 10
    again = DeviceBays(5, rig.file, FIRST, BAY_BYTES, BAYS, rig.gate, rig.changed)
    rig.server.serve(again)
    client.append(0, 70, BLOCK_BYTES)
    assert client.answer()[0].errno == errno.ESTALE
    client.fails(errno.ESTALE, Kind.OPEN, 0, 70)
    rig.leader.lease(2, 72)
    client.ok(Kind.OPEN, 2, 72)
    client.append(2, 72, 0)
    client.ok(Kind.SYNC, 2, 72, offset=BLOCK_BYTES)


def test_strangers_do_not_fill_the_log(rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_server, "_LOG_NS", 1 << 60)
    for _ in range(20):
        socket.create_connection(rig.address).close()
    rig.until(lambda: rig.server.figures()["segment_strangers"] == 20)
    rig.until(lambda: not rig.server.figures()["segment_handshakes"])
    assert sum("a connection to the segment server failed" in record.message for record in caplog.records) == 1


def test_too_many_strangers_give_place_and_too_many_of_one_node_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.io.pool.server.HANDSHAKES_MAX", 2)
    monkeypatch.setattr("awsomefsd.io.pool.server.SEGMENT_CONNECTIONS_PER_NODE", 2)
    silent = [socket.create_connection(rig.address) for _ in range(5)]
    rig.until(lambda: rig.server.figures()["segment_crowded_out"] == 3)
    rig.connect()
    rig.connect()
    with pytest.raises((OSError, ProtocolError)):
        rig.connect()
    rig.connect(OTHER, "node")
    for sock in silent:
        sock.close()


def test_a_flush_is_shared_by_all_who_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [rig.connect() for _ in range(3)]
    for index, client in enumerate(clients):
        rig.leader.lease(index, 70 + index)
        client.ok(Kind.OPEN, index, 70 + index)
        client.append(index, 70 + index, 0)
        assert client.read(index, 70 + index, 0, 1)
    begun, go, real = threading.Event(), threading.Event(), rig.file.flush

    def flush() -> None:
        begun.set()
        assert go.wait(60)
        real()

    monkeypatch.setattr(rig.file, "flush", flush)
    for index, client in enumerate(clients):
        client.send(Kind.SYNC, index, 70 + index, offset=BLOCK_BYTES)
    assert begun.wait(60)
    go.set()
    assert [client.answer()[0].offset for client in clients] == [BLOCK_BYTES] * 3
    assert rig.device.flushes.done <= 2


def test_stop_ends_everything(rig: Rig) -> None:
    client, silent = rig.connect(), socket.create_connection(rig.address)
    rig.server.stop()
    client.ended()
    silent.settimeout(60)
    with suppress(ConnectionResetError):  # it was not even accepted
        assert silent.recv(1) == b""
    silent.close()
    assert rig.server.figures()["segment_connections"] == 0 and rig.gate.lose(1) == []


def test_a_node_that_stops_inside_its_records_holds_up_itself(rig: Rig) -> None:
    held = [rig.connect() for _ in range(SEGMENT_BUFFERS_MAX)]
    for client in held:
        client.link._sock.sendall(pack(BulkRecord(Kind.APPEND, 1, 70, 1, 5, 2, body_bytes=BLOCK_BYTES)))
    rig.until(lambda: rig.server._buffers._made >= min(SEGMENT_BUFFERS_PER_NODE, SEGMENT_BUFFERS_MAX))
    threading.Event().wait(0.2)  # those that may still come
    other = rig.connect(OTHER, "node")
    other.send(Kind.READ, 1, 70, value=BLOCK_BYTES)
    record = other.link.receive(deadline_after(60_000))  # long before the records of the others have taken too long
    assert record.kind is Kind.BYTES and not record.errno
