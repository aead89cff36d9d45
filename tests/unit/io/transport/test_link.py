"""Real sockets: the handshake of two nodes, records both ways, and all that ends a connection."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import NS_PER_MS, SEGMENT_BODY_BYTES_MAX, SEGMENT_CONNECTION_MS_MAX
from awsomefsd.base.tls import SEGMENT_PROTOCOL, PeerIdentity
from awsomefsd.io.transport import handshake, seal
from awsomefsd.io.transport.handshake import deadline_after
from awsomefsd.io.transport.link import SEALED_BODY_BYTES_MAX, BulkLink, prepare
from awsomefsd.io.transport.records import HEADER_BYTES, BulkRecord, Kind, pack
from tests.rigs.voter_certificates import Authority

SERVER, CLIENT, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
Pair = tuple[socket.socket, socket.socket]
SYNC = BulkRecord(Kind.SYNC, 1, 2, 3, 4, 5, 4096)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def socks() -> Iterator[Pair]:
    """A TCP connection: (dialler, acceptor)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    with left, right:
        prepare(left)
        prepare(right)
        yield left, right


class Beside:
    """A call in another thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = call()
            except BaseException as err:
                self.error = err

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def get(self) -> object:
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error:
            raise self.error
        return self.result


def shaken(authority: Authority, socks: Pair, role: str = "node") -> tuple[PeerIdentity, seal.Keys, seal.Keys]:
    end = deadline_after(60_000)
    server = authority.tls(SERVER)().segment_server
    accepting = Beside(lambda: handshake.accept(socks[1], server, SERVER, end))
    ours = handshake.dial(socks[0], authority.tls(CLIENT, role)().segment_client, SERVER, CLIENT, end)
    found = accepting.get()
    assert isinstance(found, tuple)
    return found[0], ours, found[1]


def links(keys: tuple[seal.Keys, seal.Keys] | None, socks: Pair, **options: int) -> tuple[BulkLink, BulkLink]:
    left, right = keys or (None, None)
    return BulkLink(socks[0], left, **options), BulkLink(socks[1], right, **options)


FIXED = (
    seal.keys_of(bytes(32), bytes(32), CLIENT, SERVER, dialled=True),
    seal.keys_of(bytes(32), bytes(32), CLIENT, SERVER, dialled=False),
)


@pytest.mark.parametrize("role", ["node", "client"])
def test_two_nodes_agree_on_keys_and_know_each_other(authority: Authority, socks: Pair, role: str) -> None:
    peer, ours, theirs = shaken(authority, socks, role)
    assert peer == PeerIdentity(CLIENT, role)
    assert ours == (theirs.receiving, theirs.sending)
    left, right = links((ours, theirs), socks)
    left.send(SYNC)
    assert right.receive() == SYNC


def test_two_connections_have_different_keys(authority: Authority) -> None:
    keys = []
    for _ in range(2):
        left, right = socket.socketpair()
        with left, right:
            keys.append(shaken(authority, (left, right))[1])
    assert len({*keys[0], *keys[1]}) == 4


def failing(authority: Authority, socks: Pair, context: ssl.SSLContext, node: str = SERVER) -> tuple[Exception, Exception]:
    """How both sides of a handshake fail: (dialler, acceptor)."""
    end = deadline_after(60_000)
    server = authority.tls(SERVER)().segment_server

    def accept() -> None:
        try:
            handshake.accept(socks[1], server, SERVER, end)
        finally:
            socks[1].shutdown(socket.SHUT_RDWR)

    accepting = Beside(accept)
    with pytest.raises((OSError, ProtocolError)) as dialled:
        handshake.dial(socks[0], context, node, CLIENT, end)
    socks[0].close()
    with pytest.raises((OSError, ProtocolError)) as accepted:
        accepting.get()
    return dialled.value, accepted.value


def test_strangers_fail(authority: Authority, socks: Pair) -> None:
    _, accepted = failing(authority, socks, Authority().tls(CLIENT)().segment_client)
    assert isinstance(accepted, OSError)


def test_a_dialler_without_a_certificate_fails(authority: Authority, socks: Pair) -> None:
    bare = authority.bare()
    bare.set_alpn_protocols([SEGMENT_PROTOCOL])
    _, accepted = failing(authority, socks, bare)
    assert isinstance(accepted, ssl.SSLError)


def test_another_node_at_the_address_is_noticed(authority: Authority, socks: Pair) -> None:
    dialled, _ = failing(authority, socks, authority.tls(CLIENT)().segment_client, OTHER)
    assert isinstance(dialled, ssl.SSLCertVerificationError)


def test_another_protocol_is_refused(authority: Authority, socks: Pair) -> None:
    dialled, accepted = failing(authority, socks, authority.tls(CLIENT)().client)
    assert any("protocol of segment servers" in str(one) for one in (dialled, accepted))


@pytest.mark.parametrize("more", [b"x", b"x" * 20_000])
def test_more_than_32_bytes_inside_the_handshake_are_refused(authority: Authority, socks: Pair, more: bytes) -> None:
    server = authority.tls(SERVER)().segment_server
    accepting = Beside(lambda: handshake.accept(socks[1], server, SERVER, deadline_after(60_000)))
    socks[0].settimeout(60)
    with authority.tls(CLIENT)().segment_client.wrap_socket(socks[0], server_hostname=SERVER) as wrapped:
        wrapped.sendall(bytes(32) + more)
        with pytest.raises(ProtocolError, match="more inside"):
            accepting.get()


def test_a_silent_stranger_has_a_deadline(authority: Authority, socks: Pair) -> None:
    with pytest.raises(TimeoutError):
        handshake.accept(socks[1], authority.tls(SERVER)().segment_server, SERVER, deadline_after(20))
    socks[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ssl.SSLError):
        handshake.accept(socks[1], authority.tls(SERVER)().segment_server, SERVER, deadline_after(60_000))


def test_who_always_has_more_to_say_meets_the_deadline_too(authority: Authority, socks: Pair) -> None:
    socks[0].sendall(b"\x16\x03\x01\x00\x01\x01" * 100)  # a hello in pieces of a byte
    with pytest.raises(TimeoutError):
        handshake.accept(socks[1], authority.tls(SERVER)().segment_server, SERVER, time.monotonic_ns() - 1)
    assert len(socks[1].recv(1_000)) == 600, "nothing was read"


def test_a_handshake_has_a_bound(authority: Authority, socks: Pair) -> None:
    pieces = b"\x16\x03\x01\x00\x01"
    hello = b"\x01\x01\xff\xff" + bytes(60_000)  # says that it has 131,071 bytes

    def flood() -> None:
        with suppress(OSError):
            for first in range(0, len(hello), 1_000):
                socks[0].sendall(b"".join(pieces + hello[at : at + 1] for at in range(first, min(first + 1_000, len(hello)))))

    flooding = Beside(flood)
    with pytest.raises(ProtocolError, match="for a handshake"):
        handshake.accept(socks[1], authority.tls(SERVER)().segment_server, SERVER, deadline_after(60_000))
    socks[1].close()
    flooding.get()


# --- records on a connection -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sealed", [False, True])
def test_bodies_of_every_size_arrive(socks: Pair, sealed: bool) -> None:
    left, right = links(FIXED if sealed else None, socks)
    room, into = memoryview(bytearray(SEALED_BODY_BYTES_MAX)), memoryview(bytearray(SEGMENT_BODY_BYTES_MAX))
    sizes = [4096, 8192, 1 << 20, SEGMENT_BODY_BYTES_MAX]
    content = memoryview(bytes(range(256)) * (SEGMENT_BODY_BYTES_MAX // 256))

    def send() -> None:
        for call, size in enumerate(sizes):
            pieces = [content[:4096], content[4096:size]] if call % 2 else [content[:size]]
            given = memoryview(bytearray(SEALED_BODY_BYTES_MAX)) if call < 2 else None
            left.send(BulkRecord(Kind.APPEND, call, body_bytes=size), pieces, given)
            left.send(SYNC)

    sending = Beside(send)
    for call, size in enumerate(sizes):
        record = right.receive()
        assert (record.call, record.body_bytes) == (call, size)
        assert right.receive_body(record, into, room if call % 2 else None) == content[:size]
        assert right.receive() == SYNC and right.receive_small(SYNC) == b""
    sending.get()
    tags = 2 * len(sizes) * seal.TAG_BYTES if sealed else 0
    assert right.received_bytes == left.sent_bytes == sum(sizes) + 2 * len(sizes) * HEADER_BYTES + tags


def test_nothing_that_was_sealed_can_be_read_on_the_wire(socks: Pair) -> None:
    left = BulkLink(socks[0], FIXED[0])
    left.send(BulkRecord(Kind.APPEND, body_bytes=4096), [memoryview(b"secret" + bytes(4090))])
    raw = b""
    while len(raw) < HEADER_BYTES + 4096 + seal.TAG_BYTES:
        raw += socks[1].recv(1 << 16)
    assert b"secret" not in raw and raw.count(b"\0") < 200


@pytest.mark.parametrize("sealed", [False, True])
def test_a_record_that_ends_early_or_takes_too_long_is_no_record(
    socks: Pair, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.io.transport.link.SEGMENT_RECORD_MS_MAX", 50)
    right = BulkLink(socks[1], FIXED[1] if sealed else None)
    socks[0].sendall(pack(SYNC)[:40])
    with pytest.raises(TimeoutError):
        right.receive()
    socks[0].sendall(pack(SYNC)[40:] * 2)
    monkeypatch.setattr("awsomefsd.io.transport.link.SEGMENT_RECORD_MS_MAX", 60_000)
    socks[0].shutdown(socket.SHUT_WR)
    right = BulkLink(socks[1], FIXED[1])
    with pytest.raises((ConnectionResetError, ProtocolError)):
        all_of(right)


def all_of(link: BulkLink) -> None:
    while True:
        link.receive()


def test_a_byte_now_and_then_is_no_progress(socks: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.io.transport.link.SEGMENT_RECORD_MS_MAX", 100)
    right, ended = BulkLink(socks[1], None), threading.Event()

    def trickle() -> None:
        while not ended.wait(0.01):
            socks[0].send(b"a")

    trickling = Beside(trickle)
    with pytest.raises(TimeoutError):
        right.receive()
    ended.set()
    trickling.get()


def test_altered_and_repeated_records_end_the_connection(socks: Pair) -> None:
    sealing = seal.Seal(FIXED[0].sending)
    raw = pack(SYNC) + bytes(sealing.seal(pack(SYNC), b""))
    socks[0].sendall(raw + raw)
    right = BulkLink(socks[1], FIXED[1])
    assert right.receive() == SYNC
    with pytest.raises(ProtocolError):
        right.receive()
    right = BulkLink(socks[1], FIXED[1])
    changed = bytearray(raw)
    changed[16] ^= 1  # the segment
    socks[0].sendall(changed)
    with pytest.raises(ProtocolError, match="does not open"):
        right.receive()


def flood(link: BulkLink, body: list[memoryview]) -> None:
    for _ in range(64):
        link.send(BulkRecord(Kind.BYTES, body_bytes=len(body[0])), body)


def test_a_peer_that_takes_nothing_is_given_up_and_nothing_follows_a_part(
    socks: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.io.transport.link.SEGMENT_RECORD_MS_MAX", 50)
    left = BulkLink(socks[0], FIXED[0])
    body = [memoryview(bytes(1 << 20))]
    with pytest.raises(TimeoutError):
        flood(left, body)
    with pytest.raises(ConnectionResetError, match="in part"):
        left.send(SYNC)


def test_a_connection_ends_with_its_count_and_with_its_age(socks: Pair) -> None:
    left, right = links(FIXED, socks, records_max=2)
    left.send(SYNC)
    left.send(SYNC)
    assert right.receive() == right.receive() == SYNC
    with pytest.raises(ConnectionResetError, match="as many records"):
        left.send(SYNC)
    now = [time.monotonic_ns()]
    left = BulkLink(socks[0], FIXED[0], monotonic_ns=lambda: now[0])
    right = BulkLink(socks[1], FIXED[1], monotonic_ns=lambda: now[0])
    assert not left.worn
    now[0] += SEGMENT_CONNECTION_MS_MAX // 8 * 7 * NS_PER_MS
    assert left.worn
    left.send(SYNC)
    now[0] += SEGMENT_CONNECTION_MS_MAX // 4 * NS_PER_MS
    with pytest.raises(ConnectionResetError, match="old"):
        left.send(SYNC)
    with pytest.raises(ConnectionResetError, match="old"):
        right.receive()


def test_interrupted_by_another_thread(socks: Pair) -> None:
    right = BulkLink(socks[1], FIXED[1])
    with pytest.raises(TimeoutError):
        right.receive(deadline_after(10))
    waiting = Beside(right.receive)
    right.interrupt()
    right.interrupt()
    with pytest.raises(OSError):
        waiting.get()
    right.close()
